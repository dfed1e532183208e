"""The tools of the tests themselves: waiting, and finding what was left behind."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.servers import leaks
from tests.waiting import wait_until

_SLEEPER = [sys.executable, "-c", "import sys; sys.stdin.read()"]
_ORPHANING = f"""
import subprocess, sys
print(subprocess.Popen({_SLEEPER!r}, start_new_session=True).pid, flush=True)
"""


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A child that runs until its input is closed."""
    with subprocess.Popen(_SLEEPER, stdin=subprocess.PIPE) as child:
        yield child


def test_wait_until_returns_the_value() -> None:
    """The value that ended the wait is what the caller wants to look at."""
    values = iter([0, "", "found"])
    assert wait_until(lambda: next(values)) == "found"


def test_wait_until_says_what_it_waited_for() -> None:
    """The message names the condition and shows its last value."""
    with pytest.raises(AssertionError, match=r"waited 0 s for a reply; last value: \[\]"):
        wait_until(list, timeout=0, what="a reply")


def test_a_running_child_is_found(sleeper: subprocess.Popen[bytes]) -> None:
    """The leak check would go red for it."""
    assert sleeper.pid in leaks.child_pids()
    left = leaks.wait_for_children_to_end(set, within_seconds=0)
    assert any(line.startswith(f"{sleeper.pid}:") for line in left)
    assert leaks.wait_for_children_to_end(leaks.child_pids, within_seconds=0) == []


def test_a_process_whose_parent_died_is_found() -> None:
    """An orphan is nobody's child any more, but it carries the mark of the session."""
    with subprocess.Popen(
        [sys.executable, "-c", _ORPHANING], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent_code = wait_until(lambda: parent.poll() is not None)
        left = leaks.wait_for_descendants_to_end(within_seconds=0)
    assert parent_code
    assert any(line.startswith(f"{pid}:") for line in left)
