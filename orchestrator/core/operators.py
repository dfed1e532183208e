"""What an operator may ask of a saga, and the facts that it leaves in the history.

    pause       begin nothing new                    not when it has ended
    resume      go on                                only when it is paused
    retry       the next attempt now, or one more    a step that waits for it, or has given up;
                                                     not while it is paused
    skip        as if it had been done               the same, a step that waits, and one to come
    resolve     it has been put right by hand        only when it is stuck and nothing is in flight
    compensate  give up forward                      not past the pivot, nor on the way back

What follows from these facts is decided in `machine`, like everything else.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import assert_never

from orchestrator.core.definition import Definition
from orchestrator.core.events import (
    CompensationRequested,
    Event,
    RetryRequested,
    SagaPaused,
    SagaResolved,
    SagaResumed,
    StepSkipped,
)
from orchestrator.core.messages import (
    CompensateNow,
    Operator,
    Pause,
    Resolve,
    Resume,
    RetryNow,
    Skip,
)
from orchestrator.core.outputs import output_problem
from orchestrator.core.state import Phase, SagaState, Status
from orchestrator.core.terms import DONE, IN_FLIGHT, irrevocable, turning_back, unsafe
from shared.ids import Direction


def refusal(definition: Definition, state: SagaState, message: Operator) -> str:
    """Why an operator's message cannot be acted on, in one sentence; empty when it can."""
    if state.status.final:
        return f"The saga is {state.status} already."
    match message:
        case Pause():
            return ""
        case Resume():
            return "" if state.paused or state.full else "The saga is not paused."
        case RetryNow():
            return _retry_refusal(definition, state, message)
        case Skip(step=name, output=output):
            if name not in definition.by_name:
                return _unknown(state, name)
            if direction := _to_skip(definition, state, name):
                given = output is not None and direction == "action"
                return output_problem(definition.by_name[name], output) if given else ""
            phase = state.step(name).phase
            return f"Step {name!r} is {phase} and cannot be skipped."
        case Resolve():
            return _resolve_refusal(state)
        case CompensateNow():
            return _compensate_refusal(definition, state)
        case _:
            assert_never(message)


def facts(
    definition: Definition, state: SagaState, message: Operator, now: datetime
) -> Iterator[Event]:
    """The facts that an operator's message brings, where it is not refused."""
    reason, by = message.reason, message.by
    match message:
        case Pause():
            if not state.paused:
                yield SagaPaused(reason=reason, by=by)
        case Resume():
            yield SagaResumed(reason=reason, by=by)
        case RetryNow(payload=payload):
            for name, direction in _to_retry(definition, state, message.step):
                yield RetryRequested(
                    step=name,
                    direction=direction,
                    due_at=now,
                    payload=payload,
                    reason=reason,
                    by=by,
                )
        case Skip(step=name, output=output):
            direction = _to_skip(definition, state, name) or "action"
            yield StepSkipped(
                step=name,
                direction=direction,
                output=output if direction == "action" else None,
                reason=reason,
                by=by,
            )
        case Resolve():
            yield SagaResolved(reason=reason, by=by)
        case CompensateNow():
            if not turning_back(definition, state):
                vouched = _unknown_pivot(definition, state)
                yield CompensationRequested(step=vouched, reason=reason, by=by)
        case _:
            assert_never(message)


def _retry_refusal(definition: Definition, state: SagaState, message: RetryNow) -> str:
    name = message.step
    if name and name not in definition.by_name:
        return _unknown(state, name)
    if state.paused:
        return "The saga is paused: resume it first."
    if message.payload is not None and not name:
        return "An edited payload needs the name of its step."
    if _to_retry(definition, state, name):
        return ""
    if name:
        return (
            f"Step {name!r} is {state.step(name).phase}: only one that waits for its next attempt, "
            "or has given up for good, can be tried again."
        )
    return "No step waits for its next attempt or has given up for good."


def _resolve_refusal(state: SagaState) -> str:
    if state.status is not Status.STUCK:
        return f"The saga is {state.status}: only a stuck one can be resolved by hand."
    flying = [name for name, step in state.steps.items() if step.phase in IN_FLIGHT]
    if flying:
        return f"Step {flying[0]!r} is still in flight: wait until it has ended."
    return ""


def _compensate_refusal(definition: Definition, state: SagaState) -> str:
    if state.backward:
        return "The saga is being undone already."
    pivot = definition.pivot
    if pivot is None or not irrevocable(definition, state):
        return ""
    if state.step(pivot.name).phase in DONE:
        return f"The saga is past its pivot {pivot.name!r}: it can only go forward."
    if _unknown_pivot(definition, state):
        return ""
    return f"The pivot {pivot.name!r} is in flight and may have happened: wait for its outcome."


def _to_retry(
    definition: Definition, state: SagaState, wanted: str
) -> list[tuple[str, Direction]]:
    return [
        (planned.name, direction)
        for planned in definition.steps
        if wanted in {"", planned.name}
        and (direction := _may_retry(definition, state, planned.name))
    ]


def _may_retry(definition: Definition, state: SagaState, name: str) -> Direction | None:
    step = state.step(name)
    if step.phase in {Phase.UNDO_RETRYING, Phase.UNDO_FAILED}:
        return "compensation"
    held_up = step.phase is Phase.RETRYING or step.stuck
    return "action" if held_up and not turning_back(definition, state) else None


def _to_skip(definition: Definition, state: SagaState, name: str) -> Direction | None:
    step = state.step(name)
    if state.backward:
        # Also where there is no compensation to try again.
        return "compensation" if step.stuck or step.phase is Phase.UNDO_RETRYING else None
    waits = definition.by_name[name].waits and step.phase is Phase.RUNNING
    if waits or _may_retry(definition, state, name):
        return "action"
    to_come = step.phase is Phase.PENDING and not definition.by_name[name].pivot
    return "action" if to_come and not turning_back(definition, state) else None


def _unknown_pivot(definition: Definition, state: SagaState) -> str:
    """Name of a pivot that is not in flight and of which nobody knows whether it happened."""
    pivot = definition.pivot
    if pivot is None or not unsafe(pivot):
        return ""
    step = state.step(pivot.name)
    unknown = step.phase in {Phase.RETRYING, Phase.FAILED} and step.may_have_run
    return pivot.name if unknown else ""


def _unknown(state: SagaState, name: str) -> str:
    return f"Saga {state.name!r} version {state.version} has no step {name!r}."
