"""The command bus: each command goes to exactly one handler.

bus = CommandBus(app)

@bus.handler(CreateOrder)               # in the service `orders`
def create_order(command: CreateOrder) -> None: ...

bus.dispatch(CreateOrder(order_id="o-1", amount_cents=4200))       # anywhere
"""

from collections.abc import Callable
from typing import Any, TypeVar

from shared.bus.envelope import message_headers
from shared.bus.handling import register
from shared.bus.policy import RetryPolicy
from shared.bus.registry import Bus, Handling
from shared.bus.tracing import sending
from shared.contract import Command, encoded, wire_of
from shared.errors import DefinitionError
from shared.ids import new_saga_id
from shared.settings import settings

C = TypeVar("C", bound=Command)
Handler = Callable[[C], object]


class CommandBus(Bus):
    """Sends commands, and registers their handlers, for one Celery app.

    Args:
        app: Any Celery app; a worker of it handles what was registered.
    """

    def dispatch(self, command: Command, *, command_id: str | None = None) -> str:
        """Send a command to its queue. When this returns the broker has it.

        It is delivered at least once: a worker that dies over it is followed by another.

        Args:
            command: Checked against its class.
            command_id: By default a new one.

        Returns:
            The command's id, which is also its Celery task id.

        Raises:
            InputError: Names every field that is wrong; nothing was sent.
            PayloadTooLarge: Likewise, over SAGA_PAYLOAD_BYTES_MAX.
            DefinitionError: It is no command.
            UnavailableError: The broker was away for too long.
        """
        wire = wire_of(type(command))
        if wire.kind != "command":
            raise DefinitionError(
                f"{wire.name!r} is no command but a{'n' if wire.kind == 'event' else ''} "
                f"{wire.kind}."
            )
        body = encoded(command, settings().payload_bytes_max)
        headers = message_headers(wire, command_id or new_saga_id())
        with sending(self._app, wire.queue, headers):
            self._registry.publisher.send(wire.queue, body, headers)
        return str(headers["id"])

    def handler(
        self, command: type[C], *, retry: RetryPolicy | None = None, **options: Any
    ) -> Callable[[Handler[C]], Handler[C]]:
        """Register the handler of a command.

        Args:
            command: Its class.
            retry: What follows a failure; by default five attempts with back-off.
            options: Of its Celery task, for example ``time_limit=30``.

        Returns:
            A decorator that leaves the function as it is, for tests to call.

        Raises:
            DefinitionError: The app has a handler for it already, or it is no command.
        """
        wire = wire_of(command)
        if wire.kind != "command":
            raise DefinitionError(f"{command.__name__} is no command; it is a {wire.kind}.")

        def decorate(function: Handler[C]) -> Handler[C]:
            handling = Handling(
                kind="command",
                message=command,
                task=wire.name,
                queue=wire.queue,
                service=wire.queue,
                function=function,
                retry=retry or RetryPolicy(),
            )
            register(self._registry, handling, **options)
            return function

        return decorate
