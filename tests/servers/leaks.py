"""Which processes the tests have left behind.

Every descendant inherits a mark in its environment, so that one is found even when its parent has
died and it belongs to nobody.
"""

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.waiting import wait_until

_MARK = "SAGA_TEST_SESSION"
_GONE_WITHIN_SECONDS = 20.0
_OUR_MARK = uuid.uuid4().hex
os.environ[_MARK] = _OUR_MARK


def child_pids() -> set[int]:
    """Ids of our direct children; reads only /proc/self, since it runs around every test."""
    lists = Path("/proc/self/task").glob("*/children")
    try:
        return {int(pid) for children in lists for pid in children.read_text().split()}
    except OSError:  # a thread ended while we were reading
        return {child.pid for child in psutil.Process().children()}


def wait_for_children_to_end(
    allowed: Callable[[], set[int]], *, within_seconds: float = _GONE_WITHIN_SECONDS
) -> list[str]:
    """Give the children a moment to end; returns those that did not.

    Args:
        allowed: Ids of the children that may stay.
        within_seconds: How long the moment is.
    """
    return _wait_for_none(lambda: _described(child_pids() - allowed()), within_seconds)


def wait_for_descendants_to_end(*, within_seconds: float = _GONE_WITHIN_SECONDS) -> list[str]:
    """Give every process that carries our mark a moment to end; returns those that did not."""
    return _wait_for_none(_marked, within_seconds)


def _wait_for_none(left: Callable[[], list[str]], within_seconds: float) -> list[str]:
    try:
        wait_until(lambda: not left(), timeout=within_seconds)
    except AssertionError:
        return left()
    return []


def _marked() -> list[str]:
    return _described(
        {
            process.pid
            for process in psutil.process_iter()
            if process.pid != os.getpid() and _mark_of(process) == _OUR_MARK
        }
    )


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(_MARK)
    except (psutil.Error, OSError):
        return None


def _described(pids: set[int]) -> list[str]:
    described = []
    for pid in sorted(pids):
        try:
            command = psutil.Process(pid).cmdline()
        except psutil.ZombieProcess:
            command = ["(ended, but nobody waited for it)"]
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied:
            command = ["(of another user)"]
        # Python's own helper of multiprocessing ends with the interpreter.
        if "multiprocessing.resource_tracker" not in " ".join(command):
            described.append(f"{pid}: {' '.join(command)}")
    return described
