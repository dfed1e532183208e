"""The terms that the rules are written in: what is in flight, what may stand, what is irrevocable.

Each is a function of the definition and the state alone. What follows from them is decided in
`machine`, and nowhere else.
"""

from typing import Final

from orchestrator.core.definition import Definition, NothingToUndo, PlannedStep
from orchestrator.core.state import Phase, SagaState, StepState
from shared.ids import Direction

IN_FLIGHT: Final = frozenset({Phase.RUNNING, Phase.UNDOING})
WAITING: Final = frozenset({Phase.RETRYING, Phase.UNDO_RETRYING})
DONE: Final = frozenset({Phase.SUCCEEDED, Phase.SKIPPED})
"""Phases of a step that the next one may build on."""


_OF_UNKNOWN_END: Final = frozenset({Phase.RETRYING, Phase.FAILED})
_GAVE_UP: Final = frozenset({Phase.FAILED, Phase.REJECTED})


def may_stand(step: StepState) -> bool:
    """Whether an effect of the step may exist that nobody is undoing yet."""
    if step.phase is Phase.SKIPPED:
        # An operator went on without it, but an attempt had gone out.
        return step.may_have_run
    return step.phase in {Phase.SUCCEEDED, Phase.FAILED}


def is_gone(step: StepState) -> bool:
    """Whether nothing of the step exists, for certain."""
    if step.phase is Phase.SKIPPED:
        return not step.may_have_run
    return step.phase in {Phase.PENDING, Phase.REJECTED, Phase.UNDONE}


def is_done(definition: Definition, state: SagaState, name: str) -> bool:
    """Whether what comes after a step may begin; one that is skipped early waits for its turn."""
    phase = state.step(name).phase
    if phase is Phase.SKIPPED:
        return all(
            is_done(definition, state, earlier) for earlier in definition.by_name[name].after
        )
    return phase is Phase.SUCCEEDED


def attempts(step: StepState, direction: Direction) -> int:
    """Attempts so far in a direction; the number of the current one."""
    return step.attempt if direction == "action" else step.undo_attempt


def turning_back(definition: Definition, state: SagaState) -> bool:
    """Whether a cause has come up that the saga can still act on."""
    return state.cause is not None and not irrevocable(definition, state)


def irrevocable(definition: Definition, state: SagaState) -> bool:
    """Whether the saga can only go forward: past the pivot, or perhaps past it."""
    pivot = definition.pivot
    if pivot is None or state.backward:
        return False
    step = state.step(pivot.name)
    # Another attempt in flight does not make the first one known again.
    again = step.phase is Phase.RUNNING and step.attempt > step.never_ran + 1
    unknown = again or (step.phase in _OF_UNKNOWN_END and step.may_have_run)
    return step.phase in DONE or (unsafe(pivot) and unknown)


def unsafe(planned: PlannedStep) -> bool:
    """Whether an unknown outcome of this step can be neither undone nor ignored."""
    return planned.pivot and planned.compensation is None


def has_begun(state: SagaState) -> bool:
    """Whether anything of the saga has begun."""
    return state.backward or any(step.attempt for step in state.steps.values())


def deadline_applies(definition: Definition, state: SagaState) -> bool:
    """Whether the saga's deadline would still change something."""
    return state.cause is None and not irrevocable(definition, state)


def gave_up(definition: Definition, state: SagaState, planned: PlannedStep) -> bool:
    """Whether a step gave up where the saga can go neither on nor back."""
    step = state.step(planned.name)
    if state.backward:
        return step.phase is Phase.UNDO_FAILED or (
            planned.compensation is None and may_stand(step)
        )
    if planned.name in definition.beyond_pivot or state.cause is None:
        return step.phase in _GAVE_UP
    return unsafe(planned) and step.phase is Phase.FAILED


def may_be_stuck(state: SagaState) -> bool:
    """Whether a step may have given up without turning the saga back: `gave_up` tells.

    Without a cause that is one whose task no worker knows.
    """
    return (
        state.backward
        or state.cause is not None
        or any(step.phase in _GAVE_UP for step in state.steps.values())
    )


def cleared(definition: Definition, state: SagaState) -> frozenset[str]:
    """Steps of which nothing is left, and of what came after them neither."""
    found: set[str] = set()
    open_ends = [*definition.steps]
    while ready := [
        planned
        for planned in open_ends
        if all(name in found for name in definition.successors[planned.name])
    ]:
        open_ends = [planned for planned in open_ends if planned not in ready]
        found |= {planned.name for planned in ready if _settled(planned, state)}
        if not any(planned.name in found for planned in ready):
            break
    return frozenset(found)


def _settled(planned: PlannedStep, state: SagaState) -> bool:
    step = state.step(planned.name)
    return is_gone(step) or (isinstance(planned.compensation, NothingToUndo) and may_stand(step))
