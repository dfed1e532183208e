"""A bounded queue with one thread behind it, which hands items over in batches.

It takes the place of the SDK's ``BatchSpanProcessor``, because telemetry must never harm work: the
SDK's ``force_flush`` ignores its timeout, its drops are not counted, each is a log
line, and its thread starts at once, before a worker forks. Here every wait has an end, every item
that is lost is counted, and the thread starts with the first item.
"""

import threading
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Final, Generic, TypeVar

import msgspec

from shared.clock import monotonic

THREAD_NAME: Final = "telemetry-outlet"

T = TypeVar("T")


class OutletStats(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the items so far.

    Attributes:
        exported: Handed over, and the receiver has them.
        dropped: Lost: the queue was full, or the process ended first.
        failed: Lost: the receiver did not take them.
        queued: Waiting, or being handed over now.
    """

    exported: int = 0
    dropped: int = 0
    failed: int = 0
    queued: int = 0

    def __add__(self, other: "OutletStats") -> "OutletStats":
        """What became of the items of both."""
        return OutletStats(
            exported=self.exported + other.exported,
            dropped=self.dropped + other.dropped,
            failed=self.failed + other.failed,
            queued=self.queued + other.queued,
        )

    def given_up(self) -> "OutletStats":
        """The same when nothing more will be handed over: what waits is lost."""
        return msgspec.structs.replace(self, dropped=self.dropped + self.queued, queued=0)


class Outlet(Generic[T]):
    """Takes items from any thread without ever blocking, and hands them over from its own.

    Args:
        export: Hands a batch over and says whether the receiver has it; may block, must not raise.
        close: Called once after the last batch, in the outlet's thread if it has one; may block,
            must not raise.
        queue_max: Most items that wait.
        batch_max: Most items in one call of `export`.
        interval: Longest that an item waits for its batch to fill.
    """

    def __init__(
        self,
        *,
        export: Callable[[list[T]], bool],
        close: Callable[[], None],
        queue_max: int,
        batch_max: int,
        interval: timedelta,
    ) -> None:
        self._export = export
        self._close = close
        self._queue_max = queue_max
        self._batch_max = batch_max
        self._interval_s = interval.total_seconds()
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._flush_up_to = 0
        self._accepted = 0
        self._exported = 0
        self._failed = 0
        self._dropped = 0

    def put(self, item: T) -> None:
        """Queue an item, or count it as dropped. Never blocks and never raises."""
        with self._changed:
            if self._closing or len(self._items) >= self._queue_max:
                self._dropped += 1
                return
            self._items.append(item)
            self._accepted += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
                self._thread.start()
            elif len(self._items) in {1, self._batch_max}:
                self._changed.notify_all()

    def flush(self, timeout: timedelta) -> bool:
        """Wait until what is queued now was handed over.

        Returns:
            Whether it was, within the timeout; whether the receiver took it, `stats` says.
        """
        with self._changed:
            goal = self._flush_up_to = self._accepted
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._done() >= goal, timeout.total_seconds())

    def close(self, timeout: timedelta) -> bool:
        """Hand over what is queued, then stop; what is not out by then counts as dropped.

        Returns:
            Whether everything was handed over within the timeout.
        """
        deadline = monotonic() + timeout.total_seconds()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
            if thread is not None:
                self._changed.wait_for(
                    lambda: self._done() >= self._accepted, timeout.total_seconds()
                )
            lost = len(self._items)
            self._items.clear()
            self._dropped += lost
            self._accepted -= lost
        if thread is None:
            self._close()
            return True
        # The thread is a daemon: when the receiver hangs, the process ends without it.
        thread.join(max(0.0, deadline - monotonic()))
        return not lost and not thread.is_alive()

    def stats(self) -> OutletStats:
        """Counters since the outlet was made."""
        with self._changed:
            return OutletStats(
                exported=self._exported,
                dropped=self._dropped,
                failed=self._failed,
                queued=self._accepted - self._done(),
            )

    def _done(self) -> int:
        return self._exported + self._failed

    def _run(self) -> None:
        while batch := self._next_batch():
            exported = self._export(batch)
            with self._changed:
                if exported:
                    self._exported += len(batch)
                else:
                    self._failed += len(batch)
                self._changed.notify_all()
        self._close()

    def _next_batch(self) -> list[T]:
        """Wait for an item, then for its batch to fill; empty only at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closing)
            self._changed.wait_for(self._due, self._interval_s)
            count = min(len(self._items), self._batch_max)
            return [self._items.popleft() for _ in range(count)]

    def _due(self) -> bool:
        return (
            self._closing
            or len(self._items) >= self._batch_max
            or self._flush_up_to > self._done()
        )
