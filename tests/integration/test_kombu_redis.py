"""Our Redis channel beside kombu's own."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from kombu import Connection

from shared import kombu_redis
from shared.broker_transport import transport_for
from shared.embedded import PrivateRedis
from tests.waiting import wait_until

QUEUE = "saga.replies"
OURS = "shared.kombu_redis:Transport"

Open = Callable[..., Any]


@pytest.fixture
def open_channel(redis_url: str) -> Iterator[Open]:
    """Opens channels: ours, or kombu's own."""
    connections: list[Connection] = []

    def open_one(transport: str | None = OURS, **options: Any) -> Any:
        connections.append(Connection(redis_url, transport=transport, transport_options=options))
        return connections[-1].default_channel

    yield open_one
    for connection in connections:
        connection.release()


@pytest.fixture
def server(redis_server: PrivateRedis, redis_url: str) -> Iterator[redis.Redis]:
    """The server, seen by a plain client."""
    with redis.Redis(port=redis_server.start().port) as client:
        yield client


def put(channel: Any, *bodies: str, priority: int = 0) -> None:
    """Publish messages."""
    for body in bodies:
        message = channel.prepare_message(body, priority, "text/plain", "utf-8")
        channel.basic_publish(message, exchange="", routing_key=QUEUE)


def keys(server: redis.Redis) -> set[str]:
    """All keys."""
    return {key.decode() for key in server.scan_iter()}


def bodies(channel: Any) -> list[bytes]:
    """Take and settle everything, one by one, as any consumer of kombu can."""
    found = []
    while message := channel.basic_get(QUEUE):
        found.append(message.body)
        channel.basic_ack(message.delivery_tag)
    return found


def test_a_batch_moves_into_kombus_bookkeeping_and_out_of_it(
    open_channel: Open, server: redis.Redis
) -> None:
    """Taken means unacknowledged, settled means gone."""
    channel = open_channel()
    put(channel, "a", "b", "c")
    taken = channel.take(QUEUE, 2)
    assert len({message.tag for message in taken}) == 2
    assert (server.llen(QUEUE), server.hlen("unacked"), server.zcard("unacked_index")) == (1, 2, 2)
    channel.settle([taken[0].tag])
    assert (server.hlen("unacked"), server.zcard("unacked_index")) == (1, 1)
    channel.close()
    assert (server.llen(QUEUE), server.hlen("unacked"), server.zcard("unacked_index")) == (2, 0, 0)


def test_oldest_first_and_every_priority(open_channel: Open) -> None:
    """The order within a priority is kombu's; lists of other priorities are not forgotten."""
    channel = open_channel()
    put(channel, "first", "second")
    put(channel, "urgent", priority=9)
    raws = [message.raw for message in channel.take(QUEUE, 10)]
    assert [b'"priority": 9' in raw for raw in raws] == [False, False, True]
    assert b"Zmlyc3Q=" in raws[0], "base64 of 'first'"


@pytest.mark.parametrize("restorer", [None, OURS], ids=["kombu", "ours"])
@pytest.mark.parametrize("taker", [None, OURS], ids=["kombu", "ours"])
def test_any_consumer_gives_back_what_any_other_left(
    open_channel: Open, server: redis.Redis, taker: str | None, restorer: str | None
) -> None:
    """A batch that expires goes back to its queue, whoever took it and whoever looks."""
    left = open_channel(taker)
    put(left, "a", "b")
    if taker:
        assert len(left.take(QUEUE, 10)) == 2
    else:
        assert left.basic_get(QUEUE)
        assert left.basic_get(QUEUE)
    assert server.llen(QUEUE) == 0
    patient = open_channel(restorer, visibility_timeout=3600)
    patient.qos.restore_visible(interval=1)
    assert server.llen(QUEUE) == 0, "not yet overdue"
    other = open_channel(restorer, visibility_timeout=-1)
    other.qos.restore_visible(interval=1)
    assert sorted(bodies(other)) == [b"a", b"b"]
    assert (server.hlen("unacked"), server.zcard("unacked_index")) == (0, 0)


def test_what_is_not_json_is_taken_and_given_back_unchanged(
    open_channel: Open, server: redis.Redis
) -> None:
    """Kombu would stumble over it, at every restore, for ever."""
    channel = open_channel()
    server.lpush(QUEUE, b'{"cut', b'\xff\x00,"",', b"")
    put(channel, "fine")
    assert [m.raw for m in channel.take(QUEUE, 3)] == [b'{"cut', b'\xff\x00,"",', b""]
    assert len(channel.take(QUEUE, 1)) == 1
    other = open_channel(visibility_timeout=-1)
    other.restore_expired(0)
    assert server.hlen("unacked") == 0
    assert server.llen(QUEUE) == 4
    assert {b'{"cut', b'\xff\x00,"",', b""} < set(server.lrange(QUEUE, 0, -1))


def test_a_batch_is_bounded_in_messages_and_bytes(
    open_channel: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch ends with the message that reaches the limit."""
    channel = open_channel()
    put(channel, *("x" * 1000 for _ in range(10)))
    assert len(channel.take(QUEUE, 3)) == 3
    monkeypatch.setattr(kombu_redis, "TAKE_BYTES_MAX", 2000)
    assert len(channel.take(QUEUE, 10)) == 2


def test_many_messages_are_settled_at_once(open_channel: Open, server: redis.Redis) -> None:
    """More than Lua can hold as arguments of one call."""
    channel = open_channel()
    with server.pipeline() as pipe:
        for number in range(9_000):
            pipe.lpush(QUEUE, f'{{"n": {number}}}')
        pipe.execute()
    taken = channel.take(QUEUE, 9_000)
    assert len(taken) == 9_000
    channel.settle([message.tag for message in taken])
    assert (server.hlen("unacked"), server.zcard("unacked_index")) == (0, 0)


def test_waiting_leaves_the_message_where_it_is(open_channel: Open, server: redis.Redis) -> None:
    """A consumer that dies while it waits takes nothing along."""
    channel = open_channel()
    assert channel.take(QUEUE, 10, 0.01) == []
    put(channel, "a")
    with channel.conn_or_acquire() as client:
        assert client.blmove(QUEUE, QUEUE, 1, "RIGHT", "RIGHT")
    assert server.llen(QUEUE) == 1
    assert len(channel.take(QUEUE, 10, 5)) == 1


def test_what_ends_a_wait_is_taken_in_the_same_trip(
    open_channel: Open, server: redis.Redis
) -> None:
    """Another consumer may still be faster; who has just looked does not look again first."""
    channel = open_channel()
    put(channel, "a", "b")
    channel.take(QUEUE, 1, looked=True)
    before = server.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert len(channel.take(QUEUE, 10, 5, looked=True)) == 1
    assert channel.take(QUEUE, 10, 0.01, looked=True) == []
    assert before + 2 == server.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert (server.llen(QUEUE), server.hlen("unacked")) == (0, 2)
    put(channel, "urgent", priority=3)
    assert len(channel.take(QUEUE, 10, 0.01, looked=True)) == 1


def test_scripts_that_redis_forgot_are_sent_again(open_channel: Open, server: redis.Redis) -> None:
    """A restarted Redis knows no script."""
    channel = open_channel()
    put(channel, "a", "b")
    first = channel.take(QUEUE, 1)
    server.script_flush()
    second = channel.take(QUEUE, 1)
    server.script_flush()
    channel.settle([message.tag for message in first + second])
    assert server.hlen("unacked") == 0


def test_a_key_prefix_is_kept(open_channel: Open, server: redis.Redis) -> None:
    """Every key of an app that shares a database begins with its prefix."""
    channel = open_channel(global_keyprefix="mine:")
    put(channel, "a", "b")
    taken = channel.take(QUEUE, 1, 1)
    assert channel.take(QUEUE, 1, 1)
    assert keys(server) == {"mine:unacked", "mine:unacked_index"}
    channel.settle([message.tag for message in taken])
    channel.close()
    assert keys(server) == {f"mine:{QUEUE}"}


def test_one_client_for_all_operations_until_the_pool_is_another(open_channel: Open) -> None:
    """That is what saves time; after a fork the pool is replaced, and the client with it."""
    channel = open_channel()
    with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
        assert first is second
    channel._after_fork()
    with channel.conn_or_acquire() as third:
        assert third is not first
        assert third.ping()


def test_messages_outlive_a_restart_of_redis_in_the_middle(
    open_channel: Open, redis_server: PrivateRedis
) -> None:
    """A channel goes on with new connections; what it holds can still be settled."""
    channel = open_channel()
    put(channel, "a", "b")
    taken = channel.take(QUEUE, 1)
    redis_server.restart()
    channel.settle([message.tag for message in taken])
    assert bodies(channel) == [b"b"]


def test_closing_after_the_connection_was_given_up_fails_as_a_connection_does(
    open_channel: Open, server: redis.Redis
) -> None:
    """A worker whose Redis went away closes what it has given up already, and must outlive it."""
    channel = open_channel()
    put(channel, "one")
    assert channel.basic_get(QUEUE)
    transport = channel.connection
    client, transport.client = transport.client, None
    channel._disconnect_pools()
    with pytest.raises(redis.ConnectionError, match="given up"):
        channel.close()
    transport.client = client
    assert server.hlen("unacked") == 1


def test_closing_leaves_no_connection_behind(open_channel: Open, server: redis.Redis) -> None:
    """Giving messages back opens connections; they are closed again."""

    def connected() -> set[str]:
        return {client["id"] for client in server.client_list()}

    before = connected()
    channel = open_channel()
    put(channel, "a")
    assert channel.take(QUEUE, 1)
    assert connected() - before
    channel.close()
    wait_until(lambda: connected() <= before, what="no connection of the channel")


@pytest.mark.parametrize(
    "url, expected",
    [
        ("redis://:secret@host:6379/0", OURS),
        ("filesystem://", "shared.kombu_filesystem:Transport"),
        ("rediss://host:6379/0", None),
        ("sentinel://host:26379", None),
        ("redis+socket:///tmp/redis.sock", None),
        ("redis://a;redis://b", None),
        ("amqp://host//", None),
        ("memory://", None),
    ],
)
def test_our_transports_are_chosen_for_plain_urls_only(url: str, expected: str | None) -> None:
    """Where kombu reads more out of the scheme, its own transport is kept."""
    assert transport_for(url) == expected


def test_a_batch_is_settled_while_the_next_one_is_taken(
    open_channel: Open, server: redis.Redis
) -> None:
    """What was settled is gone, what is taken is unacknowledged and comes back at a close."""
    channel = open_channel()
    put(channel, "a", "b", "c")
    first = channel.take(QUEUE, 2)
    server.script_flush()
    second = channel.settle_and_take([message.tag for message in first], QUEUE, 2)
    assert (len(second), server.llen(QUEUE), server.hlen("unacked")) == (1, 0, 1)
    channel.close()
    assert (server.llen(QUEUE), server.hlen("unacked"), server.zcard("unacked_index")) == (1, 0, 0)
