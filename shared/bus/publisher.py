"""Sends messages for a Celery app, one publish for each, over connections that are kept.

On RabbitMQ every publish is confirmed, and a queue that has gone meanwhile is declared again. On
Redis an event is put into each subscriber's queue *by the name of that queue*: kombu writes into a
message where it was sent, and gives one that was not acknowledged back to that address. Sent to the
exchange, a message that one subscriber did not acknowledge would come back to all of them.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from celery import Celery
from kombu import Exchange, Producer, Queue
from kombu.pools import ProducerPool
from kombu.transport.pyamqp import Channel as AmqpChannel
from kombu.transport.virtual.exchange import TopicExchange
from kombu.utils.url import maybe_sanitize_url

from shared import names
from shared.broker_transport import BROKER_ERRORS, confirm_on_rabbitmq
from shared.envelope import CONTENT_ENCODING, CONTENT_TYPE, PERSISTENT, envelope
from shared.errors import UnavailableError
from shared.kombu_redis import Channel as RedisChannel

EVENTS: Final = Exchange(names.EVENTS_EXCHANGE, type="topic", durable=True)

_RETRY: Final[dict[str, Any]] = {
    # With Celery's connection timeout of four seconds, a broker is given up after six.
    "max_retries": 14,
    "interval_start": 0,
    "interval_step": 0.2,
    "interval_max": 1,
}
_CONNECTIONS_MAX: Final = 10

_inherited: Final[list[object]] = []
"""Pools of processes that this one was forked from."""


class Publisher:
    """Publishes for one app; from any thread, and in a forked child too.

    Args:
        app: Gives the connection, and the queues that its configuration declares.
    """

    def __init__(self, app: Celery[Any]) -> None:
        self._app = app
        self._pid = os.getpid()
        self._pool: ProducerPool | None = None
        self._lock = threading.Lock()
        self._declared: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
        self._returned: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()

    def send(
        self,
        queue: str | Queue,
        body: bytes,
        headers: Mapping[str, Any],
        *,
        reply_to: str = "",
    ) -> None:
        """Put a message into one queue. When this returns the broker has it.

        Args:
            queue: Declared where it does not exist.
            body: As `shared.codec.task_body` makes it.
            headers: Of Celery's protocol 2, with ours.
            reply_to: Queue for an answer.

        Raises:
            UnavailableError: The broker was away for too long; nobody knows whether it has it.
        """
        name = queue if isinstance(queue, str) else str(queue.name)

        def publish(producer: Producer) -> None:
            self._declare(producer, queue)
            self._put(producer, [name], body, headers, reply_to)
            if self._was_returned(producer):
                # It was deleted, or has expired, since we declared it.
                self._declared.pop(producer.channel, None)
                self._declare(producer, queue)
                self._put(producer, [name], body, headers, reply_to)

        self._run(publish)

    def broadcast(self, event: str, body: bytes, headers: Mapping[str, Any]) -> None:
        """Put an event into the queue of every subscriber; none is not an error.

        Raises:
            UnavailableError: As `send`.
        """

        def publish(producer: Producer) -> None:
            channel: Any = producer.channel
            if isinstance(channel, AmqpChannel):
                if names.EVENTS_EXCHANGE not in self._known(channel):
                    EVENTS.bind(channel).declare()
                    self._known(channel).add(names.EVENTS_EXCHANGE)
                self._publish(producer, event, body, headers, exchange=names.EVENTS_EXCHANGE)
                return
            self._put(producer, subscribers(channel, event), body, headers)

        self._run(publish)

    def _run(self, publish: Callable[[Producer], None]) -> None:
        try:
            with self._producers().acquire(block=True) as producer:
                connection: Any = producer.connection
                connection.ensure(producer, publish, **_RETRY)(producer)
        except BROKER_ERRORS as error:
            raise UnavailableError(
                f"The broker {_shown(self._app.conf.broker_write_url)} cannot be used: {str(error).rstrip('.')}.",
                hint="Check the app's broker URL, and that the broker runs.",
            ) from error

    def _producers(self) -> ProducerPool:
        """The pool of this process; not the app's, which kombu shares between apps and forks."""
        if self._pid != os.getpid():
            # Left as it is: what closes a connection here would close the parent's.
            _inherited.append(self._pool)
            self._pid, self._pool, self._lock = os.getpid(), None, threading.Lock()
        if self._pool is None:
            with self._lock:
                if self._pool is None:
                    confirm_on_rabbitmq(self._app)
                    limit = self._app.conf.broker_pool_limit or _CONNECTIONS_MAX
                    connections = self._app.connection_for_write().Pool(limit=limit)
                    self._pool = ProducerPool(connections, limit=limit)
        return self._pool

    def close(self) -> None:
        """Give the connections back; the next message makes new ones."""
        pool, self._pool = self._pool, None
        if pool is not None and self._pid == os.getpid():
            pool.connections.force_close_all()

    def _put(
        self,
        producer: Producer,
        queues: Sequence[str],
        body: bytes,
        headers: Mapping[str, Any],
        reply_to: str = "",
    ) -> None:
        """Put a message into some queues, in one round trip where the transport can."""
        channel: Any = producer.channel
        if isinstance(channel, RedisChannel):
            given = dict(headers)
            channel.push([(queue, envelope(queue, given, body)) for queue in queues])
            return
        batching: Any = producer  # the stubs do not know `batch`
        with batching.batch():
            for queue in queues:
                self._publish(producer, queue, body, headers, reply_to)

    def _publish(
        self,
        producer: Producer,
        routing_key: str,
        body: bytes,
        headers: Mapping[str, Any],
        reply_to: str = "",
        exchange: str = "",
    ) -> None:
        producer.publish(
            body,
            exchange=exchange,
            routing_key=routing_key,
            content_type=CONTENT_TYPE,
            content_encoding=CONTENT_ENCODING,
            headers=dict(headers),
            delivery_mode=PERSISTENT,
            # Else RabbitMQ confirms, and drops, what has no queue.
            mandatory=not exchange,
            correlation_id=headers["id"],
            reply_to=reply_to,
        )

    def _declare(self, producer: Producer, queue: str | Queue) -> None:
        """Declare a queue once for each channel; one that exists is used as it is."""
        channel: Any = producer.channel
        name = queue if isinstance(queue, str) else str(queue.name)
        known = self._known(channel)
        if name in known:
            return
        if isinstance(channel, AmqpChannel):
            self._watch_returns(channel)
            if self._exists(producer, name):
                known.add(name)
                return
        found = queue if isinstance(queue, Queue) else queue_of(self._app, queue)
        found.bind(channel).declare()
        known.add(name)

    def _exists(self, producer: Producer, name: str) -> bool:
        connection: Any = producer.connection
        # A refused declaration closes its channel, so it gets one of its own.
        with connection.channel() as probe:
            try:
                probe.queue_declare(name, passive=True)
            except connection.channel_errors:
                return False
        return True

    def _known(self, channel: Any) -> set[str]:
        return self._declared.setdefault(channel, set())

    def _watch_returns(self, channel: Any) -> None:
        if channel in self._returned:
            return
        returned: list[str] = []
        self._returned[channel] = returned

        def on_return(error: Exception, exchange: str, routing_key: str, message: Any) -> None:
            returned.append(routing_key)

        channel.events["basic_return"].add(on_return)

    def _was_returned(self, producer: Producer) -> bool:
        returned = self._returned.get(producer.channel)
        if not returned:
            return False
        returned.clear()
        return True


def queue_of(app: Celery[Any], name: str) -> Queue:
    """The queue as the app's configuration declares it, or as Celery would make it.

    `app.amqp.queues[name]` would add a missing queue to those that the app's own worker knows.
    """
    queues = app.amqp.queues
    found: Queue = queues[name] if name in queues else queues.new_missing(name)
    return found


def subscribers(channel: Any, event: str) -> Sequence[str]:
    """Queues that are bound to an event, as kombu's transports without a broker's own keep them."""
    try:
        table: Any = channel.get_table(names.EVENTS_EXCHANGE)
    except KeyError:
        return ()  # in memory: nobody has declared the exchange
    found: Any = TopicExchange(channel).lookup(table, names.EVENTS_EXCHANGE, event, None)
    return sorted(set(found))


def subscribe(channel: Any, queue: str, event: str) -> None:
    """Bind a queue, which exists, to an event."""
    EVENTS.bind(channel).declare()
    state = getattr(channel, "state", None)
    if state is not None:
        # kombu binds once in a process, and does not look whether Redis still knows it.
        state.binding_delete(queue, EVENTS.name, event)
    channel.queue_bind(queue=queue, exchange=EVENTS.name, routing_key=event)


def delete_subscriber(channel: Any, queue: str) -> None:
    """Delete a subscriber's queue, its binding, and what waits in it."""
    if not isinstance(channel, AmqpChannel):
        EVENTS.bind(channel).declare()
        for routing_key, _, bound in channel.get_table(names.EVENTS_EXCHANGE):
            if bound == queue:
                # kombu deletes only bindings that this process has made.
                channel.queue_bind(queue, names.EVENTS_EXCHANGE, routing_key)
    channel.queue_delete(queue)


def _shown(url: Any) -> str:
    return str(maybe_sanitize_url(url)) if isinstance(url, str) else "of the app"
