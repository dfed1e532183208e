"""Waiting for something to become true: what the tests have instead of sleeps."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.01


def wait_until(predicate: Callable[[], T], *, timeout: float = 30.0, what: str = "") -> T:
    """Call the predicate until its value is true, and return that value.

    Args:
        predicate: Called every 10 ms, and once more after the time is up.
        timeout: Seconds.
        what: What is waited for, for the message; by default the predicate's name.

    Raises:
        AssertionError: It was still false at the end; the message shows the last value.
    """
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() >= deadline
        value = predicate()
        if value:
            return value
        if late:
            name = what or getattr(predicate, "__qualname__", repr(predicate))
            raise AssertionError(f"waited {timeout:g} s for {name}; last value: {value!r}")
        time.sleep(_POLL_SECONDS)
