"""`saga dev` as a real process in a folder of its own, and the `saga` command beside it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP, Signals
from typing import Any, Self

import psutil

from tests.guide.sessions import Session
from tests.servers.preloaded import COMMANDS, ROOT, Ended
from tests.waiting import wait_until

READY_WITHIN_SECONDS = 60.0
ENDED_WITHIN_SECONDS = 30.0
SAGA = [sys.executable, "-c", "from orchestrator.cli import main; main()"]

# As if neither a system Redis nor the package that ships one were there.
_WITHOUT_REDIS = """
import shared.embedded
shared.embedded.find_redis_server = lambda: None
from orchestrator.cli import main
main()
"""
SAGA_WITHOUT_REDIS = [sys.executable, "-c", _WITHOUT_REDIS]

ERRANDS = {"PYTHONPATH": str(ROOT), "SAGA_DEFINITIONS": "tests.e2e.errands"}
"""Variables for a `saga dev` of errands: one participant instead of five, which starts sooner."""

ERRAND_APP = ("--app", "tests.e2e.errand_app")


def environment(**more: str) -> dict[str, str]:
    """Our environment without settings of sagas and of telemetry."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SAGA_", "OTEL_", "OPENTELEMETRY_", "TRACEPARENT", "CELERY_"))
        or name == "SAGA_TEST_SESSION"
    }
    return {**kept, **more}


class Done:
    """A command that has ended."""

    def __init__(self, done: "subprocess.CompletedProcess[str] | Ended") -> None:
        self.code = done.returncode
        self.out = done.stdout
        self.err = done.stderr

    @property
    def json(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """The error that it printed on standard error with ``--json``."""
        return json.loads(self.err)["error"]


class Folder:
    """A folder to run commands in."""

    def __init__(self, path: Path, env: dict[str, str] | None = None) -> None:
        self.path = path
        self.home = path / ".saga"
        self._env = env or {}

    def saga(self, *arguments: str, env: dict[str, str] | None = None, stdin: str = "") -> Done:
        """Run a `saga` command to its end."""
        wanted = environment(**{**self._env, **(env or {})})
        return Done(COMMANDS.run(arguments, cwd=self.path, env=wanted, stdin=stdin))

    def saga_alone(self, *arguments: str, env: dict[str, str] | None = None) -> Done:
        """The same in an interpreter of its own, as a shell would."""
        return Done(
            subprocess.run(
                [*SAGA, *arguments],
                cwd=self.path,
                env=environment(**{**self._env, **(env or {})}),
                capture_output=True,
                text=True,
                timeout=90,
                check=False,
            )
        )

    def session(self) -> Session:
        """A shell that plays what documents show."""
        return Session(self.path, environment(**self._env))

    def start_saga(self, name: str, *arguments: str, **given: Any) -> Done:
        """Run ``saga start NAME --json``."""
        return self.saga("start", name, "--json", "--input", json.dumps(given), *arguments)

    def order(self, *arguments: str, **given: Any) -> Done:
        """Run ``saga start place-order --json``."""
        return self.start_saga("place-order", *arguments, **{"order_id": "o-1", **given})

    def spawn(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a `saga` command and let it run."""
        return subprocess.Popen(
            [*SAGA, *arguments],
            cwd=self.path,
            env=environment(**self._env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def exported(self, known_as: str) -> list[dict[str, Any]]:
        """The spans of a trace, or of a saga's, once all of them have been exported."""

        def whole() -> Any:
            found = self.saga("trace", known_as, "--json").json["spans"]
            return None if any(span["projected"] for span in found) else found

        return list(wait_until(whole, timeout=20, what="all spans to be exported"))

    def status(self, saga_id: str) -> str:
        """Status of a saga."""
        return str(self.saga("show", saga_id, "--json").json["status"])


class Dev(Folder):
    """A running `saga dev`; a ``with`` block ends it as Ctrl-C does."""

    def __init__(
        self,
        path: Path,
        *arguments: str,
        command: list[str] = SAGA,
        env: dict[str, str] | None = None,
    ) -> None:
        super().__init__(path, env)
        self._command = [*command, "dev", "--json", *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        self._output = path / "dev.out"
        self._complaints = path / "dev.err"
        self.tree: list[psutil.Process] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.stop()
            assert self.left == []

    def start(self) -> None:
        """Start it and wait until everything is ready."""
        self._output.write_bytes(b"")
        self._complaints.write_bytes(b"")
        with self._output.open("ab") as out, self._complaints.open("ab") as err:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.path,
                env=environment(**self._env),
                stdout=out,
                stderr=err,
            )
        try:
            wait_until(self._ready_or_gone, timeout=READY_WITHIN_SECONDS)
            assert self._process.poll() is None
        except AssertionError:
            self.stop()
            raise AssertionError(f"saga dev is not ready:\n{self.said}") from None
        self.tree = psutil.Process(self._process.pid).children(recursive=True)

    def stop(self, signal: Signals = SIGINT) -> int:
        """Ask it to end, and wait for it; returns its exit code."""
        assert self._process is not None
        self._process.send_signal(signal)
        code = self._process.wait(timeout=ENDED_WITHIN_SECONDS)
        self._process = None
        return code

    def look_again(self) -> None:
        """Count the processes that it has started meanwhile as its own, too."""
        assert self._process is not None
        self.tree += psutil.Process(self._process.pid).children(recursive=True)

    def kill(self) -> None:
        """SIGKILL: it cannot end anything."""
        assert self._process is not None
        self._process.send_signal(SIGKILL)
        self._process.wait()
        self._process = None

    @property
    def left(self) -> list[psutil.Process]:
        """Which of its processes run."""
        return [one for one in self.tree if _runs(one)]

    @property
    def said(self) -> str:
        """What it said on standard error."""
        return self._complaints.read_text()

    @property
    def lines(self) -> list[Any]:
        """What it printed."""
        return [json.loads(line) for line in self._output.read_text().splitlines()]

    @property
    def left_over(self) -> int:
        """How many sagas of an earlier run it has found."""
        return int(next(line["left_over"] for line in self.lines if "left_over" in line))

    @property
    def parts(self) -> dict[str, str]:
        """What runs, as it told when it was ready."""
        found: dict[str, str] = self.lines[0]["parts"]
        return found

    def log(self, name: str) -> list[dict[str, Any]]:
        """The log lines of one of its processes."""
        written = (self.home / "logs" / f"{name}.jsonl").read_text()
        return [json.loads(line) for line in written.splitlines()]

    def has_begun(self, saga_id: str, step: str, name: str) -> bool:
        """Whether a process has begun to work on a step."""
        wanted = {"saga_id": saga_id, "saga_step": step, "event": "step.started"}
        return any(wanted.items() <= line.items() for line in self.log(name))

    def process(self, name: str) -> psutil.Process:
        """One of its processes."""
        ready = [line for line in self.log(name) if str(line["event"]).endswith(" ready.")]
        return psutil.Process(int(ready[-1]["pid"]))

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Hold one of its processes still, however busy the machine is, and let it go again."""
        process = self.process(name)
        process.send_signal(SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(SIGCONT)

    def _ready_or_gone(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None or any("ready" in line for line in self.lines)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
