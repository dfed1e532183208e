"""The way of a reply to Redis: straight, and by kombu where that does not work."""

import os
from collections.abc import Iterator

import pytest
import redis
from celery import Celery

from shared.embedded import PrivateRedis
from shared.messages import Succeeded
from shared.names import REPLIES_QUEUE
from workers.sdk import reply
from workers.sdk.command import StepCommand

STEP = StepCommand(saga_id="s", step="charge", direction="action", attempt=1)


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    """A plain app on a real Redis; after the test its connections are closed."""
    app = Celery("service", broker=redis_url, set_as_current=False)
    yield app
    reply._direct(app).close()
    app.close()


@pytest.fixture
def by_kombu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The queues of the replies that took kombu's way."""
    queues: list[str] = []
    publish = reply._publish

    def noted(
        app: Celery, queue: str, headers: dict[str, object], body: bytes, *, patient: bool
    ) -> None:
        queues.append(queue)
        publish(app, queue, headers, body, patient=patient)

    monkeypatch.setattr(reply, "_publish", noted)
    return queues


def waiting(redis_url: str) -> int:
    """How many replies there are."""
    with redis.Redis.from_url(redis_url) as client:
        return int(str(client.llen(REPLIES_QUEUE)))


def test_replies_share_a_connection(app: Celery, redis_url: str, by_kombu: list[str]) -> None:
    """An app that knows nothing of our transport gains from it, too."""
    with redis.Redis.from_url(redis_url) as client:
        before = {one["id"] for one in client.client_list()}
        for _ in range(3):
            reply.send_reply(app, STEP, Succeeded())
        pushed = [one["cmd"] for one in client.client_list() if one["id"] not in before]
    assert pushed.count("lpush") == 1
    assert by_kombu == []
    assert waiting(redis_url) == 3


def test_no_reply_is_lost_when_redis_restarts(
    app: Celery, redis_url: str, redis_server: PrivateRedis, by_kombu: list[str]
) -> None:
    """The one that meets a broken connection goes by kombu, the next one straight again."""
    reply.send_reply(app, STEP, Succeeded())
    redis_server.restart()
    before = waiting(redis_url)
    reply.send_reply(app, STEP, Succeeded())
    assert by_kombu == [REPLIES_QUEUE]
    reply.send_reply(app, STEP, Succeeded())
    assert by_kombu == [REPLIES_QUEUE]
    assert waiting(redis_url) == before + 2


def test_a_forked_child_has_a_connection_of_its_own(app: Celery, redis_url: str) -> None:
    """Parent and child would read each other's answers."""
    reply.send_reply(app, STEP, Succeeded())
    mine = reply._direct(app)
    child = os.fork()
    if not child:
        code = 1
        try:
            reply.send_reply(app, STEP, Succeeded())
            code = 0 if reply._direct(app) is not mine else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    reply.send_reply(app, STEP, Succeeded())
    assert reply._direct(app) is mine
    assert waiting(redis_url) == 3


def test_other_brokers_are_left_to_kombu(by_kombu: list[str]) -> None:
    """There is nothing that could be straighter."""
    app = Celery("service", broker="memory://", set_as_current=False)
    reply.send_reply(app, STEP, Succeeded())
    assert by_kombu == [REPLIES_QUEUE]
