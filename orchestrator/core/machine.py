"""What a saga does next. What follows from what is decided in this file, and nowhere else.

    decide(definition, state, message, now) -> Decision(events, commands, ...)

A decision has two halves. `react` turns the message into facts; `_next` looks at the state alone
and names the one event that it asks for, again and again until it asks for nothing. So a rule
about *what follows* is written once, whatever message made it true:

    forward                 a step whose predecessors succeeded is dispatched, a due retry too
    a cause has come up     the steps in flight end, nothing new begins, then compensation starts
    backward                a step is undone once everything after it is cleared
    nobody knows the task   an operator decides; steps that do not need that one go on
    the end                 all succeeded: completed; all cleared: compensated
    paused                  facts are taken, and nothing follows from them until it is resumed
    no room                 a limit that sagas share is reached: what would begin waits for it

Three rules decide the hard cases:

* A success counts from whichever attempt it comes: its effect is real. A failure or a rejection
  counts for the current attempt only.
* "Unknown" (failed, timed out) is undone like a success. A rejection after an attempt of unknown
  outcome is unknown too, since "nothing happened" was said of the last attempt only.
* Past the pivot there is no way back. A pivot that cannot be undone and whose outcome is unknown
  counts as passed: it is tried again, and is stuck when it gives up.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Final

import msgspec

from orchestrator.core import payload, sub_sagas, waits
from orchestrator.core.between import TURNED_BACK
from orchestrator.core.commands import commands_of
from orchestrator.core.definition import Definition, PlannedStep, SubSaga
from orchestrator.core.eventing import publications
from orchestrator.core.events import (
    CompensationStarted,
    Event,
    HistoryFull,
    RoomAwaited,
    SagaCompensated,
    SagaCompleted,
    SagaStuck,
    StepDispatched,
    StepExpanded,
    StepRejected,
    StepSkipped,
)
from orchestrator.core.limits import Limits
from orchestrator.core.messages import Cancel, Heartbeat, Message, Start, Tick
from orchestrator.core.plan import plan_of
from orchestrator.core.reactions import alive, react
from orchestrator.core.refusals import why_not
from orchestrator.core.room import Room, lacking, less
from orchestrator.core.state import Phase, SagaState, evolve
from orchestrator.core.terms import (
    DONE,
    IN_FLIGHT,
    attempts,
    cleared,
    gave_up,
    is_done,
    may_be_stuck,
    may_stand,
    turning_back,
)
from orchestrator.core.timers import wake_at
from shared.ids import Direction
from shared.messages import Command, Failure

NO_LIMITS: Final = Limits()
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})

__all__ = ["Cancel", "Decision", "Message", "Start", "Tick", "decide"]


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What follows from a message.

    Attributes:
        state: The state after the events; None only for a message to a saga that does not exist.
        events: Facts to store; empty means a stale or duplicate message, which is normal.
        commands: What to send once the events are stored.
        wake_at: When the saga wants a `Tick`, if it does.
        beat: The state and `wake_at` are new, without an event: a heartbeat counted, or a
            sub-saga is asked again.
        awaiting: Steps whose turn has come, and what they wait for room in: the step's name in the
            definition, or the empty name for the saga.
        refused: Why the message cannot be acted on; empty for all but operator mistakes and
            replies that this saga never asked for.
    """

    state: SagaState | None
    events: tuple[Event, ...] = ()
    commands: tuple[Command, ...] = ()
    wake_at: datetime | None = None
    beat: bool = False
    awaiting: Mapping[str, str] = _NOTHING
    refused: str = ""


def decide(
    definition: Definition,
    state: SagaState | None,
    message: Message,
    now: datetime,
    *,
    limits: Limits = NO_LIMITS,
    history: int = 0,
) -> Decision:
    """Decide what follows from a message.

    Args:
        definition: The definition that the saga started with.
        state: Its state; None before it started.
        message: What arrived.
        now: The time of the decision, aware.
        limits: How much the saga may do.
        history: Number of events in its history.

    Returns:
        The decision. The same arguments always give the same one.
    """
    refused = why_not(definition, state, message)
    if refused:
        return Decision(state=state, refused=refused)
    events: list[Event] = []
    commands: list[Command] = []
    plan = plan_of(definition, state)
    for event in react(plan, state, message, now):
        state = evolve(state, event)
        events.append(event)
        commands += commands_of(plan, state, event, now)
    if isinstance(message, Heartbeat) and state is not None:
        after = alive(plan, state, message, now)
        awaiting = _awaiting(plan, after, limits.room, now) if limits.room else _NOTHING
        return Decision(
            state=after,
            beat=after is not state,
            wake_at=wake_at(definition, after, awaiting=awaiting),
            awaiting=awaiting,
        )
    if state is None or not (events or isinstance(message, Tick)):
        return Decision(state=state)
    crowded, room = False, limits.room
    while (wanted := _next(plan := plan_of(definition, state), state, now, room)) is not None:
        if isinstance(wanted, StepDispatched):
            if history + len(events) >= limits.events_max:
                wanted = HistoryFull(events_max=limits.events_max)
            elif crowded := _crowded(plan, state, limits):
                break
        if room:
            room = less(plan, state, room, wanted)
        state = evolve(state, wanted)
        events.append(wanted)
        commands += commands_of(plan, state, wanted, now)
    awaiting = _awaiting(plan, state, room, now) if room and not crowded else _NOTHING
    commands += publications(definition, state, events, now)
    known = state
    state, again = sub_sagas.ask(plan, state, now)
    commands += again
    return Decision(
        state=state,
        beat=not events and state is not known,
        events=tuple(events),
        commands=tuple(commands),
        wake_at=wake_at(definition, state, crowded=crowded, awaiting=awaiting),
        awaiting=awaiting,
    )


def _crowded(plan: Definition, state: SagaState, limits: Limits) -> bool:
    """Whether no other attempt may be in flight now."""
    if len(plan.steps) <= limits.in_flight_max:
        return False
    flying = sum(step.phase in IN_FLIGHT for step in state.steps.values())
    return flying >= limits.in_flight_max


def _next(definition: Definition, state: SagaState, now: datetime, room: Room) -> Event | None:
    """The one event that the state asks for; None when there is nothing to do but wait."""
    for wanted in _wanted(definition, state, now):
        closed = lacking(definition, state, room, wanted) if room else None
        if closed is None:
            return wanted
        if closed not in state.awaited and isinstance(wanted, StepDispatched):
            return RoomAwaited(step=closed, direction=wanted.direction)
    return None


def _awaiting(
    definition: Definition, state: SagaState, room: Room, now: datetime
) -> Mapping[str, str]:
    """What waits for room, and in what, once all else has been done."""
    return {
        wanted.step: closed
        for wanted in _wanted(definition, state, now)
        if isinstance(wanted, StepDispatched)
        and (closed := lacking(definition, state, room, wanted)) is not None
    }


def _wanted(definition: Definition, state: SagaState, now: datetime) -> Iterator[Event]:
    """The event that the state asks for; where that is an attempt that has no room, the next one."""
    if state.status.final:
        return
    if may_be_stuck(state):
        for planned in definition.steps:
            if gave_up(definition, state, planned) and not state.step(planned.name).stuck:
                direction: Direction = "compensation" if state.backward else "action"
                yield SagaStuck(step=planned.name, direction=direction)
    turning = turning_back(definition, state)
    for planned in definition.without_task:
        if (over := waits.ended(planned, state, now, turning=turning)) is not None:
            yield over
        held = state.paused or state.full
        called_back = turning and not held and isinstance(planned.action, SubSaga)
        step = state.step(planned.name)
        if called_back and step.phase is Phase.RUNNING and not step.recalled:
            yield sub_sagas.recalled(planned.name, step, TURNED_BACK)
    if state.paused or state.full:
        return
    if state.backward:
        yield from _wanted_backward(definition, state, now)
    elif turning:
        if not any(step.phase is Phase.RUNNING for step in state.steps.values()):
            yield CompensationStarted()
    else:
        yield from _wanted_forward(definition, state, now)


def _wanted_forward(definition: Definition, state: SagaState, now: datetime) -> Iterator[Event]:
    if state.not_before and now < state.not_before:
        return
    done = True
    for planned in definition.steps:
        step = state.step(planned.name)
        if step.phase in DONE:
            continue
        done = False
        match step.phase:
            case Phase.PENDING:
                ready = all(is_done(definition, state, name) for name in planned.after)
                if ready and _has_room(planned, definition, state):
                    yield _begun(planned, state, now)
            case Phase.RETRYING:
                due = step.due_at is not None and step.due_at <= now
                if due and _has_room(planned, definition, state):
                    # One that an operator tries again may have been refused before it began.
                    yield (
                        _dispatched(planned, state, "action", now)
                        if step.attempt
                        else _begun(planned, state, now)
                    )
            case _:
                pass
    if done:
        yield SagaCompleted()


def _begun(planned: PlannedStep, state: SagaState, now: datetime) -> Event:
    """What becomes of a step whose turn it is."""
    match payload.skipped(planned, state):
        case Failure() as problem:
            return StepRejected(step=planned.name, attempt=1, failure=problem)
        case True:
            return StepSkipped(step=planned.name, condition=True)
        case _:
            pass
    match payload.items_of(planned, state):
        case Failure() as problem:
            return StepRejected(step=planned.name, attempt=1, failure=problem)
        case int(items):
            return StepExpanded(step=planned.name, items=items)
        case _:
            pass
    if unresolved := payload.payload_problem(planned, state):
        return StepRejected(step=planned.name, attempt=1, failure=unresolved)
    return _dispatched(planned, state, "action", now)


def _has_room(planned: PlannedStep, definition: Definition, state: SagaState) -> bool:
    """Whether one more item of a list may be in flight."""
    if not planned.group or planned.items_at_once is None:
        return True
    flying = sum(
        other.group == planned.group and state.step(other.name).phase in IN_FLIGHT
        for other in definition.steps
    )
    return flying < planned.items_at_once


def _wanted_backward(definition: Definition, state: SagaState, now: datetime) -> Iterator[Event]:
    clear = cleared(definition, state)
    for planned in definition.steps:
        step = state.step(planned.name)
        undoable = planned.undo_task is not None and may_stand(step)
        if undoable and all(name in clear for name in definition.successors[planned.name]):
            yield _dispatched(planned, state, "compensation", now)
        if step.phase is Phase.UNDO_RETRYING and step.due_at and step.due_at <= now:
            yield _dispatched(planned, state, "compensation", now)
    if len(clear) == len(definition.steps):
        yield SagaCompensated()


def _dispatched(
    planned: PlannedStep, state: SagaState, direction: Direction, now: datetime
) -> StepDispatched:
    return StepDispatched(
        step=planned.name,
        direction=direction,
        attempt=attempts(state.step(planned.name), direction) + 1,
        due_at=waits.due_at(planned, state, now),
    )
