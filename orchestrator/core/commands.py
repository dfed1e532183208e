"""The commands that follow from an event: what the shell has to send once it is stored."""

from collections.abc import Iterator

from orchestrator.core.definition import Definition
from orchestrator.core.events import Event, StepDispatched
from orchestrator.core.payload import payload_of
from orchestrator.core.state import SagaState
from shared.ids import command_id, derived_span_id
from shared.messages import Command
from shared.names import UNDO_ARGUMENT
from shared.tokens import token_of


def commands_of(definition: Definition, state: SagaState, event: Event) -> Iterator[Command]:
    """What to send.

    Args:
        definition: The definition that the saga runs on.
        state: Its state after the event.
        event: What happened.
    """
    if isinstance(event, StepDispatched):
        yield from _work(definition, state, event)


def _work(definition: Definition, state: SagaState, event: StepDispatched) -> Iterator[Command]:
    planned = definition.by_name[event.step]
    if planned.waits:
        return
    payload = payload_of(planned, state)
    task = planned.task
    if event.direction == "compensation":
        task = planned.undo_task or ""
        payload[UNDO_ARGUMENT] = state.step(event.step).undo
    attempt = (state.saga_id, event.step, event.direction, event.attempt)
    identity = command_id(*attempt)
    yield Command(
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
        token=token_of(state.secret, *attempt),
    )
