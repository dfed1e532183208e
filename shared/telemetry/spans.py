"""A finished span as a value, so that the orchestrator can say what to export without the SDK."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, NamedTuple

import msgspec

SpanKind = Literal["internal", "producer", "consumer"]
AttributeValue = str | bool | int | float | Sequence[str]
Attributes = Mapping[str, AttributeValue]

NO_ATTRIBUTES: Attributes = {}


class SpanLink(msgspec.Struct, frozen=True, kw_only=True):
    """A reference to another span.

    Attributes:
        trace_id: 32 lower-case hexadecimal digits.
        span_id: 16 lower-case hexadecimal digits.
    """

    trace_id: str
    span_id: str
    attributes: Attributes = NO_ATTRIBUTES


class SpanError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a span has the status ERROR.

    Attributes:
        type: Low cardinality: a reject code or a class name; becomes ``error.type``.
        message: One line for people; becomes the description of the status.
        traceback: Text; with it the span gets an ``exception`` event.
    """

    type: str
    message: str = ""
    traceback: str = ""


class SpanRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A finished span with the ids and the times that it shall be exported with.

    Attributes:
        trace_id: 32 lower-case hexadecimal digits.
        span_id: 16 lower-case hexadecimal digits.
        parent_span_id: None for the root of a trace.
        parent_is_remote: Whether the parent belongs to another process.
        start: Aware; exported to the microsecond.
        end: Aware, not before `start`.
        tracestate: W3C ``tracestate`` of the trace.
        sampled: A record that is not sampled is not exported.
    """

    name: str
    trace_id: str
    span_id: str
    start: datetime
    end: datetime
    kind: SpanKind = "internal"
    parent_span_id: str | None = None
    parent_is_remote: bool = False
    attributes: Attributes = NO_ATTRIBUTES
    links: tuple[SpanLink, ...] = ()
    error: SpanError | None = None
    tracestate: str = ""
    sampled: bool = True


class ExportedSpan(NamedTuple):
    """A span that was given to `setup.emit` and has reached the receiver.

    A span that is exported again, since it goes on, differs in its `end`.
    """

    trace_id: str
    span_id: str
    name: str
    end: datetime
