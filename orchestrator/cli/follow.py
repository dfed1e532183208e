"""New lines of log files as they are written, also while the files are rotated and compressed."""

import gzip
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from orchestrator.log_files import LogLine, Source, log_files, open_logs, parse
from shared.telemetry.log_file import COMPRESSED

_READ_BYTES_MAX: Final = 4 * 1024 * 1024
_HEAD_BYTES: Final = 512
"""The first line begins with its time: no two files begin alike."""


class Follower:
    """Follows the log files of some folders from now on, new files included.

    A file is known by its inode, whatever its name is by now. Each stays open until it was removed
    and read to its end, so that a line that came just before a rotation is not missed.

    Args:
        folders: Need not exist yet.
        sources: Where the files stood at the beginning; by default where they stand now. It keeps
            no hold of them.
    """

    def __init__(self, folders: Sequence[Path], sources: Iterable[Source] | None = None) -> None:
        self._folders = folders
        self._files: dict[tuple[int, int], _Followed] = {}
        self._packed: set[Path] = set()
        if sources is not None:
            self._begin_at(sources)
        else:
            with open_logs(folders) as found:
                self._begin_at(found)

    def new_lines(self) -> list[LogLine]:
        """The whole lines that have come since the last call, in order of time."""
        removed = [inode for inode, one in self._files.items() if one.is_removed()]
        found = [line for raw, file in self._new() if (line := parse(raw, file)) is not None]
        for inode in removed:
            if self._files[inode].at_end():
                self._files.pop(inode).file.close()
        return sorted(found, key=lambda line: line.timestamp)

    def close(self) -> None:
        """Let go of the files."""
        for one in self._files.values():
            one.file.close()
        self._files.clear()

    def _begin_at(self, sources: Iterable[Source]) -> None:
        for source in sources:
            if source.packed:
                self._packed.add(source.path)
            else:
                own = os.fdopen(os.dup(source.file.fileno()), "rb")
                self._files[source.inode] = _Followed(source.path, own, source.size)

    def _new(self) -> Iterator[tuple[bytes, Path]]:
        for path in log_files(self._folders):
            with suppress(FileNotFoundError):  # rotated a moment ago: seen under its new name
                if path.name.endswith(COMPRESSED):
                    yield from self._newly_packed(path)
                else:
                    self._meet(path)
        for one in self._files.values():
            for raw in one.read():
                yield raw, one.path

    def _meet(self, path: Path) -> None:
        found = path.stat()
        inode = (found.st_dev, found.st_ino)
        if inode in self._files:
            self._files[inode].path = path
            return
        file = path.open("rb")
        found = os.fstat(file.fileno())
        inode = (found.st_dev, found.st_ino)
        if inode in self._files:
            file.close()
        else:
            self._files[inode] = _Followed(path, file, 0)

    def _newly_packed(self, path: Path) -> Iterator[tuple[bytes, Path]]:
        """Of a file that was rotated and compressed since the last look, and never seen before."""
        if path in self._packed:
            return
        self._packed.add(path)
        with suppress(EOFError, gzip.BadGzipFile), gzip.open(path) as lines:
            head = lines.read(_HEAD_BYTES)
            if any(one.head() == head for one in self._files.values()):
                return
            lines.seek(0)
            for raw in lines:
                yield raw, path


class _Followed:
    """An open file and how far it was read."""

    def __init__(self, path: Path, file: BinaryIO, offset: int) -> None:
        self.path = path
        self.file = file
        self._offset = offset

    def is_removed(self) -> bool:
        return self._found().st_nlink == 0

    def at_end(self) -> bool:
        return self._found().st_size <= self._offset

    def head(self) -> bytes:
        return os.pread(self.file.fileno(), _HEAD_BYTES, 0)

    def read(self) -> list[bytes]:
        size = self._found().st_size
        if size < self._offset:  # somebody began the file anew
            self._offset = 0
        if size == self._offset:
            return []
        read = os.pread(self.file.fileno(), _READ_BYTES_MAX, self._offset)
        # A line that is being written is left for the next time.
        whole, newline, _ = read.rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return whole.split(b"\n") if newline else []

    def _found(self) -> os.stat_result:
        return os.fstat(self.file.fileno())
