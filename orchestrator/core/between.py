"""What sagas tell each other.

A step that is a saga sends `saga.start`; the saga answers by `saga.reply` when it ends; undoing the
step sends `saga.undo`, and so does calling it back. Nobody answers to a call back but the end. What
has not been answered is asked again (see `sub_sagas`), and each of these may come any number of
times: the sub-saga's id is derived from the attempt.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

import msgspec

from orchestrator.core.definition import TIMED_OUT, Definition, PlannedStep, SubSaga
from orchestrator.core.envelopes import to_participant, to_saga
from orchestrator.core.events import StepDispatched
from orchestrator.core.payload import payload_of
from orchestrator.core.state import CauseKind, Phase, SagaState, Status
from orchestrator.core.terms import attempts, irrevocable
from shared.ids import Direction, command_id, derived_span_id, sub_saga_id
from shared.messages import (
    Accepted,
    Command,
    Ended,
    Failed,
    Failure,
    Outcome,
    Parent,
    Rejected,
    Reply,
    StartRequest,
    Succeeded,
    UndoRequest,
)
from shared.names import REPLY_TASK, START_TASK, UNDO_TASK

TURNED_BACK: Final = "the saga it belongs to turned back"
"""Why a sub-saga is called back, where that is no time-out."""

_REFUSALS = {CauseKind.REJECTED, CauseKind.CANCELLED}


def question(planned: PlannedStep, state: SagaState, times: int, now: datetime) -> Command:
    """What a step in flight that is a saga has asked that saga, once more.

    Args:
        planned: The step.
        state: Of its saga.
        times: How often it was asked again, this time included.
        now: The time of the decision.
    """
    work, step = planned.action, state.step(planned.name)
    assert isinstance(work, SubSaga)  # noqa: S101 - the caller has looked
    if step.recalled:
        reason = TURNED_BACK if state.cause else TIMED_OUT
        asked = recall(planned, work, state, step.attempt, reason, now)
    else:
        direction: Direction = "action" if step.phase is Phase.RUNNING else "compensation"
        dispatched = StepDispatched(
            step=planned.name,
            direction=direction,
            attempt=attempts(step, direction),
            due_at=step.due_at or now,
        )
        asked = to_sub_saga(planned, work, state, dispatched)
    return msgspec.structs.replace(asked, id=f"{asked.id}:again:{times}")


def recall(
    planned: PlannedStep,
    work: SubSaga,
    state: SagaState,
    attempt: int,
    reason: str,
    now: datetime,
) -> Command:
    """The saga of an attempt in flight is to undo itself, or never to begin."""
    start = _start_request(planned, work, state, attempt)
    undo = UndoRequest(saga_id=start.saga_id or "", start=start, began=start.began, reason=reason)
    identity = f"{state.saga_id}:{planned.name}:recall:{attempt}"
    return to_saga(state, identity, planned.name, "action", attempt, UNDO_TASK, undo, now)


def to_sub_saga(
    planned: PlannedStep, work: SubSaga, state: SagaState, event: StepDispatched
) -> Command:
    """An attempt of a step that is a saga: the start of it, or its undo."""
    if event.direction == "action":
        start = _start_request(planned, work, state, event.attempt)
        return to_participant(planned, state, event, START_TASK, msgspec.to_builtins(start))
    step = state.step(planned.name)
    start = _start_request(planned, work, state, step.success or step.attempt)
    undo = UndoRequest(
        saga_id=start.saga_id or "",
        start=start,
        attempt=event.attempt,
        began=start.began,
        reason=state.cause.failure.message if state.cause and state.cause.failure else "",
    )
    return to_participant(planned, state, event, UNDO_TASK, msgspec.to_builtins(undo))


def _start_request(
    planned: PlannedStep, work: SubSaga, state: SagaState, attempt: int
) -> StartRequest:
    sent = derived_span_id(command_id(state.saga_id, planned.name, "action", attempt), "send")
    traceparent = state.trace.parent(sent)
    same = work.trace == "same"
    step = state.step(planned.name)
    return StartRequest(
        name=work.name,
        input=payload_of(planned, state),
        saga_id=sub_saga_id(state.done_by(planned.name), planned.name, attempt),
        traceparent=traceparent if same else None,
        tracestate=state.trace.tracestate if same else "",
        baggage=dict(state.trace.baggage),
        began=step.success > 0 or step.began,
        parent=Parent(
            saga_id=state.saga_id,
            step=planned.name,
            attempt=attempt,
            depth=state.parent.depth + 1 if state.parent else 1,
            link="" if same else traceparent,
            above=(
                *(state.parent.above if state.parent else ()),
                (state.name, planned.group or planned.name),
            ),
        ),
    )


def ended(state: SagaState, now: datetime) -> Iterator[Command]:
    """What a saga that has ended tells its parent, if it has one."""
    if state.parent and (answer := _answer(state)):
        yield _to_parent(state, state.parent, *answer, now)


def refused(state: SagaState, attempt: int, reason: str, now: datetime) -> Iterator[Command]:
    """What a saga that cannot be undone tells its parent."""
    if state.parent:
        yield _to_parent(state, state.parent, "compensation", attempt, _past_pivot(reason), now)


def refusal(definition: Definition, state: SagaState) -> str:
    """Why a sub-saga cannot be undone; empty where it can."""
    if not irrevocable(definition, state):
        return ""
    pivot = definition.pivot.name if definition.pivot else ""
    return f"The sub-saga {state.saga_id} is past its pivot {pivot!r}: it cannot be undone."


def report(definition: Definition, state: SagaState) -> Reply | None:
    """What a sub-saga tells its parent that asks: how it has ended, or that it goes on.

    It has said so before, unless it goes on; that may have been lost.

    Returns:
        None while it is being undone, and for a saga without a parent.
    """
    parent = state.parent
    if parent is None:
        return None
    told: tuple[Direction, int, Outcome] | None = _answer(state)
    if state.undo_attempt and (reason := refusal(definition, state)):
        told = "compensation", state.undo_attempt, _past_pivot(reason)
    elif told is None and not state.undo_attempt:
        told = "action", parent.attempt, Accepted()
    return _reply(parent, *told) if told else None


def _answer(state: SagaState) -> tuple[Direction, int, Ended] | None:
    """What a saga that has ended tells its parent; None while it has not."""
    parent = state.parent
    if parent is None or not state.status.final:
        return None
    undo = state.undo_attempt
    match state.status:
        case Status.COMPLETED:
            outputs = {name: step.output for name, step in state.steps.items()}
            return "action", parent.attempt, Succeeded(output=outputs)
        case _ if undo:
            return "compensation", undo, Succeeded()
        case Status.RESOLVED:
            text = f"The sub-saga {state.saga_id} was resolved by hand."
            failure = Failure(kind="SubSagaResolved", message=text, retryable=False)
            return "action", parent.attempt, Failed(failure=failure)
        case _:
            return "action", parent.attempt, _undone(state)


def _past_pivot(reason: str) -> Failed:
    return Failed(failure=Failure(kind="SubSagaPastPivot", message=reason, retryable=False))


def _undone(state: SagaState) -> Rejected | Failed:
    cause = state.cause
    why = cause.failure if cause else None
    where = f" at step {cause.step!r}" if cause and cause.step else ""
    text = f"The sub-saga {state.saga_id} was undone{where}: {why.message if why else ''}".rstrip(
        ": "
    )
    kind = why.kind if why else "SubSagaUndone"
    if cause and cause.kind in _REFUSALS:
        return Rejected(failure=Failure(kind=kind, message=text, retryable=False))
    return Failed(failure=Failure(kind=kind, message=text))


def _reply(parent: Parent, direction: Direction, attempt: int, outcome: Outcome) -> Reply:
    return Reply(
        saga_id=parent.saga_id,
        step=parent.step,
        direction=direction,
        attempt=attempt,
        outcome=outcome,
    )


def _to_parent(
    state: SagaState,
    parent: Parent,
    direction: Direction,
    attempt: int,
    outcome: Ended,
    now: datetime,
) -> Command:
    reply = _reply(parent, direction, attempt, outcome)
    identity = f"{state.saga_id}:parent:{direction}:{attempt}"
    return to_saga(state, identity, parent.step, direction, attempt, REPLY_TASK, reply, now)
