"""The whole product as real processes that a test starts, kills and starts again."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any, NamedTuple, Self

import redis

from orchestrator.bootstrap import make_client
from orchestrator.cli.db import upgrade_store
from orchestrator.client import Client
from orchestrator.core.state import FINAL, Status
from orchestrator.starts import Started
from shared import faults, names
from shared.settings import Settings
from tests.e2e.saga_dev import SAGA, environment
from tests.guide.sessions import Session
from tests.servers.preloaded import COMMANDS, Ended
from tests.servers.process import kill_tree, spawn
from tests.waiting import wait_until
from workers.examples import ledger
from workers.examples.service import SERVICES

ROOT = Path(__file__).parents[2]
ENDED_WITHIN = timedelta(seconds=50)
STOPPED_WITHIN_SECONDS = 20
KILLED_WITHIN_SECONDS = 30

CELERY = ("-m", "celery")
TWICE = ("-m", "tests.faults.twice")

ORDERS: tuple[tuple[Mapping[str, Any], Status], ...] = (
    ({}, Status.COMPLETED),
    ({"region": "moon"}, Status.COMPENSATED),
    ({"courier": "flaky"}, Status.COMPLETED),
    ({"card": "4000000000000002"}, Status.COMPENSATED),
    ({"amount_cents": 1_000_001}, Status.COMPENSATED),
)
"""Orders of every kind, and how each has to end."""


class Ordered(NamedTuple):
    """An order that was started, and how it has to end."""

    started: Started
    expected: Status

    @property
    def saga_id(self) -> str:
        return self.started.row.saga_id


class Stack:
    """Orchestrators and participants on one broker and one store; a ``with`` block kills them all.

    Args:
        home: Folder of logs, faults that have fired, and of SQLite stores.
        broker_url: Where the messages are.
        database_url: Of the store and of the ledgers; empty means SQLite in `home`.
        env: More variables of every process.
    """

    def __init__(
        self,
        home: Path,
        broker_url: str,
        database_url: str = "",
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        self.settings = Settings(
            home=home, broker_url=broker_url, database_url=database_url, ledger_url=database_url
        )
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._client: Client | None = None
        self._env = environment(
            **{
                "PYTHONPATH": str(ROOT),
                "C_FORCE_ROOT": "1",
                "OTEL_SDK_DISABLED": "true",
                "SAGA_HOME": str(home),
                "SAGA_BROKER_URL": broker_url,
                "SAGA_DATABASE_URL": database_url,
                "SAGA_LEDGER_URL": database_url,
                "SAGA_LOG_DIR": str(home / "logs"),
                "SAGA_VISIBILITY_TIMEOUT": "PT1S",
                "SAGA_REPUBLISH_AFTER": "PT1S",
                faults.FAULT_DIR_VARIABLE: str(home / "faults"),
                **(env or {}),
            }
        )

    def __enter__(self) -> Self:
        upgrade_store(self.settings)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            kill_tree(process)
        if self._client:
            self._client.close()

    @property
    def client(self) -> Client:
        """A client in this process."""
        if self._client is None:
            self._client = make_client(self.settings)
        return self._client

    # Processes ------------------------------------------------------------------------------

    def orchestrator(
        self, name: str = "orchestrator", *, celery: Iterable[str] = CELERY, **env: str
    ) -> None:
        """Start an orchestrator; it need not be ready, messages and timers wait."""
        self._start(name, [*celery, "-A", "orchestrator", "worker"], env)

    def participants(
        self,
        name: str = "participants",
        *options: str,
        queues: Iterable[str] = SERVICES,
        celery: Iterable[str] = CELERY,
        **env: str,
    ) -> None:
        """Start a worker of these services."""
        arguments = [*celery, "-A", "workers", "worker", "-Q", ",".join(queues)]
        self._start(name, [*arguments, *(options or ("-c", "2"))], env)

    def deploy(self, app: str, queue: str) -> None:
        """Start a participant that is an app of its own."""
        self._start(app, [*CELERY, "-A", app, "worker", "-Q", queue, "--pool", "solo"], {})

    def await_death(self, name: str) -> None:
        """Wait until a process has killed itself at the fault that it was given."""
        process = self.processes.pop(name)
        try:
            wait_until(
                lambda: process.poll() is not None,
                timeout=KILLED_WITHIN_SECONDS,
                what=f"the end of {name}",
            )
        finally:
            kill_tree(process)
        assert process.returncode == -SIGKILL, self.output(name)

    def stop(self) -> None:
        """Stop everything in order, so that the last spans are handed over."""
        for process in self.processes.values():
            process.send_signal(SIGTERM)
        for name, process in self.processes.items():
            assert 0 == process.wait(STOPPED_WITHIN_SECONDS), self.output(name)

    def output(self, name: str) -> str:
        """What a process wrote to its terminal."""
        return (self.home / f"{name}.out").read_text(errors="replace")

    def lines(self) -> list[dict[str, Any]]:
        """Every complete line of the log files."""
        return [
            json.loads(line)
            for path in (self.home / "logs").glob("*.jsonl")
            for line in path.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]

    def logged(self, event: str, **fields: Any) -> bool:
        """Whether a line says that."""
        return any(
            line["event"] == event and fields.items() <= line.items() for line in self.lines()
        )

    def fired(self) -> frozenset[str]:
        """The faults that have fired."""
        return faults.fired(self.home / "faults")

    def use(self, **env: str) -> None:
        """Other variables for what is started from now on."""
        self._env |= env

    def run(self, *arguments: str) -> Ended:
        """Run a ``saga`` command to its end."""
        return COMMANDS.run(arguments, cwd=self.home, env=self._env)

    def saga(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a ``saga`` command."""
        return subprocess.Popen(
            [*SAGA, *arguments],
            cwd=self.home,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def session(self) -> Session:
        """A shell that plays what documents show."""
        return Session(self.home, self._env)

    # Sagas ----------------------------------------------------------------------------------

    def order(self, count: int = len(ORDERS)) -> list[Ordered]:
        """Start orders of every kind in turn."""
        kinds = [ORDERS[number % len(ORDERS)] for number in range(count)]
        return [
            Ordered(self.client.start("place-order", {"order_id": f"o-{number}", **given}), status)
            for number, (given, status) in enumerate(kinds)
        ]

    def ended(self, orders: Iterable[Ordered]) -> list[Ordered]:
        """Those that have ended by now."""
        return [one for one in orders if self.client.row(one.saga_id).state.status in FINAL]

    def assert_sound(self, orders: Iterable[Ordered], *, as_expected: bool = True) -> None:
        """Wait for the orders to end, and check each, its history, and all of the books.

        Args:
            orders: Which.
            as_expected: Whether each must end as it would without any fault; else it may also
                have been undone.
        """
        for order in orders:
            row = self.client.wait(order.saga_id, ENDED_WITHIN)
            status = row.state.status
            what = f"{order.saga_id} is {status}: {row.state.cause}"
            assert status in {Status.COMPLETED, Status.COMPENSATED}, what
            if as_expected:
                assert status is order.expected, what
            standing = ledger.standing(order.saga_id, using=self.settings)
            assert bool(standing) is (status is Status.COMPLETED), (what, standing)
            history = self.client.story(order.saga_id)[2]
            sequences = [recorded.sequence for recorded in history]
            assert sequences == list(range(1, row.sequence + 1)), what
        assert ledger.audit(using=self.settings) == []

    def unsettled_replies(self) -> int:
        """Replies that an orchestrator took and has not acknowledged."""
        with redis.Redis.from_url(self.settings.broker_url) as broker:
            found = broker.hlen(f"{names.REPLIES_QUEUE}.unacked")
            waiting = broker.llen(names.REPLIES_QUEUE)
        assert isinstance(found, int)
        assert isinstance(waiting, int)
        return found + waiting

    def _start(self, name: str, arguments: Iterable[str], env: Mapping[str, str]) -> None:
        self.processes[name] = spawn(
            [
                *(sys.executable, *arguments, "-n", f"{name}@test"),
                *("--without-mingle", "--without-gossip", "--without-heartbeat"),
            ],
            log=self.home / f"{name}.out",
            env={**self._env, **env},
        )


MakeStack = Callable[..., Stack]
