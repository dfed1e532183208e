"""Running sagas beside a million finished ones: ``python -m bench --million``.

A finished saga is run once through the product's own engine, and then copied in SQL with its
history. Measured is what an orchestrator does with running sagas all the time, before and after.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

import sqlalchemy as sa
from rich import box
from rich.console import Console
from rich.table import Table
from typing_extensions import override

from bench.definition import NOOP
from orchestrator.catalog import Catalog
from orchestrator.core.state import ACTIVE
from orchestrator.engine import Engine
from orchestrator.ports import Delivery, Transport
from orchestrator.store.opening import open_store
from orchestrator.store.sql import SqlStore
from orchestrator.tracing import SagaTracing
from shared.clock import utc_now
from shared.messages import Command, Reply, StartRequest, Succeeded
from shared.telemetry import logs
from tests.servers.postgres import PostgresServer, find_postgres

RUNNING: Final = 100
REPEATS: Final = 50

HISTORY: Final = 2
"""Events that are copied of each finished saga: the table is asked by primary key alone."""


def run(console: Console, count: int) -> None:
    """Measure on each store, and show it."""
    table = Table(box=box.SIMPLE, title=f"{RUNNING} running sagas, median of {REPEATS}")
    for column in ("store", "finished sagas", "due timers", "list running", "start", "advance"):
        table.add_column(column, justify="left" if column == "store" else "right")
    with tempfile.TemporaryDirectory(prefix="saga-bench-") as folder:
        logs.configure("bench", level="WARNING", log_dir=Path(folder))
        _on(f"sqlite:///{Path(folder) / 'saga.db'}", "SQLite", count, table, console)
    if find_postgres():
        with _postgres() as url:
            _on(url, "PostgreSQL", count, table, console)
    console.print(table)


def _on(url: str, name: str, count: int, table: Table, console: Console) -> None:
    with closing(open_store(url, create=True)) as store:
        bench = _Bench(store)
        finished = bench.finish_one()
        bench.start(RUNNING)
        table.add_row(name, "1", *bench.measured())
        begun = perf_counter()
        _copy(store, finished, count)
        seconds = perf_counter() - begun
        console.print(f"[dim]{name}: {count:,} finished sagas in {seconds:.0f} s[/dim]")
        table.add_row(name, f"{count:,}", *bench.measured())


class _Bench:
    """An engine that is called as an orchestrator calls it."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self.sent: list[Command] = []
        self._engine = Engine(
            store=store,
            transport=_Sink(self.sent),
            catalog=Catalog([NOOP]),
            tracing=SagaTracing(system="memory", clock=utc_now),
            clock=utc_now,
        )

    def start(self, count: int = 1) -> None:
        """Start sagas, which run as long as nobody answers."""
        self._engine.start([StartRequest(name=NOOP.name, input={}) for _ in range(count)])

    def advance(self) -> None:
        """Answer the oldest command."""
        command = self.sent.pop(0)
        reply = Reply(
            saga_id=command.saga_id,
            step=command.step,
            direction=command.direction,
            attempt=command.attempt,
            outcome=Succeeded(),
        )
        self._engine.handle([Delivery(message=reply, task="", body="")])

    def finish_one(self) -> str:
        """Run a saga to its end; returns its id."""
        self.start()
        saga_id = self.sent[0].saga_id
        while self.sent:
            self.advance()
        return saga_id

    def measured(self) -> list[str]:
        """Milliseconds of each operation."""
        now = utc_now()
        operations: list[Callable[[], object]] = [
            lambda: self._store.due(now, 200),
            lambda: self._store.list_sagas(statuses=ACTIVE, limit=50),
            self.start,
            self.advance,
        ]
        return [f"{_median_ms(operation):.2f} ms" for operation in operations]


class _Sink(Transport):
    """Keeps commands; nothing comes back."""

    def __init__(self, sent: list[Command]) -> None:
        self._sent = sent

    @override
    def publish(self, commands: Sequence[Command]) -> None:
        self._sent.extend(commands)

    @override
    def receive(self, messages_max: int, timeout_seconds: float) -> list[Delivery]:
        return []

    @override
    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        pass

    @override
    def interrupt(self) -> None:
        pass

    @override
    def close(self) -> None:
        pass


def _median_ms(operation: Callable[[], object]) -> float:
    operation()
    taken = []
    for _ in range(REPEATS):
        begun = perf_counter()
        operation()
        taken.append((perf_counter() - begun) * 1000)
    return median(taken)


def _copy(store: SqlStore, saga_id: str, count: int) -> None:
    """Copy a finished saga, each copy with an id, a key, a trace and a time of its own."""
    trace = "printf('%032x', n)" if store.database.is_sqlite else "md5(n::text)"
    numbers = (
        "WITH RECURSIVE numbers(n) AS "
        f"(SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count}) "
    )
    with store.database.writing() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO saga (id, name, version, key, status, sequence, trace_id, "
                f"started_at, updated_at, wake_at, trace_due_at, state) {numbers}"
                f"SELECT 'done-' || n, name, version, 'key-' || n, status, sequence, {trace}, "
                "started_at - n, updated_at - n, wake_at, trace_due_at, state "
                "FROM saga, numbers WHERE id = :id"
            ),
            {"id": saga_id},
        )
        connection.execute(
            sa.text(
                f"INSERT INTO saga_event (saga_id, sequence, at, type, data) {numbers}"
                "SELECT 'done-' || n, sequence, at, type, data "
                "FROM saga_event, numbers WHERE saga_id = :id AND sequence <= :history"
            ),
            {"id": saga_id, "history": HISTORY},
        )
    if not store.database.is_sqlite:
        # What autovacuum does within a minute.
        with store.database.writing() as connection:
            connection.execute(sa.text("ANALYZE"))


@contextmanager
def _postgres() -> Iterator[str]:
    server = PostgresServer()
    try:
        yield server.start().url
    finally:
        server.discard()
