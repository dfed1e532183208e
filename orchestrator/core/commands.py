"""The commands that follow from an event: what the shell has to send once it is stored.

Sagas talk to each other by the same outbox and the same messages as everybody else. A step that is
a saga sends `saga.start`; the saga answers by `saga.reply` when it ends; undoing the step sends
`saga.undo`. So nothing of it can be lost, or done twice, that could not be of a task.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec

from orchestrator.core.definition import Definition, PlannedStep, SubSaga
from orchestrator.core.events import (
    Event,
    SagaCompensated,
    SagaCompleted,
    SagaResolved,
    StepDispatched,
    StepRecalled,
    UndoRefused,
    UndoRequested,
)
from orchestrator.core.payload import payload_of
from orchestrator.core.state import CauseKind, SagaState, Status
from shared.ids import Direction, command_id, derived_span_id, sub_saga_id
from shared.messages import (
    Command,
    Ended,
    Failed,
    Failure,
    Parent,
    Rejected,
    Reply,
    StartRequest,
    Succeeded,
    UndoRequest,
)
from shared.names import REPLIES_QUEUE, REPLY_TASK, START_TASK, UNDO_ARGUMENT, UNDO_TASK
from shared.tokens import token_of

_REFUSALS = {CauseKind.REJECTED, CauseKind.CANCELLED}


def commands_of(
    plan: Definition, state: SagaState, event: Event, now: datetime
) -> Iterator[Command]:
    """What to send.

    Args:
        plan: The steps that the saga has.
        state: Its state after the event.
        event: What happened.
        now: The time of the decision.
    """
    match event:
        case StepDispatched(step=name):
            planned = plan.by_name[name]
            if isinstance(planned.action, SubSaga):
                yield _to_sub_saga(planned, planned.action, state, event)
            elif not planned.waits:
                yield _task(planned, state, event)
        case StepRecalled(step=name, attempt=attempt, reason=reason):
            work = plan.by_name[name].action
            if isinstance(work, SubSaga):
                start = _start_request(plan.by_name[name], work, state, attempt)
                undo = UndoRequest(saga_id=start.saga_id or "", start=start, reason=reason)
                identity = f"{state.saga_id}:{name}:recall:{attempt}"
                yield _message(state, identity, name, "action", attempt, UNDO_TASK, undo, now)
        case SagaCompleted() | SagaCompensated() | SagaResolved() | UndoRequested():
            if state.parent and (answer := _answer(state)):
                yield _to_parent(state, state.parent, *answer, now)
        case UndoRefused(attempt=attempt, reason=reason):
            if state.parent:
                failure = Failure(kind="SubSagaPastPivot", message=reason, retryable=False)
                outcome = Failed(failure=failure)
                yield _to_parent(state, state.parent, "compensation", attempt, outcome, now)
        case _:
            pass


def _task(planned: PlannedStep, state: SagaState, event: StepDispatched) -> Command:
    payload = payload_of(planned, state)
    task = planned.task
    if event.direction == "compensation":
        task = planned.undo_task or ""
        payload[UNDO_ARGUMENT] = state.step(event.step).undo
    token = token_of(state.secret, state.saga_id, event.step, event.direction, event.attempt)
    return _command(planned, state, event, task, payload, token)


def _command(
    planned: PlannedStep,
    state: SagaState,
    event: StepDispatched,
    task: str,
    payload: dict[str, Any],
    token: str = "",
) -> Command:
    identity = command_id(state.saga_id, event.step, event.direction, event.attempt)
    origin = state.step(event.step).origin
    return Command(
        id=identity,
        saga_id=state.saga_id,
        saga_name=state.name,
        saga_version=state.version,
        step=event.step,
        direction=event.direction,
        attempt=event.attempt,
        task=task,
        queue=planned.queue,
        payload=payload,
        deadline_at=event.due_at,
        traceparent=state.trace.parent(derived_span_id(identity, "send")),
        tracestate=state.trace.tracestate,
        baggage=dict(state.trace.baggage),
        token=token,
        origin_id=origin.saga_id if origin else "",
    )


# Between sagas --------------------------------------------------------------------------------


def _to_sub_saga(
    planned: PlannedStep, work: SubSaga, state: SagaState, event: StepDispatched
) -> Command:
    if event.direction == "action":
        start = _start_request(planned, work, state, event.attempt)
        return _command(planned, state, event, START_TASK, msgspec.to_builtins(start))
    step = state.step(planned.name)
    began = step.success > 0
    start = _start_request(planned, work, state, step.success or step.attempt)
    undo = UndoRequest(
        saga_id=start.saga_id or "",
        start=start,
        attempt=event.attempt,
        began=began,
        reason=state.cause.failure.message if state.cause and state.cause.failure else "",
    )
    return _command(planned, state, event, UNDO_TASK, msgspec.to_builtins(undo))


def _start_request(
    planned: PlannedStep, work: SubSaga, state: SagaState, attempt: int
) -> StartRequest:
    sent = derived_span_id(command_id(state.saga_id, planned.name, "action", attempt), "send")
    traceparent = state.trace.parent(sent)
    same = work.trace == "same"
    return StartRequest(
        name=work.name,
        input=payload_of(planned, state),
        saga_id=sub_saga_id(state.done_by(planned.name), planned.name, attempt),
        traceparent=traceparent if same else None,
        tracestate=state.trace.tracestate if same else "",
        baggage=dict(state.trace.baggage),
        parent=Parent(
            saga_id=state.saga_id,
            step=planned.name,
            attempt=attempt,
            depth=state.parent.depth + 1 if state.parent else 1,
            link="" if same else traceparent,
        ),
    )


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


def _to_parent(
    state: SagaState,
    parent: Parent,
    direction: Direction,
    attempt: int,
    outcome: Ended,
    now: datetime,
) -> Command:
    reply = Reply(
        saga_id=parent.saga_id,
        step=parent.step,
        direction=direction,
        attempt=attempt,
        outcome=outcome,
    )
    identity = f"{state.saga_id}:parent:{direction}:{attempt}"
    return _message(state, identity, parent.step, direction, attempt, REPLY_TASK, reply, now)


def _message(
    state: SagaState,
    identity: str,
    step: str,
    direction: Direction,
    attempt: int,
    task: str,
    message: Reply | UndoRequest,
    now: datetime,
) -> Command:
    return Command(
        id=identity,
        saga_id=state.saga_id,
        saga_name=state.name,
        saga_version=state.version,
        step=step,
        direction=direction,
        attempt=attempt,
        task=task,
        queue=REPLIES_QUEUE,
        payload=msgspec.to_builtins(message),
        deadline_at=now,
        traceparent=state.trace.parent(state.trace.root_span_id),
        tracestate=state.trace.tracestate,
    )
