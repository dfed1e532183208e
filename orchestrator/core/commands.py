"""The commands that follow from an event: what the shell has to send once it is stored.

Sagas talk to each other by the same outbox and the same messages as everybody else (see `between`).
"""

from collections.abc import Iterator
from datetime import datetime

from orchestrator.core import between
from orchestrator.core.definition import Definition, PlannedStep, SubSaga
from orchestrator.core.envelopes import to_participant
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
from orchestrator.core.state import SagaState
from shared.messages import Command
from shared.names import UNDO_ARGUMENT
from shared.tokens import token_of


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
                yield between.to_sub_saga(planned, planned.action, state, event)
            elif not planned.waits:
                yield _task(planned, state, event)
        case StepRecalled(step=name, attempt=attempt, reason=reason):
            planned = plan.by_name[name]
            if isinstance(planned.action, SubSaga):
                yield between.recall(planned, planned.action, state, attempt, reason, now)
        case SagaCompleted() | SagaCompensated() | SagaResolved() | UndoRequested():
            yield from between.ended(state, now)
        case UndoRefused(attempt=attempt, reason=reason):
            yield from between.refused(state, attempt, reason, now)
        case _:
            pass


def _task(planned: PlannedStep, state: SagaState, event: StepDispatched) -> Command:
    payload = payload_of(planned, state)
    task = planned.task
    if event.direction == "compensation":
        task = planned.undo_task or ""
        payload[UNDO_ARGUMENT] = state.step(event.step).undo
    token = token_of(state.secret, state.saga_id, event.step, event.direction, event.attempt)
    return to_participant(planned, state, event, task, payload, token)
