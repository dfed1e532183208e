"""Everything that `saga dev` runs: broker, store, orchestrator, one process per participant.

The processes are the same that one would start by hand, told where things are by the environment:
`celery -A orchestrator worker` and, for each queue, `celery -A workers worker -Q QUEUE`.
"""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

from orchestrator.cli.children import Child, end
from orchestrator.cli.db import upgrade_store
from orchestrator.cli.follow import Follower
from orchestrator.cli.lock import locked
from orchestrator.log_files import LogLine
from shared.embedded import PrivateRedis, find_redis_server, port_is_free
from shared.settings import BROKER_URL_FILE, Settings
from shared.telemetry.config import tracing_config
from shared.telemetry.log_file import make_folder
from shared.telemetry.logs import not_writable

OWN_APP: Final = "workers"
ORCHESTRATOR: Final = "orchestrator"
FILESYSTEM_URL: Final = "filesystem://"

GRACE: Final = timedelta(seconds=10)
"""Time that a process has for the step in hand when everything is to end."""

REDELIVERY_AFTER: Final = timedelta(seconds=30)
"""Private Redis: when a step comes again whose worker was killed. Celery's own default is an hour,
which is long to watch."""

LEFT_OVER_MAX: Final = 1000

_READY: Final = " ready."
_STARTED: Final = "coordinator.started"

Say = Callable[[str], None]


class Participants(NamedTuple):
    """Who takes part: a Celery app, and the queues that get a process each."""

    app: str
    queues: Sequence[str]


class Stack:
    """All of it, as long as the ``with`` block lasts. Belongs to one thread.

    Args:
        settings: What is not embedded, and where the embedded parts live.
        participants: Who takes part.
        say: Gets a sentence about each thing that goes wrong, and its end.
        redelivery_after: See `REDELIVERY_AFTER`; a SAGA_VISIBILITY_TIMEOUT that is set wins.
    """

    def __init__(
        self,
        settings: Settings,
        participants: Participants,
        say: Say,
        redelivery_after: timedelta = REDELIVERY_AFTER,
    ) -> None:
        self._settings = settings
        self._participants = participants
        self._say = say
        self._redelivery_after = redelivery_after
        self._exits = ExitStack()
        self._redis: PrivateRedis | None = None
        self._broker_url = ""
        self._waiting: set[str] = set()
        self._complaints: dict[int | None, str] = {}
        self.children: list[Child] = []
        self.left_over = 0
        self.log_dir = (settings.log_dir or settings.home / "logs").absolute()

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            exits.enter_context(locked(self._settings.home))
            self._make_log_dir()
            self._follower = exits.enter_context(closing(Follower([self.log_dir])))
            self._broker_url = self._start_broker(exits)
            exits.callback(self._end_children)
            # Participants need no store of ours: they start while it is migrated.
            self._start([self._participant(queue) for queue in self._participants.queues])
            self._store = upgrade_store(self._settings)
            self.left_over = _active(self._settings)
            self._start([self._child(ORCHESTRATOR, [ORCHESTRATOR, "worker"])])
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    @property
    def not_ready(self) -> set[str]:
        """Names of the processes that have not begun to work yet."""
        return self._waiting

    def tick(self) -> list[LogLine]:
        """Start again what has died; to be called a few times a second.

        Returns:
            The log lines that have been written since the last time.
        """
        if self._redis is not None and not self._redis.running:
            self._say("The private Redis ended; it starts again.")
            self._redis.start()
        lines = self._follower.new_lines()
        self._note_complaints(lines)
        for child in self.children:
            pid = child.pid
            said = child.look()
            if said:
                self._say("\n  ".join([said, *filter(None, [self._complaints.pop(pid, "")])]))
        self._note_ready(lines)
        return lines

    def parts(self) -> list[tuple[str, str]]:
        """What runs, and where things are."""
        tracing = tracing_config(ORCHESTRATOR, home=self._settings.home)
        traces = tracing.otlp_endpoint or f"{_from_here(tracing.traces_dir)}/*.jsonl"
        return [
            ("broker", self._broker_in_words()),
            ("store", self._store),
            ("logs", f"{_from_here(self.log_dir)}/*.jsonl"),
            ("traces", traces if tracing.enabled else "(off)"),
            *((child.name, f"process {child.pid}") for child in self.children),
        ]

    def child(self, name: str) -> Child:
        """A process by its name."""
        return next(child for child in self.children if child.name == name)

    def _make_log_dir(self) -> None:
        # Before anything starts: each worker would end for it, and be started again.
        try:
            make_folder(self.log_dir)
        except OSError as error:
            if self._settings.log_dir is None:
                raise
            raise not_writable(f"SAGA_LOG_DIR={self._settings.log_dir}", error) from error

    # Broker ---------------------------------------------------------------------------------

    def _start_broker(self, exits: ExitStack) -> str:
        if self._settings.broker_url:
            return self._settings.broker_url
        left = self._settings.home / BROKER_URL_FILE
        if find_redis_server() is None:
            url = FILESYSTEM_URL
        else:
            redis = PrivateRedis(self._settings.home / "redis", port=_port_before(left))
            exits.callback(redis.stop)
            url = redis.start().url
            self._redis = redis
        # Whole or not at all: other commands may be reading it.
        new = left.with_suffix(".new")
        new.write_text(url + "\n")
        new.replace(left)
        return url

    def _broker_in_words(self) -> str:
        if self._redis is not None:
            return f"{self._broker_url}  (private Redis, process {self._redis.pid})"
        if self._broker_url == FILESYSTEM_URL and not self._settings.broker_url:
            folder = _from_here(self._settings.home / "broker")
            return f"files in {folder}  (no redis-server was found, so this takes its place)"
        return _without_password(self._broker_url)

    # Processes ------------------------------------------------------------------------------

    def _participant(self, queue: str) -> Child:
        app = self._participants.app
        return self._child(queue, [app, "worker", "-Q", queue, "-c", "1", "-P", "solo"])

    def _child(self, name: str, arguments: Sequence[str]) -> Child:
        # Solo: a worker is one process, which leaves no orphan when it is killed.
        # Without the second that they wait for each other's greetings at every start.
        quick = ("--without-mingle", "--without-gossip")
        celery = [sys.executable, "-m", "celery"]
        if not self._is_foreign(name):
            celery.append("--quiet")
        command = [*celery, "-A", *arguments, "-n", f"{name}@%h", *quick]
        if self._is_foreign(name):
            command += ["--loglevel", "INFO"]
        return Child(name, command, self._environment(name), self.log_dir / f"{name}.out")

    def _environment(self, name: str) -> dict[str, str]:
        told = {
            "SAGA_HOME": str(self._settings.home.absolute()),
            "SAGA_BROKER_URL": self._broker_url,
            "SAGA_LOG_DIR": str(self.log_dir),
            "OTEL_SERVICE_NAME": name,
            "PYTHONUNBUFFERED": "1",
        }
        if self._redis is not None:
            seconds = self._redelivery_after.total_seconds()
            told["SAGA_VISIBILITY_TIMEOUT"] = os.environ.get(
                "SAGA_VISIBILITY_TIMEOUT", f"PT{seconds:g}S"
            )
        if self._settings.metrics_port:
            # Each process needs a port of its own: the orchestrator's is the one that was asked for.
            ports = [ORCHESTRATOR, *self._participants.queues]
            told["SAGA_METRICS_PORT"] = str(self._settings.metrics_port + ports.index(name))
        if self._is_foreign(name):
            # Celery prefers it to whatever that app has configured.
            told["CELERY_BROKER_URL"] = self._broker_url
        return {**os.environ, **told}

    def _is_foreign(self, name: str) -> bool:
        return name != ORCHESTRATOR and self._participants.app != OWN_APP

    def _start(self, children: Iterable[Child]) -> None:
        for child in children:
            self.children.append(child)
            self._waiting.add(child.name)
            child.start()

    def _end_children(self) -> None:
        killed = end(self.children, GRACE)
        if killed:
            self._say(f"Killed, since they did not end within {GRACE.seconds} s: {killed}")

    def _note_complaints(self, lines: Sequence[LogLine]) -> None:
        """Remember why a process is about to end: its log knows what its output does not."""
        for fields in (line.fields for line in lines):
            if fields.get("level") == "critical":
                why = str(fields.get("error") or fields.get("exception") or "").strip()
                said = [str(fields.get("event", "")), *why.splitlines()[-1:]]
                self._complaints[fields.get("pid")] = ": ".join(said)

    def _note_ready(self, lines: Sequence[LogLine]) -> None:
        if not self._waiting:
            return
        ready = {line.fields.get("pid") for line in lines if _says_ready(line.fields)}
        for child in self.children:
            if child.name in self._waiting and (
                child.pid in ready or (self._is_foreign(child.name) and _wrote_ready(child))
            ):
                self._waiting.discard(child.name)


def _active(settings: Settings) -> int:
    """How many sagas an earlier run has left unfinished, `LEFT_OVER_MAX` at most."""
    from orchestrator.bootstrap import make_reader
    from orchestrator.core.state import ACTIVE

    with closing(make_reader(settings)) as client:
        return len(client.list(statuses=ACTIVE, limit=LEFT_OVER_MAX))


def _says_ready(fields: dict[str, Any]) -> bool:
    event = str(fields.get("event", ""))
    if fields.get("service") == ORCHESTRATOR:
        return event == _STARTED
    return event.endswith(_READY)


def _wrote_ready(child: Child) -> bool:
    """For an app whose log is its own: the line is in what it writes to its standard error."""
    return any(line.rstrip().endswith(_READY.rstrip()) for line in child.last_words())


def _port_before(left: Path) -> int | None:
    """The port of the last time, if it is still free: workers elsewhere find the broker again."""
    with suppress(OSError, ValueError):
        port = urlsplit(left.read_text().strip()).port
        if port is not None and port_is_free(port):
            return port
    return None


def _from_here(path: Path) -> Path:
    with suppress(ValueError):
        return path.absolute().relative_to(Path.cwd())
    return path


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return url.replace(f":{parts.password}@", ":***@", 1)
