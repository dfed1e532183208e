"""Each server fixture works: it answers, is empty, survives a kill and keeps its data."""

from ipaddress import ip_address
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from kombu import Connection
from sqlalchemy import create_engine, make_url, text

from shared.embedded import PrivateRedis
from tests.servers.postgres import PostgresServer, find_postgres
from tests.servers.process import servers_required
from tests.servers.rabbitmq import RabbitServer


@pytest.mark.parametrize("turn", [1, 2])
def test_redis_url_is_empty_for_each_test(redis_url: str, turn: int) -> None:
    """What one test writes, the next one does not see."""
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left", turn)


@pytest.mark.parametrize("turn", [1, 2])
def test_postgres_url_is_a_new_database_for_each_test(postgres_url: str, turn: int) -> None:
    """Every test creates the same table in a database of its own."""
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE turns (turn int)"))
    engine.dispose()


@pytest.mark.parametrize("turn", [1, 2])
def test_rabbitmq_url_is_a_new_virtual_host_for_each_test(rabbitmq_url: str, turn: int) -> None:
    """A message of one test is not there for the next."""
    with Connection(rabbitmq_url) as connection, connection.SimpleQueue("turns") as queue:
        assert queue.qsize() == 0
        queue.put({"turn": turn})


def test_redis_server_keeps_its_data_over_a_restart(
    redis_server: PrivateRedis, redis_url: str
) -> None:
    """An orderly restart keeps port and data, under a new process."""
    with redis.Redis.from_url(redis_url) as client:
        client.set("kept", "yes")
    before = redis_server.pid
    redis_server.restart()
    with redis.Redis.from_url(redis_url) as client:
        assert client.get("kept") == b"yes"
    assert before != redis_server.pid


def test_postgres_server_keeps_committed_data_when_killed(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    """After SIGKILL of everything and a start, what was committed is there."""
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE kept (value int)"))
        connection.execute(text("INSERT INTO kept VALUES (1)"))
    engine.dispose()
    postgres_server.kill()
    with pytest.raises(psycopg.OperationalError):
        postgres_server.execute("SELECT 1")
    postgres_server.start()
    with engine.begin() as connection:
        assert connection.execute(text("SELECT value FROM kept")).scalar_one() == 1
    engine.dispose()


def test_rabbitmq_server_keeps_durable_messages_when_killed(
    rabbitmq_server: RabbitServer, rabbitmq_url: str
) -> None:
    """After SIGKILL and a start, a persistent message in a durable queue is there."""
    confirmed = Connection(rabbitmq_url, transport_options={"confirm_publish": True})
    with confirmed, confirmed.SimpleQueue("kept") as queue:
        queue.put({"value": 1}, delivery_mode=2)
    rabbitmq_server.kill()
    rabbitmq_server.start()
    with Connection(rabbitmq_url) as connection, connection.SimpleQueue("kept") as queue:
        message = queue.get(timeout=10)
        assert message.payload == {"value": 1}
        message.ack()


@pytest.mark.parametrize(
    "programs", [pytest.param(path, id=str(index)) for index, path in enumerate(find_postgres())]
)
def test_each_installed_postgres_starts(programs: Path) -> None:
    """Whether it is the system's or the package's, and whoever may enter its folder."""
    server = PostgresServer(programs)
    try:
        server.start()
        assert server.running
    finally:
        server.discard()


def test_rabbitmq_listens_on_loopback_only(rabbitmq_server: RabbitServer) -> None:
    """Neither the broker, nor its management, distribution and port mapper, is open to others."""
    listening = {
        ip_address(connection.laddr.ip)
        for pid in rabbitmq_server.start().pids()
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening
    assert all(address.is_loopback for address in listening)


def test_postgres_url_is_a_psycopg_url(postgres_url: str) -> None:
    """SQLAlchemy loads psycopg 3, the driver that the product depends on."""
    assert make_url(postgres_url).drivername == "postgresql+psycopg"


@pytest.mark.parametrize(
    "name, value, expected",
    [("CI", "true", True), ("CI", "", False), ("SAGA_TEST_REQUIRE_SERVERS", "1", True)],
)
def test_missing_servers_fail_on_ci_only(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: bool
) -> None:
    """A laptop skips, CI and whoever asks for it fails."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("SAGA_TEST_REQUIRE_SERVERS", raising=False)
    monkeypatch.setenv(name, value)
    assert expected is servers_required()
