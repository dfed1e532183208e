"""Celery messages over any broker that Celery speaks to; cheap on Redis and RabbitMQ."""

import threading
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, Final

import structlog
from celery import Celery
from kombu import Connection

from orchestrator.ports import Delivery
from orchestrator.transport.inbound import Inbound, inbound
from orchestrator.transport.link import Link
from orchestrator.transport.outbound import Outbound, outbound, queue_of
from shared import names
from shared.broker_transport import transport_for
from shared.bus.publisher import subscribe
from shared.messages import Command

log = structlog.get_logger(__name__)

REDELIVERY_AFTER: Final = timedelta(seconds=10)
"""Redis: a message that an orchestrator took and did not acknowledge comes back after this.

Replies are acknowledged within a fraction of a second. One that comes twice does no harm.
"""

UNAVAILABLE_AFTER: Final = timedelta(seconds=4)
"""A broker that does not answer within this counts as away."""

_REDIS: Final = frozenset({"redis", "rediss", "sentinel", "redis+socket"})
_RABBITMQ: Final = frozenset({"amqp", "amqps", "pyamqp"})

_HEARTBEAT: Final = timedelta(seconds=30)


class CeleryTransport:
    """`orchestrator.ports.Transport` over the broker of a Celery app.

    `publish` and `interrupt` may be called from any thread. `receive`, `acknowledge` and `close`
    belong to one thread at a time.
    """

    def __init__(
        self,
        app: Celery,
        *,
        inbound_queue: str = names.REPLIES_QUEUE,
        redelivery_after: timedelta = REDELIVERY_AFTER,
        unavailable_after: timedelta = UNAVAILABLE_AFTER,
        own_transports: bool = True,
        events: Collection[str] = (),
    ) -> None:
        """Describe the connections; nothing is connected yet.

        Args:
            app: Gives the broker's URL and options, and how queues are declared.
            inbound_queue: Where replies and requests come in.
            redelivery_after: Redis only: when a message comes back whose orchestrator died.
            unavailable_after: How long to wait for a broker that does not answer, each time.
            own_transports: Use `shared.kombu_redis` and `shared.kombu_filesystem` where they fit;
                off, what the app is configured for.
            events: Names of the events that come in on the same queue, from the first `receive` on.
        """
        self._app = app
        self._inbound_queue = inbound_queue
        self._redelivery_after = redelivery_after
        self._unavailable_after = unavailable_after
        self._own_transports = own_transports
        self._events = events
        self._publishing = threading.Lock()
        self._interrupted = threading.Event()
        self._outbound: Outbound | None = None
        self._inbound: Inbound | None = None
        self._out = Link(self._write_url, self._connect_out, self._forget_outbound)
        self._in = Link(self._read_url, self._connect_in, self._forget_inbound)

    def publish(self, commands: Sequence[Command]) -> None:
        """Send commands. When this returns, the broker has them all.

        Raises:
            UnavailableError: Some or all may not have been sent.
        """
        if not commands:
            return

        def send(connection: Connection) -> None:
            if self._outbound is None:
                self._outbound = outbound(self._app, connection, self._unavailable_after)
            self._outbound.send(commands)

        with self._publishing:
            self._out.run(send)

    def receive(self, messages_max: int, timeout_seconds: float) -> list[Delivery]:
        """Block for the first message, then take what is already there.

        Args:
            messages_max: Most messages to take.
            timeout_seconds: How long to wait for the first one.

        Returns:
            Empty when the time ran out, or when it was interrupted.

        Raises:
            UnavailableError: The broker cannot be reached.
        """
        stop = self._interrupted.is_set
        try:
            return self._in.run(
                lambda connection: self._open(connection).receive(
                    messages_max, timeout_seconds, stop
                )
            )
        finally:
            self._interrupted.clear()

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Settle messages for good. Without it they are delivered again, some time.

        RabbitMQ redelivers what was not acknowledged on a connection that broke; such a receipt
        means nothing any more and is passed over.

        Raises:
            UnavailableError: The broker cannot be reached.
        """
        if deliveries:
            receipts = [delivery.receipt for delivery in deliveries]
            self._in.run(lambda connection: self._open(connection).acknowledge(receipts))

    def interrupt(self) -> None:
        """Make `receive` return early: the one that blocks, else the next one. Never raises."""
        self._interrupted.set()

    def close(self) -> None:
        """Close connections; messages that were not acknowledged go back to the queue."""
        with self._publishing:
            self._out.close()
        self._in.close()

    def _open(self, connection: Connection) -> Inbound:
        if self._inbound is None:
            queue = queue_of(self._app, self._inbound_queue)
            self._inbound = inbound(connection, queue)
            for event in self._events:
                subscribe(connection.default_channel, self._inbound_queue, event)
            if self._events:
                log.info("events.subscribed", events=self._events)
        return self._inbound

    def _forget_outbound(self) -> None:
        self._outbound = None

    def _forget_inbound(self) -> None:
        self._inbound = None

    def _write_url(self) -> str:
        return _url(self._app.conf.broker_write_url)

    def _read_url(self) -> str:
        return _url(self._app.conf.broker_read_url)

    def _connect_out(self) -> Connection:
        url = self._write_url()
        return self._app.connection_for_write(
            connect_timeout=self._unavailable_after.total_seconds(),
            transport=self._transport(url),
            transport_options=_bounds(url, self._unavailable_after),
        )

    def _connect_in(self) -> Connection:
        url = self._read_url()
        bookkeeping = self._redis_bookkeeping() if _scheme(url) in _REDIS else {}
        return self._app.connection_for_read(
            connect_timeout=self._unavailable_after.total_seconds(),
            heartbeat=_HEARTBEAT.total_seconds(),
            transport=self._transport(url),
            transport_options=_bounds(url, self._unavailable_after) | bookkeeping,
        )

    def _transport(self, url: str) -> str | None:
        return transport_for(url) if self._own_transports else None

    def _redis_bookkeeping(self) -> dict[str, Any]:
        """Of our own, and the same for all orchestrators.

        On shared keys the shortest visibility timeout of all apps would count for all of them: the
        participants' tasks, which take longer, would run twice.
        """
        prefix = self._inbound_queue
        return {
            "ack_emulation": True,
            "unacked_key": f"{prefix}.unacked",
            "unacked_index_key": f"{prefix}.unacked_index",
            "unacked_mutex_key": f"{prefix}.unacked_mutex",
            # Held for milliseconds; not longer than this by an orchestrator that was killed.
            "unacked_mutex_expire": max(round(self._redelivery_after.total_seconds()), 1),
            "visibility_timeout": self._redelivery_after.total_seconds(),
            "unacked_restore_throttle": 1,
        }


def _bounds(url: str, longest: timedelta) -> dict[str, Any]:
    """Options that keep every operation from waiting for ever."""
    seconds = longest.total_seconds()
    if _scheme(url) in _REDIS:
        return {"socket_timeout": seconds, "socket_connect_timeout": seconds}
    if _scheme(url) in _RABBITMQ:
        # We confirm batches ourselves: kombu would wait for every single message.
        return {"read_timeout": seconds, "write_timeout": seconds, "confirm_publish": False}
    return {}


def _url(value: str | Sequence[str] | None) -> str:
    """The setting as text; it may be a list of alternates."""
    return value if isinstance(value, str) else ";".join(value or ())


def _scheme(url: str) -> str:
    return url.partition("://")[0]
