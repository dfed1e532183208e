"""Task messages that are written by hand and put into Redis in one command."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Connection, Producer

from shared import codec
from shared.embedded import PrivateRedis
from shared.envelope import envelope, headers
from shared.redis_lane import Lane, packed

QUEUE = "inventory"


@pytest.fixture
def channel(redis_url: str) -> Iterator[Any]:
    """A channel of ours."""
    with Connection(redis_url, transport="shared.kombu_redis:Transport") as connection:
        yield connection.default_channel


@pytest.fixture
def server(redis_server: PrivateRedis, redis_url: str) -> Iterator[redis.Redis]:
    """The server, seen by a plain client."""
    with redis.Redis(port=redis_server.start().port) as client:
        yield client


@pytest.fixture
def lane(server: redis.Redis) -> Iterator[Lane]:
    """A lane with half a second of patience."""
    kwargs = server.connection_pool.connection_kwargs
    pool = redis.ConnectionPool(port=kwargs["port"], socket_timeout=0.5)
    lane = Lane(pool)
    yield lane
    lane.close()
    pool.disconnect()


def message(number: int = 1) -> bytes:
    """A task message."""
    task_headers = headers(task="inventory.reserve", task_id=f"id-{number}", origin="me@here")
    return envelope(QUEUE, task_headers | {"saga_id": "s"}, codec.task_body({"n": number}))


def test_it_is_what_celery_and_kombu_write(channel: Any, server: redis.Redis) -> None:
    """So any consumer of kombu can read it, and give it back."""
    app = Celery(set_as_current=False)
    theirs = app.amqp.as_task_v2(
        "id-1", "inventory.reserve", kwargs={"n": 1}, ignore_result=True, origin="me@here"
    )
    Producer(channel).publish(
        codec.task_body({"n": 1}),
        exchange="",
        routing_key=QUEUE,
        content_type="application/json",
        content_encoding="utf-8",
        headers=theirs.headers | {"saga_id": "s", "argsrepr": "()", "kwargsrepr": "{...}"},
        delivery_mode=2,
        correlation_id="id-1",
        reply_to="",
    )
    channel.push([(QUEUE, message())])
    ours, kombus = (json.loads(raw) for raw in server.lrange(QUEUE, 0, -1))
    tags = {one["properties"].pop("delivery_tag") for one in (ours, kombus)}
    assert len(tags) == 2
    assert ours == kombus


def test_messages_come_out_in_the_order_in_which_they_went_in(channel: Any) -> None:
    """Oldest first, in each queue."""
    channel.push((QUEUE, message(number)) for number in range(3))
    channel.push([("other", message(7)), (QUEUE, message(3))])
    found = [channel.basic_get(QUEUE).headers["id"] for _ in range(4)]
    assert found == ["id-0", "id-1", "id-2", "id-3"]
    assert channel.basic_get("other").headers["id"] == "id-7"


def test_a_queue_that_expires_goes_on_to_expire(channel: Any, server: redis.Redis) -> None:
    """As kombu does with ``x-expires``."""
    channel.queue_declare(QUEUE, arguments={"x-expires": 60_000})
    channel.push([(QUEUE, message())])
    assert 0 < int(str(server.pttl(QUEUE))) <= 60_000


def test_what_redis_refuses_is_an_error_and_the_rest_is_done(lane: Lane) -> None:
    """The next command gets its own answer, not that of one before it."""
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        lane.run(packed("SET", "a", 1), packed("LPUSH", "a", "x"), packed("SET", "b", 2.5))
    assert lane.run(packed("GET", "a"), packed("GET", "b")) == [b"1", b"2.5"]


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one(lane: Lane) -> None:
    """The connection is given up with it."""
    lane.run(packed("SET", "a", "mine"))
    with pytest.raises(redis.TimeoutError):
        lane.run(packed("BLPOP", "nothing", 30))
    assert lane.run(packed("GET", "a")) == [b"mine"]


def test_a_connection_that_was_closed_is_an_error_once(lane: Lane, server: redis.Redis) -> None:
    """Whether the command was carried out nobody knows: whoever sent it decides what to do."""
    (mine,) = lane.run(packed("CLIENT", "ID"))
    server.client_kill_filter(_id=str(mine))
    with pytest.raises(redis.ConnectionError):
        lane.run(packed("PING"))
    assert lane.run(packed("PING")) == [b"PONG"]
