"""The transport of who only reads: there is none."""

from collections.abc import Sequence
from typing import NoReturn

from orchestrator.ports import Delivery
from shared.errors import UnavailableError
from shared.messages import Command


class AbsentTransport:
    """Takes nothing and has nothing.

    What is committed through it waits in the outbox until an orchestrator sends it, as when the
    broker is away.
    """

    def publish(self, commands: Sequence[Command]) -> NoReturn:
        """Refuse to send.

        Raises:
            UnavailableError: Always.
        """
        raise UnavailableError(
            f"{len(commands)} commands are not sent: this process only reads.",
            hint="An orchestrator sends them; start one if none runs.",
        )

    def receive(self, messages_max: int, timeout_seconds: float) -> list[Delivery]:
        """Nothing, at once."""
        del messages_max, timeout_seconds
        return []

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Nothing was delivered."""

    def interrupt(self) -> None:
        """Nobody waits."""

    def close(self) -> None:
        """Nothing is open."""
