"""What the buses of an app have registered, and how it enters the app's workers."""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from celery import Celery, signals
from kombu import Queue
from typing_extensions import override

from shared import names
from shared.bus.policy import RetryPolicy
from shared.bus.publisher import EVENTS, Publisher, subscribe
from shared.bus.unknown import KeepUnknown
from shared.contract import Kind, Message, wire_of
from shared.errors import DefinitionError

_ATTRIBUTE: Final = "saga_buses"
"""Of an app: there is one registry for each, and it lives as long."""


class Handling(NamedTuple):
    """A registered function.

    Attributes:
        kind: Of its messages.
        message: Class of its messages.
        task: Name of its Celery task: the message's name, or the subscriber's queue.
        queue: Where its messages come from.
        service: Whose worker consumes that queue.
        function: Takes a message.
        retry: What follows a failure.
    """

    kind: Kind
    message: type[Message]
    task: str
    queue: str
    service: str
    function: Callable[[Any], Any]
    retry: RetryPolicy


class Bus:
    """What the three buses have in common.

    Args:
        app: Any Celery app; a worker of it runs what was registered.
    """

    def __init__(self, app: Celery[Any]) -> None:
        self._app = app
        self._registry = registry_of(app)

    def close(self) -> None:
        """Give the connections of this process back; the next message makes new ones."""
        self._registry.publisher.close()


class Registry:
    """The functions that the buses of one app have registered."""

    def __init__(self, app: Celery[Any]) -> None:
        self.app = app
        self.publisher = Publisher(app)
        self._by_task: dict[str, Handling] = {}

    def add(self, handling: Handling) -> None:
        """Register a function.

        Raises:
            DefinitionError: There is one for this command, query or subscriber already.
        """
        other = self._by_task.get(handling.task)
        if other is not None:
            raise DefinitionError(
                f"{handling.task!r} has two handlers: {_where(other.function)} and "
                f"{_where(handling.function)}.",
                hint="A command or query has exactly one; a subscriber has a name of its own."
                if handling.kind != "event"
                else 'Name the second one: subscriber(…, name="…").',
            )
        self._by_task[handling.task] = handling

    def find(self, task: str) -> Handling | None:
        """The function behind a Celery task."""
        return self._by_task.get(task)

    def consume(self, selected: frozenset[str] | None) -> None:
        """Add the queues of what is registered to those that this app's worker consumes.

        Args:
            selected: What ``-Q`` names: the queue of a service brings in its subscribers. None
                without ``-Q``: the worker is all services.
        """
        queues = self.app.amqp.queues
        for one in self._by_task.values():
            if one.kind == "event":
                if selected is None or one.service in selected or one.queue in selected:
                    queues.select_add(_subscriber_queue(one))
            elif selected is None:
                queues.select_add(queues[one.queue])

    def subscriber_queues(self, service: str) -> list[Queue]:
        """The queues of a service's subscribers, bound to their events."""
        return [
            _subscriber_queue(one)
            for one in self._by_task.values()
            if one.kind == "event" and one.service == service
        ]


class SubscriberQueue(Queue):
    """Queue of one subscriber, bound to one event; its name is the name of the subscriber's task.

    An event reaches all of its subscribers as the same message, so each one's copy is addressed
    when it is taken from its queue.
    """

    @override
    def consume(
        self,
        consumer_tag: str = "",
        callback: Callable[[Any, Any], None] | None = None,
        no_ack: bool | None = None,
        nowait: bool = False,
        on_cancel: Callable[[str], None] | None = None,
    ) -> str:
        given: Any = callback

        def addressed(message: Any) -> Any:
            address(message.headers, str(self.name))
            return given(message)

        called: Any = addressed  # with one argument; the stubs say two
        return super().consume(consumer_tag, called, no_ack, nowait, on_cancel)

    @override
    def queue_bind(self, nowait: bool = False, channel: Any = None) -> None:
        subscribe(channel or self.channel, str(self.name), str(self.routing_key))


def _subscriber_queue(handling: Handling) -> Queue:
    return SubscriberQueue(handling.queue, EVENTS, routing_key=wire_of(handling.message).name)


def address(headers: Any, queue: str) -> None:
    """Make an event's headers those of one subscriber's task."""
    if isinstance(headers, dict) and isinstance(headers.get(names.SAGA_EVENT_ID), str):
        headers["task"] = queue
        headers["id"] = f"{headers[names.SAGA_EVENT_ID]}:{queue}"


def registry_of(app: Celery[Any]) -> Registry:
    """The registry of an app; its workers take part from the first call on."""
    found: Registry | None = vars(app).get(_ATTRIBUTE)
    if found is None:
        found = vars(app)[_ATTRIBUTE] = Registry(app)
        keep_unknown(app)
        # Celery drops a second connection of the same function.
        signals.celeryd_init.connect(_on_init, weak=False)
        signals.celeryd_after_setup.connect(_on_setup, weak=False)
    return found


def keep_unknown(app: Celery[Any]) -> None:
    """Have the app's workers keep bus messages that they have no handler for."""
    app.steps["consumer"].add(KeepUnknown)


def _on_init(instance: Any, options: Mapping[str, Any], **_: Any) -> None:
    """``celeryd_init``: the one moment at which ``-Q`` can be seen."""
    queues: Any = options.get("queues") or ()
    if isinstance(queues, str):
        queues = queues.split(",")
    instance.saga_selected_queues = frozenset(map(str.strip, queues)) or None


def _on_setup(instance: Any, **_: Any) -> None:
    """``celeryd_after_setup``: every module is imported, and nothing is consumed yet."""
    found: Registry | None = vars(instance.app).get(_ATTRIBUTE)
    if found is not None:
        found.consume(instance.saga_selected_queues)


def _where(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', function)}"
