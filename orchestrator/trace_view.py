"""A saga's trace as it can be seen now: what processes have exported, and the rest from the store.

The orchestrator exports the spans of a saga when it ends, and with a collector there are no files
to read. What is missing is projected from the history, with the same ids; a span that a process
has exported is never replaced.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

import msgspec

from orchestrator.core.definition import Definition
from orchestrator.core.events import Recorded
from orchestrator.core.state import SagaState
from orchestrator.ports import SagaRow
from orchestrator.projection import project
from orchestrator.trace_files import Span, distinct
from shared.telemetry import names
from shared.telemetry.spans import SpanRecord

_NS_PER_US: Final = 1000
_ABANDONED: Final = "abandoned"
_ORCHESTRATOR: Final = "orchestrator"


def projected_spans(
    definition: Definition,
    row: SagaRow,
    history: Sequence[Recorded],
    *,
    system: str,
    now: datetime,
) -> list[Span]:
    """Every span of a saga, its participants' included, as far as the history knows.

    Args:
        definition: What it runs on.
        row: The saga.
        history: All of it.
        system: ``messaging.system``: the broker.
        now: Until when what is not finished is drawn.
    """
    # Not sampled: then the projection stands for the participants' spans, too.
    state = msgspec.structs.replace(
        row.state, trace=msgspec.structs.replace(row.state.trace, sampled=False)
    )
    records = project(definition, state, history, system=system, sent={}, whole=True)
    spans = distinct(_from_record(record) for record in records)
    return spans if state.status.final else [_still_open(span, state, now) for span in spans]


def merged(exported: Sequence[Span], projected: Iterable[Span]) -> list[Span]:
    """Exported spans, and of the projected ones those that nobody has exported."""
    known = {span.span_id for span in exported}
    # A participant's span has an id of its own: it is known by what it is the child of.
    processed = {span.parent_span_id for span in exported if span.kind == "consumer"}
    missing = (
        span
        for span in projected
        if span.span_id not in known
        and not (span.kind == "consumer" and span.parent_span_id in processed)
    )
    return distinct([*exported, *missing])


def _still_open(span: Span, state: SagaState, now: datetime) -> Span:
    is_root = span.span_id == state.trace.root_span_id
    if not is_root and span.attributes.get(names.SAGA_OUTCOME) != _ABANDONED:
        return span
    return msgspec.structs.replace(span, end_ns=max(span.start_ns, _nanoseconds(now)), open=True)


def _from_record(record: SpanRecord) -> Span:
    error = record.error
    service = _ORCHESTRATOR
    if record.kind == "consumer":
        service = str(record.attributes.get(names.MESSAGING_DESTINATION_NAME, ""))
    return Span(
        trace_id=record.trace_id,
        span_id=record.span_id,
        parent_span_id=record.parent_span_id,
        name=record.name,
        service=service,
        kind=record.kind,
        start_ns=_nanoseconds(record.start),
        end_ns=_nanoseconds(record.end),
        error=": ".join(filter(None, (error.type, error.message))) if error else None,
        attributes=dict(record.attributes),
        links=tuple(link.span_id for link in record.links),
        projected=True,
    )


def _nanoseconds(at: datetime) -> int:
    # In integers: a float of seconds has no room for the microseconds of this century.
    whole, micros = int(at.replace(microsecond=0).timestamp()), at.microsecond
    return (whole * 1_000_000 + micros) * _NS_PER_US
