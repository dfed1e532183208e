"""W3C Trace Context, in and out of headers, without ever stopping work.

https://www.w3.org/TR/trace-context-2/: a header that breaks the grammar is ignored.
"""

import os
import re
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

import msgspec

from shared import names

TRACEPARENT_VARIABLE: Final = "TRACEPARENT"
TRACESTATE_VARIABLE: Final = "TRACESTATE"
TRACESTATE_CHARS_MAX: Final = 512

_SAMPLED: Final = 0x01
_GRAMMAR: Final = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace_id>[0-9a-f]{32})-(?P<span_id>[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<rest>-.*)?",
    re.ASCII,
)


class TraceParent(msgspec.Struct, frozen=True, kw_only=True):
    """Where a trace stands: its id, the span that is the parent of what comes, and its flags.

    Attributes:
        trace_id: 32 lower-case hexadecimal digits, not all zero.
        span_id: 16 lower-case hexadecimal digits, not all zero.
        flags: 8 bits; newer versions set more than the first (FACTS.md, L16).
    """

    trace_id: str
    span_id: str
    flags: int = _SAMPLED

    @property
    def sampled(self) -> bool:
        """Whether the caller records this trace."""
        return bool(self.flags & _SAMPLED)


def parse_traceparent(value: object) -> TraceParent | None:
    """Read a ``traceparent`` header.

    Returns:
        None for anything that is not one; never raises.
    """
    if not isinstance(value, str):
        return None
    match = _GRAMMAR.fullmatch(value.strip())
    if match is None or match["version"] == "ff":
        return None
    if match["version"] == "00" and match["rest"] is not None:
        return None
    if not match["trace_id"].strip("0") or not match["span_id"].strip("0"):
        return None
    return TraceParent(
        trace_id=match["trace_id"], span_id=match["span_id"], flags=int(match["flags"], 16)
    )


def format_traceparent(trace_id: str, span_id: str, *, sampled: bool) -> str:
    """Write a ``traceparent`` header, version 00."""
    return f"00-{trace_id}-{span_id}-{_SAMPLED if sampled else 0:02x}"


def extract(headers: Mapping[str, Any]) -> tuple[TraceParent | None, str]:
    """Trace context of a message.

    Returns:
        The parent, or None, and the ``tracestate``: empty without a parent, or where it is no
        string or longer than `TRACESTATE_CHARS_MAX`.
    """
    parent = parse_traceparent(headers.get(names.TRACEPARENT))
    return parent, _tracestate(headers.get(names.TRACESTATE)) if parent else ""


def inject(headers: MutableMapping[str, Any], traceparent: str, tracestate: str = "") -> None:
    """Put a trace context into the headers of a message."""
    headers[names.TRACEPARENT] = traceparent
    if tracestate:
        headers[names.TRACESTATE] = tracestate


def from_environment(
    environ: Mapping[str, str] = os.environ,
) -> tuple[TraceParent | None, str]:
    """Trace context of the calling program, from the variables TRACEPARENT and TRACESTATE.

    https://opentelemetry.io/docs/specs/otel/context/env-carriers/
    """
    parent = parse_traceparent(environ.get(TRACEPARENT_VARIABLE))
    return parent, _tracestate(environ.get(TRACESTATE_VARIABLE)) if parent else ""


def _tracestate(value: object) -> str:
    if not isinstance(value, str) or len(value) > TRACESTATE_CHARS_MAX:
        return ""
    return value.strip()
