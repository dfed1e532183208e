"""The state of a saga: the fold of its history.

    state = None
    for event in history:
        state = evolve(state, event)

Every rule of what an event *means* is here; what happens *next* is in `machine`.
"""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from functools import reduce
from typing import Any, assert_never

import msgspec

from orchestrator.core.events import (
    CancelRequested,
    CompensationRequested,
    CompensationStarted,
    DeadlineExceeded,
    Event,
    ForkedFrom,
    HistoryFull,
    Origin,
    RetryRequested,
    RoomAwaited,
    SagaCompensated,
    SagaCompleted,
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
    SubSagaBegan,
    TaskUnknown,
    Trace,
    UndoRefused,
    UndoRequested,
)
from shared.messages import Failure, Parent

_replace = msgspec.structs.replace


class Status(StrEnum):
    """What a saga is doing, for people and for queries."""

    RUNNING = "running"
    COMPENSATING = "compensating"
    STUCK = "stuck"
    COMPLETED = "completed"
    COMPENSATED = "compensated"
    RESOLVED = "resolved"

    __hash__ = str.__hash__  # that of an enum is written in Python, and asked for all the time

    @property
    def final(self) -> bool:
        """Whether nothing follows."""
        return self in FINAL


FINAL = frozenset({Status.COMPLETED, Status.COMPENSATED, Status.RESOLVED})
ACTIVE = frozenset(Status) - FINAL


class Phase(StrEnum):
    """Where a step stands. A step that is not mentioned in the state is pending."""

    PENDING = "pending"
    RUNNING = "running"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    SKIPPED = "skipped"
    """Not done, and the saga goes on as if it had been."""
    REJECTED = "rejected"
    """Nothing happened, for certain."""
    FAILED = "failed"
    """Gave up, and nobody knows what happened: its effect may stand."""
    UNDOING = "undoing"
    UNDO_RETRYING = "undo_retrying"
    UNDO_FAILED = "undo_failed"
    UNDONE = "undone"

    __hash__ = str.__hash__  # as above


class CauseKind(StrEnum):
    """Why a saga turned back."""

    REJECTED = "rejected"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


class Cause(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The first thing that went wrong."""

    kind: CauseKind
    step: str = ""
    failure: Failure | None = None


class StepState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step.

    Attributes:
        attempt: Attempts of the action so far; the number of the current one.
        undo_attempt: The same for the compensation.
        due_at: When the attempt in flight times out, or when the next one is due.
        success: The attempt whose success is known; 0 while there is none.
        failure: What the last attempt that went wrong said.
        stuck: An operator has to decide.
        payload: Keyword arguments that an operator gave instead of the definition's.
        recalled: The sub-saga of the attempt in flight has been called back.
        accepted: The attempt in flight has been taken on, and is completed from elsewhere.
        began: The sub-saga of the last attempt is known to have begun.
        by_hand: An operator said that it, or its undo, counts as done, or that it never happened.
        origin: Who has done it, where that is another saga, from which this one was forked.
        heir: The fork of this saga to which its effect belongs by now.
        never_ran: Attempts, from the first one on, that certainly did not run: no worker knew the
            task.
    """

    phase: Phase = Phase.PENDING
    attempt: int = 0
    undo_attempt: int = 0
    due_at: datetime | None = None
    success: int = 0
    output: Any = None
    undo: Any = None
    failure: Failure | None = None
    stuck: bool = False
    payload: dict[str, Any] | None = None
    by_hand: bool = False
    accepted: bool = False
    recalled: bool = False
    origin: Origin | None = None
    heir: str = ""
    began: bool = False
    never_ran: int = 0

    @property
    def may_have_run(self) -> bool:
        """Whether an attempt has been made that is not known never to have run."""
        return self.attempt > self.never_ran


PENDING = StepState()


class Beat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The last sign of life of an attempt in flight.

    Attributes:
        at: When it came.
        due_at: Until when the next one, or the end, is awaited.
        progress: What the participant said of how far it is.
    """

    at: datetime
    due_at: datetime
    progress: Any = None


class Inquiry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When a step that is a saga asks that saga again, which has not answered yet.

    Attributes:
        of: What it asks: the direction and the attempt, or that it was called back.
        at: When it asks again.
        times: How often it has.
    """

    of: str
    at: datetime
    times: int = 0


class SagaState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A saga.

    Attributes:
        cause: Why it turned back, or why it will as soon as the steps in flight have ended.
        backward: Compensation has begun.
        paused: Nothing new begins until an operator resumes it.
        full: Its history is as long as it may be: it begins nothing more until it is resumed.
        was_full: It was so once, and has been resumed; false while it is full again.
        secret: Makes the tokens with which its steps are completed from elsewhere.
        not_before: When its first step begins, if not at once.
        signals: Data of the signals that have come, by name.
        parent: The step of another saga that it was started for.
        fork: What it was forked from, if it was.
        undo_attempt: Last attempt of the parent's undo that has come, 0 for a call back; None while
            the parent wants it done.
        items: Lengths of the lists that are known, by step.
        beats: Signs of life of the attempts in flight, by step. They alone are no part of the
            fold: a long step sends thousands of them, and only the last one matters, and only
            until the attempt ends. So they stand in the row and not in the history.
        awaited: What waits for room within a limit: steps, by their name in the definition, and the
            empty name for the saga itself.
        unknown_task: A worker did not know a task: something went wrong, and it is no cause.
        inquiries: Of the steps in flight that are sagas, by step: no part of the fold either, for
            a saga may wait for another one for years.
    """

    saga_id: str
    name: str
    version: int
    input: dict[str, Any]
    trace: Trace
    key: str | None = None
    deadline_at: datetime | None = None
    status: Status = Status.RUNNING
    steps: dict[str, StepState] = {}
    cause: Cause | None = None
    backward: bool = False
    paused: bool = False
    full: bool = False
    was_full: bool = False
    secret: str = ""
    not_before: datetime | None = None
    signals: dict[str, Any] = {}
    parent: Parent | None = None
    fork: ForkedFrom | None = None
    undo_attempt: int | None = None
    items: dict[str, int] = {}
    beats: dict[str, Beat] = {}
    awaited: tuple[str, ...] = ()
    unknown_task: bool = False
    inquiries: dict[str, Inquiry] = {}

    @property
    def went_wrong(self) -> bool:
        """Whether something did that it might not have got over."""
        return self.cause is not None or self.unknown_task or self.full or self.was_full

    def step(self, name: str) -> StepState:
        """State of a step; pending where nothing has happened to it."""
        return self.steps.get(name, PENDING)

    def done_by(self, name: str) -> str:
        """Id of the saga that does a step: of this one, but for a step that was copied."""
        origin = self.step(name).origin
        return origin.saga_id if origin else self.saga_id


def fold(history: Iterable[Event]) -> SagaState | None:
    """The state that a history leads to; None for an empty one."""
    return reduce(evolve, history, None)


def evolve(  # noqa: C901, PLR0912 - one case for each event
    state: SagaState | None, event: Event
) -> SagaState:
    """The state after an event.

    Raises:
        ValueError: The history does not begin with `SagaStarted`.
    """
    if state is None:
        if not isinstance(event, SagaStarted):
            raise ValueError(f"a history begins with saga_started, not with {event!r}")
        return SagaState(
            saga_id=event.saga_id,
            name=event.name,
            version=event.version,
            input=event.input,
            key=event.key,
            deadline_at=event.deadline_at,
            trace=event.trace,
            secret=event.secret,
            not_before=event.not_before,
            parent=event.parent,
            fork=event.fork,
        )
    match event:
        case SagaStarted():
            raise ValueError(f"saga {state.saga_id} starts twice in its history")
        case StepCopied():
            return _copy(state, event)
        case StepDispatched(direction="action"):
            begun = {"attempt": event.attempt, "due_at": event.due_at, "began": False}
            return _with_step(state, event.step, phase=Phase.RUNNING, **begun)
        case StepDispatched():
            return _with_step(
                state,
                event.step,
                phase=Phase.UNDOING,
                undo_attempt=event.attempt,
                due_at=event.due_at,
            )
        case StepAccepted(step=name, due_at=due_at):
            return _with_step(state, name, accepted=True, due_at=due_at)
        case StepRecalled(step=name):
            return _with_step(state, name, recalled=True, due_at=None)
        case SubSagaBegan(step=name):
            began = _replace(state.step(name), began=True)
            return _replace(state, steps={**state.steps, name: began})
        case UndoRequested(attempt=attempt, reason=reason, parent=parent):
            return _undo(_replace(state, parent=parent or state.parent), attempt, reason)
        case UndoRefused(attempt=attempt, parent=parent):
            return _replace(state, undo_attempt=attempt, parent=parent or state.parent)
        case StepExpanded(step=name, items=items):
            return _replace(state, items={**state.items, name: items})
        case SignalReceived(name=name, data=data):
            return _replace(state, signals={**state.signals, name: data})
        case StepSucceeded(direction="action"):
            return _after_success(state, event)
        case StepSucceeded():
            return _with_step(state, event.step, phase=Phase.UNDONE, due_at=None, stuck=False)
        case StepRejected():
            return _after_rejection(state, event)
        case TaskUnknown():
            return _after_unknown_task(state, event)
        case StepFailed() | StepTimedOut():
            return _after_failure(state, event)
        case CancelRequested():
            return _because(state, _cancelled(event.reason))
        case DeadlineExceeded():
            return _because(state, Cause(kind=CauseKind.DEADLINE))
        case CompensationStarted():
            return _turn_back(state)
        case SagaStuck():
            return _with_step(state, event.step, stuck=True)
        case SagaPaused():
            return _replace(state, paused=True)
        case SagaResumed():
            was_full = state.full or state.was_full
            return _with_status(_replace(state, paused=False, full=False, was_full=was_full))
        case HistoryFull():
            return _with_status(_replace(state, full=True, was_full=False))
        case RoomAwaited(step=name):
            return _replace(state, awaited=(*state.awaited, name))
        case RetryRequested():
            return _retry(state, event)
        case StepSkipped():
            return _skip(state, event)
        case CompensationRequested(step=vouched, reason=reason):
            if vouched:
                settled = {"due_at": None, "stuck": False, "by_hand": True}
                state = _with_step(state, vouched, phase=Phase.REJECTED, **settled)
            return _because(state, _cancelled(reason))
        case SagaResolved():
            return _replace(state, status=Status.RESOLVED, paused=False)
        case SagaCompleted():
            return _replace(state, status=Status.COMPLETED)
        case SagaCompensated():
            return _replace(state, status=Status.COMPENSATED)
        case SagaForked(to=to, steps=names):
            left = {name: _replace(state.step(name), heir=to) for name in names}
            return _replace(state, steps={**state.steps, **left})
        case _:
            assert_never(event)


def _copy(state: SagaState, event: StepCopied) -> SagaState:
    return _with_step(
        state,
        event.step,
        phase=Phase.SUCCEEDED if event.success else Phase.SKIPPED,
        attempt=event.attempt,
        success=event.success,
        output=event.output,
        undo=event.undo,
        payload=event.payload,
        by_hand=event.by_hand,
        origin=event.origin,
    )


def _after_success(state: SagaState, event: StepSucceeded) -> SagaState:
    step = state.step(event.step)
    # Later steps may have begun with the output that an operator gave when it was skipped.
    output = step.output if step.phase is Phase.SKIPPED else event.output
    known = {"success": event.attempt, "output": output, "undo": event.undo}
    if step.phase in {Phase.UNDOING, Phase.UNDO_RETRYING, Phase.UNDO_FAILED}:
        # Late: the way back has begun, and now it is known what there is to undo.
        return _with_step(state, event.step, **known)
    return _with_step(
        state, event.step, phase=Phase.SUCCEEDED, due_at=None, failure=None, stuck=False, **known
    )


def _after_rejection(state: SagaState, event: StepRejected) -> SagaState:
    # "Nothing happened" is said of this attempt; of an earlier one that ran nobody knows.
    first = event.attempt == state.step(event.step).never_ran + 1
    phase = Phase.REJECTED if first else Phase.FAILED
    state = _with_step(state, event.step, phase=phase, due_at=None, failure=event.failure)
    return _because(state, Cause(kind=CauseKind.REJECTED, step=event.step, failure=event.failure))


def _after_unknown_task(state: SagaState, event: TaskUnknown) -> SagaState:
    """It gave up, and that is no cause to turn back."""
    never_ran = state.step(event.step).never_ran
    if event.attempt == never_ran + 1:
        never_ran = event.attempt
    phase = Phase.REJECTED if event.attempt == never_ran else Phase.FAILED
    known = {"due_at": None, "failure": event.failure, "never_ran": never_ran}
    state = _replace(state, unknown_task=True)
    return _with_step(state, event.step, phase=phase, **known)


def _after_failure(state: SagaState, event: StepFailed | StepTimedOut) -> SagaState:
    kind, failure, undo = CauseKind.TIMED_OUT, None, None
    if isinstance(event, StepFailed):
        kind, failure, undo = CauseKind.FAILED, event.failure, event.undo
    again = event.retry_at is not None
    forward = event.direction == "action"
    if forward:
        phase = Phase.RETRYING if again else Phase.FAILED
    else:
        phase = Phase.UNDO_RETRYING if again else Phase.UNDO_FAILED
    known = {} if event.direction != "action" or undo is None else {"undo": undo}
    changes = {"phase": phase, "due_at": event.retry_at, "failure": failure, **known}
    state = _with_step(state, event.step, **changes)
    if forward and not again:
        return _because(state, Cause(kind=kind, step=event.step, failure=failure))
    return state


def _retry(state: SagaState, event: RetryRequested) -> SagaState:
    forward = event.direction == "action"
    kept = state.step(event.step).payload
    return _with_step(
        state,
        event.step,
        phase=Phase.RETRYING if forward else Phase.UNDO_RETRYING,
        due_at=event.due_at,
        stuck=False,
        payload=kept if event.payload is None else event.payload,
    )


def _skip(state: SagaState, event: StepSkipped) -> SagaState:
    settled: dict[str, Any] = {"due_at": None, "stuck": False, "by_hand": not event.condition}
    if event.direction == "action":
        return _with_step(
            state, event.step, phase=Phase.SKIPPED, output=event.output, failure=None, **settled
        )
    return _with_step(state, event.step, phase=Phase.UNDONE, **settled)


def _undo(state: SagaState, attempt: int, reason: str) -> SagaState:
    state = _because(_replace(state, undo_attempt=attempt), _cancelled(reason))
    # What had completed goes on; what has been undone already has nothing to do.
    return _with_status(state) if state.status is Status.COMPLETED else state


def _cancelled(reason: str) -> Cause:
    failure = Failure(kind="Cancelled", message=reason, retryable=False)
    return Cause(kind=CauseKind.CANCELLED, failure=failure)


def _turn_back(state: SagaState) -> SagaState:
    """A step that waited for its next attempt, or an operator, will not get it."""
    steps = {name: _left_behind(step) for name, step in state.steps.items()}
    return _with_status(_replace(state, backward=True, steps=steps, awaited=()))


def _left_behind(step: StepState) -> StepState:
    if step.phase is Phase.RETRYING:
        phase = Phase.FAILED if step.may_have_run else Phase.REJECTED
        return _replace(step, phase=phase, due_at=None)
    return _replace(step, stuck=False) if step.stuck else step


def _because(state: SagaState, cause: Cause) -> SagaState:
    return state if state.cause else _replace(state, cause=cause)


def _with_step(state: SagaState, name: str, **changes: Any) -> SagaState:
    step = _replace(state.step(name), **{"accepted": False, "recalled": False, **changes})
    changed: dict[str, Any] = {"steps": {**state.steps, name: step}}
    if name in state.beats:
        changed["beats"] = {other: beat for other, beat in state.beats.items() if other != name}
    if state.awaited:
        changed["awaited"] = _still_awaited(state, name, step)
    state = _replace(state, **changed)
    # Most events have nothing to do with it: no step was stuck before, and this one is not.
    usual = state.status in {Status.RUNNING, Status.COMPENSATING} and not step.stuck
    return state if usual else _with_status(state)


def _still_awaited(state: SagaState, name: str, step: StepState) -> tuple[str, ...]:
    """What waits on when something has happened to a step: other runs of a list may."""
    over = {name}
    if step.phase in {Phase.RUNNING, Phase.UNDOING}:
        over |= {"", name.partition("[")[0]}
    return tuple(other for other in state.awaited if other not in over)


def _with_status(state: SagaState) -> SagaState:
    if state.full or any(step.stuck for step in state.steps.values()):
        status = Status.STUCK
    else:
        status = Status.COMPENSATING if state.backward else Status.RUNNING
    return state if status is state.status else _replace(state, status=status)
