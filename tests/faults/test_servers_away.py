"""Broker and database go away under running sagas, and come back."""

from shared.embedded import PrivateRedis
from tests.faults.stack import MakeStack
from tests.servers.postgres import PostgresServer
from tests.waiting import wait_until

COUNT = 20


def test_redis_restarts_under_running_sagas(
    make_stack: MakeStack, redis_server: PrivateRedis
) -> None:
    """All processes connect again by themselves, the log says so, and every saga ends."""
    stack = make_stack()
    orders = stack.order(COUNT)
    stack.orchestrator()
    stack.participants()
    wait_until(lambda: len(stack.ended(orders)) > 2, timeout=30)
    redis_server.stop()
    try:
        broker = {"dependency": "broker"}
        wait_until(lambda: stack.logged("dependency.unavailable", **broker), timeout=20)
        assert len(stack.ended(orders)) < COUNT
    finally:
        redis_server.start()
    stack.assert_sound(orders, as_expected=False)
    wait_until(lambda: stack.logged("dependency.recovered", **broker))


def test_postgres_restarts_under_running_sagas(
    make_stack: MakeStack, postgres_server: PostgresServer, postgres_url: str
) -> None:
    """Store and ledgers are gone at once: what was not committed is done again, and once."""
    stack = make_stack(postgres_url)
    orders = stack.order(COUNT)
    stack.orchestrator()
    stack.participants()
    wait_until(lambda: len(stack.ended(orders)) > 2, timeout=30)
    assert len(stack.ended(orders)) < COUNT
    postgres_server.stop()
    try:
        store = {"dependency": "store"}
        wait_until(lambda: stack.logged("dependency.unavailable", **store), timeout=20)
    finally:
        postgres_server.start()
    stack.assert_sound(orders, as_expected=False)
    wait_until(lambda: stack.logged("dependency.recovered", **store))
