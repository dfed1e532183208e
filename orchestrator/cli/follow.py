"""New lines of log files as they are written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from orchestrator.log_files import LogLine, parse

PATTERN: Final = "*.jsonl"
_READ_BYTES_MAX: Final = 4 * 1024 * 1024


class Follower:
    """Follows the log files of a folder from now on, new files included.

    Args:
        folder: Need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets = {file: file.stat().st_size for file in folder.glob(PATTERN)}

    def new_lines(self) -> list[LogLine]:
        """The whole lines that have come since the last call, in order of time."""
        found = [line for file in sorted(self._folder.glob(PATTERN)) for line in self._lines(file)]
        return sorted(found, key=lambda line: line.timestamp)

    def _lines(self, file: Path) -> Iterator[LogLine]:
        offset = self._offsets.get(file, 0)
        size = file.stat().st_size
        if size < offset:  # somebody began the file anew
            offset = 0
        if size == offset:
            return
        with file.open("rb") as lines:
            lines.seek(offset)
            read = lines.read(_READ_BYTES_MAX)
        # A line that is being written is left for the next time.
        whole, newline, _ = read.rpartition(b"\n")
        self._offsets[file] = offset + len(whole) + len(newline)
        for raw in whole.split(b"\n"):
            line = parse(raw, file)
            if line is not None:
                yield line
