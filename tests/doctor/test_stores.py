"""Real stores with real faults: no schema, wrong clock, wrong journal, changed definitions."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.catalog import Catalog
from orchestrator.client import Client
from orchestrator.core.definition import Saga
from orchestrator.doctor import stores
from orchestrator.doctor.findings import Code, Severity
from orchestrator.engine import Engine
from orchestrator.store.opening import upgrade
from orchestrator.store.sql import SqlStore
from orchestrator.tracing import SagaTracing
from orchestrator.transport.memory import MemoryTransport
from shared.clock import utc_now
from tests.cli.stories import TRIP
from tests.doctor.conftest import bad

WRONG, ADVICE = Severity.WRONG, Severity.ADVICE


def _bad(url: str, *sagas: Saga, clock: Callable[[], datetime] = utc_now) -> list[Any]:
    with closing(SqlStore(url)) as store:
        return bad(stores.check_store(store, sagas, clock))


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A store in a file."""
    url = f"sqlite:///{tmp_path / 'saga.db'}"
    upgrade(url)
    return url


def test_a_store_that_is_not_there_or_has_no_schema(tmp_path: Path, postgres_url: str) -> None:
    """Looking does not create it."""
    assert _bad(f"sqlite:///{tmp_path / 'no.db'}") == [(WRONG, Code.STORE_SCHEMA)]
    assert not (tmp_path / "no.db").exists()
    assert _bad(postgres_url) == [(WRONG, Code.STORE_SCHEMA)]


def test_a_store_that_does_not_answer() -> None:
    """It is named without its password."""
    with closing(SqlStore("postgresql+psycopg://me:s3cret@127.0.0.1:1/saga")) as store:
        found = list(stores.check_store(store, (), utc_now))
    assert bad(found) == [(WRONG, Code.STORE_UNREACHABLE)]
    assert "s3cret" not in found[0].message


@pytest.mark.parametrize(
    "skew_s, expected",
    [(0, []), (2, [(ADVICE, Code.CLOCK_SKEW)]), (-60, [(WRONG, Code.CLOCK_SKEW)])],
)
def test_the_clocks_of_this_machine_and_of_postgresql(
    skew_s: int, expected: list[Any], postgres_url: str
) -> None:
    """Ours goes wrong here."""
    upgrade(postgres_url)
    assert _bad(postgres_url, clock=lambda: utc_now() + timedelta(seconds=skew_s)) == expected


def test_a_postgresql_that_only_reads_or_forgets(postgres_url: str) -> None:
    """As a standby, and with synchronous_commit off."""
    upgrade(postgres_url)
    options = "?options=-c%20{}"
    assert _bad(postgres_url + options.format("default_transaction_read_only%3Don")) == [
        (WRONG, Code.STORE_READ_ONLY)
    ]
    assert _bad(postgres_url + options.format("synchronous_commit%3Doff")) == [
        (ADVICE, Code.STORE_NOT_DURABLE)
    ]


def test_a_journal_mode_that_somebody_changed(sqlite_url: str, tmp_path: Path) -> None:
    """Found before the store, which would switch it, is opened."""
    assert _bad(sqlite_url) == []
    with closing(sqlite3.connect(tmp_path / "saga.db")) as file:
        file.execute("PRAGMA journal_mode=DELETE")
    assert _bad(sqlite_url) == [(WRONG, Code.SQLITE_JOURNAL)]


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("ext4", []),
        ("nfs4", [(WRONG, Code.SQLITE_NETWORK)]),
        ("cifs", [(WRONG, Code.SQLITE_NETWORK)]),
    ],
)
def test_a_file_on_a_network_file_system(
    kind: str, expected: list[Any], sqlite_url: str, tmp_path: Path
) -> None:
    """The nearest mount counts; its name may have a space."""
    mounted = str(tmp_path).replace(" ", "\\040")
    mounts = f"proc /proc proc rw 0 0\n/dev/sda / ext4 rw 0 0\nhost:/x {mounted} {kind} rw 0 0\n"
    assert bad(stores.check_sqlite_file(tmp_path / "saga.db", mounts)) == expected
    assert stores.filesystem_of(Path("/a b/c"), "x /a\\040b nfs rw 0 0") == "nfs"


def test_a_definition_that_changed_without_a_version(sqlite_url: str) -> None:
    """Named with the field that differs."""
    first, *others = TRIP.steps
    changed = Saga(
        name=TRIP.name,
        version=TRIP.version,
        input=TRIP.input,
        deadline=TRIP.deadline,
        steps=(msgspec.structs.replace(first, timeout=timedelta(seconds=7)), *others),
    )
    with closing(SqlStore(sqlite_url)) as store:
        store.put_definition(TRIP.definition, utc_now())
        assert bad(stores.check_store(store, [TRIP], utc_now)) == []
        found = list(stores.check_store(store, [changed], utc_now))
    assert bad(found) == [(WRONG, Code.DEFINITION_CHANGED)]
    assert "steps.flight.timeout: PT30S -> PT7S" in found[-1].message


@pytest.mark.parametrize(
    "free, expected",
    [(2**40, []), (2**29, [(ADVICE, Code.DISK_FULL)]), (2**20, [(WRONG, Code.DISK_FULL)])],
)
def test_a_disk_that_is_nearly_full(
    free: int, expected: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each disk, also for a folder that does not exist yet."""
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    folders = [tmp_path, tmp_path / "logs" / "not yet"]
    assert bad(stores.check_disk(folders)) == expected


def test_sagas_that_cannot_be_read_are_named(sqlite_url: str, tmp_path: Path) -> None:
    """With the reason of one; those that have ended hold nobody up."""
    store = SqlStore(sqlite_url)
    with closing(store):
        engine = Engine(
            store=store,
            transport=MemoryTransport(),
            catalog=Catalog([TRIP]),
            tracing=SagaTracing(system="memory", clock=utc_now),
            clock=utc_now,
        )
        client = Client(engine)
        ids = [client.start("trip", {"order_id": "o"}).row.saga_id for _ in range(3)]
        assert bad(stores.check_store(store, [TRIP], utc_now)) == []
        with closing(sqlite3.connect(tmp_path / "saga.db")) as file, file:
            file.execute("UPDATE saga SET state = '{' WHERE id IN (?, ?)", ids[:2])
            file.execute(
                "UPDATE saga SET status = 'resolved', wake_at = NULL WHERE id = ?", ids[:1]
            )
        found = list(stores.check_store(store, [TRIP], utc_now))
    assert bad(found) == [(WRONG, Code.SAGA_UNREADABLE)]
    assert f"cannot be read: {ids[1]}. Of {ids[1]}: A stored value" in found[-1].message
    assert found[-1].details == {"saga_ids": [ids[1]]}
