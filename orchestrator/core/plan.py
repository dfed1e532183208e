"""The steps that a saga really has: one with `each` becomes one for each item and one that gathers.

    pack          each=Input("boxes"), three of them
    ─► pack[0], pack[1], pack[2]      what `pack` was, each with its item
       pack                           gathers: after them, its output is the list of theirs

So no rule has to know of lists: a failure of one item is a failure of one of several parallel
steps, and what comes after `pack` comes after all of them.
"""

import msgspec

from orchestrator.core.definition import (
    NOTHING_TO_UNDO,
    Definition,
    Gather,
    PlannedStep,
    WaitFor,
)
from orchestrator.core.references import Element, Item, Reference
from orchestrator.core.state import SagaState

_replace = msgspec.structs.replace


def plan_of(definition: Definition, state: SagaState | None) -> Definition:
    """The definition with every list whose length is known spread out."""
    if state is None or not state.items:
        return definition
    counts = tuple(sorted(state.items.items()))
    known: Definition | None = definition.plans.get(counts)
    if known is None:
        known = _spread(definition, dict(counts))
        definition.plans[counts] = known
    return known


def item_name(step: str, index: int) -> str:
    """Name of the run of a step for one item, from 0."""
    return f"{step}[{index}]"


def _spread(definition: Definition, counts: dict[str, int]) -> Definition:
    steps: list[PlannedStep] = []
    for planned in definition.steps:
        count = counts.get(planned.name)
        if count is None:
            steps.append(planned)
            continue
        runs = [_run(planned, index) for index in range(count)]
        names = tuple(run.name for run in runs)
        gather = _replace(
            planned,
            action=Gather(names),
            compensation=NOTHING_TO_UNDO,
            after=names or planned.after,
            payload=None,
            each=None,
            when=None,
            output_schema=None,
        )
        steps += [*runs, gather]
    return _replace(definition, steps=tuple(steps))


def _run(planned: PlannedStep, index: int) -> PlannedStep:
    action = planned.action
    if isinstance(action, WaitFor):
        action = _replace(action, signal=item_name(action.signal, index))
    payload = None
    if planned.payload is not None:
        payload = {name: _bound(planned, index, one) for name, one in planned.payload.items()}
    return _replace(
        planned,
        name=item_name(planned.name, index),
        action=action,
        payload=payload,
        each=None,
        when=None,
        group=planned.name,
    )


def _bound(planned: PlannedStep, index: int, reference: Reference) -> Reference:
    if isinstance(reference, Item) and planned.each is not None:
        return Element(planned.each, index, reference.path)
    return reference
