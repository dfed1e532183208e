"""One saga, one trace: begins its context, exports its spans, and knows which have arrived.

The context is data, stored with the saga. The spans are projected from the history when the saga
ends or gets stuck, so that a killed orchestrator takes none with it: until their arrival is
confirmed, the store remembers that they are due.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, Protocol

from orchestrator.core.definition import Definition
from orchestrator.core.events import (
    Event,
    HistoryFull,
    Recorded,
    SagaForked,
    SagaStuck,
    Trace,
)
from orchestrator.core.state import SagaState, Status
from orchestrator.ports import SagaRow
from orchestrator.projection import Sent, project, start_span, sub_saga_span_id, sub_saga_trace_id
from shared.clock import Clock
from shared.ids import new_span_id, new_trace_id
from shared.messages import StartRequest
from shared.telemetry import names, propagation, setup
from shared.telemetry.spans import AttributeValue, ExportedSpan, SpanRecord

RETRACE_FOR: Final = timedelta(hours=1)
"""How long after its end a saga's spans are worth another try, when no collector takes them."""

SENT_MAX: Final = 20_000
"""Commands whose publishing times are remembered."""


class Outlet(Protocol):
    """Where spans go: the telemetry of this process, `shared.telemetry.setup`."""

    def should_sample(
        self,
        trace_id: str,
        parent_sampled: bool | None = None,  # noqa: FBT001 - as in `setup`
        *,
        name: str = "",
    ) -> bool:
        """Decide whether the trace of a new saga is exported."""

    def emit(self, records: Iterable[SpanRecord]) -> None:
        """Export finished spans; never blocks, never raises."""

    def on_exported(
        self, callback: Callable[[Sequence[ExportedSpan]], None]
    ) -> Callable[[], None]:
        """Say what has arrived; returns a function that ends the subscription."""


class SagaTracing:
    """The traces of sagas in this process.

    Args:
        system: ``messaging.system`` of the broker, for example ``redis``.
        clock: Tells the time.
        outlet: Where the spans go.
    """

    def __init__(self, *, system: str, clock: Clock, outlet: Outlet = setup) -> None:
        self._system = system
        self._outlet = outlet
        self._clock = clock
        self._sent: OrderedDict[str, Sent] = OrderedDict()
        self._awaited: OrderedDict[tuple[str, str, datetime], tuple[str, datetime]] = OrderedDict()
        self._exported: dict[str, datetime] = {}
        self._lock = threading.Lock()
        # Whoever is dropped without a close is told no more, and kept alive by nobody.
        self._told = weakref.finalize(self, outlet.on_exported(_weak(self._arrived)))
        self._told.atexit = False

    def close(self) -> None:
        """Listen no longer to what has arrived."""
        self._told()

    def begin(self, request: StartRequest) -> Trace:
        """Trace context of a new saga: the caller's trace continued, or a new one.

        What of the caller's context is malformed, or not allowed, is ignored.
        """
        link = request.parent.link if request.parent else ""
        continued = "" if link else request.traceparent
        parent, tracestate = propagation.checked(continued, request.tracestate)
        trace_id = parent.trace_id if parent else new_trace_id()
        root_span_id = new_span_id()
        if request.parent and request.saga_id:
            # Known to the parent beforehand, which links to it.
            root_span_id = sub_saga_span_id(request.saga_id)
            trace_id = sub_saga_trace_id(request.saga_id) if link else trace_id
        return Trace(
            trace_id=trace_id,
            root_span_id=root_span_id,
            link=link,
            parent_span_id=parent.span_id if parent else None,
            sampled=self._outlet.should_sample(
                trace_id, parent.sampled if parent else None, name=names.saga_span(request.name)
            ),
            tracestate=tracestate,
            baggage=tuple(propagation.allowed_baggage(request.baggage).items()),
        )

    def started(self, row: SagaRow) -> None:
        """Export the span that makes a saga in flight visible."""
        state = row.state
        if state.trace.sampled:
            attributes: dict[str, AttributeValue] = {
                names.SAGA_ID: state.saga_id,
                names.SAGA_NAME: state.name,
                names.SAGA_VERSION: state.version,
            }
            if state.fork:
                attributes[names.SAGA_FORKED_FROM] = state.fork.saga_id
            self._outlet.emit([start_span(state, row.started_at, self._clock(), attributes)])

    def published(self, commands: Iterable[str], begun_at: datetime, ended_at: datetime) -> None:
        """Remember when commands were published: the times of their ``send`` spans."""
        for command in commands:
            self._sent[command] = (begun_at, ended_at)
        while len(self._sent) > SENT_MAX:
            self._sent.popitem(last=False)

    def is_milestone(self, state: SagaState, events: Sequence[Event]) -> bool:
        """Whether a saga's spans are to be exported after these events.

        They are when it ended or got stuck. Of those that are not sampled only the ones in which
        something went wrong: every failure has a trace, and one that got stuck and completed all
        the same has the whole of it.
        """
        if any(isinstance(event, SagaForked) for event in events):
            return False  # nothing of what it did is new
        if not (
            state.status.final
            or any(isinstance(event, SagaStuck | HistoryFull) for event in events)
        ):
            return False
        wrong = state.went_wrong or state.status is not Status.COMPLETED
        return state.trace.sampled or wrong

    def ended(
        self,
        definition: Definition,
        row: SagaRow,
        history: Sequence[Recorded],
        *,
        whole: bool = False,
    ) -> None:
        """Export the spans of a saga that ended or got stuck.

        Args:
            definition: What it runs on.
            row: The saga.
            history: All of it.
            whole: Export again what went out when it got stuck: nobody knows whether it arrived.
        """
        spans = project(
            definition, row.state, history, system=self._system, sent=self._sent, whole=whole
        )
        trace = row.state.trace
        with self._lock:
            if row.trace_due_at is not None:
                exported = (row.saga_id, row.trace_due_at)
                self._awaited[trace.trace_id, trace.root_span_id, spans[0].end] = exported
            while len(self._awaited) > SENT_MAX:
                self._awaited.popitem(last=False)
        # The root goes last: when it has arrived, so have the others.
        self._outlet.emit([*spans[1:], spans[0]])

    def take_exported(self) -> Mapping[str, datetime]:
        """Sagas whose spans have arrived since the last call, each with when they were due.

        A saga may have got stuck and gone on since: that older spans have arrived says nothing of
        the newer ones.
        """
        with self._lock:
            exported, self._exported = self._exported, {}
            return exported

    def gives_up(self, row: SagaRow, now: datetime) -> bool:
        """Whether a saga's spans are not worth another try."""
        return now - row.updated_at > RETRACE_FOR

    def _arrived(self, spans: Sequence[ExportedSpan]) -> None:
        with self._lock:
            for span in spans:
                exported = self._awaited.pop((span.trace_id, span.span_id, span.end), None)
                if exported is not None:
                    saga_id, due_at = exported
                    self._exported[saga_id] = due_at


def _weak(tell: Callable[[Sequence[ExportedSpan]], None]) -> Callable[..., None]:
    """The same method, which keeps its object no longer alive than others do."""
    method = weakref.WeakMethod(tell)

    def tell_if_there(spans: Sequence[ExportedSpan]) -> None:
        found = method()
        if found is not None:
            found(spans)

    return tell_if_there
