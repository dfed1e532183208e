"""Adaptive sampling: at most so many traces a second on a host, shared fairly between names.

Time is cut into windows of a second. At the start of each, the demand of the last one is shared out
by max-min fairness: every name gets what it asks for, up to a level at which the sum is the target.
Within the window, so many of a name's traces are kept as its share allows, spread over those that
are expected (selection sampling: (share - kept) / (expected - seen), Knuth, TAOCP 3.4.2, S). The
random number is the trace id's own.

A name that was not there a second ago gets its share from a headroom of a quarter, and what that
takes over the target is taken off the next second: a rare saga is seen beside a flood, and the mean
stays the target.

All processes of a host count in one small file, so that a command that lives for a second, too,
finds what the others have left. Where the file cannot be had, each process has the target for
itself.
"""

import fcntl
import math
import mmap
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from shared.clock import monotonic

WINDOW_SECONDS: Final = 1.0
NAMES_MAX: Final = 384
"""Names with a share of their own in a window; all others have one together."""

HEADROOM: Final = 0.25
"""What names that were not expected may take beyond the target in one window."""

_SLOTS: Final = 512
_LOCK_TRIES_MAX: Final = 100
_OTHERS: Final = 1
_MAGIC: Final = b"sagasmp1"
_HEADER: Final = struct.Struct("<8sqIIddd")
_ENTRY: Final = struct.Struct("<QIII")
_SIZE: Final = _HEADER.size + _SLOTS * _ENTRY.size
_COUNT_MAX: Final = 2**32 - 1

_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)


class Adaptive:
    """Decides about traces that begin here.

    Args:
        target: Traces a second, from 1.
        state: File that the processes of a host share; None for a target of this process alone.
        clock: Seconds that every process of the host sees alike.
    """

    def __init__(
        self, target: float, state: Path | None, clock: Callable[[], float] = monotonic
    ) -> None:
        self._target = target
        self._clock = clock
        self._file, self._table = _open(state)
        self._lock = threading.Lock()

    def decide(self, trace_id: int, name: str) -> bool:
        """Whether a trace is kept; never blocks for longer than a few microseconds.

        Args:
            trace_id: 128 bits, of which the lower half is random.
            name: What has its share: name of the saga's span, or of the root span.
        """
        window = int(self._clock() // WINDOW_SECONDS)
        draw = (trace_id & 0xFFFF_FFFF_FFFF_FFFF) / 2**64
        with self._lock, _locked(self._file):
            try:
                return self._table.decide(window, _key(name), draw, self._target)
            except struct.error:  # numbers that no process of ours has written
                self._table.clear()
                return False

    def after_fork(self) -> None:
        """Begin in a child: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def close(self) -> None:
        """Give the file back."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
                self._table = _Table(bytearray(_SIZE))


class _Header(NamedTuple):
    """What is known about the window.

    Attributes:
        kept: Traces that were kept in it.
        names: Entries of the table.
        level: Most that a name gets; infinite when there is enough for all.
        slack: What is left of the target then, for each name.
        debt: What earlier windows have taken over the target.
    """

    magic: bytes = _MAGIC
    window: int = -1
    kept: int = 0
    names: int = 0
    level: float = math.inf
    slack: float = 0.0
    debt: float = 0.0


class _Entry(NamedTuple):
    """A name: what is expected of it, by the last window, and what it has had in this one."""

    key: int
    expected: int = 0
    seen: int = 0
    kept: int = 0


class _Table:
    """The names of a window in a buffer: a hash table that is made anew for each window."""

    def __init__(self, buffer: bytearray | mmap.mmap) -> None:
        self._buffer = buffer

    def decide(self, window: int, key: int, draw: float, target: float) -> bool:
        header = _Header(*_HEADER.unpack_from(self._buffer))
        if header.magic != _MAGIC or header.window != window:
            header = self._roll(header, window, target)
        slot, entry = self._find(key)
        if entry.key == 0:
            if header.names >= NAMES_MAX and key != _OTHERS:
                return self.decide(window, _OTHERS, draw, target)
            entry = _Entry(key)
            header = header._replace(names=header.names + 1)
        room = target * (1 + HEADROOM) - header.debt - header.kept
        kept = room >= 1 and draw < _chance(header, entry, target)
        self._write(
            slot,
            entry._replace(seen=min(entry.seen + 1, _COUNT_MAX), kept=entry.kept + kept),
        )
        _HEADER.pack_into(self._buffer, 0, *header._replace(kept=header.kept + kept))
        return kept

    def clear(self) -> None:
        """Forget everything."""
        self._buffer[:] = bytes(_SIZE)

    def _roll(self, old: _Header, window: int, target: float) -> _Header:
        """Begin a window: what was seen in the one before it is what is expected now."""
        expected: list[tuple[int, int]] = []
        debt = 0.0
        if old.magic == _MAGIC and old.window == window - 1:
            expected = [(one.key, one.seen) for one in self._entries() if one.seen]
            debt = max(0.0, old.debt + old.kept - target)
        self.clear()
        for key, seen in expected[:NAMES_MAX]:
            slot, _ = self._find(key)
            self._write(slot, _Entry(key, expected=seen))
        budget = target - debt
        level = _level((seen for _, seen in expected), budget)
        slack = 0.0
        if math.isinf(level):
            slack = (budget - sum(seen for _, seen in expected)) / max(len(expected), 1)
        return _Header(window=window, names=len(expected), level=level, slack=slack, debt=debt)

    def _find(self, key: int) -> tuple[int, _Entry]:
        """The slot of a name, or the free one where it belongs."""
        slot = key % _SLOTS
        for _ in range(_SLOTS):  # a damaged file may be full
            entry = _Entry(*_ENTRY.unpack_from(self._buffer, _offset(slot)))
            if entry.key in {0, key}:
                return slot, entry
            slot = (slot + 1) % _SLOTS
        return slot, _Entry(0)

    def _write(self, slot: int, entry: _Entry) -> None:
        _ENTRY.pack_into(self._buffer, _offset(slot), *entry)

    def _entries(self) -> Iterator[_Entry]:
        for slot in range(_SLOTS):
            entry = _Entry(*_ENTRY.unpack_from(self._buffer, _offset(slot)))
            if entry.key:
                yield entry


def _chance(header: _Header, entry: _Entry, target: float) -> float:
    """Probability that the next trace of a name is kept; above 1 is certain."""
    if not entry.expected:
        return max(1.0, target / max(header.names, 1)) - entry.kept
    share = header.level
    if math.isinf(share):
        share = entry.expected + header.slack
    return (share - entry.kept) / max(entry.expected - entry.seen, 1)


def _level(demands: Iterable[int], budget: float) -> float:
    """The max-min fair level: the sum of each demand up to it is the budget."""
    ordered = sorted(demands)
    for position, demand in enumerate(ordered):
        fair = budget / (len(ordered) - position)
        if demand > fair:
            return fair
        budget -= demand
    return math.inf


def _offset(slot: int) -> int:
    return _HEADER.size + slot * _ENTRY.size


@lru_cache(maxsize=4096)
def _key(name: str) -> int:
    digest = blake2b(name.encode("utf-8", "replace"), digest_size=8).digest()
    return max(int.from_bytes(digest, "little"), _OTHERS + 1)


# The file ----------------------------------------------------------------------------------------


def _open(path: Path | None) -> tuple[int, _Table]:
    if path is None:
        return -1, _Table(bytearray(_SIZE))
    fd = -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # No link: the folder may be one that everybody can write.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(path, flags, 0o600)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(f"{path} belongs to somebody else")
        if found.st_size != _SIZE:
            os.ftruncate(fd, _SIZE)
        return fd, _Table(mmap.mmap(fd, _SIZE))
    except (OSError, ValueError) as error:
        if fd >= 0:
            os.close(fd)
        _log.warning("telemetry.sampling_not_shared", file=str(path), reason=str(error))
        return -1, _Table(bytearray(_SIZE))


@contextmanager
def _locked(fd: int) -> Iterator[None]:
    """Exclude the other processes; after some tries go on without: a miscount harms nobody.

    Waiting could take for ever: the holder may be a process that was stopped.
    """
    held = fd >= 0 and any(_try_lock(fd) for _ in range(_LOCK_TRIES_MAX))
    try:
        yield
    finally:
        if held:
            with suppress(OSError):
                fcntl.lockf(fd, fcntl.LOCK_UN)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
