"""A log file that many processes append to, rotate and compress together, without losing a line.

No process leads, and nothing is shared but the file system:

* A line is one write to a file opened for appending, so lines never mix. Before it, one look at the
  path says whether the file is still this one: who finds another, or none, opens it anew. That also
  follows logrotate.
* Who finds the file full renames it, under a lock that nobody waits for: who does not get it writes
  on. A line that another process writes meanwhile goes to the renamed file, where it belongs.
* Whoever has a file open holds a shared lock on it, taken when it is opened. A renamed file is
  compressed, in a thread, by who gets the exclusive lock: then no other process has it open, and no
  line can come any more. A file that an idle process still holds is compressed at a later rotation.

A renamed file carries the time of its end in its name and never changes it again:
``inventory.jsonl.20261125T101112.123456``, later with ``.gz``.
"""

import fcntl
import gzip
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

import msgspec

from shared.clock import utc_now

COMPRESSED: Final = ".gz"

_STAMP: Final = "%Y%m%dT%H%M%S.%f"
_OLD: Final = re.compile(r"\.\d{8}T\d{6}\.\d{6}(\.gz)?")
_PART: Final = ".part"
_BLOCK_BYTES: Final = 256 * 1024
_LEVEL: Final = 6
_log = logging.getLogger(__name__)


class Rotation(msgspec.Struct, frozen=True, kw_only=True):
    """When a log file is put aside, and how many are kept.

    Attributes:
        bytes_max: Size that a file does not grow beyond, but for a longer line and for what others
            write at the moment of the rotation; 0 for no limit, where somebody else rotates.
        every: Put aside also at the end of each such period, counted in UTC (a day ends at
            midnight), with the first line after it; None for never.
        files_max: Old files that are kept, compressed ones included; 0 keeps none.
    """

    bytes_max: int = 64 * 1024 * 1024
    every: timedelta | None = None
    files_max: int = 10


class LogFile:
    """The current file of a service. Not for use by several threads at once.

    Args:
        path: Where lines go; its folder is made.
        rotation: When the file is put aside.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path, rotation: Rotation) -> None:
        self._path = path
        self._name = os.fspath(path)
        self._rotation = rotation
        self._bytes_max = rotation.bytes_max or sys.maxsize
        self._every_s = rotation.every.total_seconds() if rotation.every else 0.0
        self._fd = -1
        self._inode = (0, 0)
        self._open()

    def write(self, line: bytes) -> None:
        """Append a line, with its line break.

        Raises:
            OSError: The disk is full, or the folder has gone for good.
        """
        try:
            found = os.stat(self._name)  # noqa: PTH116 - at each line: a Path costs twice as much
        except FileNotFoundError:
            self._open()
        else:
            if (found.st_dev, found.st_ino) != self._inode:
                self._open()
            elif found.st_size and self._is_full(found, len(line)):
                self._rotate(found.st_size, len(line))
        written = os.write(self._fd, line)
        while written < len(line):  # a disk that is nearly full
            written += os.write(self._fd, line[written:])

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _is_full(self, found: os.stat_result, more: int) -> bool:
        if found.st_size + more > self._bytes_max:
            return True
        # The file knows the time of its last line, so no process has to remember anything.
        return bool(
            self._every_s
            and found.st_mtime // self._every_s != utc_now().timestamp() // self._every_s
        )

    def _open(self) -> None:
        """Open the file of that name and hold it, so that nobody compresses it."""
        self.close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            fd = os.open(self._name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            with suppress(OSError):  # renamed a moment ago and being compressed; or no locks here
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            found = os.fstat(fd)
            self._fd, self._inode = fd, (found.st_dev, found.st_ino)
            if self._is_current(self._inode):
                return
            os.close(fd)

    def _is_current(self, inode: tuple[int, int]) -> bool:
        with suppress(FileNotFoundError):
            found = self._path.stat()
            return (found.st_dev, found.st_ino) == inode
        return False

    def _rotate(self, size: int, more: int) -> None:
        try:
            with _locked(self._path) as locked:
                # Another process may have been faster.
                if locked and self._is_current(self._inode):
                    found = self._path.stat()
                    if self._is_full(found, more):
                        self._path.rename(_old_name(self._path))
        except OSError as error:
            # A folder in which nothing may be renamed: write on, and say so now and then.
            self._bytes_max = 2 * (size + more)
            self._every_s = 0.0
            _log.warning("The log file %s cannot be rotated: %s", self._path, error)
            return
        if not self._is_current(self._inode):
            self._open()
            path, files_max = self._path, self._rotation.files_max
            _in_background(lambda: tidy(path, files_max))


def make_folder(folder: Path) -> None:
    """Make a folder of log files where there is none, and try whether a file can be written in it.

    Raises:
        OSError: It cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")


def old_files(path: Path) -> list[Path]:
    """The files that were put aside, oldest first; of one that is being compressed just one."""
    found: dict[str, Path] = {}
    for file in path.parent.iterdir():
        # Not what logrotate or a person has left.
        if not (file.name.startswith(path.name) and _OLD.fullmatch(file.name, len(path.name))):
            continue
        plain = file.name.removesuffix(COMPRESSED)
        # The compressed file appears whole, and then the other one goes.
        if plain not in found or file.name != plain:
            found[plain] = file
    return [found[plain] for plain in sorted(found)]


def tidy(path: Path, files_max: int) -> None:
    """Remove the oldest files beyond the maximum and compress the others, as far as they are free.

    Args:
        path: The current file.
        files_max: Old files that are kept.
    """
    try:
        files = old_files(path)
        excess = max(0, len(files) - files_max)
        for file in files[:excess]:
            file.unlink(missing_ok=True)
            plain = file.with_name(file.name.removesuffix(COMPRESSED))
            for other in (plain, _beside(plain, _PART)):
                other.unlink(missing_ok=True)
        for file in files[excess:]:
            if not file.name.endswith(COMPRESSED):
                _compress(file)
    except OSError as error:
        _log.warning("The old log files of %s cannot be tidied: %s", path, error)


def _compress(file: Path) -> None:
    with suppress(FileNotFoundError), file.open("rb") as plain:
        try:
            fcntl.flock(plain.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # a process may still write to it, or compresses it
        if not file.exists():
            return
        packed = file.with_name(file.name + COMPRESSED)
        part = _beside(file, _PART)
        with part.open("wb") as raw, gzip.GzipFile("", "wb", _LEVEL, raw) as packing:
            shutil.copyfileobj(plain, packing, _BLOCK_BYTES)
        part.replace(packed)
        file.unlink()


def _old_name(path: Path) -> Path:
    name = path.with_name(f"{path.name}.{utc_now().strftime(_STAMP)}")
    # The clock was set back, or stands still.
    while name.exists() or name.with_name(name.name + COMPRESSED).exists():
        name = path.with_name(f"{path.name}.{utc_now().strftime(_STAMP)}")
    return name


def _beside(path: Path, what: str) -> Path:
    """A hidden file that does not look like a log file."""
    return path.with_name("." + path.name.replace(".jsonl", "") + what)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether this process may rename the file; never waits."""
    fd = os.open(_beside(path, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(fd)


def _in_background(work: Callable[[], None]) -> None:
    """Run it in a thread of the system: a greenlet would hold up all others meanwhile."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        monkey.get_original("_thread", "start_new_thread")(work, ())
    else:
        threading.Thread(target=work, name="log-rotation", daemon=True).start()
