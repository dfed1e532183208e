"""A stored history through the core of today: would it decide the same?

A history says what was decided, not what arrived; but each decision begins with the fact that the
message brought. So the message is made anew from that fact, the core is asked, and what it says is
compared with what stands in the history. Each decision starts from the recorded facts, so that a
difference does not hide the next one.

Heartbeats leave no event. Where what is recorded follows only if one had put off a time-out, it counts
as having come: the attempt went on although its time was over, or was accepted until a later one.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import reduce
from itertools import product
from typing import Final

import msgspec

from orchestrator.core import timers
from orchestrator.core.arrived import message_in_words, messages_for
from orchestrator.core.definition import Definition
from orchestrator.core.events import (
    CancelRequested,
    CompensationRequested,
    Event,
    HistoryFull,
    Recorded,
    RetryRequested,
    RoomAwaited,
    SagaForked,
    SagaPaused,
    SagaResolved,
    SagaResumed,
    SagaStarted,
    SignalReceived,
    StepAccepted,
    StepFailed,
    StepRejected,
    StepSucceeded,
    StepTimedOut,
    TaskUnknown,
    about,
    tag_of,
)
from orchestrator.core.limits import IN_FLIGHT_MAX_DEFAULT, Limits
from orchestrator.core.machine import decide
from orchestrator.core.plan import plan_of
from orchestrator.core.room import begun_by
from orchestrator.core.state import Beat, SagaState, evolve
from orchestrator.core.terms import IN_FLIGHT
from shared.errors import DecodeError


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """One decision, then and now.

    Attributes:
        sequence: Of the first of its events.
        at: When it was made.
        message: What must have arrived, in words.
        recorded: What happened.
        decided: What the core of today would let happen.
        refused: Why it would refuse the message; empty where it would not.
    """

    sequence: int
    at: datetime
    message: str
    recorded: tuple[Event, ...]
    decided: tuple[Event, ...]
    refused: str = ""

    @property
    def same(self) -> bool:
        """Whether both are equal."""
        return self.recorded == self.decided and not self.refused


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """A whole history.

    Attributes:
        state: What it folds to today; None for an empty one.
        folds: Whether that is the state that was stored with it; None where none was.
    """

    decisions: tuple[Replayed, ...]
    state: SagaState | None
    folds: bool | None

    @property
    def differences(self) -> tuple[Replayed, ...]:
        """The decisions that would be others."""
        return tuple(one for one in self.decisions if not one.same)

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.differences and self.folds is not False


def replay(
    definition: Definition,
    history: Sequence[Recorded],
    stored: SagaState | None = None,
    *,
    in_flight_max: int = IN_FLIGHT_MAX_DEFAULT,
) -> Replay:
    """Fold a history and decide it anew.

    Args:
        definition: What the saga ran on.
        history: All of it, in order.
        stored: The state that was stored with it, to be compared with the fold.
        in_flight_max: The setting for attempts of one saga in flight, which is not in the history.

    Raises:
        DecodeError: It is not a history of this definition: it names a step that there is not, or
            does not begin with the start of a saga.
    """
    _require_fit(definition, history)
    decisions = tuple(_decisions(definition, history, in_flight_max))
    state: SagaState | None = reduce(evolve, (one.event for one in history), None)
    folded = state
    if state and stored:
        # Signs of life, and questions to sub-sagas, change a state without an event.
        beside = {"beats": stored.beats, "inquiries": stored.inquiries}
        folded = msgspec.structs.replace(state, **beside)
    return Replay(
        decisions=decisions, state=state, folds=None if stored is None else folded == stored
    )


def _require_fit(definition: Definition, history: Sequence[Recorded]) -> None:
    if not history or not isinstance(history[0].event, SagaStarted):
        raise DecodeError("The history does not begin with the start of a saga.")
    for recorded in history:
        step = getattr(recorded.event, "step", "")
        # The run of a step for one item is named like pack[0].
        if step and step.partition("[")[0] not in definition.by_name:
            raise DecodeError(
                f"Event {recorded.sequence} is about the step {step!r}, which "
                f"{definition.name!r} version {definition.version} does not have.",
                hint="The history belongs to another definition.",
            )


def _decisions(
    definition: Definition, history: Sequence[Recorded], in_flight_max: int
) -> Iterator[Replayed]:
    state: SagaState | None = None
    position = 0
    while position < len(history):
        rest = history[position:]
        made = _decision(definition, state, rest, in_flight_max)
        yield made
        state = reduce(evolve, made.recorded, state)
        position += len(made.recorded)


def _decision(
    definition: Definition,
    state: SagaState | None,
    rest: Sequence[Recorded],
    in_flight_max: int,
) -> Replayed:
    """The next decision of a history, by the message that fits it best."""
    first, at = rest[0], rest[0].at
    tries = []
    # The limit of that time is known only where it was reached.
    reached = (one.event.events_max for one in rest if isinstance(one.event, HistoryFull))
    events_max = next(reached, UNLIMITED)
    messages = messages_for([one.event for one in rest if one.at == at], state)
    rooms = _rooms(definition, state, rest)
    for known, message, room in product(_alive(definition, state, rest), messages, rooms):
        limits = Limits(events_max=events_max, in_flight_max=in_flight_max, room=room)
        decision = decide(
            definition, known, message, at, limits=limits, history=first.sequence - 1
        )
        recorded = tuple(one.event for one in rest[: len(decision.events)])
        made = Replayed(
            sequence=first.sequence,
            at=at,
            message=message_in_words(message),
            recorded=recorded,
            decided=decision.events,
            refused=decision.refused,
        )
        if decision.events and made.same:
            return made
        tries.append(made)
    closest = max(tries, key=_agreement)
    # One message leads to one decision, at one time; where another one follows cannot be known.
    together = tuple(one.event for one in rest if one.at == at)
    return msgspec.structs.replace(closest, recorded=_up_to_the_next(definition, together))


def _alive(
    definition: Definition, state: SagaState | None, rest: Sequence[Recorded]
) -> Iterator[SagaState | None]:
    """The state; and as signs of life may have left it that put off what was not recorded to be over."""
    yield state
    if state is None:
        return
    at = rest[0].at
    events = [one.event for one in rest if one.at == at]
    over = {one.step for one in events if isinstance(one, StepTimedOut)}
    accepted = {one.step: one.due_at for one in events if isinstance(one, StepAccepted)}
    beats: dict[str, Beat] = {}
    for planned in plan_of(definition, state).steps:
        name, due_at = planned.name, timers.due_at(state, planned.name)
        if not planned.task or due_at is None or state.step(name).phase not in IN_FLIGHT:
            continue
        until = accepted.get(name) if planned.completes_within is None else None
        if until is None and due_at <= at and name not in over:
            until = at + planned.timeout
        # The sign of life came while it was in flight, and by now.
        if until is not None and due_at < until <= at + planned.timeout:
            beats[name] = Beat(at=until - planned.timeout, due_at=until)
    if beats:
        yield msgspec.structs.replace(state, beats={**state.beats, **beats})


def _rooms(
    definition: Definition, state: SagaState | None, rest: Sequence[Recorded]
) -> Iterator[dict[str, int]]:
    """The room that there may have been when a decision was made, for whatever waited then.

    What others took is not in the history; but what waited had just as much as it was given.
    """
    waited = {*(state.awaited if state else ())}
    used_up: set[str] = set()
    room: Counter[str] = Counter()
    after = state
    for recorded in rest:
        if recorded.at != rest[0].at:
            break
        event, before = recorded.event, after
        after = evolve(before, event)
        if isinstance(event, RoomAwaited):
            waited.add(event.step)
            used_up.add(event.step)  # what begins after that was decided later
        begun = begun_by(plan_of(definition, after), before, after, [event])
        room.update({step: count for step, count in begun.items() if step not in used_up})
    yield {step: room[step] for step in waited}
    if waited:
        yield dict.fromkeys(waited, 0)


UNLIMITED: Final = 10**9
"""Events of a saga that never reached its limit."""


def _agreement(made: Replayed) -> int:
    pairs = zip(made.recorded, made.decided, strict=False)
    return sum(recorded == decided for recorded, decided in pairs)


def _up_to_the_next(definition: Definition, events: tuple[Event, ...]) -> tuple[Event, ...]:
    for number, event in enumerate(events[1:], 1):
        if isinstance(event, _BROUGHT) or _replied(definition, event):
            return events[:number]
    return events


def _replied(definition: Definition, event: Event) -> bool:
    """Whether a participant must have said so: waits end by themselves."""
    if not isinstance(event, StepSucceeded | StepFailed | StepRejected | TaskUnknown):
        return False
    planned = definition.by_name.get(event.step)
    by_itself = isinstance(event, StepRejected) and event.failure.kind.endswith(_UNRESOLVED)
    return not (by_itself or (planned is not None and planned.waits))


_BROUGHT = (
    SagaStarted,
    StepAccepted,
    SignalReceived,
    CancelRequested,
    SagaPaused,
    SagaResumed,
    RetryRequested,
    CompensationRequested,
    SagaResolved,
    SagaForked,
)
"""Events that nothing but a message brings."""

_UNRESOLVED: Final = "Unresolved"
"""Ends the kind of a rejection that the core itself has made (`orchestrator.core.payload`)."""


def event_in_words(event: Event) -> str:
    """An event with its subject, and with what it says where another one says otherwise."""
    subject = about(event)
    if subject is None:
        return tag_of(event)
    step, direction, attempt = subject
    number = "" if attempt is None else f" {attempt}"
    return f"{tag_of(event)} {step} ({direction}{number})"
