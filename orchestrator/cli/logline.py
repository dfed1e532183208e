"""A JSON log line as people read it."""

from datetime import datetime
from typing import Any, Final

from orchestrator.cli.output import Line, Piece, line, one_line
from shared.telemetry import names

_LEVELS: Final = {
    "debug": "dim",
    "info": "",
    "warning": "yellow",
    "error": "red",
    "critical": "bold red",
}
_SHOWN: Final = {
    names.LOG_TIMESTAMP,
    names.LOG_LEVEL,
    names.LOG_EVENT,
    names.LOG_SERVICE,
    names.LOG_SAGA_STEP,
    names.LOG_SAGA_ATTEMPT,
}
_LEFT_OUT: Final = {
    *(names.LOG_LOGGER, names.LOG_HOSTNAME, names.LOG_PID, names.LOG_PROCESS),
    *(names.LOG_TRACE_ID, names.LOG_SPAN_ID, names.LOG_TASK_ID, names.LOG_TASK_NAME),
    *(names.LOG_SAGA_ID, names.LOG_SAGA_NAME, names.LOG_SAGA_DIRECTION),
}
"""The same on every line of a saga, or of use to programs alone; ``--json`` has them."""


def log_line(fields: dict[str, Any], *, services: int = 14) -> Line:
    """Time, service, step, event, and the rest as ``key=value``.

    Args:
        fields: What the line says.
        services: Columns for the name of the service.
    """
    level = str(fields.get(names.LOG_LEVEL, ""))
    step = str(fields.get(names.LOG_SAGA_STEP, ""))
    attempt = fields.get(names.LOG_SAGA_ATTEMPT)
    if step and attempt and attempt != 1:
        step += f" #{attempt}"
    rest = " ".join(
        f"{key}={one_line(str(value))}"
        for key, value in fields.items()
        if key not in _SHOWN and key not in _LEFT_OUT and value is not None and value != ""
    )
    return line(
        Piece(clock(fields), "dim"),
        f"  {one_line(str(fields.get(names.LOG_SERVICE, ''))):<{services}}  ",
        Piece(f"{level:<8}", _LEVELS.get(level, "")),
        Piece(f"{one_line(step):<20}", "cyan"),
        f" {one_line(str(fields.get(names.LOG_EVENT, '')))}",
        Piece(f"  {rest}" if rest else "", "dim"),
    )


def clock(fields: dict[str, Any]) -> str:
    """Local time of a line, to the millisecond."""
    text = str(fields.get(names.LOG_TIMESTAMP, ""))
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return text
    local = at.astimezone() if at.tzinfo else at
    return f"{local:%H:%M:%S}.{local.microsecond // 1000:03d}"
