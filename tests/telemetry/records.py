"""Span records for tests."""

from datetime import UTC, datetime, timedelta
from typing import Any

from shared.telemetry.spans import SpanError, SpanLink, SpanRecord

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
ROOT_ID = "b7ad6b7169203331"
STEP_ID = "00f067aa0ba902b7"
OTHER_TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
START = datetime(2026, 11, 23, 4, 5, 6, 123457, tzinfo=UTC)
END = START + timedelta(seconds=2, microseconds=1)


def record(**changes: Any) -> SpanRecord:
    """A root span, unless changed."""
    fields: dict[str, Any] = {
        "name": "saga place-order",
        "trace_id": TRACE_ID,
        "span_id": ROOT_ID,
        "start": START,
        "end": END,
    }
    return SpanRecord(**fields | changes)


def rich_record() -> SpanRecord:
    """A span that has everything a span can have."""
    return record(
        name="compensate charge-payment",
        span_id=STEP_ID,
        parent_span_id=ROOT_ID,
        parent_is_remote=True,
        kind="producer",
        attributes={
            "text": "é\n",
            "yes": True,
            "count": 3,
            "share": 0.5,
            "list": ["a", "b"],
        },
        links=(SpanLink(trace_id=OTHER_TRACE_ID, span_id=ROOT_ID, attributes={"saga.step": "x"}),),
        error=SpanError(type="CardDeclined", message="no money", traceback="Traceback: …"),
        tracestate="vendor=1,other=2",
    )
