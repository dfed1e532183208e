"""What is committed goes out, and what has gone out is deleted with the next commit."""

from collections.abc import Sequence

import structlog

from orchestrator import metrics
from orchestrator.ports import Transport
from orchestrator.tracing import SagaTracing
from shared import faults
from shared.clock import Clock
from shared.errors import UnavailableError
from shared.messages import Command

log = structlog.get_logger(__name__)


class Outbox:
    """Publishes committed commands.

    Args:
        transport: Takes them.
        tracing: Is told when they were published.
        clock: Tells the time.

    Attributes:
        published: Ids of those that have reached the broker and are stored still.
    """

    def __init__(self, *, transport: Transport, tracing: SagaTracing, clock: Clock) -> None:
        self._transport = transport
        self._tracing = tracing
        self._clock = clock
        self.published: set[str] = set()

    def publish(self, commands: Sequence[Command], *, again: bool = False) -> bool:
        """Send them; returns whether they reached the broker.

        Args:
            commands: What was committed.
            again: They may have been sent before. When is not known, and a participant may be at
                work already: their spans keep the time of the decision.
        """
        if not commands:
            return True
        faults.reach("orchestrator:after-commit-before-publish")
        begun_at = self._clock()
        try:
            self._transport.publish(commands)
        except UnavailableError as error:
            # They stay in the outbox: whoever sweeps it next sends them.
            log.warning("outbox.publish_failed", commands=len(commands), error=str(error))
            metrics.published(0)
            return False
        ids = [command.id for command in commands]
        if not again:
            self._tracing.published(ids, begun_at, self._clock())
        metrics.published(len(ids))
        self.published.update(ids)
        return True

    def take_published(self) -> set[str]:
        """What the next commit deletes; `published` is empty after it."""
        published, self.published = self.published, set()
        return published
