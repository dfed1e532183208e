"""What became of the traces: one right tree for each saga, whoever was killed."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from orchestrator.core.events import Recorded, StepDispatched
from orchestrator.ports import SagaRow
from orchestrator.projection import send_span_id
from shared.ids import command_id
from shared.telemetry import names
from tests.servers.otlp import OtlpReceiver, ReceivedSpan
from tests.servers.spantree import assert_one_tree
from tests.waiting import wait_until


class Told(NamedTuple):
    """A saga as the store tells it."""

    row: SagaRow
    history: Sequence[Recorded]


def await_roots(receiver: OtlpReceiver, rows: Collection[SagaRow], timeout: float) -> bool:
    """Wait until the root span of each saga has arrived; whether it has.

    An orchestrator that was killed has its spans exported by another, half a minute later.
    """
    wanted = {row.state.trace.root_span_id for row in rows}

    def arrived() -> bool:
        return wanted <= {span.span_id for span in receiver.spans()}

    try:
        return wait_until(arrived, timeout=timeout)
    except AssertionError:
        return False


def trace_problems(receiver: OtlpReceiver, told: Mapping[str, Told]) -> tuple[list[str], int]:
    """Everything that is wrong with the traces, one sentence each, and how many spans there are.

    A span may arrive twice, when who exported it was killed before it could note that: then it
    has the same ids, and counts once.
    """
    spans: dict[str, dict[str, ReceivedSpan]] = defaultdict(dict)
    for span in receiver.spans():
        spans[span.trace_id][span.span_id] = span
    found: list[str] = []
    for saga_id, one in told.items():
        of_saga = spans.pop(one.row.state.trace.trace_id, {})
        found += (f"trace of {saga_id}: {problem}" for problem in _problems(one, of_saga))
    found += (
        f"trace {trace_id} belongs to no saga: {sorted({span.name for span in few.values()})}"
        for trace_id, few in spans.items()
    )
    return found, len({span.span_id for span in receiver.spans()})


def _problems(told: Told, spans: Mapping[str, ReceivedSpan]) -> Iterator[str]:
    state = told.row.state
    if not spans:
        yield "no span has arrived"
        return
    try:
        root = assert_one_tree(spans.values(), state.trace.trace_id)
    except AssertionError as error:
        yield str(error)
        return
    micros = (told.history[0].at, told.history[-1].at)
    begun, ended = (int(at.timestamp() * 1_000_000 + 0.5) for at in micros)
    if (root.start_ns // 1000, root.end_ns // 1000) != (begun, ended):
        yield f"the root lasts from {root.start_ns} to {root.end_ns}, the saga did otherwise"
    if root.attributes.get(names.SAGA_STATUS) != state.status.value:
        yield f"the root says {root.attributes.get(names.SAGA_STATUS)}, the store {state.status}"
    sent = {
        send_span_id(command_id(state.saga_id, event.step, event.direction, event.attempt))
        for event in (recorded.event for recorded in told.history)
        if isinstance(event, StepDispatched)
    }
    got = Counter(span.span_id for span in spans.values() if span.kind == "producer")
    if got.keys() != sent:
        yield f"{len(sent)} attempts were sent, {len(got)} send spans have arrived"
    others = {span.attributes.get(names.SAGA_ID) for span in spans.values()} - {state.saga_id}
    if others:
        yield f"spans of {others} are in it"
