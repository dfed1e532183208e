"""What happens to sagas, as one compact line each, out of the orchestrator's log."""

from typing import Any, Final

from orchestrator.cli.logline import clock, log_line
from orchestrator.cli.output import Line, Piece, line, one_line
from orchestrator.cli.render import event_piece
from shared.telemetry import names

JOURNAL: Final = "orchestrator"
"""Name of the logger that tells what was decided: `orchestrator.journal`."""

_ID_CHARS: Final = 8
_WORTH_SEEING: Final = frozenset({"warning", "error", "critical"})


def event_line(fields: dict[str, Any]) -> Line | None:
    """A log line as an event of a saga, or as trouble; None for all others."""
    saga_id = fields.get(names.LOG_SAGA_ID)
    if saga_id and fields.get(names.LOG_LOGGER) == JOURNAL:
        return _saga_event(str(saga_id), fields)
    # Trouble inside a step is told by the orchestrator, once.
    if fields.get(names.LOG_LEVEL) in _WORTH_SEEING and not saga_id:
        return log_line(fields)
    return None


def _saga_event(saga_id: str, fields: dict[str, Any]) -> Line:
    tag = str(fields.get(names.LOG_EVENT, "")).replace(".", "_", 1)
    event = event_piece(tag, fields.get(names.LOG_SAGA_DIRECTION))
    started = tag == "saga_started"
    attempt = fields.get(names.LOG_SAGA_ATTEMPT) or 1
    return line(
        Piece(clock(fields), "dim"),
        "  ",
        # The end of an id tells sagas apart: it begins with the time.
        Piece(f"…{saga_id[-_ID_CHARS:]}", "dim"),
        f"  {one_line(str(fields.get(names.LOG_SAGA_NAME, '')))}  ",
        Piece(f"{one_line(str(fields.get(names.LOG_SAGA_STEP, ''))):<18}", "cyan"),
        " ",
        event,
        f" {saga_id}" if started else "",
        f", attempt {attempt}" if attempt > 1 else "",
        Piece(_why(fields), "red"),
    )


def _why(fields: dict[str, Any]) -> str:
    said = [fields.get(key) for key in ("kind", "error", "reason")]
    text = ": ".join(str(one) for one in said if one)
    return f"  {one_line(text)}" if text else ""
