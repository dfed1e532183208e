"""Log lines back out of the JSON log files of all processes, in order of time.

Also out of files that were rotated and compressed. Nothing is read into memory as a whole: the
files of a service follow each other, and the services are merged.
"""

import gzip
import heapq
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, Self

import msgspec

from shared.telemetry import names
from shared.telemetry.log_file import COMPRESSED

REORDER_LINES_MAX: Final = 1000
"""Processes that share a file write in almost the order of time: within this many lines."""

LEVELS: Final = ("debug", "info", "warning", "error", "critical")

_ATTEMPTS_MAX: Final = 20
_NAME: Final = re.compile(r"([^.].*?\.jsonl)(?:[.-](.+?))?(\.gz)?")
_PLAIN: Final = re.compile(r"[\w.:/@#-]+", re.ASCII)
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line.

    Attributes:
        raw: As it stands in the file.
        fields: What it says.
        file: Where it stands.
    """

    raw: str
    fields: dict[str, Any]
    file: Path

    @property
    def timestamp(self) -> str:
        """ISO 8601, UTC, of one length: sorts as text."""
        return str(self.fields.get(names.LOG_TIMESTAMP, ""))


class LogQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines are wanted; what is left out does not matter.

    Attributes:
        saga_ids: Lines that name one of these sagas.
        trace_ids: Lines of these traces, but with `saga_ids` not those of another saga: a caller's
            trace may hold several.
        step: Lines of a step.
        task: Lines that name a Celery task, by its id or by its name.
        key: Lines that name a business key; only those that tell of a start do.
        level: Lines of this level, or above it.
        since: Lines from this moment on.
    """

    saga_ids: frozenset[str] = frozenset()
    trace_ids: frozenset[str] = frozenset()
    step: str = ""
    task: str = ""
    key: str = ""
    level: str = LEVELS[0]
    since: datetime | None = None

    def needles(self) -> list[list[bytes]]:
        """Of each list a line has to contain one: looking costs far less than decoding."""
        ids = [*self.saga_ids, *self.trace_ids]
        groups = [ids, *([one] for one in (self.step, self.task, self.key) if one)]
        # What JSON might write in another way cannot be looked for.
        return [
            [one.encode() for one in group]
            for group in groups
            if group and all(map(_PLAIN.fullmatch, group))
        ]

    def wants(self, fields: dict[str, Any]) -> bool:
        """Whether a line is one of them."""
        return (
            self._belongs(fields)
            and self.step in {"", fields.get(names.LOG_SAGA_STEP)}
            and self.task in {"", fields.get(names.LOG_TASK_ID), fields.get(names.LOG_TASK_NAME)}
            and self.key in {"", fields.get(names.LOG_KEY)}
            and (self.level == LEVELS[0] or _at_least(self.level, fields))
            and (self.since is None or str(fields.get(names.LOG_TIMESTAMP)) >= stamp(self.since))
        )

    def _belongs(self, fields: dict[str, Any]) -> bool:
        named = fields.get(names.LOG_SAGA_ID)
        if self.saga_ids and named:
            return named in self.saga_ids
        if self.saga_ids or self.trace_ids:
            return fields.get(names.LOG_TRACE_ID) in self.trace_ids
        return True


class Source(NamedTuple):
    """A log file, held open: it may be renamed, compressed and removed meanwhile.

    Attributes:
        size: Bytes that it had when it was opened; nothing after them is read.
        inode: Its device and inode.
    """

    path: Path
    file: BinaryIO
    size: int
    inode: tuple[int, int]

    @property
    def packed(self) -> bool:
        """Whether it is compressed."""
        return self.path.name.endswith(COMPRESSED)

    def lines(self) -> Iterator[bytes]:
        """Its lines as they are; ends early where a compressed file is damaged."""
        if self.packed:
            with gzip.open(self.file) as lines:
                try:
                    yield from lines
                except (EOFError, OSError):
                    return
        left = self.size
        for line in self.file:
            left -= len(line)
            if left < 0:
                return
            yield line


class Sources(list[Source]):
    """Log files that are open as long as the ``with`` block lasts."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self:
            one.file.close()


def log_files(folders: Iterable[Path]) -> list[Path]:
    """The log files of these folders, oldest first within a service; a folder need not exist."""
    found = {file for folder in folders for file in folder.glob("*.jsonl*")}
    return sorted(
        (
            file
            for file in found
            # One that is being compressed stands there twice for a moment.
            if _NAME.fullmatch(file.name) and file.with_name(file.name + COMPRESSED) not in found
        ),
        key=lambda file: (series(file), _age(file)),
    )


def series(file: Path) -> Path:
    """The current file that a file was put aside from, or is."""
    found = _NAME.fullmatch(file.name)
    return file.with_name(found[1]) if found else file


def open_logs(folders: Sequence[Path]) -> Sources:
    """Open all log files of some folders, as they were at one moment."""
    for left in reversed(range(_ATTEMPTS_MAX)):
        before = log_files(folders)
        sources = Sources()
        try:
            for path in before:
                file = path.open("rb")
                found = os.fstat(file.fileno())
                inode = (found.st_dev, found.st_ino)
                sources.append(Source(path, file, found.st_size, inode))
            if before == log_files(folders) or not left:
                return sources
        except FileNotFoundError:
            pass  # it was rotated or compressed just now
        except BaseException:
            sources.__exit__()
            raise
        sources.__exit__()
    return Sources()


def search(sources: Iterable[Source], query: LogQuery) -> Iterator[LogLine]:
    """The lines that are wanted, in order of time, of the same microsecond in that of their file.

    At most `REORDER_LINES_MAX` lines of each service are in memory.
    """
    services: dict[Path, list[Source]] = {}
    for source in sources:
        if query.since is None or _changed(source) >= query.since.timestamp():
            services.setdefault(series(source.path), []).append(source)
    return heapq.merge(
        *(_in_order(_wanted(files, query)) for files in services.values()),
        key=lambda line: line.timestamp,
    )


def read_logs(
    folders: Iterable[Path], *, saga_id: str | None = None, trace_id: str | None = None
) -> list[LogLine]:
    """The lines of a saga, of a trace, or of both: see `LogQuery`."""
    query = LogQuery(
        saga_ids=frozenset(filter(None, [saga_id])), trace_ids=frozenset(filter(None, [trace_id]))
    )
    with open_logs(list(folders)) as sources:
        return list(search(sources, query))


def parse(raw: bytes, file: Path) -> LogLine | None:
    """A line; None for one that is no JSON object, such as one that a crash cut short."""
    text = raw.decode("utf-8", "backslashreplace").rstrip("\r\n")
    try:
        return LogLine(raw=text, fields=_decode(text), file=file)
    except msgspec.DecodeError:
        return None


def stamp(moment: datetime) -> str:
    """A moment as log lines write it."""
    text = moment.astimezone(UTC).isoformat(timespec="microseconds")
    return text.replace("+00:00", "Z")


def _wanted(files: Iterable[Source], query: LogQuery) -> Iterator[LogLine]:
    needles = query.needles()
    for source in files:
        for raw in source.lines():
            if all(any(needle in raw for needle in group) for group in needles):
                line = parse(raw, source.path)
                if line is not None and query.wants(line.fields):
                    yield line


def _in_order(lines: Iterable[LogLine]) -> Iterator[LogLine]:
    waiting: list[tuple[str, int, LogLine]] = []
    for number, line in enumerate(lines):
        heapq.heappush(waiting, (line.timestamp, number, line))
        if len(waiting) > REORDER_LINES_MAX:
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]


def _age(file: Path) -> tuple[int, int, str]:
    """Sorts the files of a service, oldest first: ours by their time, logrotate's by number."""
    found = _NAME.fullmatch(file.name)
    mark = (found[2] or "") if found else ""
    if not mark:
        return (2, 0, "")
    return (0, -int(mark), "") if mark.isdecimal() and len(mark) < 6 else (1, 0, mark)


def _changed(source: Source) -> float:
    return os.fstat(source.file.fileno()).st_mtime


def _at_least(level: str, fields: dict[str, Any]) -> bool:
    found = fields.get(names.LOG_LEVEL)
    return found in LEVELS and LEVELS.index(found) >= LEVELS.index(level)
