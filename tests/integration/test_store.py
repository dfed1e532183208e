import gc
import itertools
import os
import re
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from orchestrator.core.state import Status
from orchestrator.store import database, tables
from orchestrator.store.opening import open_store, upgrade
from orchestrator.store.sql import SqlStore
from shared.embedded import free_port
from shared.errors import ConfigurationError, SagaError, UnavailableError
from tests.contracts.store_contract import T0, change, command, put, row, seconds
from tests.core.builders import linear
from tests.servers.postgres import PostgresServer
from tests.waiting import wait_until

FINISHED = 5_000
"""Sagas that are over: enough that reading them all is never the best plan."""


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlStore]:
    """A store with its schema."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/saga.db"
    else:
        url = request.getfixturevalue("postgres_url")
    upgrade(url)
    made = open_store(url, create=False)
    yield made
    made.close()


@pytest.fixture
def on_postgres(postgres_url: str) -> Iterator[SqlStore]:
    """A store in PostgreSQL."""
    upgrade(postgres_url)
    made = open_store(postgres_url, create=False)
    yield made
    made.close()


# Plans ----------------------------------------------------------------------------------------


def fill(store: SqlStore) -> None:
    """Many finished sagas and fresh outbox rows, and a few that somebody looks for."""
    finished = [
        {
            "id": f"done-{number}",
            "name": "test",
            "version": 1,
            "key": f"k-{number}",
            "status": "completed",
            "sequence": 1,
            "trace_id": f"{number:032x}",
            "started_at": T0,
            "updated_at": T0,
            "wake_at": None,
            "trace_due_at": None,
            "state": "{}",
        }
        for number in range(FINISHED)
    ]
    fresh = [
        {"id": f"c-{number}", "saga_id": "s", "handed_out_at": T0 + seconds(60), "command": "{}"}
        for number in range(FINISHED)
    ]
    happened = [
        {"saga_id": one["id"], "sequence": 1, "at": T0, "type": "saga_completed", "data": "{}"}
        for one in finished
    ]
    kept = [{"saga_id": f"child-{n}", "kept_for": f"parent-{n}"} for n in range(FINISHED)]
    with store.database.writing() as connection:
        connection.execute(sa.insert(tables.SAGA), finished)
        connection.execute(sa.insert(tables.SAGA_KEPT), kept)
        connection.execute(sa.insert(tables.SAGA_OUTBOX), fresh)
        connection.execute(sa.insert(tables.SAGA_EVENT), happened)
    waiting = [
        change(row(f"s{n}", wake_at=T0, trace_due_at=T0), commands=[command(f"s{n}")])
        for n in range(3)
    ]
    waiting.append(change(row("0199c8a0-0000-7000-8000-000000000001", status=Status.COMPLETED)))
    assert store.commit(waiting) == frozenset()
    with store.database.writing() as connection:
        connection.exec_driver_sql("ANALYZE")


def plans(store: SqlStore, call: Callable[[], object]) -> list[str]:
    """How the database goes about each statement of a call."""
    statements: list[tuple[str, Any]] = []

    def remember(
        connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
            statements.append((statement, parameters))

    straight = database._SqliteDriver.exec_driver_sql

    def remembered(driver: Any, statement: str, parameters: Any = ()) -> Any:
        remember(None, None, statement, parameters, None, isinstance(parameters, list))
        return straight(driver, statement, parameters)

    engine = store.database._read
    sa.event.listen(engine, "before_cursor_execute", remember)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(database._SqliteDriver, "exec_driver_sql", remembered)
        call()
    sa.event.remove(engine, "before_cursor_execute", remember)
    explain = "EXPLAIN QUERY PLAN" if store.database.is_sqlite else "EXPLAIN"
    with store.database.reading() as connection:
        return [
            "\n".join(
                str(line[-1])
                for line in connection.exec_driver_sql(
                    f"{explain} {statement}",
                    parameters[0] if isinstance(parameters, list) else parameters,
                )
            )
            for statement, parameters in statements
        ]


@pytest.mark.parametrize(
    "index, call",
    [
        ("ix_saga_wake_at", lambda store: store.due(T0, 10)),
        (
            "ix_saga_outbox_handed_out_at",
            lambda store: store.claim_unpublished(T0 + seconds(1), T0 + seconds(60), 10),
        ),
        (
            "ix_saga_trace_due_at",
            lambda store: store.claim_untraced(T0, T0 + seconds(30), 10),
        ),
        ("ux_saga_key_name", lambda store: store.list_sagas(key="k-7")),
        ("ux_saga_key_name", lambda store: store.list_sagas(name="test", key="k-7")),
        ("ux_saga_key_name", lambda store: store.find_by_key("test", "k-missing")),
        ("ix_saga_trace_id", lambda store: store.find_by_trace(f"{7:032x}")),
        (re.compile("pk_saga|sqlite_autoindex_saga_1"), lambda store: store.ids_from("0199c8", 9)),
        ("ix_saga_status", lambda store: store.list_sagas(statuses=[Status.RUNNING], limit=3)),
        ("ix_saga_ended", lambda store: store.ended(T0 + seconds(1), 3)),
    ],
    ids=[
        "due",
        "unpublished",
        "untraced",
        "keys",
        "name-and-key",
        "key",
        "trace",
        "beginning",
        "list",
        "ended",
    ],
)
def test_polls_read_nothing_but_what_they_look_for(
    store: SqlStore, index: str | re.Pattern[str], call: Callable[[SqlStore], object]
) -> None:
    """Each statement goes through its index; finished sagas cost the running ones nothing."""
    fill(store)
    found: list[object] = []
    explained = plans(store, lambda: found.append(call(store)))
    assert found != [[]]
    assert explained
    for plan in explained:
        assert re.search(index, plan)
        assert "Seq Scan" not in plan
        # SQLite says SCAN for a whole table, and for a whole index.
        assert "SCAN saga" not in plan.replace(f"SCAN saga USING INDEX {index}", "")


PRIMARY = r"pk_saga|sqlite_autoindex_saga\w*_1"


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.load(["s1", "s2"]),
        lambda store: store.history(["s1", "s2"]),
        lambda store: store.commit(
            [change(row("s1", 2), commands=[command("s1", 2)]), change(row("s9"))],
            published=[command("s1").id],
            traced={"s2": T0},
        ),
    ],
    ids=["load", "history", "commit"],
)
def test_a_step_touches_the_rows_of_its_sagas_alone(
    store: SqlStore, call: Callable[[SqlStore], object]
) -> None:
    """Each statement goes through a primary key, whatever has finished."""
    fill(store)
    explained = plans(store, lambda: call(store))
    assert explained
    for plan in explained:
        assert re.search(PRIMARY, plan), plan
        assert "Seq Scan" not in plan
        assert "SCAN saga" not in plan


def test_a_list_is_one_statement(store: SqlStore) -> None:
    """A saga that changes its status meanwhile is neither left out nor there twice."""
    fill(store)
    assert len(plans(store, store.list_sagas)) == 1


def test_a_survey_reads_no_finished_saga(store: SqlStore) -> None:
    """Active sagas and late timers are counted in their indexes, whatever has finished."""
    fill(store)
    store.put_definition(msgspec.structs.replace(linear("a"), name="test"), T0)
    explained = plans(store, lambda: store.survey(T0))
    assert len(explained) == 9
    counted, late, oldest = (explained[number] for number in (1, 2, 3))
    assert re.search(r"ix_saga_(name_)?status", counted)
    for plan in (late, oldest):
        assert "ix_saga_wake_at" in plan
    assert "ix_saga_outbox_committed_at" in explained[5]
    for plan in explained:
        assert "Seq Scan on saga " not in f"{plan} "
        assert not re.search(r"SCAN saga(?! USING (COVERING )?INDEX)\b(?!_)", plan)
    found = store.survey(T0)
    assert (found.in_flight["test", Status.RUNNING], found.timers_late) == (3, 3)
    assert found.outbox_size == FINISHED + 3


@pytest.mark.parametrize("index", ["ix_saga_wake_at", "ix_saga_trace_due_at"])
def test_the_index_of_a_timer_holds_no_finished_saga(on_postgres: SqlStore, index: str) -> None:
    """It is as large as what is running, whatever has finished."""
    fill(on_postgres)
    with on_postgres.database.reading() as connection:
        tuples = connection.execute(
            sa.text("SELECT reltuples FROM pg_class WHERE relname = :index"), {"index": index}
        ).scalar()
    assert tuples == 3


# SQLite ---------------------------------------------------------------------------------------


def test_a_commit_in_sqlite_survives_a_power_failure(tmp_path: Path) -> None:
    """Readers go on beside the writer, and every commit is synced."""
    store = open_store(f"sqlite:///{tmp_path}/saga.db", create=True)
    with store.database.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    store.close()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    """With an error for people."""
    path = tmp_path / "notes.txt"
    path.write_text("This is not a database, though it is long enough to be one.\n" * 50)
    with pytest.raises(SagaError, match=r"notes\.txt"):
        open_store(f"sqlite:///{path}", create=True)


def test_a_file_that_does_not_exist_is_not_made_by_looking(tmp_path: Path) -> None:
    """A mistyped path is an error, not one more empty store."""
    with pytest.raises(ConfigurationError, match="Run `saga db upgrade`"):
        open_store(f"sqlite:///{tmp_path}/a/saga.db", create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    """Each thread would have one of its own."""
    with pytest.raises(ConfigurationError, match="in memory"):
        open_store(url, create=True)


def test_a_folder_that_does_not_exist_is_made(tmp_path: Path) -> None:
    """The embedded store needs no preparation."""
    store = open_store(f"sqlite:///{tmp_path}/a/b/saga.db", create=True)
    store.close()
    assert (tmp_path / "a/b/saga.db").exists()


def test_a_writer_waits_for_another(tmp_path: Path) -> None:
    """While one holds the database, the other can still read what was committed before."""
    url = f"sqlite:///{tmp_path}/saga.db"
    one, other = open_store(url, create=True), open_store(url, create=False)
    with one.database.writing() as connection:
        connection.execute(sa.delete(tables.SAGA_OUTBOX))
        assert other.load(["s"]) == {}
    assert other.commit([change(row("s"))]) == frozenset()
    assert one.load(["s"]) == {"s": row("s")}
    one.close()
    other.close()


def test_a_new_file_that_somebody_else_is_writing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite itself gives up at once when it is to switch to WAL meanwhile."""
    path = tmp_path / "saga.db"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waits: list[float] = []

    def end_the_other(seconds: float) -> None:
        waits.append(seconds)
        other.rollback()

    monkeypatch.setattr(database, "pause", end_the_other)
    store = open_store(f"sqlite:///{path}", create=True)
    assert len(waits) == 1
    store.close()
    other.close()


def test_a_writer_that_waits_is_not_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite itself would look again after 50 and more milliseconds."""
    url = f"sqlite:///{tmp_path}/saga.db"
    store, other = open_store(url, create=True), sqlite3.connect(tmp_path / "saga.db")
    other.execute("BEGIN IMMEDIATE")
    waits: list[float] = []

    def let_it_in_at_last(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 100:
            other.rollback()

    monkeypatch.setattr(database, "pause", let_it_in_at_last)
    assert store.commit([change(row("s"))]) == frozenset()
    assert len(waits) == 100
    assert max(waits) < 0.01
    store.close()
    other.close()


def test_a_writer_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error says what is the matter, and the next one may have more luck."""
    url = f"sqlite:///{tmp_path}/saga.db"
    store, other = open_store(url, create=True), sqlite3.connect(tmp_path / "saga.db")
    other.execute("BEGIN IMMEDIATE")
    waited = itertools.count(0.0, 0.25)
    monkeypatch.setattr(database, "monotonic", lambda: next(waited))
    waits: list[float] = []
    monkeypatch.setattr(database, "pause", waits.append)
    with pytest.raises(UnavailableError, match="database is locked"):
        store.commit([change(row("s"))])
    assert database.BUSY_TIMEOUT_SECONDS * 4 == pytest.approx(len(waits), abs=2)
    with store.database.reading() as connection:
        timeout = connection.exec_driver_sql("PRAGMA busy_timeout").scalar()
    assert timeout == database.BUSY_TIMEOUT_SECONDS * 1000
    other.rollback()
    assert store.commit([change(row("s"))]) == frozenset()
    store.close()
    other.close()


# PostgreSQL -----------------------------------------------------------------------------------


@contextmanager
def held(store: SqlStore, statement: str) -> Iterator[sa.Connection]:
    """Somebody else's transaction that has run this statement; rolled back unless committed."""
    engine = sa.create_engine(store.database.url)
    with engine.connect() as connection:
        connection.execute(sa.text(statement))
        yield connection
    engine.dispose()


def blocked(connection: sa.Connection, sessions: int) -> None:
    """Wait until so many sessions of this database wait for a lock."""
    query = sa.text(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    # Within a transaction the view is a snapshot, unless it is dropped.
    drop = sa.text("SELECT pg_stat_clear_snapshot()")

    def wait_for_lock() -> bool:
        connection.execute(drop)
        return connection.execute(query).scalar() == sessions

    wait_until(wait_for_lock)


def in_threads(*calls: Callable[[], object]) -> tuple[list[threading.Thread], list[object]]:
    """Run each call in a thread; what it returns or raises is collected."""
    results: list[object] = []

    def run(call: Callable[[], object]) -> None:
        try:
            results.append(call())
        except SagaError as error:
            results.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    return threads, results


def test_two_batches_with_the_same_new_keys_do_not_deadlock(on_postgres: SqlStore) -> None:
    """Whatever their order and their ids: one begins them all, the other one none."""
    keys = ["a", "b", "c"]
    one = [change(row(f"x{number}", key=key)) for number, key in enumerate(keys)]
    other = [change(row(f"y{number}", key=key)) for number, key in enumerate(keys[::-1])]
    insert = (
        "INSERT INTO saga (id, name, version, key, status, sequence, trace_id, started_at, "
        "updated_at, state) VALUES ('held', 'test', 1, 'b', 'running', 1, '', 0, 0, '')"
    )
    with held(on_postgres, insert) as connection:
        # In the middle of both.
        threads, results = in_threads(
            lambda: on_postgres.commit(one), lambda: on_postgres.commit(other)
        )
        blocked(connection, 2)
        connection.rollback()
        for thread in threads:
            thread.join(timeout=30)
    assert frozenset() in results
    results.remove(frozenset())
    assert results[0] in ({"x0", "x1", "x2"}, {"y0", "y1", "y2"})


@pytest.mark.parametrize("both", ["0", "z"], ids=["first", "last"])
def test_traces_and_changes_of_two_batches_do_not_deadlock(
    on_postgres: SqlStore, both: str
) -> None:
    """Whichever row is for what, they are locked in one order."""
    put(on_postgres, *(row(saga_id, trace_due_at=T0) for saga_id in (both, "a", "b")))
    hold = f"SELECT id FROM saga WHERE id = '{both}' FOR UPDATE"
    with held(on_postgres, hold) as connection:
        # Both want this row too: before the others, or after them.
        threads, results = in_threads(
            lambda: on_postgres.commit(
                [change(row(both, 2)), change(row("a", 2))], traced={"b": T0}
            ),
            lambda: on_postgres.commit(
                [change(row(both, 2)), change(row("b", 2))], traced={"a": T0}
            ),
        )
        blocked(connection, 2)
        connection.rollback()
        for thread in threads:
            thread.join(timeout=30)
    assert sorted(results, key=str) == [frozenset(), frozenset({both})]


def test_a_conflict_is_seen_whatever_the_default_isolation_is(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    """Who waited for a row decides by what it is then, not by what it was."""
    name = sa.make_url(postgres_url).database
    postgres_server.execute(
        f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'"
    )
    upgrade(postgres_url)
    store = open_store(postgres_url, create=False)
    put(store, row("s"))
    with held(store, "UPDATE saga SET sequence = 2 WHERE id = 's'") as connection:
        threads, results = in_threads(lambda: store.commit([change(row("s", 2))]))
        # The view is read by somebody else: this transaction's snapshot does not move.
        with held(store, "SELECT 1") as observer:
            blocked(observer, 1)
        connection.commit()
        for thread in threads:
            thread.join(timeout=30)
    assert results == [frozenset({"s"})]
    store.close()


def test_a_server_that_only_reads_is_unavailable_until_it_writes_again(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    """After a failover the old server answers still; the next call connects anew."""
    upgrade(postgres_url)
    name = sa.make_url(postgres_url).database
    postgres_server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    store = open_store(postgres_url, create=False)
    with pytest.raises(UnavailableError, match="read-only"):
        store.commit([change(row("s"))])
    postgres_server.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    assert store.commit([change(row("s"))]) == frozenset()
    store.close()


def test_an_idle_session_that_was_cut_off_is_replaced(
    postgres_server: PostgresServer, on_postgres: SqlStore
) -> None:
    """Nobody notices."""
    assert on_postgres.outbox_size() == 0
    name = on_postgres.database.url.database
    postgres_server.execute(
        f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'"
    )
    assert on_postgres.commit([change(row("s"))]) == frozenset()


def test_a_store_survives_a_restart_of_postgresql(
    postgres_server: PostgresServer, on_postgres: SqlStore
) -> None:
    """It reconnects by itself, and what was committed is there."""
    assert on_postgres.commit([change(row("before"))]) == frozenset()
    postgres_server.restart()
    assert on_postgres.load(["before"]) == {"before": row("before")}
    assert on_postgres.commit([change(row("after"))]) == frozenset()


def test_while_postgresql_is_killed_it_is_unavailable(
    postgres_server: PostgresServer, on_postgres: SqlStore
) -> None:
    """Reading and writing say so; afterwards both work, with all that was committed."""
    assert on_postgres.commit([change(row("before"), commands=[command("before")])]) == frozenset()
    postgres_server.kill()
    for call in (
        on_postgres.check,
        on_postgres.outbox_size,
        lambda: on_postgres.due(T0, 1),
        lambda: on_postgres.commit([change(row("lost"))]),
    ):
        with pytest.raises(UnavailableError):
            call()
    postgres_server.start()
    assert on_postgres.load(["before", "lost"]) == {"before": row("before")}
    assert on_postgres.outbox_size() == 1
    assert on_postgres.commit([change(row("after"))]) == frozenset()


def test_a_session_that_is_cut_off_in_a_transaction_commits_nothing(
    postgres_server: PostgresServer, on_postgres: SqlStore
) -> None:
    """The call says unavailable; the next one works."""

    def cut_off() -> None:
        with on_postgres.database.writing() as connection:
            connection.execute(
                sa.insert(tables.SAGA_OUTBOX),
                {"id": "c", "saga_id": "s", "handed_out_at": T0, "command": "{}"},
            )
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
            postgres_server.execute(f"SELECT pg_terminate_backend({pid}, 5000)")

    with pytest.raises(UnavailableError):
        cut_off()
    assert on_postgres.outbox_size() == 0


def test_an_unreachable_database_is_named_without_its_password() -> None:
    """The message of the error goes into logs."""
    url = f"postgresql+psycopg://saga:s3cret@127.0.0.1:{free_port()}/saga"
    for call in (lambda: open_store(url, create=False), lambda: upgrade(url)):
        with pytest.raises(UnavailableError) as caught:
            call()
        assert "127.0.0.1" in str(caught.value)
        assert "s3cret" not in str(caught.value)


def test_a_database_that_does_not_exist_is_named(postgres_server: PostgresServer) -> None:
    """The server answers, but has no such database."""
    postgres_server.start()
    with pytest.raises(UnavailableError, match="no_such_database"):
        open_store(postgres_server.url_of("no_such_database"), create=False)


@pytest.mark.parametrize(
    "url", ["mysql://me:s3cret@host/db", "postgresql+psycopg2://me:s3cret@host/db", "s3cret"]
)
def test_another_kind_of_database_is_refused(url: str) -> None:
    """With the setting and what is allowed, and without the password."""
    with pytest.raises(ConfigurationError) as caught:
        open_store(url, create=False)
    assert "SAGA_DATABASE_URL" in str(caught.value)
    assert "postgresql+psycopg" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_plain_postgresql_url_is_understood(postgres_url: str) -> None:
    """It is what most hosts hand out."""
    plain = postgres_url.replace("postgresql+psycopg://", "postgresql://")
    assert plain != postgres_url
    upgrade(plain)
    open_store(plain, create=False).close()


def test_a_forked_child_has_connections_of_its_own(store: SqlStore) -> None:
    """Parent and child use the store that the parent had opened before."""
    assert store.commit([change(row("parent"))]) == frozenset()
    pid = os.fork()
    if pid == 0:
        wrong = 1
        try:
            if store.commit([change(row("child"))]) == frozenset() and store.load(["parent"]):
                wrong = 0
        finally:
            os._exit(wrong)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert store.commit([change(row("parent", 2))]) == frozenset()
    assert store.load(["child", "parent"]).keys() == {"child", "parent"}


def test_a_forked_child_does_not_close_what_its_parent_opened(store: SqlStore) -> None:
    """SQLite may ruin a file whose connection is closed in a child, even by the collector."""
    store.check()
    pool = weakref.ref(store.database._read.pool)
    pid = os.fork()
    if pid == 0:
        wrong = 1
        try:
            gc.collect()
            if pool() not in {None, store.database._read.pool}:
                wrong = 0
        finally:
            os._exit(wrong)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_of_two_processes_exactly_one_wins_each_sequence(store: SqlStore) -> None:
    """Both count the same saga up until each has won its share; no step is lost or made twice."""
    put(store, row("s"))
    share = 25
    pid = os.fork()
    wins = 0
    wrong = 1
    try:
        while wins < share:
            sequence = store.load(["s"])["s"].sequence + 1
            wins += not store.commit([change(row("s", sequence))])
        wrong = 0
    finally:
        if pid == 0:
            os._exit(wrong)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    numbers = [one.sequence for one in store.history(["s"])["s"]]
    assert numbers == list(range(1, 2 * share + 2))
