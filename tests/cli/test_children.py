"""Child processes under supervision: started again when they die, ended all at once."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from orchestrator.cli.children import Child, end, in_words
from orchestrator.cli.lock import locked
from shared.errors import ConfigurationError
from tests.waiting import wait_until

STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
POLITE = "import time; print('up', flush=True); time.sleep(99)"

Make = Callable[[str], Child]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Start a child that runs a script; all of them are gone after the test."""
    children: list[Child] = []

    def start(script: str) -> Child:
        name = f"child-{len(children)}"
        command = [sys.executable, "-c", script]
        child = Child(name, command, dict(os.environ), tmp_path / name)
        children.append(child)
        child.start()
        return child

    yield start
    end(children, timedelta(0))


def _said(child: Child) -> str:
    return wait_until(child.look) or ""


def _is_up(child: Child) -> bool:
    return "up" in child.last_words()


def test_a_child_that_was_killed_is_started_again(make: Make) -> None:
    """It is said that it ended, how, and that it runs again."""
    child = make(POLITE)
    wait_until(lambda: _is_up(child))
    pid = child.pid
    assert child.look() is None
    child.signal(signal.SIGKILL)
    assert "ended by SIGKILL; it starts again in" in _said(child)
    assert child.pid is None
    assert "starts again, process" in _said(child)
    assert child.pid not in {None, pid}


def test_a_child_that_fails_says_why_and_waits_longer_each_time(make: Make) -> None:
    """Its last words are shown: an exit code alone explains nothing."""
    child = make("raise SystemExit('no database')")
    first = _said(child)
    assert "with exit code 1" in first
    assert "no database" in first
    assert "starts again" in _said(child)
    second = _said(child)
    assert _seconds(first) < _seconds(second)


def _seconds(said: str) -> float:
    return float(said.split("again in ")[1].split(" s", maxsplit=1)[0])


def test_all_end_and_who_does_not_is_killed(make: Make) -> None:
    """An orderly end for those that can, SIGKILL after the grace for the others."""
    polite, stubborn = make(POLITE), make(STUBBORN)
    wait_until(lambda: _is_up(polite) and _is_up(stubborn))
    assert end([polite, stubborn], timedelta(seconds=1)) == ["child-1"]
    assert polite.has_ended()
    assert stubborn.has_ended()


def test_children_do_not_outlive_a_parent_that_was_killed(tmp_path: Path) -> None:
    """Not even those that ignore SIGTERM: nobody would be left to end them."""
    script = (
        "import os, pathlib, sys; from orchestrator.cli.children import Child\n"
        f"child = Child('c', [sys.executable, '-c', {STUBBORN!r}], dict(os.environ),"
        f" pathlib.Path({str(tmp_path / 'out')!r}))\n"
        "child.start(); print(child.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        wait_until(lambda: "up" in (tmp_path / "out").read_text(), what="it to ignore SIGTERM")
        parent.kill()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_ends_are_told_in_words() -> None:
    """Signals by name."""
    assert [in_words(-9), in_words(3), in_words(-99)] == [
        *("by SIGKILL", "with exit code 3", "by signal 99")
    ]


def test_a_folder_has_one_holder_at_a_time(tmp_path: Path) -> None:
    """The second one is told who the first is; afterwards the folder is free."""
    second = locked(tmp_path)
    with locked(tmp_path), pytest.raises(ConfigurationError, match=str(os.getpid())):
        second.__enter__()
    with locked(tmp_path):
        assert (tmp_path / "dev.lock").read_text() == str(os.getpid())
