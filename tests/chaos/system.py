"""The processes that are killed: those of `saga dev`, on servers of our own."""

import os
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from signal import SIGKILL
from time import sleep
from typing import Final, Self

import psutil

from orchestrator.cli.children import Child, end
from orchestrator.cli.db import upgrade_store
from orchestrator.cli.stack import GRACE
from shared import faults
from shared.embedded import PrivateRedis
from shared.settings import Settings
from tests.servers.postgres import PostgresServer
from workers.examples.service import SERVICES

ORCHESTRATOR: Final = "orchestrator"
VISIBILITY_TIMEOUT: Final = "PT4S"
"""Short, so that what a killed worker had in hand comes again soon; longer than any step takes."""

POINTS: Final = (
    f"{faults.IN_ACTION}@inventory.reserve",
    f"{faults.IN_ACTION}@payment.charge",
    f"{faults.IN_ACTION}@payment.refund",
    f"{faults.AFTER_COMMIT}@payment.charge",
    f"{faults.AFTER_COMMIT}@shipping.arrange",
    f"{faults.AFTER_COMMIT}@inventory.release",
    f"{faults.AFTER_REPLY}@orders.confirm",
    f"{faults.AFTER_REPLY}@notifications.send",
    "orchestrator:after-commit-before-publish",
    "orchestrator:after-publish-before-ack",
)
"""Where a process can be made to kill itself, see `shared.faults`."""


class System:
    """Broker, store, orchestrators and one worker for each queue.

    Every process knows all `POINTS`; a file for each of them says that it has fired, and while
    that file is there it does not fire again.
    """

    def __init__(self, home: Path, *, postgres: bool, orchestrators: int) -> None:
        self.home = home
        self.redis = PrivateRedis(home / "redis")
        self.postgres: PostgresServer | None = PostgresServer() if postgres else None
        names = [ORCHESTRATOR, *(f"{ORCHESTRATOR}-{n}" for n in range(2, orchestrators + 1))]
        self._names = [*names, *SERVICES]
        self._exits = ExitStack()
        self.children: list[Child] = []
        self.settings = Settings()

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            if self.postgres:
                exits.callback(self.postgres.discard)
                self.postgres.start()
            exits.enter_context(self.redis)
            self.home.joinpath("logs").mkdir(parents=True, exist_ok=True)
            database = self.postgres.url if self.postgres else ""
            told = {
                "SAGA_HOME": str(self.home),
                "SAGA_BROKER_URL": self.redis.url,
                "SAGA_DATABASE_URL": database,
                "SAGA_LEDGER_URL": database,
                "SAGA_LOG_DIR": str(self.home / "logs"),
                "SAGA_VISIBILITY_TIMEOUT": VISIBILITY_TIMEOUT,
                faults.FAULT_DIR_VARIABLE: str(self._fault_dir),
            }
            os.environ |= told
            self.settings = Settings()
            self._fault_dir.mkdir()
            for point in POINTS:
                self._marker(point).touch()
            upgrade_store(self.settings)
            exits.callback(self._end)
            env = {**os.environ, faults.FAULT_VARIABLE: ",".join(POINTS)}
            self.children = [self._child(name, env) for name in self._names]
            for child in self.children:
                child.start()
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def tick(self) -> None:
        """Start again what has died, soon, however often it died."""
        for child in self.children:
            child._failures = 0
            child.look()

    def arm(self, point: str) -> bool:
        """Make the next process that reaches a point kill itself; False if one is awaited."""
        marker = self._marker(point)
        armed = marker.exists()
        marker.unlink(missing_ok=True)
        return armed

    def awaited(self) -> int:
        """How many of the points that were armed have not fired yet."""
        return sum(not self._marker(point).exists() for point in POINTS)

    def disarm(self) -> None:
        """Let no point fire any more."""
        for point in POINTS:
            self._marker(point).touch()

    def kill(self, child: Child) -> bool:
        """SIGKILL a process and what it has forked; False if it was not running."""
        if child.pid is None or child._process is None or child._process.poll() is not None:
            return False
        forked: list[psutil.Process] = []
        with suppress(psutil.Error):
            forked = psutil.Process(child.pid).children(recursive=True)
        child.signal(SIGKILL)
        for process in forked:
            with suppress(psutil.Error):
                process.kill()
        return True

    def kill_forked(self, child: Child, index: int) -> bool:
        """SIGKILL one process of a worker's pool; False if there is none."""
        with suppress(psutil.Error):
            if child.pid is not None:
                forked = psutil.Process(child.pid).children()
                if forked:
                    forked[index % len(forked)].kill()
                    return True
        return False

    def restart_redis(self, away_seconds: float, *, killed: bool) -> None:
        """Take Redis away and bring it back with its data."""
        if killed:
            self.redis.kill()
        else:
            self.redis.stop()
        sleep(away_seconds)
        self.redis.start()

    def restart_postgres(self, away_seconds: float, *, killed: bool) -> None:
        """Take PostgreSQL away and bring it back."""
        if self.postgres:
            if killed:
                self.postgres.kill()
            else:
                self.postgres.stop()
            sleep(away_seconds)
            self.postgres.start()

    @property
    def _fault_dir(self) -> Path:
        return self.home / "faults"

    def _marker(self, point: str) -> Path:
        return self._fault_dir / f"{point}.fired"

    def _child(self, name: str, env: dict[str, str]) -> Child:
        app = ORCHESTRATOR if name.startswith(ORCHESTRATOR) else "workers"
        # Both kinds of pool: a worker that is one process, and one whose children are killed.
        pool = ["-P", "prefork", "-c", "2"] if name in {"payment", "inventory"} else ["-P", "solo"]
        options = ["-Q", name, *pool] if app == "workers" else []
        quick = ["--without-mingle", "--without-gossip", "-n", f"{name}@%h"]
        command = [sys.executable, "-m", "celery", "--quiet", "-A", app, "worker"]
        output = self.home / "logs" / f"{name}.out"
        env = {**env, "OTEL_SERVICE_NAME": name}
        return Child(name, [*command, *options, *quick], env, output)

    def _end(self) -> None:
        end(self.children, GRACE)
