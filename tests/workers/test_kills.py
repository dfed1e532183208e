"""SIGKILL at the points where it hurts, with real workers of the example services."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from shared import faults
from shared.settings import Settings
from shared.settings import settings as app_settings
from tests.servers.postgres import PostgresServer
from tests.waiting import wait_until
from tests.workers.stand_in import StandIn, command, summary, worker
from workers import celery as services
from workers.examples import ledger

QUEUE = "inventory"
RESERVED = 'succeeded {"reservation_id": "res-saga-1-saga-1", "sku": "lamp", "quantity": 2}'


@pytest.fixture
def broker(redis_url: str) -> Iterator[StandIn]:
    """An orchestrator's end of a real broker."""
    with StandIn(redis_url) as stand_in:
        yield stand_in


@pytest.fixture(params=["sqlite", "postgresql"])
def ledgers(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Where the services keep their books."""
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    return Settings(home=tmp_path, ledger_url=url)


def environment(ledgers: Settings, fault: str) -> dict[str, str]:
    """What a worker that is to die needs to know."""
    return {
        "SAGA_LEDGER_URL": ledgers.ledger_url,
        "SAGA_VISIBILITY_TIMEOUT": "PT2S",
        faults.FAULT_VARIABLE: fault,
        faults.FAULT_DIR_VARIABLE: str(ledgers.home / "faults"),
    }


@pytest.mark.parametrize("point", [faults.IN_ACTION, faults.AFTER_COMMIT, faults.AFTER_REPLY])
def test_killed_child_repeats_the_step_and_not_its_effect(
    redis_url: str, broker: StandIn, ledgers: Settings, point: str
) -> None:
    """A child dies before its commit, before its reply, or before its acknowledgement: one effect."""
    fault = f"{point}@inventory.reserve"
    options = ("-Q", QUEUE, "-c", "2")
    with worker("workers", redis_url, ledgers.home, *options, **environment(ledgers, fault)):
        broker.send("inventory.reserve", command(), queue=QUEUE, sku="lamp", quantity=2)
        # After its reply it dies too, and replies again: at least once.
        for _ in range(2 if point == faults.AFTER_REPLY else 1):
            assert summary(broker.reply().outcome) == RESERVED
    assert faults.fired(ledgers.home / "faults") == {fault}
    assert ledger.standing("saga-1", using=ledgers) == {"inventory": 2}
    assert ledger.audit(using=ledgers) == []
    assert broker.unacknowledged() == 0


def test_killed_worker_leaves_its_step_to_the_next(
    redis_url: str, broker: StandIn, ledgers: Settings
) -> None:
    """A whole worker dies between commit and reply: another one answers with the stored outcome."""
    fault = f"{faults.AFTER_COMMIT}@inventory.reserve"
    options = ("-Q", QUEUE, "--pool", "solo")
    settings = environment(ledgers, fault)
    broker.send("inventory.reserve", command(), queue=QUEUE, sku="lamp", quantity=2)
    with worker("workers", redis_url, ledgers.home, *options, **settings) as first:
        assert first.wait(30) == -9
    assert ledger.standing("saga-1", using=ledgers) == {"inventory": 2}
    with worker("workers", redis_url, ledgers.home, *options, **settings):
        assert summary(broker.reply().outcome) == RESERVED
    assert len(ledger.effects("saga-1", using=ledgers)) == 1
    assert broker.unacknowledged() == 0


def test_copies_on_several_processes_have_one_effect(
    redis_url: str, broker: StandIn, ledgers: Settings
) -> None:
    """Every command five times, over the children of two workers: each effect once."""
    options = ("-Q", QUEUE, "-c", "3")
    sagas = [f"saga-{number}" for number in range(20)]
    for attempt in range(1, 6):
        for saga in sagas:
            of = command(saga_id=saga, attempt=attempt)
            broker.send("inventory.reserve", of, queue=QUEUE, sku="lamp", quantity=1)
    one, other = ledgers.home / "one", ledgers.home / "other"
    one.mkdir()
    other.mkdir()
    home = {"SAGA_HOME": str(ledgers.home), **environment(ledgers, "")}
    with (
        worker("workers", redis_url, one, *options, **home),
        worker("workers", redis_url, other, *options, **home),
    ):
        replies = [broker.reply() for _ in range(5 * len(sagas))]
    assert {summary(reply.outcome).split()[0] for reply in replies} == {"succeeded"}
    for saga in sagas:
        assert ledger.standing(saga, using=ledgers) == {"inventory": 1}
    assert ledger.audit(using=ledgers) == []


def test_worker_waits_for_its_database(
    redis_url: str,
    broker: StandIn,
    postgres_url: str,
    postgres_server: PostgresServer,
    tmp_path: Path,
) -> None:
    """A database that is away when a worker starts is waited for, and the log says so."""
    log = tmp_path / "worker.log"
    broker.send("inventory.reserve", command(), queue=QUEUE, sku="lamp", quantity=2)
    postgres_server.stop()
    with worker("workers", redis_url, tmp_path, "-Q", QUEUE, SAGA_LEDGER_URL=postgres_url):
        wait_until(lambda: "worker.waits_for_database" in log.read_text(), timeout=30)
        postgres_server.start()
        assert summary(broker.reply().outcome) == RESERVED


def test_worker_without_a_database_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that does not come ends the worker, in place of a worker that fails every step."""

    def away(services: frozenset[str]) -> None:
        raise OperationalError("connect", {}, ConnectionError("refused"))

    monkeypatch.setenv("SAGA_BROKER_URL", "memory://")
    app_settings.cache_clear()
    monkeypatch.setattr(services, "create_tables", away)
    monkeypatch.setattr(services, "DATABASE_WITHIN", timedelta(0))
    with pytest.raises(SystemExit, match="No database: refused"):
        services.on_worker(SimpleNamespace(app=services.app))


def test_slow_step_does_not_stop_the_other_greenlets(
    redis_url: str, broker: StandIn, ledgers: Settings
) -> None:
    """SQLite waits inside the thread that all greenlets share; the barrier waits outside of it."""
    slow = {"delay_in": "inventory.reserve", "delay_seconds": 1.0}
    for number, delay in enumerate((slow, {}, slow, {})):
        of = command(saga_id=f"saga-{number}")
        payload: dict[str, Any] = {"sku": "lamp", "quantity": 1, **delay}
        broker.send("inventory.reserve", of, queue=QUEUE, **payload)
    options = ("-Q", QUEUE, "-P", "gevent", "-c", "10")
    with worker("workers", redis_url, ledgers.home, *options, **environment(ledgers, "")):
        replies = [broker.reply() for _ in range(4)]
    assert {summary(reply.outcome).split()[0] for reply in replies} == {"succeeded"}
