"""B3, the headers of Zipkin: one (``b3``) or several (``X-B3-TraceId`` …). No I/O.

https://github.com/openzipkin/b3-propagation. It reads and writes what the propagators of the package
``opentelemetry-propagator-b3`` do (a test compares them); those work on spans, while the trace of a
saga is data, and they raise for a header that is no text.
"""

import re
from typing import Final, NamedTuple

SINGLE: Final = "b3"
TRACE_ID: Final = "x-b3-traceid"
SPAN_ID: Final = "x-b3-spanid"
SAMPLED: Final = "x-b3-sampled"
FLAGS: Final = "x-b3-flags"

MULTI: Final = (TRACE_ID, SPAN_ID, SAMPLED, FLAGS)
AS_WRITTEN_BY_OTHERS: Final = {
    TRACE_ID: "X-B3-TraceId",
    SPAN_ID: "X-B3-SpanId",
    SAMPLED: "X-B3-Sampled",
    FLAGS: "X-B3-Flags",
}
"""Headers of a task keep their case, other than those of HTTP."""

_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}|[0-9a-f]{16}", re.ASCII | re.IGNORECASE)
_SPAN_ID: Final = re.compile(r"[0-9a-f]{16}", re.ASCII | re.IGNORECASE)
_DECISIONS: Final[dict[str, bool | None]] = {
    "": None,
    "1": True,
    "d": True,
    "true": True,
    "0": False,
    "false": False,
}

DECISIONS_ALONE: Final = frozenset({"0", "1", "d"})
"""A ``b3`` header may be a decision without ids: there is nothing to continue."""


class B3(NamedTuple):
    """A trace context; `sampled` is None where the caller leaves the decision to others."""

    trace_id: str
    span_id: str
    sampled: bool | None


def parse_single(header: str) -> B3 | None:
    """Read ``{trace id}-{span id}[-{sampled}[-{parent span id}]]``; None for anything else."""
    parts = header.strip().split("-")
    if not 2 <= len(parts) <= 4:
        return None
    if len(parts) == 4 and not _SPAN_ID.fullmatch(parts[3]):
        return None
    return _b3(parts[0], parts[1], parts[2] if len(parts) > 2 else "")


def parse_multi(trace_id: str, span_id: str, sampled: str = "", flags: str = "") -> B3 | None:
    """Read the values of the ``X-B3-…`` headers; None where they are malformed."""
    return _b3(trace_id.strip(), span_id.strip(), "d" if flags.strip() == "1" else sampled.strip())


def format_single(trace_id: str, span_id: str, *, sampled: bool) -> str:
    """Write a ``b3`` header."""
    return f"{trace_id}-{span_id}-{sampled:d}"


def _b3(trace_id: str, span_id: str, sampled: str) -> B3 | None:
    decision = sampled.lower()
    if not _TRACE_ID.fullmatch(trace_id) or not _SPAN_ID.fullmatch(span_id):
        return None
    if not trace_id.strip("0") or not span_id.strip("0") or decision not in _DECISIONS:
        return None
    # Ids of 64 bits are padded, as every OpenTelemetry SDK does.
    return B3(trace_id.lower().rjust(32, "0"), span_id.lower(), _DECISIONS[decision])
