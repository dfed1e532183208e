"""A saga's history as spans: a pure function, so that a trace survives whoever was to export it.

    saga {name}                 from the start to the end; its id was reserved at the start
    ├── saga.start {name}       exported at once by whoever started it, not from here
    ├── step {step}             from the first dispatch to the last outcome
    │   ├── send {queue}        one for each attempt: attempts are siblings, never a staircase
    │   │   └── process {queue} the participant's own span; from here only where it left none
    │   └── send {queue}
    ├── compensate {step}       the same, with a link to the step that it undoes
    └── await room {step}       where a limit that sagas share held an attempt up, or the saga

Every id is derived from what the span is about, so that exporting a saga twice gives the same
spans.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec

from orchestrator.core.definition import Definition, SubSaga
from orchestrator.core.eventing import published_by
from orchestrator.core.events import (
    HistoryFull,
    Recorded,
    SagaCompleted,
    SagaForked,
    SagaStuck,
    StepAccepted,
    StepDispatched,
    StepFailed,
    StepRejected,
    StepSkipped,
    StepSucceeded,
    StepTimedOut,
    TaskUnknown,
)
from orchestrator.core.plan import plan_of
from orchestrator.core.state import CauseKind, SagaState, Status
from orchestrator.room_waits import RoomWait, room_waits
from shared.ids import Direction, command_id, derived_span_id, derived_trace_id, sub_saga_id
from shared.messages import Execution, Failure
from shared.telemetry import names
from shared.telemetry.spans import AttributeValue, SpanError, SpanKind, SpanLink, SpanRecord

TIMED_OUT: Final = "timeout"

Ended = StepSucceeded | StepRejected | TaskUnknown | StepFailed | StepTimedOut
Sent = tuple[datetime, datetime]
"""When the publishing of a command began and ended."""


def step_span_id(saga_id: str, step: str, direction: Direction) -> str:
    """Id of the span of a step."""
    return derived_span_id(saga_id, step, direction)


def sub_saga_trace_id(saga_id: str) -> str:
    """Id of the trace of a sub-saga that has one of its own."""
    return derived_trace_id(saga_id, "trace")


def sub_saga_span_id(saga_id: str) -> str:
    """Id of the root span of a sub-saga."""
    return derived_span_id(saga_id, "root")


def send_span_id(command: str) -> str:
    """Id of the span of an attempt's sending; the participant's span is its child."""
    return derived_span_id(command, "send")


def project(
    definition: Definition,
    state: SagaState,
    history: Sequence[Recorded],
    *,
    system: str,
    sent: Mapping[str, Sent],
    whole: bool = False,
) -> list[SpanRecord]:
    """The orchestrator's spans of a saga that has ended or got stuck.

    Args:
        definition: What it ran on.
        state: Its state.
        history: All of it.
        system: ``messaging.system``: the broker.
        sent: When commands were published, by command id, as far as this process knows; the
            others count as sent when they were decided.
        whole: Leave nothing out.

    Returns:
        Root first. Spans that an earlier call has given (a saga may get stuck, and end later) are
        left out, but for the root, whose end has moved.
    """
    return _Projection(definition, state, history, system, sent, whole=whole).spans()


class _Attempt(msgspec.Struct, kw_only=True):
    command: str
    number: int
    sent_at: datetime
    ended_at: datetime | None = None
    outcome: Ended | None = None
    execution: Execution | None = None


class _StepSpan(msgspec.Struct, kw_only=True):
    step: str
    direction: Direction
    attempts: dict[int, _Attempt] = {}
    ended_at: datetime | None = None
    outcome: Ended | StepSkipped | None = None
    sequence: int = 0


class _Projection:
    def __init__(
        self,
        definition: Definition,
        state: SagaState,
        history: Sequence[Recorded],
        system: str,
        sent: Mapping[str, Sent],
        *,
        whole: bool,
    ) -> None:
        self._whole = whole
        self._definition = plan_of(definition, state)
        self._state = state
        self._history = history
        self._system = system
        self._sent = sent
        self._reconstructed = not state.trace.sampled
        self._common: dict[str, AttributeValue] = {
            names.SAGA_ID: state.saga_id,
            names.SAGA_NAME: state.name,
            names.SAGA_VERSION: state.version,
        }
        if state.parent:
            self._common[names.SAGA_PARENT_ID] = state.parent.saga_id
        if state.fork:
            self._common[names.SAGA_FORKED_FROM] = state.fork.saga_id
        if self._reconstructed:
            self._common[names.SAGA_RECONSTRUCTED] = True

    @property
    def _ended_at(self) -> datetime:
        """When it last moved: that it was forked afterwards is no part of what it did."""
        moved = (
            one.at for one in reversed(self._history) if not isinstance(one.event, SagaForked)
        )
        return next(moved, self._history[-1].at)

    def spans(self) -> list[SpanRecord]:
        given_up_to = 0 if self._whole else self._given_up_to()
        spans = [self._root()]
        if self._reconstructed:
            spans.append(self._start())
        for step in _steps(self._state.saga_id, self._history).values():
            if step.sequence > given_up_to:
                spans += self._step(step)
        spans += [
            self._wait(one) for one in room_waits(self._history) if one.sequence > given_up_to
        ]
        for recorded in self._history:
            if recorded.sequence > given_up_to:
                spans += self._published(recorded)
        return spans

    def _wait(self, wait: RoomWait) -> SpanRecord:
        state = self._state
        attributes = {**self._common, names.SAGA_OUTCOME: wait.outcome}
        if wait.step:
            attributes |= {names.SAGA_STEP: wait.step, names.SAGA_DIRECTION: wait.direction}
        return self._span(
            names.room_span(wait.step or state.name),
            derived_span_id(state.saga_id, "room", wait.begun),
            state.trace.root_span_id,
            wait.began_at,
            wait.ended_at or self._ended_at,
            attributes,
        )

    def _published(self, recorded: Recorded) -> Iterator[SpanRecord]:
        """The sending of the events that a milestone publishes."""
        state = self._state
        for planned, identity in published_by(self._definition, state.saga_id, recorded.event):
            begun_at, sent_at = self._sent.get(identity, (recorded.at, recorded.at))
            yield self._span(
                names.send_span(planned.event),
                send_span_id(identity),
                state.trace.root_span_id,
                begun_at,
                sent_at,
                {
                    **self._common,
                    names.BUS_MESSAGE_KIND: "event",
                    names.BUS_MESSAGE_NAME: planned.event,
                    names.MESSAGING_SYSTEM: self._system,
                    names.MESSAGING_DESTINATION_NAME: planned.event,
                    names.MESSAGING_MESSAGE_ID: identity,
                    names.MESSAGING_CONVERSATION_ID: state.saga_id,
                    names.MESSAGING_OPERATION_NAME: names.OPERATION_SEND,
                    names.MESSAGING_OPERATION_TYPE: names.OPERATION_SEND,
                },
                kind="producer",
            )

    def _given_up_to(self) -> int:
        """Sequence up to which an earlier projection, made when the saga got stuck, has gone.

        Or when it completed, and was undone afterwards as a sub-saga.
        """
        last = self._ended_at
        # Of a saga that is not sampled nothing goes out when it completes.
        ends = SagaStuck | HistoryFull
        if not self._reconstructed:
            ends |= SagaCompleted
        # What was decided at one time goes out at once: a saga may get stuck while more follows.
        earlier = [one for one in self._history if isinstance(one.event, ends)]
        return max((one.sequence for one in earlier if one.at < last), default=0)

    def _root(self) -> SpanRecord:
        state, trace = self._state, self._state.trace
        error = None
        if state.status is not Status.COMPLETED and state.cause:
            error = _error(state.cause.failure, fallback=state.cause.kind)
        return SpanRecord(
            name=names.saga_span(state.name),
            trace_id=trace.trace_id,
            span_id=trace.root_span_id,
            parent_span_id=trace.parent_span_id,
            parent_is_remote=trace.parent_span_id is not None,
            start=self._history[0].at,
            end=self._ended_at,
            attributes={**self._common, names.SAGA_STATUS: state.status.value},
            error=error,
            links=_link_of(trace.link),
            tracestate=trace.tracestate,
        )

    def _start(self) -> SpanRecord:
        return start_span(self._state, self._history[0].at, self._history[0].at, self._common)

    def _step(self, step: _StepSpan) -> Iterator[SpanRecord]:
        span_id = step_span_id(self._state.saga_id, step.step, step.direction)
        first = next(iter(step.attempts.values()))
        common: dict[str, AttributeValue] = {
            **self._common,
            names.SAGA_STEP: step.step,
            names.SAGA_DIRECTION: step.direction,
        }
        links: tuple[SpanLink, ...] = ()
        if step.direction == "compensation":
            undone = step_span_id(self._state.saga_id, step.step, "action")
            links = (SpanLink(trace_id=self._state.trace.trace_id, span_id=undone),)
            if origin := self._state.step(step.step).origin:
                links = _link_of(origin.link)
                common[names.SAGA_ORIGIN_ID] = origin.saga_id
        work = self._definition.by_name[step.step].action
        if isinstance(work, SubSaga) and step.direction == "action":
            child = sub_saga_id(self._state.saga_id, step.step, max(step.attempts))
            common[names.SAGA_CHILD_ID] = child
            if work.trace == "linked":
                root = SpanLink(trace_id=sub_saga_trace_id(child), span_id=sub_saga_span_id(child))
                links = (root,)
        yield self._span(
            names.step_span(step.step, step.direction),
            span_id,
            self._state.trace.root_span_id,
            first.sent_at,
            step.ended_at or self._ended_at,
            {
                **common,
                names.SAGA_ATTEMPT: max(step.attempts),
                names.SAGA_OUTCOME: _outcome(step.outcome),
            },
            error=_outcome_error(step.outcome),
            links=links,
        )
        if self._definition.by_name[step.step].waits:
            return  # nothing was sent
        for attempt in step.attempts.values():
            yield from self._attempt(step, attempt, span_id, common)

    def _attempt(
        self,
        step: _StepSpan,
        attempt: _Attempt,
        parent: str,
        common: Mapping[str, AttributeValue],
    ) -> Iterator[SpanRecord]:
        planned = self._definition.by_name[step.step]
        queue = planned.queue
        begun_at, sent_at = self._sent.get(attempt.command, (attempt.sent_at, attempt.sent_at))
        attributes = {
            **common,
            names.SAGA_ATTEMPT: attempt.number,
            names.MESSAGING_SYSTEM: self._system,
            names.MESSAGING_DESTINATION_NAME: queue,
            names.MESSAGING_MESSAGE_ID: attempt.command,
            names.MESSAGING_CONVERSATION_ID: self._state.saga_id,
        }
        send = send_span_id(attempt.command)
        yield self._span(
            names.send_span(queue),
            send,
            parent,
            begun_at,
            sent_at,
            {
                **attributes,
                names.MESSAGING_OPERATION_NAME: names.OPERATION_SEND,
                names.MESSAGING_OPERATION_TYPE: names.OPERATION_SEND,
            },
            kind="producer",
        )
        if isinstance(planned.action, SubSaga):
            return  # below it stands that saga's own trace
        execution = attempt.execution
        if attempt.outcome and (execution is None or self._reconstructed):
            start, end = _times(execution, sent_at, attempt.ended_at or sent_at)
            yield self._span(
                names.process_span(queue),
                derived_span_id(attempt.command, "process"),
                send,
                start,
                end,
                {
                    **attributes,
                    names.MESSAGING_OPERATION_NAME: names.OPERATION_PROCESS,
                    names.MESSAGING_OPERATION_TYPE: names.OPERATION_PROCESS,
                    names.SAGA_OUTCOME: _outcome(attempt.outcome),
                },
                kind="consumer",
                error=_outcome_error(attempt.outcome),
            )

    def _span(
        self,
        name: str,
        span_id: str,
        parent: str,
        start: datetime,
        end: datetime,
        attributes: Mapping[str, AttributeValue],
        *,
        kind: SpanKind = "internal",
        error: SpanError | None = None,
        links: tuple[SpanLink, ...] = (),
    ) -> SpanRecord:
        return SpanRecord(
            name=name,
            trace_id=self._state.trace.trace_id,
            span_id=span_id,
            parent_span_id=parent,
            start=start,
            end=max(start, end),
            kind=kind,
            attributes=attributes,
            error=error,
            links=links,
            tracestate=self._state.trace.tracestate,
        )


def _link_of(traceparent: str) -> tuple[SpanLink, ...]:
    if not traceparent:
        return ()
    _, trace_id, span_id, _ = traceparent.split("-")
    return (SpanLink(trace_id=trace_id, span_id=span_id),)


def start_span(
    state: SagaState,
    start: datetime,
    end: datetime,
    attributes: Mapping[str, AttributeValue],
) -> SpanRecord:
    """The short span that makes a saga in flight visible."""
    return SpanRecord(
        name=names.start_span(state.name),
        trace_id=state.trace.trace_id,
        span_id=derived_span_id(state.saga_id, "start"),
        parent_span_id=state.trace.root_span_id,
        start=start,
        end=end,
        attributes=attributes,
        tracestate=state.trace.tracestate,
        sampled=True,
    )


def _steps(saga_id: str, history: Iterable[Recorded]) -> dict[tuple[str, Direction], _StepSpan]:
    """What happened to each step, in the order of their first dispatch."""
    steps: dict[tuple[str, Direction], _StepSpan] = {}
    for recorded in history:
        event = recorded.event
        if isinstance(event, StepDispatched):
            key = (event.step, event.direction)
            step = steps.setdefault(key, _StepSpan(step=event.step, direction=event.direction))
            command = command_id(saga_id, event.step, event.direction, event.attempt)
            step.attempts[event.attempt] = _Attempt(
                command=command, number=event.attempt, sent_at=recorded.at
            )
            step.sequence = recorded.sequence
        elif isinstance(event, StepAccepted):
            attempt = steps[event.step, event.direction].attempts[event.attempt]
            attempt.execution = event.execution
        elif isinstance(event, StepSkipped):
            # One that was skipped before its turn has no span.
            if (found := steps.get((event.step, event.direction))) is not None:
                found.ended_at, found.outcome = recorded.at, event
                found.sequence = recorded.sequence
        elif isinstance(event, Ended):
            direction = (
                "action" if isinstance(event, StepRejected | TaskUnknown) else event.direction
            )
            # A step whose payload could not be built is rejected without an attempt.
            if (found := steps.get((event.step, direction))) is not None:
                found.ended_at, found.outcome = recorded.at, event
                found.sequence = recorded.sequence
                attempt = found.attempts[event.attempt]
                attempt.ended_at, attempt.outcome = recorded.at, event
                # Of one that was accepted the participant has told before where and when it ran.
                attempt.execution = getattr(event, "execution", None) or attempt.execution
    return steps


def _times(
    execution: Execution | None, sent_at: datetime, ended_at: datetime
) -> tuple[datetime, datetime]:
    return (execution.started_at, execution.ended_at) if execution else (sent_at, ended_at)


def _outcome(event: Ended | StepSkipped | None) -> str:
    match event:
        case StepSkipped():
            return "skipped"
        case StepSucceeded():
            return "succeeded"
        case StepRejected():
            return CauseKind.REJECTED.value
        case TaskUnknown():
            return "task_unknown"
        case StepFailed():
            return CauseKind.FAILED.value
        case StepTimedOut():
            return CauseKind.TIMED_OUT.value
        case None:
            return "abandoned"


def _outcome_error(event: Ended | StepSkipped | None) -> SpanError | None:
    match event:
        case (
            StepRejected(failure=failure)
            | TaskUnknown(failure=failure)
            | StepFailed(failure=failure)
        ):
            return _error(failure, fallback="error")
        case StepTimedOut():
            return SpanError(type=TIMED_OUT, message="no reply before the deadline")
        case _:
            return None


def _error(failure: Failure | None, *, fallback: str) -> SpanError:
    if failure is None:
        return SpanError(type=fallback)
    return SpanError(type=failure.kind, message=failure.message, traceback=failure.traceback)
