"""A thread that does something now and then, and a last time at the end, which is bounded."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Final

THREAD_NAME: Final = "metrics-export"


class Periodic:
    """Runs `work` every `interval` in a thread of its own; it must not raise.

    Args:
        work: What to do; may block.
        interval: Between the end of one time and the beginning of the next.
    """

    def __init__(self, work: Callable[[], None], interval: timedelta) -> None:
        self._work = work
        self._interval_s = interval.total_seconds()
        self._closing = threading.Event()
        # A daemon: when the work hangs, the process ends without it.
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        self._thread.start()

    def close(self, timeout: timedelta) -> bool:
        """Do it a last time and stop; returns whether that was done within the timeout."""
        self._closing.set()
        self._thread.join(timeout.total_seconds())
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._closing.wait(self._interval_s):
            self._work()
        self._work()
