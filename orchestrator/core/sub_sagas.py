"""Steps that are sagas: calling one back, and being called back."""

from collections.abc import Iterator

from orchestrator.core.definition import Definition
from orchestrator.core.events import Event, StepRecalled, UndoRefused, UndoRequested
from orchestrator.core.messages import Undo
from orchestrator.core.state import SagaState, StepState
from orchestrator.core.terms import irrevocable
from shared.messages import Parent


def recalled(name: str, step: StepState, reason: str) -> StepRecalled:
    """The saga of a step is called back: it is undone, and the step waits for how it ends."""
    return StepRecalled(step=name, attempt=step.attempt, reason=reason)


def undo_asked(definition: Definition, state: SagaState, undo: Undo) -> Iterator[Event]:
    """The parent wants the saga undone: each attempt of it is answered, also after the end."""
    known = state.undo_attempt
    if known is not None and undo.attempt <= known:
        return
    if undo.attempt == 0 and (state.status.final or irrevocable(definition, state)):
        return  # it ends, or has ended, as it is, and the parent is told that
    if irrevocable(definition, state):
        pivot = definition.pivot.name if definition.pivot else ""
        reason = f"The sub-saga {state.saga_id} is past its pivot {pivot!r}: it cannot be undone."
        yield UndoRefused(attempt=undo.attempt, reason=reason, parent=_fork(state, undo))
    else:
        yield UndoRequested(attempt=undo.attempt, reason=undo.reason, parent=_fork(state, undo))


def _fork(state: SagaState, undo: Undo) -> Parent | None:
    """Who asks, where it is another saga than the one that is answered: a fork of that one."""
    other = undo.parent and state.parent and undo.parent.saga_id != state.parent.saga_id
    return undo.parent if other else None
