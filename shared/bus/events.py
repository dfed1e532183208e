"""The event bus: every subscriber, in whatever service, gets every event.

    events = EventBus(app, service="billing")

    @events.subscriber(OrderCreated)        # its queue: billing.on.send-invoice
    def send_invoice(event: OrderCreated) -> None: ...

    EventBus(app, service="orders").publish(OrderCreated(order_id="o-1"))

A subscriber's queue is made when a worker first runs it, or by `EventBus.declare`. It is durable:
from then on it collects events while no worker is up. It stays until `EventBus.forget`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from celery import Celery

from shared.broker_transport import BROKER_ERRORS
from shared.bus.envelope import message_headers
from shared.bus.handling import register
from shared.bus.policy import RetryPolicy
from shared.bus.publisher import delete_subscriber
from shared.bus.registry import Bus, Handling
from shared.bus.tracing import sending
from shared.contract import Event, encoded, wire_of
from shared.errors import DefinitionError, UnavailableError
from shared.ids import new_saga_id
from shared.names import subscriber_queue
from shared.settings import settings

E = TypeVar("E", bound=Event)
Subscriber = Callable[[E], object]


class EventBus(Bus):
    """Publishes events, and registers subscribers, for one service.

    Args:
        app: Any Celery app; a worker of it runs the subscribers.
        service: Begins the names of the subscribers' queues.
    """

    def __init__(self, app: Celery[Any], *, service: str) -> None:
        super().__init__(app)
        self._service = service

    def publish(self, event: Event, *, event_id: str | None = None) -> str:
        """Send an event to all of its subscribers. When this returns the broker has it.

        Args:
            event: Checked against its class.
            event_id: By default a new one; what follows from an event is idempotent by it.

        Returns:
            The event's id.

        Raises:
            InputError: Names every field that is wrong; nothing was sent.
            PayloadTooLarge: Likewise, over SAGA_PAYLOAD_BYTES_MAX.
            DefinitionError: It is no event.
            UnavailableError: The broker was away for too long.
        """
        wire = wire_of(type(event))
        if wire.kind != "event":
            raise DefinitionError(f"{wire.name!r} is no event but a {wire.kind}.")
        body = encoded(event, settings().payload_bytes_max)
        headers = message_headers(wire, event_id or new_saga_id())
        with sending(self._app, wire.name, headers):
            self._registry.publisher.broadcast(wire.name, body, headers)
        return str(headers["id"])

    def subscriber(
        self, event: type[E], *, name: str = "", retry: RetryPolicy | None = None, **options: Any
    ) -> Callable[[Subscriber[E]], Subscriber[E]]:
        """Register a subscriber.

        Args:
            event: Class of the event.
            name: Unique in the service; by default the function's name, ``_`` as ``-``. Another
                name is another queue.
            retry: What follows a failure; by default five attempts with back-off.
            options: Of its Celery task, for example ``time_limit=30``.

        Returns:
            A decorator that leaves the function as it is, for tests to call.

        Raises:
            DefinitionError: The service has a subscriber of that name, or it is no event.
        """
        wire = wire_of(event)
        if wire.kind != "event":
            raise DefinitionError(f"{event.__name__} is no event; it is a {wire.kind}.")

        def decorate(function: Subscriber[E]) -> Subscriber[E]:
            short = name or function.__name__.strip("_").replace("_", "-")
            queue = subscriber_queue(self._service, short)
            handling = Handling(
                kind="event",
                message=event,
                task=queue,
                queue=queue,
                service=self._service,
                function=function,
                retry=retry or RetryPolicy(),
            )
            register(self._registry, handling, **options)
            return function

        return decorate

    def declare(self) -> None:
        """Make the queues of all subscribers now, so that they collect before a worker runs.

        Raises:
            UnavailableError: The broker is away.
        """
        try:
            with self._app.connection_for_write() as connection, connection.channel() as channel:
                for queue in self._registry.subscriber_queues(self._service):
                    queue.bind(channel).declare()
        except BROKER_ERRORS as error:
            raise UnavailableError(
                f"The queues of {self._service!r} cannot be declared: {error}.",
                hint="Check the app's broker URL, and that the broker runs.",
            ) from error

    def forget(self, name: str) -> None:
        """Delete the queue of a subscriber that the code does not have any more.

        What waits in it is gone.

        Args:
            name: Of the subscriber, for example ``send-invoice``.

        Raises:
            UnavailableError: The broker is away.
        """
        queue = subscriber_queue(self._service, name)
        try:
            with self._app.connection_for_write() as connection, connection.channel() as channel:
                delete_subscriber(channel, queue)
        except BROKER_ERRORS as error:
            raise UnavailableError(
                f"The queue {queue!r} cannot be deleted: {error}.",
                hint="Check the app's broker URL, and that the broker runs.",
            ) from error
