"""Consuming: block for the first message, then take what is there, in as few trips as possible."""

from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple, Protocol

from kombu import Connection, Consumer, Queue
from kombu.message import Message
from kombu.transport.pyamqp import Channel as AmqpChannel

from orchestrator.ports import Delivery
from orchestrator.transport.task_message import delivery, delivery_of_envelope
from shared.clock import monotonic
from shared.kombu_redis import SETTLE_TAGS_MAX, Taken
from shared.kombu_redis import Channel as CheapRedisChannel

SLICE: Final = timedelta(seconds=0.25)
"""Longest single wait: so often a blocked `receive` looks whether it was interrupted."""

RESTORE_EVERY: Final = timedelta(seconds=2)
"""How often an orchestrator looks for what a dead one left (Redis)."""

Stop = Callable[[], bool]


class Inbound(Protocol):
    """Takes messages over one connection."""

    def receive(self, messages_max: int, timeout_seconds: float, stop: Stop) -> list[Delivery]:
        """As `Transport.receive`; returns early when `stop` says so."""

    def acknowledge(self, receipts: Sequence[Any]) -> None:
        """Settle messages; a receipt of another connection is skipped where it means nothing."""


def inbound(connection: Connection, queue: Queue) -> Inbound:
    """The way to consume that fits the connection's transport."""
    channel = connection.default_channel
    queue.bind(channel).declare()
    if isinstance(channel, CheapRedisChannel):
        return _Batches(channel, queue.name)
    if isinstance(channel, AmqpChannel):
        return _Pushed(connection, channel, queue)
    return _Polled(connection, channel, queue)


class _Batches:
    """Redis by our own channel: one round trip settles a batch and takes the next one."""

    def __init__(self, channel: CheapRedisChannel, queue: str) -> None:
        self._channel = channel
        self._queue = queue
        self._messages_max = 0
        self._ahead: list[Taken] = []
        self._looked = False

    def receive(self, messages_max: int, timeout_seconds: float, stop: Stop) -> list[Delivery]:
        self._messages_max = messages_max
        deadline = monotonic() + timeout_seconds
        while True:
            self._channel.restore_expired(RESTORE_EVERY.total_seconds())
            wait = 0.0 if stop() else _slice(deadline)
            taken, self._ahead = self._ahead[:messages_max], self._ahead[messages_max:]
            if not taken:
                looked, self._looked = self._looked, False
                taken = self._channel.take(self._queue, messages_max, wait, looked=looked)
            if taken or wait <= 0:
                return [delivery_of_envelope(message.raw, message.tag) for message in taken]

    def acknowledge(self, receipts: Sequence[Any]) -> None:
        # A tag is good on every connection.
        tags = [receipt for receipt in receipts if isinstance(receipt, str)]
        if self._ahead or len(tags) > SETTLE_TAGS_MAX:
            self._channel.settle(tags)
        elif tags:
            # Whoever acknowledges is about to receive. What is taken goes back when it does not.
            self._ahead = self._channel.settle_and_take(tags, self._queue, self._messages_max)
            self._looked = not self._ahead


class _Receipt(NamedTuple):
    """Tag of a message on one channel; the same number means another one on the next."""

    owner: object
    tag: Any


class _Pushed:
    """RabbitMQ: the broker pushes, up to twice the batch ahead of us."""

    def __init__(self, connection: Connection, channel: AmqpChannel, queue: Queue) -> None:
        self._connection = connection
        self._channel = channel
        self._arrived: deque[Delivery] = deque()
        self._open: dict[int, None] = {}
        self._prefetch = 0
        self._consumer = Consumer(
            channel,
            [queue],
            auto_declare=False,
            on_message=self._on_message,
            on_decode_error=self._on_message,
        )

    def receive(self, messages_max: int, timeout_seconds: float, stop: Stop) -> list[Delivery]:
        self._consume(messages_max)
        deadline = monotonic() + timeout_seconds
        while not self._arrived and not stop() and (wait := _slice(deadline)) > 0:
            self._drain(wait)
            self._connection.heartbeat_check()
        while len(self._arrived) < messages_max and self._drain(0):
            pass
        count = min(messages_max, len(self._arrived))
        return [self._arrived.popleft() for _ in range(count)]

    def acknowledge(self, receipts: Sequence[Any]) -> None:
        settled = {
            receipt.tag
            for receipt in receipts
            if isinstance(receipt, _Receipt) and receipt.owner is self
        }
        # The broker counts upwards: what is settled from the oldest on goes in one frame.
        last = None
        for tag in list(self._open):
            if tag not in settled:
                break
            last = tag
            settled.discard(tag)
            del self._open[tag]
        if last is not None:
            self._channel.basic_ack(last, multiple=True)
        for tag in sorted(settled & self._open.keys()):
            self._channel.basic_ack(tag)
            del self._open[tag]

    def _consume(self, messages_max: int) -> None:
        # Twice: the next batch travels while this one is worked on.
        if self._prefetch < 2 * messages_max:
            self._prefetch = min(2 * messages_max, 0xFFFF)
            self._consumer.cancel()
            self._consumer.qos(prefetch_count=self._prefetch)
            self._consumer.consume()

    def _drain(self, wait_seconds: float) -> bool:
        try:
            self._connection.drain_events(timeout=wait_seconds)
        except TimeoutError:
            return False
        return True

    def _on_message(self, message: Message, error: Exception | None = None) -> None:
        tag: Any = message.delivery_tag
        self._open[tag] = None
        self._arrived.append(_delivery_of(message, _Receipt(self, tag), error))


class _Polled:
    """Any other transport of kombu: filesystem, memory, or Redis without our channel."""

    def __init__(self, connection: Connection, channel: Any, queue: Queue) -> None:
        self._connection = connection
        self._channel = channel
        self._queue = queue.name
        self._arrived: list[Delivery] = []
        self._restored_at = float("-inf")
        self._consumer = Consumer(
            channel,
            [queue],
            auto_declare=False,
            on_message=self._on_message,
            on_decode_error=self._on_message,
        )
        self._consumer.consume()

    def receive(self, messages_max: int, timeout_seconds: float, stop: Stop) -> list[Delivery]:
        deadline = monotonic() + timeout_seconds
        self._restore()
        while not self._arrived and not stop() and (wait := _slice(deadline)) > 0:
            self._take_waiting(messages_max)
            if self._arrived:
                break
            try:
                self._connection.drain_events(timeout=wait)
            except TimeoutError:
                continue
        self._take_waiting(messages_max)
        batch, self._arrived = self._arrived, []
        return batch

    def acknowledge(self, receipts: Sequence[Any]) -> None:
        for receipt in receipts:
            if isinstance(receipt, _Receipt) and receipt.owner is self:
                self._channel.basic_ack(receipt.tag)

    def _take_waiting(self, messages_max: int) -> None:
        while len(self._arrived) < messages_max:
            message = self._channel.basic_get(self._queue)
            if message is None:
                return
            self._on_message(message)

    def _restore(self) -> None:
        # kombu does it without an event loop only while the queue is empty, so never under load.
        now = monotonic()
        if now - self._restored_at >= RESTORE_EVERY.total_seconds():
            self._restored_at = now
            self._channel.qos.restore_visible(interval=1)

    def _on_message(self, message: Message, error: Exception | None = None) -> None:
        receipt = _Receipt(self, message.delivery_tag)
        self._arrived.append(_delivery_of(message, receipt, error))


def _delivery_of(message: Message, receipt: _Receipt, error: Exception | None) -> Delivery:
    return delivery(
        headers=message.headers or {},
        content_type=message.content_type,
        body=message.body,
        receipt=receipt,
        problem=f"it cannot be read: {error!r}" if error or message.errors else "",
    )


def _slice(deadline: float) -> float:
    return min(SLICE.total_seconds(), deadline - monotonic())
