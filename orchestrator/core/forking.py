"""What a fork copies from the saga that it goes on from, and whose the effects are afterwards.

    OLD   reserve ✔  charge ✔  pack ✔  ship ✘        ended
    NEW   reserve =  charge =  pack =  ship ▶        forked from it at `ship`

The steps that NEW does anew are `ship` and what comes after it; whatever else was done counts as
done. An effect that can be undone must be undone by one saga, and by one only. So a fork takes the
effects that it copies over, and the hand-over stands in the history of OLD:

* Only a saga that cannot undo them any more is forked: one that has ended, and that no parent may
  ask to be undone. One that was resolved on the way back is refused: nobody knows what of it still
  stands.
* What an earlier fork has taken over is not copied once more: that fork can be forked.
* NEW undoes what it copied, when it turns back, under the id of the saga that did it: by that its
  participant knows the effect, and a late message of OLD finds it undone.
* What OLD did at `ship` and after stays with OLD: NEW does it once more, and never undoes it twice.
"""

import msgspec

from orchestrator.core.definition import Definition, PlannedStep, SubSaga, reachable
from orchestrator.core.events import Origin, StepCopied, StepExpanded
from orchestrator.core.payload import payload_of
from orchestrator.core.plan import item_name, plan_of
from orchestrator.core.state import Phase, SagaState, Status
from orchestrator.core.terms import DONE, may_stand
from shared.ids import derived_span_id


class ForkPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of each step in a fork.

    Attributes:
        copied: What the history of the fork begins with, after its start.
        taken: Steps whose effects belong to the fork from then on.
        anew: Steps that it does, or would come to.
        left: Steps whose effects may stand and stay with the old saga: the fork does them anew.
    """

    copied: tuple[StepExpanded | StepCopied, ...]
    taken: tuple[str, ...]
    anew: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the copied steps."""
        return tuple(one.step for one in self.copied if isinstance(one, StepCopied))


def fork_refusal(state: SagaState, taken: tuple[str, ...] = ()) -> str:
    """Why a saga cannot be forked, or not with these effects; empty when it can."""
    if state.status is Status.STUCK:
        return "It is stuck, and may still undo what it did: resolve it first."
    if not state.status.final:
        return f"It is {state.status}, and may still undo what it did: wait until it has ended."
    if state.parent:
        return (
            f"It is the sub-saga of {state.parent.saga_id}, which may undo it: fork that saga "
            f"from its step {state.parent.step!r}."
        )
    if state.status is Status.RESOLVED and state.backward:
        return (
            "It was resolved on the way back: nobody knows what of it still stands. Start a new "
            "saga."
        )
    for name in taken:
        if heir := state.step(name).heir:
            return f"Its step {name!r} belongs to an earlier fork, {heir}: fork that saga."
    return ""


def fork_plan(
    definition: Definition, old_definition: Definition, old: SagaState, step: str
) -> ForkPlan | str:
    """What a fork copies.

    Args:
        definition: What the fork runs on.
        old_definition: What the old saga ran on.
        old: The old saga.
        step: From this step on everything is done anew.

    Returns:
        The plan; or why there is none, in one sentence.
    """
    if step not in definition.by_name:
        known = ", ".join(map(repr, definition.by_name))
        return f"Saga {definition.name!r} version {definition.version} has no step {step!r}, but {known}."
    if refused := fork_refusal(old):
        return refused
    again = {step} | reachable(definition.successors, step)
    why = {
        planned.name: _not_done(planned, definition, old_definition, old)
        for planned in definition.steps
        if planned.name not in again
    }
    copied: set[str] = set()
    while (
        more := {
            name
            for name, problem in why.items()
            if not problem and {*definition.by_name[name].after} <= copied
        }
        - copied
    ):
        copied |= more
    before = {planned.name: planned.after for planned in definition.steps}
    missing = [name for name in why if name in reachable(before, step) and name not in copied]
    if missing:
        first = next((name for name in missing if why[name]), missing[0])
        return (
            f"Step {first!r}, which comes before {step!r}, {why[first]}: fork from it or earlier."
        )
    plan = plan_of(old_definition, old)
    runs = [
        run
        for planned in definition.steps
        if planned.name in copied
        for run in (*_items(planned.name, old), planned.name)
    ]
    taken = tuple(run for run in runs if plan.by_name[run].undo_task and may_stand(old.step(run)))
    return fork_refusal(old, taken) or ForkPlan(
        copied=tuple(_facts(plan, old, runs)),
        taken=taken,
        anew=tuple(planned.name for planned in definition.steps if planned.name not in copied),
        left=tuple(
            planned.name
            for planned in plan.steps
            if planned.name not in runs and planned.undo_task and may_stand(old.step(planned.name))
        ),
    )


def _items(step: str, old: SagaState) -> tuple[str, ...]:
    return tuple(item_name(step, index) for index in range(old.items.get(step, 0)))


def _not_done(
    planned: PlannedStep, definition: Definition, old_definition: Definition, old: SagaState
) -> str:
    """Why a step does not count as done; empty when it does."""
    name, was = planned.name, old_definition.by_name.get(planned.name)
    if was is None:
        return f"is new in version {definition.version}"
    same = (was.action, was.compensation, was.queue) == (
        planned.action,
        planned.compensation,
        planned.queue,
    )
    if not same or (was.each is None) is not (planned.each is None):
        return f"does something else in version {definition.version} than in {old.version}"
    for run in (*_items(name, old), name):
        phase = old.step(run).phase
        if phase not in DONE:
            return "was undone" if phase is Phase.UNDONE else f"is {phase} there"
    return ""


def _facts(plan: Definition, old: SagaState, runs: list[str]) -> "list[StepExpanded | StepCopied]":
    facts: list[StepExpanded | StepCopied] = [
        StepExpanded(step=name, items=items) for name, items in old.items.items() if name in runs
    ]
    for name in runs:
        planned, step = plan.by_name[name], old.step(name)
        called = step.attempt > 0 and (planned.task or isinstance(planned.action, SubSaga))
        span = old.trace.parent(derived_span_id(old.saga_id, name, "action"))
        facts.append(
            StepCopied(
                step=name,
                origin=step.origin or Origin(saga_id=old.saga_id, link=span),
                attempt=step.attempt,
                success=step.success,
                output=step.output,
                undo=step.undo,
                payload=payload_of(planned, old) if called else None,
                by_hand=step.by_hand,
            )
        )
    return facts
