"""Room within the limits that the sagas of a name share: who takes it, and who waits for it.

How much room there is the core is told (`Limits.room`), and what it decides with it is in
`machine`. Here is what follows from a state alone: which slots a saga holds. So a slot cannot be
forgotten: whatever ends an attempt or a saga, the slots that are written with the new state are
those of the new state.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import msgspec

from orchestrator.core.definition import Definition
from orchestrator.core.events import Event, StepDispatched
from orchestrator.core.state import SagaState, evolve
from orchestrator.core.terms import IN_FLIGHT

SAGA: Final = ""
"""Instead of the name of a step: the saga as a whole."""

Room = Mapping[str, int]


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """Room that a saga takes, or waits for.

    Attributes:
        step: Whose limit it is, by the name in the definition; `SAGA` for that of the saga.
        run: The step: for one with a list, the run for one item. The same name while it waits.
        waiting: It waits, and takes nothing yet.
    """

    step: str
    run: str
    waiting: bool = False


def step_of(run: str) -> str:
    """The step in the definition of a run for one item; other names are what they are."""
    return run.partition("[")[0]


def lacking(definition: Definition, state: SagaState, room: Room, wanted: Event) -> str | None:
    """What has no room for an event that the state asks for: a step, `SAGA`, or nothing: None."""
    if not room or not isinstance(wanted, StepDispatched):
        return None
    begun = _has_run(state) or state.backward
    if room.get(SAGA, 1) < 1 and not (begun or _held_above(state, SAGA)):
        return SAGA
    step = step_of(wanted.step)
    closed = room.get(step, 1) < 1 and not definition.by_name[wanted.step].waits
    return step if closed and not _held_above(state, step) else None


def _held_above(state: SagaState, step: str) -> bool:
    """Whether a saga above it has the same slot, and waits for this one while it does.

    This one takes no other then: it would wait for a saga that waits for it.
    """
    above = state.parent.above if state.parent else ()
    return any(name == state.name and step in {SAGA, at} for name, at in above)


def less(definition: Definition, state: SagaState, room: Room, event: Event) -> Room:
    """The room that an event leaves, of which the state before it is given."""
    if not room or not isinstance(event, StepDispatched):
        return room
    gone = begun_by(definition, state, evolve(state, event), [event])
    return {step: count - gone[step] for step, count in room.items()}


def begun_by(
    definition: Definition, before: SagaState | None, after: SagaState, events: Iterable[Event]
) -> Counter[str]:
    """What has begun with events: attempts of steps, and the saga with the first of them.

    Args:
        definition: What it runs on, with its lists spread out.
        before: Its state before the events.
        after: And after them.
        events: What happened.
    """
    found = Counter(
        step_of(event.step)
        for event in events
        if isinstance(event, StepDispatched)
        and not definition.by_name[event.step].waits
        and not _held_above(after, step_of(event.step))
    )
    has_run = _has_run(after) and not _held_above(after, SAGA)
    if has_run and not (before and _has_run(before)):
        found[SAGA] = 1
    return found


def taken(definition: Definition, state: SagaState, limited: Collection[str]) -> list[Slot]:
    """The slots that a saga holds.

    Args:
        definition: What it runs on, with its lists spread out.
        state: Its state.
        limited: Names of the steps that have a limit, and `SAGA` where it has one itself.
    """
    if state.status.final:
        return []
    found = []
    # One that is undone after its end was let in long ago, and is not let in again.
    own = _has_run(state) and not (state.undo_attempt or _held_above(state, SAGA))
    if SAGA in limited and own:
        found.append(Slot(step=SAGA, run=SAGA))
    for run, step in state.steps.items():
        limits = step.phase in IN_FLIGHT and step_of(run) in limited
        limits = limits and not _held_above(state, step_of(run))
        if limits and not definition.by_name[run].waits:
            found.append(Slot(step=step_of(run), run=run))
    return found


def _has_run(state: SagaState) -> bool:
    """Whether anything has been attempted: a saga that turned back before takes no room.

    What a fork has copied was attempted by another saga.
    """
    return any(step.attempt and not step.origin for step in state.steps.values())
