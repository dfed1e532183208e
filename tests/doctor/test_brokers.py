"""Real brokers with real faults: what they would lose or send twice."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import pytest
import redis
from kombu import Connection, Queue

from orchestrator.bootstrap import make_celery
from orchestrator.doctor import brokers, checkup
from orchestrator.doctor.findings import Code, Severity
from orchestrator.sagas.place_order import PLACE_ORDER
from shared.embedded import free_port
from shared.settings import Settings
from tests.doctor.conftest import bad

WRONG, ADVICE = Severity.WRONG, Severity.ADVICE
STEP = "place-order/pay"


@contextmanager
def _configured(url: str, **settings: str) -> Iterator[None]:
    with redis.Redis.from_url(url) as client:
        before: Any = {name: client.config_get(name)[name] for name in settings}
        try:
            for name, value in settings.items():
                client.config_set(name, value)
            yield
        finally:
            for name, value in before.items():
                client.config_set(name, value)


def test_a_redis_as_it_should_be(redis_url: str) -> None:
    """Append-only and without eviction: nothing to say."""
    found = list(brokers.check_redis(redis_url))
    assert bad(found) == []
    assert len(found) == 3


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"maxmemory-policy": "allkeys-lru", "maxmemory": "1gb"}, (WRONG, Code.REDIS_EVICTS)),
        ({"maxmemory-policy": "allkeys-random"}, (WRONG, Code.REDIS_EVICTS)),
        ({"maxmemory-policy": "volatile-lru"}, (ADVICE, Code.REDIS_EVICTS)),
        ({"appendonly": "no"}, (ADVICE, Code.REDIS_PERSISTENCE)),
    ],
)
def test_a_redis_that_loses_messages(
    settings: dict[str, str], expected: tuple[Severity, Code], redis_url: str
) -> None:
    """Each setting is found by asking the server."""
    with _configured(redis_url, **settings):
        assert bad(brokers.check_redis(redis_url)) == [expected]


def test_a_redis_that_is_nearly_full(redis_url: str) -> None:
    """Before it refuses messages."""
    with redis.Redis.from_url(redis_url) as client:
        info: Any = client.info("memory")
    with _configured(redis_url, maxmemory=str(int(info["used_memory"] * 1.15))):
        assert bad(brokers.check_redis(redis_url)) == [(ADVICE, Code.REDIS_MEMORY)]


def test_a_broker_that_is_down_is_named_without_its_password() -> None:
    """Redis and RabbitMQ."""
    port = free_port()
    found = list(brokers.check_redis(f"redis://:s3cret@127.0.0.1:{port}/0"))
    found += brokers.check_rabbitmq(
        f"amqp://me:s3cret@127.0.0.1:{port}//", (), timedelta(seconds=1), STEP
    )
    assert bad(found) == 2 * [(WRONG, Code.BROKER_UNREACHABLE)]
    assert all(str(port) in one.message and "s3cret" not in one.message for one in found)


def test_a_broker_of_another_kind() -> None:
    """It is only seen whether it answers; a scheme that nobody knows is a wrong setting."""
    assert bad(brokers.check_other("memory://")) == []
    assert bad(brokers.check_other("nonsense://x")) == [(WRONG, Code.SETTING)]


@pytest.mark.parametrize(
    "visibility_s, others, expected",
    [
        (300, {}, []),
        (60, {}, []),
        (59, {}, [(ADVICE, Code.VISIBILITY_TIMEOUT)]),
        (29, {}, [(WRONG, Code.VISIBILITY_TIMEOUT)]),
        (300, {"other@host": 10.0}, [(WRONG, Code.VISIBILITY_TIMEOUT_OTHERS)]),
        (300, {"other@host": 30.0}, []),
    ],
)
def test_the_visibility_timeout_against_the_longest_step(
    visibility_s: int, others: dict[str, float], expected: list[Any]
) -> None:
    """Ours, and that of any worker on the same Redis: the shortest one counts."""
    longest = timedelta(seconds=30)
    found = list(brokers.check_visibility(timedelta(seconds=visibility_s), longest, STEP, others))
    assert bad(found) == expected
    if expected:
        assert STEP in found[-1].message


def test_a_queue_that_somebody_declared_otherwise(rabbitmq_url: str) -> None:
    """Transient or quorum: the broker's own words are in the finding; nothing is created."""
    ours = [Queue(name, durable=True) for name in ("inventory", "payment", "shipping")]
    with Connection(rabbitmq_url) as connection, connection.channel() as channel:
        ours[0](channel).queue_declare()
        quorum = Queue("payment", durable=True, queue_arguments={"x-queue-type": "quorum"})
        quorum(channel).queue_declare()
        found = list(brokers.check_rabbitmq(rabbitmq_url, ours, timedelta(seconds=1), STEP))
        assert bad(found) == [(WRONG, Code.RABBITMQ_QUEUE)]
        (wrong,) = (one for one in found if one.severity is WRONG)
        assert "x-queue-type" in wrong.message
        assert wrong.details["queue"] == "payment"
        with pytest.raises(connection.channel_errors, match="no queue 'shipping'"):
            ours[2](channel).queue_declare(passive=True)


def test_queues_that_celery_made_are_right(rabbitmq_url: str) -> None:
    """Whoever publishes first makes the queue; the check declares it in the same words."""
    app = make_celery(lambda: Settings(broker_url=rabbitmq_url))
    queues = checkup._queues(app, [PLACE_ORDER.definition])
    with closing(app):
        for queue in queues:
            app.send_task("a.task", queue=queue.name)
        found = list(brokers.check_rabbitmq(rabbitmq_url, queues, timedelta(seconds=1), STEP))
    assert bad(found) == []
    assert len(found) == 1 + 5 + 1


def test_a_step_longer_than_rabbitmqs_consumer_timeout(rabbitmq_url: str) -> None:
    """Its channel would be closed in the middle of the step."""
    found = list(brokers.check_rabbitmq(rabbitmq_url, (), timedelta(hours=1), STEP))
    assert bad(found) == [(WRONG, Code.RABBITMQ_CONSUMER_TIMEOUT)]
