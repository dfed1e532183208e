"""Log lines back out of the JSON log files of all processes, in order of time."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from shared.telemetry import names

PATTERN: Final = "*.jsonl*"
"""Also the numbered files that a rotation leaves."""

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


def log_files(folders: Iterable[Path]) -> list[Path]:
    """The log files of these folders; a folder need not exist."""
    return sorted({file for folder in folders for file in folder.glob(PATTERN)})


def read_logs(
    folders: Iterable[Path], *, saga_id: str | None = None, trace_id: str | None = None
) -> list[LogLine]:
    """The lines of a saga, of a trace, or of both.

    Args:
        folders: Where to look.
        saga_id: Lines that name this saga count.
        trace_id: Lines of this trace count, but with a `saga_id` not those of another saga: a
            caller's trace may hold several.

    Returns:
        In order of time; lines of the same microsecond in the order of their file.
    """
    needles = [value.encode() for value in (saga_id, trace_id) if value]

    def belongs(fields: dict[str, Any]) -> bool:
        named = fields.get(names.LOG_SAGA_ID)
        if saga_id and named:
            return bool(named == saga_id)
        return bool(trace_id) and fields.get(names.LOG_TRACE_ID) == trace_id

    found = [
        line
        for file in log_files(folders)
        for line in _lines(file, needles)
        if belongs(line.fields)
    ]
    return sorted(found, key=lambda line: line.timestamp)


def parse(raw: bytes, file: Path) -> LogLine | None:
    """A line; None for one that is no JSON object, such as one that a crash cut short."""
    text = raw.decode("utf-8", "backslashreplace").rstrip("\r\n")
    try:
        return LogLine(raw=text, fields=_decode(text), file=file)
    except msgspec.DecodeError:
        return None


def _lines(file: Path, needles: list[bytes]) -> Iterator[LogLine]:
    with file.open("rb") as lines:
        for raw in lines:
            if any(needle in raw for needle in needles):
                line = parse(raw, file)
                if line is not None:
                    yield line
