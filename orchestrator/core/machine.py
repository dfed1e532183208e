"""What a saga does next. What follows from what is decided in this file, and nowhere else.

    decide(definition, state, message, now) -> Decision(events, commands, ...)

A decision has two halves. `react` turns the message into facts; `_next` looks at the state alone
and names the one event that it asks for, again and again until it asks for nothing. So a rule
about *what follows* is written once, whatever message made it true:

    forward                 a step whose predecessors succeeded is dispatched, a due retry too
    a cause has come up     the steps in flight end, nothing new begins, then compensation starts
    backward                a step is undone once everything after it is cleared
    the end                 all succeeded: completed; all cleared: compensated
    paused                  facts are taken, and nothing follows from them until it is resumed

Three rules decide the hard cases (DESIGN.md, section 4):

* A success counts from whichever attempt it comes: its effect is real. A failure or a rejection
  counts for the current attempt only.
* "Unknown" (failed, timed out) is undone like a success. A rejection after an attempt of unknown
  outcome is unknown too, since "nothing happened" was said of the last attempt only.
* Past the pivot there is no way back. A pivot that cannot be undone and whose outcome is unknown
  counts as passed: it is tried again, and is stuck when it gives up.
"""

from datetime import datetime
from typing import Final

import msgspec

from orchestrator.core import payload, sub_sagas, waits
from orchestrator.core.commands import commands_of
from orchestrator.core.definition import Definition, PlannedStep, SubSaga
from orchestrator.core.eventing import publications
from orchestrator.core.events import (
    CompensationStarted,
    Event,
    HistoryFull,
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
from orchestrator.core.state import Phase, SagaState, evolve
from orchestrator.core.terms import (
    IN_FLIGHT,
    attempts,
    cleared,
    gave_up,
    is_done,
    may_stand,
    turning_back,
)
from orchestrator.core.timers import wake_at
from shared.ids import Direction
from shared.messages import Command, Failure

NO_LIMITS: Final = Limits()

__all__ = ["Cancel", "Decision", "Message", "Start", "Tick", "decide"]


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What follows from a message.

    Attributes:
        state: The state after the events; None only for a message to a saga that does not exist.
        events: Facts to store; empty means a stale or duplicate message, which is normal.
        commands: What to send once the events are stored.
        wake_at: When the saga wants a `Tick`, if it does.
        beat: A heartbeat counted: the state and `wake_at` are new, without an event.
        refused: Why the message cannot be acted on; empty for all but operator mistakes and
            replies that this saga never asked for.
    """

    state: SagaState | None
    events: tuple[Event, ...] = ()
    commands: tuple[Command, ...] = ()
    wake_at: datetime | None = None
    beat: bool = False
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
        return Decision(state=after, beat=after is not state, wake_at=wake_at(definition, after))
    if state is None or not (events or isinstance(message, Tick)):
        return Decision(state=state)
    crowded = False
    while (wanted := _next(plan := plan_of(definition, state), state, now)) is not None:
        if isinstance(wanted, StepDispatched):
            if history + len(events) >= limits.events_max:
                wanted = HistoryFull(events_max=limits.events_max)
            elif crowded := _crowded(plan, state, limits):
                break
        state = evolve(state, wanted)
        events.append(wanted)
        commands += commands_of(plan, state, wanted, now)
    commands += publications(definition, state, events, now)
    return Decision(
        state=state,
        events=tuple(events),
        commands=tuple(commands),
        wake_at=wake_at(definition, state, crowded=crowded),
    )


def _crowded(plan: Definition, state: SagaState, limits: Limits) -> bool:
    """Whether no other attempt may be in flight now."""
    if len(plan.steps) <= limits.in_flight_max:
        return False
    flying = sum(step.phase in IN_FLIGHT for step in state.steps.values())
    return flying >= limits.in_flight_max


def _next(definition: Definition, state: SagaState, now: datetime) -> Event | None:
    """The one event that the state asks for; None when there is nothing to do but wait."""
    if state.status.final:
        return None
    if state.backward or state.cause:
        for planned in definition.steps:
            if gave_up(definition, state, planned) and not state.step(planned.name).stuck:
                direction: Direction = "compensation" if state.backward else "action"
                return SagaStuck(step=planned.name, direction=direction)
    turning = turning_back(definition, state)
    for planned in definition.without_task:
        if (over := waits.ended(planned, state, now, turning=turning)) is not None:
            return over
        held = state.paused or state.full
        called_back = turning and not held and isinstance(planned.action, SubSaga)
        step = state.step(planned.name)
        if called_back and step.phase is Phase.RUNNING and not step.recalled:
            return sub_sagas.recalled(planned.name, step, "the saga it belongs to turned back")
    if state.paused or state.full:
        return None
    if state.backward:
        return _next_backward(definition, state, now)
    if turning:
        in_flight = any(step.phase is Phase.RUNNING for step in state.steps.values())
        return None if in_flight else CompensationStarted()
    return _next_forward(definition, state, now)


def _next_forward(definition: Definition, state: SagaState, now: datetime) -> Event | None:
    if state.not_before and now < state.not_before:
        return None
    done = True
    for planned in definition.steps:
        step = state.step(planned.name)
        if step.phase is Phase.SUCCEEDED:
            continue
        done = done and step.phase is Phase.SKIPPED
        due = step.phase is Phase.RETRYING and step.due_at is not None and step.due_at <= now
        ready = step.phase is Phase.PENDING and all(
            is_done(definition, state, name) for name in planned.after
        )
        if (due or ready) and _has_room(planned, definition, state):
            return (
                _dispatched(planned, state, "action", now) if due else _begun(planned, state, now)
            )
    return SagaCompleted() if done else None


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


def _next_backward(definition: Definition, state: SagaState, now: datetime) -> Event | None:
    clear = cleared(definition, state)
    for planned in definition.steps:
        step = state.step(planned.name)
        undoable = planned.undo_task is not None and may_stand(step)
        if undoable and all(name in clear for name in definition.successors[planned.name]):
            return _dispatched(planned, state, "compensation", now)
        if step.phase is Phase.UNDO_RETRYING and step.due_at and step.due_at <= now:
            return _dispatched(planned, state, "compensation", now)
    return SagaCompensated() if len(clear) == len(definition.steps) else None


def _dispatched(
    planned: PlannedStep, state: SagaState, direction: Direction, now: datetime
) -> StepDispatched:
    return StepDispatched(
        step=planned.name,
        direction=direction,
        attempt=attempts(state.step(planned.name), direction) + 1,
        due_at=waits.due_at(planned, state, now),
    )
