"""Commands as they are sent: where to, in whose name, and as a part of which trace."""

from datetime import datetime
from typing import Any

import msgspec

from orchestrator.core.definition import PlannedStep
from orchestrator.core.events import StepDispatched
from orchestrator.core.state import SagaState
from shared.ids import Direction, command_id, derived_span_id
from shared.messages import Command, Reply, UndoRequest
from shared.names import REPLIES_QUEUE


def to_participant(
    planned: PlannedStep,
    state: SagaState,
    event: StepDispatched,
    task: str,
    payload: dict[str, Any],
    token: str = "",
) -> Command:
    """An attempt of a step: its deadline is the time-out of that."""
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


def to_saga(
    state: SagaState,
    identity: str,
    step: str,
    direction: Direction,
    attempt: int,
    task: str,
    message: Reply | UndoRequest,
    now: datetime,
) -> Command:
    """What one saga tells another, beside the attempts of its steps: a reply, or a call back."""
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
