"""What the servers have in common: missing programs, readiness, and killing a whole tree."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from signal import SIGTERM, Signals

import psutil

from shared.embedded import bound_to_parent
from tests.waiting import wait_until

STARTED_WITHIN_SECONDS = 60.0
STOPPED_WITHIN_SECONDS = 30.0


class ServerMissingError(Exception):
    """The program is not installed; tests that need it skip on a laptop and fail on CI."""


def servers_required() -> bool:
    """Whether a missing server is a failure: on CI, or when asked for."""
    return os.environ.get("SAGA_TEST_REQUIRE_SERVERS") == "1" or os.environ.get(
        "CI", ""
    ).lower() in {"1", "true"}


def spawn(
    command: list[str | Path],
    *,
    log: Path,
    env: dict[str, str] | None = None,
    signal: Signals = SIGTERM,
    user: int = -1,
) -> subprocess.Popen[bytes]:
    """Start a server that dies with the tests, in a session of its own, writing to `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            bound_to_parent(command, signal=signal, user=user, group=user),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=log.parent,
            start_new_session=True,
        )


def wait_until_ready(
    process: subprocess.Popen[bytes], ready: Callable[[], bool], *, log: Path
) -> None:
    """Wait until the server answers; an early exit fails at once, with the end of its log."""

    def ready_or_gone() -> bool:
        return process.poll() is not None or ready()

    try:
        wait_until(ready_or_gone, timeout=STARTED_WITHIN_SECONDS, what=f"{process.args!r}")
    except AssertionError:
        kill_tree(process)
        raise AssertionError(f"not ready in time:\n{_tail(log)}") from None
    if process.returncode is not None:
        raise AssertionError(f"ended with {process.returncode}:\n{_tail(log)}")


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL the process and all its descendants, as a power failure would, and reap it."""
    try:
        tree = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        tree = []
    process.kill()
    for descendant in tree:
        try:
            descendant.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    # They belong to init now, which may reap them late; what has ended holds nothing any more.
    wait_until(lambda: all(map(_ended, tree)), timeout=STOPPED_WITHIN_SECONDS, what="the tree")


def stop(process: subprocess.Popen[bytes], signal: Signals) -> None:
    """Ask the process to end with that signal; kill its tree when it does not."""
    process.send_signal(signal)
    try:
        process.wait(timeout=STOPPED_WITHIN_SECONDS)
    except subprocess.TimeoutExpired:
        kill_tree(process)


def _ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
