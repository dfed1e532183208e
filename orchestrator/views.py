"""What people see of a saga: its row and its history, put together for reading."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from orchestrator.core.definition import Definition, PlannedStep, Sleep, SubSaga, WaitFor
from orchestrator.core.events import (
    CancelRequested,
    CompensationRequested,
    Event,
    ForkedFrom,
    HistoryFull,
    Recorded,
    RetryRequested,
    RoomAwaited,
    SagaForked,
    SagaPaused,
    SagaResolved,
    SagaResumed,
    SagaStarted,
    SagaStuck,
    SignalReceived,
    StepAccepted,
    StepCopied,
    StepDispatched,
    StepExpanded,
    StepFailed,
    StepRecalled,
    StepRejected,
    StepSkipped,
    StepSucceeded,
    StepTimedOut,
    TaskUnknown,
    UndoRefused,
    UndoRequested,
    about,
    tag_of,
)
from orchestrator.core.plan import plan_of
from orchestrator.core.state import Cause, Phase, SagaState, Status, StepState
from orchestrator.core.timers import sub_sagas_undoing
from orchestrator.ports import SagaRow
from shared.ids import Direction, sub_saga_id
from shared.messages import Parent


class ErrorView(msgspec.Struct, frozen=True, kw_only=True):
    """The first thing that went wrong.

    Attributes:
        cause: ``rejected``, ``failed``, ``timed_out``, ``cancelled``, ``deadline`` or ``history_full``.
        step: Where; empty for a cancel or a deadline.
        kind: What the participant called it.
    """

    cause: str
    step: str
    kind: str
    message: str


class StepView(msgspec.Struct, frozen=True, kw_only=True):
    """Where a step stands.

    Attributes:
        action: Its task, or what it waits for.
        by_hand: An operator said that it, or its undo, counts as done.
        accepted: Its participant has taken it on, and it is completed from elsewhere.
        progress: What the attempt in flight last said of how far it is.
        awaits_room: Its turn has come, and a limit leaves no room for it yet.
        sub_saga: Id of the saga that its last attempt started; empty for other steps.
        alive_at: When it last said that it is alive.
        copied_from: The saga that did it, from which this one was forked; empty for other steps.
        heir: The fork to which its effect belongs by now; empty where that is this saga.
    """

    name: str
    queue: str
    action: str
    compensation: str | None
    phase: Phase
    attempts: int
    undo_attempts: int
    due_at: datetime | None
    output: Any
    error: str
    by_hand: bool
    accepted: bool
    progress: Any
    alive_at: datetime | None
    awaits_room: bool
    sub_saga: str
    copied_from: str
    heir: str


class TimelineEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One event.

    Attributes:
        offset_ms: Since the start of the saga.
        duration_ms: Since the attempt was dispatched, for the end of an attempt.
        event: Tag of the event, for example ``step_succeeded``.
        detail: What else there is to say, in words.
    """

    sequence: int
    at: datetime
    offset_ms: int
    event: str
    step: str
    direction: Direction | None
    attempt: int | None
    duration_ms: int | None
    detail: str


class TimerView(msgspec.Struct, frozen=True, kw_only=True):
    """What happens next if nothing arrives."""

    at: datetime
    what: str


class SagaView(msgspec.Struct, frozen=True, kw_only=True):
    """A saga.

    Attributes:
        outcome: The final status, or ``stuck``; None while it moves.
        error: Why it turned back or got stuck; None for one that completed.
        duration_ms: From the start to the end, or to the last change so far.
        next_timer: What happens next if nothing arrives.
        paused: Nothing new begins until an operator resumes it.
        awaits_room: It has not begun, since a limit leaves no room for it yet.
        parent: The step of another saga that it was started for.
        fork: The saga that it was forked from, and where.
        forks: Ids of the sagas that were forked from it.
    """

    saga_id: str
    trace_id: str
    name: str
    version: int
    key: str | None
    status: Status
    outcome: Status | None
    error: ErrorView | None
    input: dict[str, Any]
    started_at: datetime
    updated_at: datetime
    deadline_at: datetime | None
    duration_ms: int
    next_timer: TimerView | None
    paused: bool
    awaits_room: bool
    parent: Parent | None
    fork: ForkedFrom | None
    forks: tuple[str, ...]
    steps: tuple[StepView, ...]
    timeline: tuple[TimelineEntry, ...]


def outcome_of(status: Status) -> Status | None:
    """How a saga ended; None while it moves by itself."""
    return status if status.final or status is Status.STUCK else None


def saga_view(definition: Definition, row: SagaRow, history: Sequence[Recorded]) -> SagaView:
    """Put a saga together for reading."""
    state = row.state
    definition = plan_of(definition, state)
    return SagaView(
        saga_id=row.saga_id,
        trace_id=state.trace.trace_id,
        name=state.name,
        version=state.version,
        key=state.key,
        status=state.status,
        outcome=outcome_of(state.status),
        error=error_view(state),
        input=state.input,
        started_at=row.started_at,
        updated_at=row.updated_at,
        deadline_at=state.deadline_at,
        duration_ms=_milliseconds(row.started_at, row.updated_at),
        next_timer=_next_timer(definition, row),
        paused=state.paused,
        awaits_room="" in state.awaited and not state.status.final,
        parent=state.parent,
        fork=state.fork,
        forks=tuple(one.event.to for one in history if isinstance(one.event, SagaForked)),
        steps=_steps(definition, state),
        timeline=_timeline(history),
    )


def error_view(state: SagaState) -> ErrorView | None:
    """Why a saga did not complete; None for one that did, or that nothing has stopped yet."""
    cause = state.cause
    if state.full and state.status is Status.STUCK:
        return ErrorView(cause="history_full", step="", kind="HistoryFull", message=_full())
    if cause is None or state.status is Status.COMPLETED:
        return None
    return ErrorView(
        cause=cause.kind.value,
        step=cause.step,
        kind=cause.failure.kind if cause.failure else "",
        message=(cause.failure.message if cause.failure else "") or _in_words(cause),
    )


def _in_words(cause: Cause) -> str:
    return {
        "timed_out": "no reply before the deadline of the step",
        "deadline": "the saga took longer than its deadline allows",
        "cancelled": "cancelled without a reason",
    }.get(cause.kind.value, "")


def _steps(definition: Definition, state: SagaState) -> tuple[StepView, ...]:
    asked = sub_sagas_undoing(definition, state)
    return tuple(
        StepView(
            name=planned.name,
            queue=planned.queue,
            action=planned.what,
            compensation=planned.undo_task,
            phase=step.phase,
            attempts=step.attempt,
            undo_attempts=step.undo_attempt,
            due_at=None if planned.name in asked else step.due_at,
            output=step.output,
            error=f"{step.failure.kind}: {step.failure.message}" if step.failure else "",
            by_hand=step.by_hand,
            accepted=step.accepted,
            progress=beat.progress if beat else None,
            alive_at=beat.at if beat else None,
            awaits_room=planned.name in state.awaited and not state.status.final,
            sub_saga=sub_saga_of(planned, state),
            copied_from=step.origin.saga_id if step.origin else "",
            heir=step.heir,
        )
        for planned in definition.steps
        for step, beat in [(state.step(planned.name), state.beats.get(planned.name))]
    )


def sub_saga_of(planned: PlannedStep, state: SagaState) -> str:
    """Id of the saga that the last attempt of a step started; empty where there is none."""
    attempt = state.step(planned.name).attempt
    if not isinstance(planned.action, SubSaga) or not attempt:
        return ""
    return sub_saga_id(state.done_by(planned.name), planned.name, attempt)


def _next_timer(definition: Definition, row: SagaRow) -> TimerView | None:
    if row.wake_at is None:
        return None
    for planned in definition.steps:
        step = row.state.step(planned.name)
        beat = row.state.beats.get(planned.name)
        if row.wake_at in {step.due_at, beat.due_at if beat else None}:
            return TimerView(at=row.wake_at, what=_timer_in_words(planned, step))
        inquiry = row.state.inquiries.get(planned.name)
        if inquiry and inquiry.at == row.wake_at:
            return TimerView(at=row.wake_at, what=f"{planned.name} asks its saga again")
    if row.wake_at == row.state.not_before:
        return TimerView(at=row.wake_at, what="the first step begins")
    return TimerView(at=row.wake_at, what="deadline of the saga")


def _timer_in_words(planned: PlannedStep, state: StepState) -> str:
    step = planned.name
    if state.accepted:
        return f"{step} has to be completed by then"
    match planned.action:
        case WaitFor(signal):
            return f"{step} stops waiting for signal {signal}"
        case Sleep():
            return f"{step} wakes up"
        case _:
            pass
    match state.phase:
        case Phase.RETRYING:
            return f"next attempt of {step}"
        case Phase.UNDO_RETRYING:
            return f"next attempt to undo {step}"
        case Phase.UNDOING:
            return f"undoing {step} times out"
        case _:
            return f"{step} times out"


def _timeline(history: Sequence[Recorded]) -> tuple[TimelineEntry, ...]:
    dispatched: dict[tuple[str, str, int], datetime] = {}
    entries = []
    for recorded in history:
        event = recorded.event
        step, direction, attempt = about(event) or ("", None, None)
        duration = None
        if attempt is not None:
            key = (step, str(direction), attempt)
            if isinstance(event, StepDispatched):
                dispatched[key] = recorded.at
            elif key in dispatched:
                duration = _milliseconds(dispatched[key], recorded.at)
        entries.append(
            TimelineEntry(
                sequence=recorded.sequence,
                at=recorded.at,
                offset_ms=_milliseconds(history[0].at, recorded.at),
                event=tag_of(event),
                step=step,
                direction=direction,
                attempt=attempt,
                duration_ms=duration,
                detail=_detail(event),
            )
        )
    return tuple(entries)


def _detail(event: Event) -> str:  # noqa: C901, PLR0912 - one case for each event
    match event:
        case SagaStarted(key=key, not_before=not_before, fork=fork):
            said = [f"key {key}"] if key else []
            said += [f"begins at {not_before}"] if not_before else []
            return ", ".join([*said, *([_forked_from(fork)] if fork else [])])
        case StepCopied(origin=origin, success=success):
            return f"{'done' if success else 'skipped'} by {origin.saga_id}"
        case SagaForked(to=to, step=step, steps=steps, reason=reason, by=by):
            taken = f", which undoes {', '.join(steps)} from now on" if steps else ""
            return f"{_said_by(by, reason)}: {to} goes on from {step}{taken}"
        case StepAccepted(due_at=due_at):
            return f"completed from elsewhere, until {due_at:%Y-%m-%d %H:%M:%S}"
        case StepRecalled(reason=reason) | UndoRequested(reason=reason):
            return reason
        case UndoRefused(reason=reason):
            return reason
        case StepExpanded(items=items):
            return f"for {items} items"
        case StepSkipped(condition=True):
            return "its condition does not hold"
        case SignalReceived(name=name, by=by):
            return f"{name}, by {by}" if by else name
        case StepSucceeded(execution=execution):
            return f"by {execution.worker}" if execution else ""
        case StepRejected(failure=failure) | TaskUnknown(failure=failure):
            return f"{failure.kind}: {failure.message}"
        case StepFailed(failure=failure, retry_at=retry_at):
            return f"{failure.kind}: {failure.message}{_again(retry_at)}"
        case StepTimedOut(retry_at=retry_at):
            return f"no reply{_again(retry_at)}"
        case RetryRequested(payload=payload, reason=reason, by=by):
            edited = " with an edited payload" if payload is not None else ""
            return _said_by(by, reason) + edited
        case (
            CancelRequested(reason=reason, by=by)
            | SagaPaused(reason=reason, by=by)
            | SagaResumed(reason=reason, by=by)
            | StepSkipped(reason=reason, by=by)
            | CompensationRequested(reason=reason, by=by)
            | SagaResolved(reason=reason, by=by)
        ):
            return _said_by(by, reason)
        case RoomAwaited(step=step):
            return "its limit is reached" if step else "the limit of its name is reached"
        case HistoryFull(events_max=events_max):
            return _full(events_max)
        case SagaStuck():
            return "an operator has to decide"
        case _:
            return ""


def _forked_from(fork: ForkedFrom) -> str:
    return f"forked from {fork.saga_id} at {fork.step}, {_said_by(fork.by, fork.reason)}"


def _said_by(by: str, reason: str) -> str:
    return f"by {by or 'unknown'}: {reason or 'no reason given'}"


def _full(events_max: int | None = None) -> str:
    how_many = "" if events_max is None else f" {events_max}"
    return (
        f"its history has{how_many} events, the most that SAGA_HISTORY_EVENTS_MAX allows; raise it "
        "and resume the saga, or resolve it"
    )


def _again(retry_at: datetime | None) -> str:
    return f"; again at {retry_at:%H:%M:%S}" if retry_at else "; gave up"


def _milliseconds(start: datetime, end: datetime) -> int:
    return round((end - start).total_seconds() * 1000)
