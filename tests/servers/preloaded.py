"""Runs `saga` commands as processes of their own that need not import everything once more.

A command takes a second of CPU, nine tenths of it imports; a test that waits for a saga runs it again
and again. So one process imports what commands need, and each command is a fork of it, with its own
arguments, folder, environment and files, from `main` to its exit code. What a command imports, and
when, is tested elsewhere (`tests/cli/test_imports.py`, `tests/cli/test_entry.py`).
"""

import atexit
import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from signal import SIGKILL
from tempfile import TemporaryFile
from typing import IO, Final, NamedTuple, NoReturn

ROOT: Final = Path(__file__).parents[2]
ENDED_WITHIN_SECONDS: Final = 90

_PRELOADED: Final = (
    "orchestrator.cli.app",
    "orchestrator.bootstrap",
    "orchestrator.celery",
    "orchestrator.cli.waterfall",
    "orchestrator.jaeger",
    "orchestrator.sagas",
    "orchestrator.trace_view",
    "orchestrator.transport.celery",
    "opentelemetry.sdk.trace",
    "sqlalchemy.dialects.sqlite",
)


class Ended(NamedTuple):
    """A command that has ended, as `subprocess.CompletedProcess` has it."""

    returncode: int
    stdout: str
    stderr: str


class Commands:
    """The process that commands are forks of; it starts with the first command.

    Not for several threads at once.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None

    def pids(self) -> set[int]:
        """Its process id, while it runs."""
        return {self._process.pid} if self._process else set()

    def run(
        self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdin: str = ""
    ) -> Ended:
        """Run a command to its end.

        Args:
            arguments: After ``saga``.
            cwd: Where it runs.
            env: All of its environment.
            stdin: What it reads.

        Raises:
            TimeoutError: It has not ended in time, and was killed.
        """
        line = self._line or self._start()
        with _file() as asked, _file() as given, _file() as out, _file() as err:
            json.dump({"arguments": [*arguments], "cwd": str(cwd), "env": dict(env)}, asked)
            given.write(stdin)
            for one in (asked, given):
                one.flush()
                one.seek(0)
            files = [one.fileno() for one in (asked, given, out, err)]
            socket.send_fds(line, [b"!"], files)
            pid = _number(line)
            try:
                code = _number(line)
            except TimeoutError:
                os.kill(pid, SIGKILL)
                _number(line)
                err.seek(0)
                raise TimeoutError(f"saga {' '.join(arguments)}: {err.read()}") from None
            for one in (out, err):
                one.seek(0)
            return Ended(code, out.read(), err.read())

    def close(self) -> None:
        """End it."""
        if self._line and self._process:
            self._line.close()
            self._process.wait()
            self._line = self._process = None

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.servers.preloaded", str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        ours.settimeout(ENDED_WITHIN_SECONDS)
        self._line = ours
        return ours


COMMANDS: Final = Commands()


def _file() -> IO[str]:
    return TemporaryFile("w+", encoding="utf-8")


def _number(line: socket.socket) -> int:
    said = line.recv(4, socket.MSG_WAITALL)
    if len(said) < 4:
        raise ConnectionError("the process that commands are forks of has ended")
    return int.from_bytes(said, signed=True)


def _serve(line: socket.socket) -> None:
    while True:
        asked, files, _, _ = socket.recv_fds(line, 1, 4)
        if not asked:
            return
        pid = os.fork()
        if not pid:
            line.close()
            _become(files)
        for file in files:
            os.close(file)
        line.sendall(pid.to_bytes(4, signed=True))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        line.sendall(code.to_bytes(4, signed=True))


def _become(files: list[int]) -> NoReturn:
    """Be the command: as if it had just been started.

    It ends as an interpreter does, but for the heap, which is left to the kernel: it is not the
    command's, and taking it apart costs several times as much as most commands.
    """
    code = 1
    try:
        code = _run(files)
    except BaseException:  # noqa: BLE001 - as an interpreter does it with whatever comes out of main
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # joins threads; an interpreter's first act at its end
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(files: list[int]) -> int:
    from orchestrator.cli import main

    with os.fdopen(files[0], encoding="utf-8") as file:
        asked = json.load(file)
    for number, opened in enumerate(files[1:]):
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    time.tzset()
    own = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:1] = ["", *own]
    sys.argv = ["saga", *asked["arguments"]]
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0


if __name__ == "__main__":
    for _module in _PRELOADED:
        import_module(_module)
    gc.freeze()  # what is never looked at is never copied
    _serve(socket.socket(fileno=int(sys.argv[1])))
