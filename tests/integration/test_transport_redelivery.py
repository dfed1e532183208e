"""What becomes of messages whose orchestrator is killed, and of a broker that hangs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import psutil
import pytest
import redis
from celery import Celery
from kombu import Queue

from orchestrator.ports import Delivery
from orchestrator.transport.celery import CeleryTransport
from shared import names
from shared.embedded import PrivateRedis, bound_to_parent
from shared.errors import UnavailableError
from shared.messages import Reply
from tests.contracts.transport_contract import attempts, command, receive_all, reply
from tests.servers.rabbitmq import RabbitServer
from tests.waiting import wait_until

CONSUMER = """
import json, sys
from celery import Celery
from orchestrator.transport.celery import CeleryTransport
app = Celery("orchestrator", broker=sys.argv[1])
app.conf.broker_transport_options = json.loads(sys.argv[2])
transport, got = CeleryTransport(app), 0
while got < 3:
    got += len(transport.receive(10, 1))
print("holding", flush=True)
sys.stdin.read()
"""


class Client:
    """An orchestrator's transport, and a sender of replies."""

    def __init__(self, url: str, options: dict[str, Any] | None = None, **settings: Any) -> None:
        self.app = Celery("orchestrator", broker=url, set_as_current=False)
        self.app.conf.broker_transport_options = options or {}
        self.transport = CeleryTransport(self.app, **settings)

    def send(self, number: int) -> None:
        """Send one reply."""
        queue = names.REPLIES_QUEUE
        with self.app.connection_for_write() as connection:
            self.app.send_task(
                names.REPLY_TASK, kwargs=reply(number), queue=queue, connection=connection
            )

    def close(self) -> None:
        """Close everything."""
        self.transport.close()
        self.app.close()


@pytest.fixture
def client() -> Iterator[Callable[..., Client]]:
    """Makes clients, and closes them."""
    made: list[Client] = []

    def make(*args: Any, **settings: Any) -> Client:
        made.append(Client(*args, **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


def hold_and_be_killed(url: str, options: str = "{}") -> None:
    """Take three messages in another process, and SIGKILL it."""
    consumer = subprocess.Popen(
        bound_to_parent([sys.executable, "-c", CONSUMER, url, options]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with consumer:
        assert consumer.stdout is not None
        assert consumer.stdout.readline() == b"holding\n"
        consumer.kill()


def test_messages_of_a_killed_orchestrator_come_back_on_redis(
    redis_url: str, client: Callable[..., Client]
) -> None:
    """With the default settings, within 20 seconds, in one copy each, while others arrive."""
    successor = client(redis_url)
    for number in range(3):
        successor.send(number)
    hold_and_be_killed(redis_url)
    began = time.monotonic()
    got: list[Delivery] = []

    def all_back() -> bool:
        # Under load the queue is never empty; kombu would look for expired messages only then.
        successor.send(100)
        batch = successor.transport.receive(1, 1)
        successor.transport.acknowledge(batch)
        got.extend(d for d in batch if isinstance(d.message, Reply) and d.message.attempt < 100)
        return len(got) >= 3

    wait_until(all_back, timeout=20)
    assert attempts(got) == [0, 1, 2]
    assert time.monotonic() - began > 5, "they came back before they were overdue"


def test_messages_of_a_killed_orchestrator_come_back_on_rabbitmq(
    rabbitmq_url: str, client: Callable[..., Client]
) -> None:
    """RabbitMQ notices at once."""
    successor = client(rabbitmq_url)
    for number in range(3):
        successor.send(number)
    hold_and_be_killed(rabbitmq_url)
    assert attempts(receive_all(successor.transport, 3)) == [0, 1, 2]


def test_messages_of_a_killed_orchestrator_come_back_on_the_filesystem(
    tmp_path: Path, client: Callable[..., Client]
) -> None:
    """Its lock tells that it is gone."""
    messages = tmp_path / "messages"
    messages.mkdir()
    options = (
        f'{{"data_folder_in": "{messages}", "data_folder_out": "{messages}",'
        f' "control_folder": "{tmp_path}/control", "polling_interval": 0.01}}'
    )
    successor = client("filesystem://", json.loads(options))
    for number in range(3):
        successor.send(number)
    hold_and_be_killed("filesystem://", options)
    assert attempts(receive_all(successor.transport, 3)) == [0, 1, 2]


def test_what_participants_hold_is_left_alone(
    redis_url: str, redis_server: PrivateRedis, client: Callable[..., Client]
) -> None:
    """The orchestrators' short visibility timeout does not count for a worker's tasks."""
    orchestrator = client(redis_url, redelivery_after=timedelta(milliseconds=1))
    orchestrator.transport.publish([command(1)])
    orchestrator.send(1)
    with (
        orchestrator.app.connection_for_read() as connection,
        redis.Redis(port=redis_server.start().port) as server,
    ):
        inventory = Queue("inventory").bind(connection.default_channel)
        assert inventory.get() is not None
        # Overdue for an orchestrator, and it looks: its own message comes back.
        held = receive_all(orchestrator.transport, 1, acknowledge=False)
        again = client(redis_url, redelivery_after=timedelta(milliseconds=1))
        assert attempts(receive_all(again.transport, 1)) == attempts(held)
        assert inventory.get() is None
        assert (server.hlen("unacked"), server.zcard("unacked_index")) == (1, 1)


@contextmanager
def frozen(pids: set[int]) -> Iterator[None]:
    """The processes hang: they keep their connections and answer nothing."""
    tree = [p for pid in pids for p in (psutil.Process(pid), *psutil.Process(pid).children(True))]
    for each in tree:
        each.send_signal(SIGSTOP)
    try:
        yield
    finally:
        for each in tree:
            each.send_signal(SIGCONT)


def check_hanging_broker(hung: Client, pids: set[int]) -> None:
    """Every call fails in a few seconds, and works again afterwards."""
    hung.transport.publish([command(1)])
    hung.transport.receive(1, 0.01)
    with frozen(pids):
        for call in (
            lambda: hung.transport.publish([command(2)]),
            lambda: hung.transport.receive(1, 0.1),
        ):
            began = time.monotonic()
            with pytest.raises(UnavailableError):
                call()
            assert time.monotonic() - began < 10
    hung.transport.publish([command(3)])
    hung.send(3)
    assert 3 in attempts(receive_all(hung.transport, 1))


def test_a_hanging_redis_counts_as_away(
    redis_server: PrivateRedis, redis_url: str, client: Callable[..., Client]
) -> None:
    """A server that accepts but does not answer must not block the orchestrator for ever."""
    hung = client(redis_url, unavailable_after=timedelta(seconds=1))
    assert redis_server.pid is not None
    check_hanging_broker(hung, {redis_server.pid})


def test_a_hanging_rabbitmq_counts_as_away(
    rabbitmq_server: RabbitServer, rabbitmq_url: str, client: Callable[..., Client]
) -> None:
    """The confirmation of a batch is waited for no longer than that."""
    hung = client(rabbitmq_url, unavailable_after=timedelta(seconds=1))
    hung.transport.publish([command(1)])
    with frozen(rabbitmq_server.pids()):
        began = time.monotonic()
        with pytest.raises(UnavailableError):
            hung.transport.publish([command(2)])
        assert time.monotonic() - began < 10
    hung.transport.publish([command(3)])


def test_a_queue_that_vanished_is_declared_again(
    rabbitmq_url: str, client: Callable[..., Client]
) -> None:
    """RabbitMQ tells that nobody would get the message; the next call makes the queue anew."""
    orchestrator = client(rabbitmq_url)
    orchestrator.transport.publish([command(1)])
    with orchestrator.app.connection_for_write() as connection:
        Queue("inventory").bind(connection.default_channel).delete()
        orchestrator.transport.publish([command(2)])
        message: Any = Queue("inventory").bind(connection.default_channel).get()
        assert message.headers["saga_attempt"] == 2


def test_a_queue_that_its_service_declared_otherwise_is_used_as_it_is(
    rabbitmq_url: str, client: Callable[..., Client]
) -> None:
    """Declaring it again with other arguments would be refused by RabbitMQ."""
    orchestrator = client(rabbitmq_url)
    queue = Queue("inventory", max_priority=5)
    with orchestrator.app.connection_for_write() as connection:
        bound = queue.bind(connection.default_channel)
        bound.declare()
        orchestrator.transport.publish([command(1)])
        message: Any = bound.get()
        assert message.headers["saga_attempt"] == 1


def test_publishing_leaves_the_apps_own_queues_alone(
    redis_url: str, client: Callable[..., Client]
) -> None:
    """An orchestrator's worker without -Q must not begin to consume its participants' queues."""
    orchestrator = client(redis_url)
    before = set(orchestrator.app.amqp.queues)
    orchestrator.transport.publish([command(1)])
    orchestrator.transport.receive(1, 0.01)
    assert set(orchestrator.app.amqp.queues) == before
