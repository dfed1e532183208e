"""kombu's Redis transport with fewer round trips; nothing of kombu is patched.

Three things are cheaper here:

* A channel keeps one client. kombu builds a new `redis.Redis` for each operation, which costs more
  than the operation.
* What is done for every message goes over a `redis_lane.Lane`, without a client.
* `Channel.take` moves a whole batch from a queue into kombu's `unacked` bookkeeping in one script,
  and `Channel.settle` removes a batch from it in one transaction. kombu needs three round trips a
  message, and loses a message when the consumer dies between the pop and the bookkeeping; the
  script does both or neither.

What stands in Redis keeps kombu's format, so any kombu consumer gives expired messages back.

To use it for a Celery app, workers included (they gain the cached client)::

    app.conf.broker_transport = transport_for(app.conf.broker_write_url)  # shared.broker_transport

or name it in the configuration: ``broker_transport = "shared.kombu_redis:Transport"``. Without that
setting everything works as before, on kombu's own transport.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from kombu import uuid
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.json import dumps
from redis.exceptions import ConnectionError as RedisConnectionError
from typing_extensions import override

from shared.clock import monotonic, utc_now
from shared.redis_lane import Argument, Call, Command, Lane, Script, packed

TAKE_BYTES_MAX: Final = 8 * 1024 * 1024
"""A batch ends with the message that reaches this size, so that no script blocks Redis for long."""

SETTLE_TAGS_MAX: Final = 1_000
"""Lua's stack holds some thousands of values."""

# KEYS: unacked index, unacked, lists of the queue. ARGV: now, messages, bytes, tag prefix, tail.
_TAKE: Final = Script("""
local taken, bytes = {}, 0
for list = 3, #KEYS do
  while #taken < tonumber(ARGV[2]) and bytes < tonumber(ARGV[3]) do
    local raw = redis.call('RPOP', KEYS[list])
    if not raw then break end
    local tag = ARGV[4] .. (#taken + 1)
    redis.call('ZADD', KEYS[1], ARGV[1], tag)
    redis.call('HSET', KEYS[2], tag, '[' .. raw .. ARGV[5])
    taken[#taken + 1] = raw
    bytes = bytes + #raw
  end
end
return taken
""")

# KEYS: unacked index, unacked. ARGV: now, tag, message. One command instead of a transaction of four.
_APPEND: Final = Script("""
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
""")

# KEYS: unacked index, unacked. ARGV: tags.
_SETTLE: Final = Script("""
redis.call('ZREM', KEYS[1], unpack(ARGV))
redis.call('HDEL', KEYS[2], unpack(ARGV))
""")


class Taken(NamedTuple):
    """A message that `Channel.take` took: its tag for `Channel.settle`, and kombu's JSON."""

    tag: str
    raw: bytes


class QoS(kombu_redis.QoS):
    """Unacknowledged messages, taken and settled in batches."""

    channel: Any

    if TYPE_CHECKING:  # the stubs leave it out

        def _remove_from_indices(self, delivery_tag: str, pipe: Any = None) -> Any: ...

    def remember(self, taken: Sequence[Taken]) -> None:
        """Have these given back when the channel closes."""
        for message in taken:
            virtual.QoS.append(self, None, message.tag)

    def settle(self, tags: Sequence[str]) -> None:
        """Acknowledge in one transaction, whichever channel took them."""
        for first in range(0, len(tags), SETTLE_TAGS_MAX):
            part = tags[first : first + SETTLE_TAGS_MAX]
            self.channel.run_scripts((_SETTLE, self.keys, part))
            self.forget(part)

    def forget(self, tags: Iterable[str]) -> None:
        """Do not give these back: they are settled."""
        for tag in tags:
            virtual.QoS.ack(self, tag)

    @override
    def append(self, message: Any, delivery_tag: str) -> None:
        info = message.delivery_info
        entry = dumps([message._raw, info["exchange"], info["routing_key"]])  # noqa: SLF001 - as kombu
        now = utc_now().timestamp()
        self.channel.run_scripts((_APPEND, self.keys, [now, delivery_tag, entry]))
        virtual.QoS.append(self, message, delivery_tag)

    @override
    def ack(self, delivery_tag: str) -> None:
        self.settle([delivery_tag])

    @property
    def keys(self) -> list[str]:
        """Where what is unacknowledged stands: when it was taken, and what it is."""
        return [self.unacked_index_key, self.unacked_key]

    @override
    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        try:
            super().restore_by_tag(tag, client=client, leftmost=leftmost)
        except ValueError:
            # Not JSON: somebody else wrote it. kombu would stumble over it for ever, and give
            # nothing back that comes after it.
            self._restore_as_it_is(tag, leftmost=leftmost)

    def _restore_as_it_is(self, tag: Any, *, leftmost: bool) -> None:
        with self.channel.conn_or_acquire() as client:
            entry: bytes | None = client.hget(self.unacked_key, tag)
            raw, tail, queue = (entry or b"")[1:].rpartition(b',"",')
            with client.pipeline() as pipe:
                self._remove_from_indices(tag, pipe)
                if tail:
                    push = pipe.rpush if leftmost else pipe.lpush
                    push(json.loads(queue[:-1]), raw)
                pipe.execute()


class Channel(kombu_redis.Channel):
    """A channel with one client of its own and operations on batches."""

    QoS = QoS

    if TYPE_CHECKING:  # the stubs leave these out
        connection: Any

        def _create_client(self) -> Any: ...
        def _disconnect_pools(self) -> None: ...
        def _q_for_pri(self, queue: str, pri: int) -> str: ...

        _expires: dict[str, int]

    _kept_client: Any = None
    _tag_prefix = ""
    _takes = 0
    _taken_from: Mapping[str, tuple[list[str], str]] = MappingProxyType({})
    _kept_lane: Lane | None = None
    _restored_at = float("-inf")

    @override
    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        if client is None:
            client = self._kept_client
            # The pool is another one after a fork and after a close.
            if client is None or client.connection_pool is not self.pool:
                client = self._kept_client = self._create_client()
        yield client

    def run_scripts(self, *calls: Call, after: Sequence[Command] = ()) -> list[Any]:
        """Run scripts of ours, which may run twice, in one round trip, after something else."""
        prefix = self.global_keyprefix
        return self._lane().run_scripts(
            *((script, [prefix + key for key in keys], args) for script, keys, args in calls),
            after=after,
        )

    def push(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """Put messages into queues, in one round trip; they are there when this returns.

        Args:
            messages: Name of the queue, and the message as `shared.task_message.envelope` makes
                it: of the default priority.

        Raises:
            redis.exceptions.RedisError: Some, all or none of them are there.
        """
        queues: dict[str, list[bytes]] = {}
        for queue, raw in messages:
            queues.setdefault(queue, []).append(raw)
        commands = []
        for queue, raws in queues.items():
            key = self.global_keyprefix + queue
            commands.append(packed("LPUSH", key, *raws))
            if queue in self._expires:
                # Of its other priorities' lists none has got younger.
                commands.append(packed("PEXPIRE", key, self._expires[queue]))
        self._lane().run(*commands)

    def take(
        self, queue: str, messages_max: int, wait_seconds: float = 0, *, looked: bool = False
    ) -> list[Taken]:
        """Take messages from a queue, oldest first within a priority; they are unacknowledged then.

        Waits for a message without popping it: a consumer that dies loses nothing.

        Args:
            queue: Name of the queue.
            messages_max: Most messages to take.
            wait_seconds: How long to wait when there is none. A message with a priority other than
                the default does not end the wait, and is taken after it.
            looked: `settle_and_take` has just found none: wait at once, if there is time to.

        Returns:
            Empty when there was none, or when another consumer was faster.
        """
        if wait_seconds <= 0 or not looked:
            taken = self.settle_and_take((), queue, messages_max)
            if taken or wait_seconds <= 0:
                return taken
        # From the right end to the right end: it stays where it is.
        main = self.global_keyprefix + self._q_for_pri(queue, self.priority_steps[0])
        wait = packed("BLMOVE", main, main, "RIGHT", "RIGHT", wait_seconds)
        # What ends the wait is taken in the same round trip.
        return self._settle_and_take((), queue, messages_max, [wait])

    def settle_and_take(self, tags: Sequence[str], queue: str, messages_max: int) -> list[Taken]:
        """Acknowledge what was taken before and take what is there, in one round trip.

        Args:
            tags: What is settled; at most a thousand.
            queue: Name of the queue.
            messages_max: Most messages to take.

        Returns:
            What `take` returns without waiting.
        """
        return self._settle_and_take(tags, queue, messages_max, ())

    def _settle_and_take(
        self, tags: Sequence[str], queue: str, messages_max: int, after: Sequence[Command]
    ) -> list[Taken]:
        qos = cast("QoS", self.qos)
        call, prefix = self._taking(queue, messages_max)
        settling = [(_SETTLE, qos.keys, tags)] if tags else []
        raws: list[bytes] = self.run_scripts(*settling, call, after=after)[-1]
        qos.forget(tags)
        taken = [Taken(f"{prefix}{number}", raw) for number, raw in enumerate(raws, 1)]
        qos.remember(taken)
        return taken

    def settle(self, tags: Sequence[str]) -> None:
        """Acknowledge what `take` returned, in one round trip."""
        cast("QoS", self.qos).settle(tags)

    def restore_expired(self, every_seconds: float) -> None:
        """Give back what other consumers took and did not settle in time, now and then.

        kombu does this without an event loop only while the queue is empty, so never under load.

        Args:
            every_seconds: Does nothing when called again within this time.
        """
        now = monotonic()
        if now - self._restored_at >= every_seconds:
            self._restored_at = now
            self.qos.restore_visible(num=self.unacked_restore_limit, interval=1)

    @override
    def _get_pool(self, asynchronous: bool = False) -> Any:  # type: ignore[misc]  # not in the stubs
        if self.connection.client is None:
            # Given up by `Connection.collect` when Redis went away; a worker then closes what is
            # left of it. It expects that a close fails like this, and would end for kombu's
            # AttributeError. What was not acknowledged comes back in its time.
            raise RedisConnectionError("The connection has been given up.")
        return super()._get_pool(asynchronous)  # type: ignore[misc]  # not in the stubs

    @override
    def close(self) -> None:
        try:
            super().close()
        finally:
            # Giving messages back has opened the pool again.
            self._kept_client = self._kept_lane = None
            self._disconnect_pools()

    def _lane(self) -> Lane:
        # The pool is another one after a fork and after a close.
        if self._kept_lane is None or self._kept_lane.pool is not self.pool:
            self._kept_lane = Lane(self.pool)
        return self._kept_lane

    def _taking(self, queue: str, messages_max: int) -> tuple[Call, str]:
        """A call of the script, and the beginning of the tags of what it takes."""
        if queue not in self._taken_from:
            lists = dict.fromkeys(self._q_for_pri(queue, step) for step in self.priority_steps)
            # No exchange, the queue as routing key: it goes back to this very queue.
            tail = f',"",{json.dumps(queue)}]'
            keys = [self.unacked_index_key, self.unacked_key, *lists]
            self._taken_from = {**self._taken_from, queue: (keys, tail)}
        keys, tail = self._taken_from[queue]
        self._tag_prefix = self._tag_prefix or uuid()
        self._takes += 1
        prefix = f"{self._tag_prefix}.{self._takes}."
        now = utc_now().timestamp()
        arguments: list[Argument] = [now, messages_max, TAKE_BYTES_MAX, prefix, tail]
        return (_TAKE, keys, arguments), prefix


class Transport(kombu_redis.Transport):
    """kombu's Redis transport with our `Channel`."""

    Channel = Channel
