"""What must have arrived for an event to follow: a history says what was decided, not what arrived.

Each decision begins with the fact that its message brought, so the message is made anew from that.
"""

from collections.abc import Sequence
from typing import assert_never

import msgspec

from orchestrator.core.events import (
    CancelRequested,
    CompensationRequested,
    CompensationStarted,
    DeadlineExceeded,
    Event,
    HistoryFull,
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
    UndoRefused,
    UndoRequested,
)
from orchestrator.core.messages import (
    Cancel,
    CompensateNow,
    HandOver,
    Message,
    Pause,
    Resolve,
    Resume,
    RetryNow,
    Signal,
    Skip,
    Start,
    Tick,
    Undo,
)
from orchestrator.core.state import SagaState
from shared.ids import Direction
from shared.messages import Accepted, Execution, Failed, Outcome, Rejected, Reply, Succeeded


def messages_for(  # noqa: C901, PLR0912 - one case for each event
    events: Sequence[Event], state: SagaState | None
) -> tuple[Message, ...]:
    """What may have arrived when these were the first that followed; the likeliest first."""
    event = events[0]
    match event:
        case SagaStarted():
            start = Start(
                saga_id=event.saga_id,
                input=event.input,
                trace=event.trace,
                key=event.key,
                secret=event.secret,
                not_before=event.not_before,
                parent=event.parent,
                fork=event.fork,
                copied=_copied(events[1:]) if event.fork else (),
            )
            undone = events[1] if len(events) > 1 else event
            paused = next((one for one in events if isinstance(one, SagaPaused)), None)
            if paused is not None:
                pause = Pause(reason=paused.reason, by=paused.by)
                return (msgspec.structs.replace(start, pause=pause), start)
            if not isinstance(undone, UndoRequested):
                return (start,)
            undo = Undo(attempt=undone.attempt, reason=undone.reason, parent=undone.parent)
            return (start, msgspec.structs.replace(start, undo=undo))
        case UndoRequested():
            return (Undo(attempt=event.attempt, reason=event.reason, parent=event.parent),)
        case UndoRefused():
            return (Undo(attempt=event.attempt, parent=event.parent),)
        case SagaForked(to=to, step=step, steps=steps, reason=reason, by=by):
            return (HandOver(to=to, step=step, steps=steps, reason=reason, by=by),)
        case StepSucceeded(direction=direction):
            outcome: Outcome = Succeeded(output=event.output, undo=event.undo)
            reply = _reply(state, event.step, direction, event.attempt, outcome, event.execution)
            return (reply, Tick())
        case StepRejected() | TaskUnknown():
            outcome = Rejected(failure=event.failure)
            reply = _reply(state, event.step, "action", event.attempt, outcome, event.execution)
            return (reply, Tick())
        case StepFailed(direction=direction):
            outcome = Failed(failure=event.failure, undo=event.undo)
            reply = _reply(state, event.step, direction, event.attempt, outcome, event.execution)
            return (reply, Tick())
        case StepAccepted(direction=direction):
            reply = _reply(
                state, event.step, direction, event.attempt, Accepted(), event.execution
            )
            return (reply,)
        case SubSagaBegan():
            return (_reply(state, event.step, "action", event.attempt, Accepted(), None),)
        case SignalReceived():
            return (Signal(name=event.name, data=event.data, by=event.by),)
        case CancelRequested():
            return (Cancel(reason=event.reason, by=event.by),)
        case SagaPaused():
            return (Pause(reason=event.reason, by=event.by),)
        case SagaResumed():
            return (Resume(reason=event.reason, by=event.by),)
        case RetryRequested(step=step, payload=payload, reason=reason, by=by):
            one = RetryNow(step=step, payload=payload, reason=reason, by=by)
            return (one, RetryNow(reason=reason, by=by))
        case StepSkipped():
            skip = Skip(step=event.step, output=event.output, reason=event.reason, by=event.by)
            return (skip, Tick())
        case CompensationRequested():
            return (CompensateNow(reason=event.reason, by=event.by),)
        case SagaResolved():
            return (Resolve(reason=event.reason, by=event.by),)
        case (
            StepTimedOut()
            | StepCopied()
            | DeadlineExceeded()
            | StepDispatched()
            | StepExpanded()
            | StepRecalled()
            | HistoryFull()
            | RoomAwaited()
            | CompensationStarted()
            | SagaStuck()
            | SagaCompleted()
            | SagaCompensated()
        ):
            return (Tick(),)
        case _:
            assert_never(event)


def _copied(events: Sequence[Event]) -> tuple[StepExpanded | StepCopied, ...]:
    """What a fork began with: a list that it has spread out itself comes after all copies."""
    copied: list[StepExpanded | StepCopied] = []
    for event in events:
        if not isinstance(event, StepExpanded | StepCopied):
            break
        copied.append(event)
    while copied and isinstance(copied[-1], StepExpanded):
        copied.pop()
    return tuple(copied)


def _reply(
    state: SagaState | None,
    step: str,
    direction: Direction,
    attempt: int,
    outcome: Outcome,
    execution: Execution | None,
) -> Reply:
    return Reply(
        saga_id=state.saga_id if state else "",
        step=step,
        direction=direction,
        attempt=attempt,
        outcome=outcome,
        execution=execution,
    )


def message_in_words(message: Message) -> str:
    """What arrived."""
    kind = str(type(message).__name__).lower()
    match message:
        case Reply(step=step, direction=direction, attempt=attempt, outcome=outcome):
            said = type(outcome).__name__.lower()
            return f"reply of {step} ({direction} {attempt}): {said}"
        case Tick():
            return "timer"
        case Signal(name=name):
            return f"signal {name}"
        case RetryNow(step=step):
            return f"retry {step or 'every step'}"
        case Skip(step=step):
            return f"skip {step}"
        case _:
            return kind
