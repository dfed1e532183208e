"""Commands through real Celery workers and back."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGTERM
from typing import Any

import pytest
from celery import Celery

from orchestrator.transport.celery import CeleryTransport
from shared.embedded import PrivateRedis, bound_to_parent
from shared.messages import Reply, Succeeded
from tests.contracts.transport_contract import attempts, command, receive_all
from tests.servers import process
from tests.waiting import wait_until

CHEAP = "shared.kombu_redis:Transport"


@contextmanager
def worker(url: str, transport: str = "") -> Iterator[Celery]:
    """A Celery worker on the queue `inventory`; gives a client of its app."""
    env = os.environ | {"TEST_BROKER_URL": url, "TEST_BROKER_TRANSPORT": transport}
    module = "tests.integration.transport_worker_app"
    command_line = [
        *(sys.executable, "-m", "celery", "-A", module, "worker"),
        *("-Q", "inventory", "-c", "2", "-l", "warning", "--without-gossip", "--without-mingle"),
    ]
    running = subprocess.Popen(bound_to_parent(command_line), env=env, start_new_session=True)
    client = Celery("client", broker=url, set_as_current=False)
    try:
        yield client
        process.stop(running, SIGTERM)
        assert running.returncode == 0
    finally:
        if running.poll() is None:
            process.kill_tree(running)
        client.close()


@contextmanager
def transport_to(url: str) -> Iterator[CeleryTransport]:
    """A transport that is closed in the end."""
    app = Celery("orchestrator", broker=url, set_as_current=False)
    transport = CeleryTransport(app)
    try:
        yield transport
    finally:
        transport.close()
        app.close()


def check_round_trips(transport: CeleryTransport, first: int, count: int) -> None:
    """Each command is executed once and answered with its own headers."""
    numbers = list(range(first, first + count))
    transport.publish([command(number) for number in numbers])
    replies = receive_all(transport, count)
    assert attempts(replies) == numbers
    for delivery in replies:
        reply = delivery.message
        assert isinstance(reply, Reply)
        output = {"order_id": f"o-{reply.attempt}", "id": f"saga-1:reserve:action:{reply.attempt}"}
        assert reply.outcome == Succeeded(output=output)


def test_a_worker_on_rabbitmq_executes_commands(rabbitmq_url: str) -> None:
    """A worker that knows nothing of us executes our messages, and its replies are read."""
    with worker(rabbitmq_url), transport_to(rabbitmq_url) as transport:
        check_round_trips(transport, 1, 20)


@pytest.mark.parametrize("kombu_transport", ["", CHEAP], ids=["kombu", "ours"])
def test_a_worker_on_redis_executes_commands_and_survives_a_restart(
    redis_server: PrivateRedis, redis_url: str, kombu_transport: str
) -> None:
    """The worker answers a ping, and goes on consuming after Redis was away (celery #10205)."""
    with worker(redis_url, kombu_transport) as client, transport_to(redis_url) as transport:
        check_round_trips(transport, 1, 20)
        # Not a connection of kombu's pool: it is shared between apps, and may be a broken one.
        with client.connection_for_write() as connection:
            assert client.control.ping(timeout=5, limit=1, connection=connection)
        # A reply comes before its command is acknowledged, and what is not comes again.
        wait_settled(client)
        redis_server.restart()
        check_round_trips(transport, 101, 20)
        wait_settled(client)
        redis_server.kill()
        redis_server.start()
        check_round_trips(transport, 201, 20)
        wait_settled(client)


def wait_settled(client: Celery) -> None:
    """What was executed is settled: nothing lies in the worker's bookkeeping."""
    with client.connection_for_read() as connection:
        channel: Any = connection.default_channel
        wait_until(lambda: channel.client.hlen("unacked") == 0, what="no unacknowledged message")
