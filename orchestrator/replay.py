"""A stored history through the core of today: would it decide the same?

A history says what was decided, not what arrived; but each decision begins with the fact that the
message brought. So the message is made anew from that fact, the core is asked, and what it says is
compared with what stands in the history. Each decision starts from the recorded facts, so that a
difference does not hide the next one.

Heartbeats leave no event: a time-out that a heartbeat had put off shows as a difference, also that
of an attempt that was accepted after it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import reduce
from itertools import product
from typing import Final, assert_never

import msgspec

from orchestrator.core.definition import Definition
from orchestrator.core.events import (
    CancelRequested,
    CompensationRequested,
    CompensationStarted,
    DeadlineExceeded,
    Event,
    HistoryFull,
    Recorded,
    RetryRequested,
    RoomAwaited,
    SagaCompensated,
    SagaCompleted,
    SagaForked,
    SagaPaused,
    SagaResolved,
    SagaResumed,
    SagaStarted,
    SagaStuck,
    SignalReceived,
    StepAccepted,
    StepCopied,
    StepDispatched,
    StepExpanded,
    StepFailed,
    StepRecalled,
    StepRejected,
    StepSkipped,
    StepSucceeded,
    StepTimedOut,
    SubSagaBegan,
    TaskUnknown,
    UndoRefused,
    UndoRequested,
    about,
    tag_of,
)
from orchestrator.core.limits import IN_FLIGHT_MAX_DEFAULT, Limits
from orchestrator.core.machine import decide
from orchestrator.core.messages import (
    Cancel,
    CompensateNow,
    HandOver,
    Message,
    Pause,
    Resolve,
    Resume,
    RetryNow,
    Signal,
    Skip,
    Start,
    Tick,
    Undo,
)
from orchestrator.core.plan import plan_of
from orchestrator.core.room import begun_by
from orchestrator.core.state import SagaState, evolve
from shared.errors import DecodeError
from shared.ids import Direction
from shared.messages import Accepted, Execution, Failed, Outcome, Rejected, Reply, Succeeded


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
    messages = _messages([one.event for one in rest if one.at == at], state)
    for message, room in product(messages, _rooms(definition, state, rest)):
        limits = Limits(events_max=events_max, in_flight_max=in_flight_max, room=room)
        decision = decide(
            definition, state, message, at, limits=limits, history=first.sequence - 1
        )
        recorded = tuple(one.event for one in rest[: len(decision.events)])
        made = Replayed(
            sequence=first.sequence,
            at=at,
            message=_in_words(message),
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


def _messages(  # noqa: C901, PLR0912 - one case for each event
    events: Sequence[Event], state: SagaState | None
) -> tuple[Message, ...]:
    """What may have arrived when these were the first that followed; the likeliest first."""
    event = events[0]
    match event:
        case SagaStarted():
            start = Start(
                saga_id=event.saga_id,
                input=event.input,
                trace=event.trace,
                key=event.key,
                secret=event.secret,
                not_before=event.not_before,
                parent=event.parent,
                fork=event.fork,
                copied=_copied(events[1:]) if event.fork else (),
            )
            undone = events[1] if len(events) > 1 else event
            paused = next((one for one in events if isinstance(one, SagaPaused)), None)
            if paused is not None:
                pause = Pause(reason=paused.reason, by=paused.by)
                return (msgspec.structs.replace(start, pause=pause), start)
            if not isinstance(undone, UndoRequested):
                return (start,)
            undo = Undo(attempt=undone.attempt, reason=undone.reason, parent=undone.parent)
            return (start, msgspec.structs.replace(start, undo=undo))
        case UndoRequested():
            return (Undo(attempt=event.attempt, reason=event.reason, parent=event.parent),)
        case UndoRefused():
            return (Undo(attempt=event.attempt, parent=event.parent),)
        case SagaForked(to=to, step=step, steps=steps, reason=reason, by=by):
            return (HandOver(to=to, step=step, steps=steps, reason=reason, by=by),)
        case StepSucceeded(direction=direction):
            outcome: Outcome = Succeeded(output=event.output, undo=event.undo)
            reply = _reply(state, event.step, direction, event.attempt, outcome, event.execution)
            return (reply, Tick())
        case StepRejected() | TaskUnknown():
            outcome = Rejected(failure=event.failure)
            reply = _reply(state, event.step, "action", event.attempt, outcome, event.execution)
            return (reply, Tick())
        case StepFailed(direction=direction):
            outcome = Failed(failure=event.failure, undo=event.undo)
            reply = _reply(state, event.step, direction, event.attempt, outcome, event.execution)
            return (reply, Tick())
        case StepAccepted(direction=direction):
            reply = _reply(
                state, event.step, direction, event.attempt, Accepted(), event.execution
            )
            return (reply,)
        case SubSagaBegan():
            return (_reply(state, event.step, "action", event.attempt, Accepted(), None),)
        case SignalReceived():
            return (Signal(name=event.name, data=event.data, by=event.by),)
        case CancelRequested():
            return (Cancel(reason=event.reason, by=event.by),)
        case SagaPaused():
            return (Pause(reason=event.reason, by=event.by),)
        case SagaResumed():
            return (Resume(reason=event.reason, by=event.by),)
        case RetryRequested(step=step, payload=payload, reason=reason, by=by):
            one = RetryNow(step=step, payload=payload, reason=reason, by=by)
            return (one, RetryNow(reason=reason, by=by))
        case StepSkipped():
            skip = Skip(step=event.step, output=event.output, reason=event.reason, by=event.by)
            return (skip, Tick())
        case CompensationRequested():
            return (CompensateNow(reason=event.reason, by=event.by),)
        case SagaResolved():
            return (Resolve(reason=event.reason, by=event.by),)
        case (
            StepTimedOut()
            | StepCopied()
            | DeadlineExceeded()
            | StepDispatched()
            | StepExpanded()
            | StepRecalled()
            | HistoryFull()
            | RoomAwaited()
            | CompensationStarted()
            | SagaStuck()
            | SagaCompleted()
            | SagaCompensated()
        ):
            return (Tick(),)
        case _:
            assert_never(event)


def _copied(events: Sequence[Event]) -> tuple[StepExpanded | StepCopied, ...]:
    """What a fork began with: a list that it has spread out itself comes after all copies."""
    copied: list[StepExpanded | StepCopied] = []
    for event in events:
        if not isinstance(event, StepExpanded | StepCopied):
            break
        copied.append(event)
    while copied and isinstance(copied[-1], StepExpanded):
        copied.pop()
    return tuple(copied)


def _reply(
    state: SagaState | None,
    step: str,
    direction: Direction,
    attempt: int,
    outcome: Outcome,
    execution: Execution | None,
) -> Reply:
    return Reply(
        saga_id=state.saga_id if state else "",
        step=step,
        direction=direction,
        attempt=attempt,
        outcome=outcome,
        execution=execution,
    )


def _in_words(message: Message) -> str:
    kind = str(type(message).__name__).lower()
    match message:
        case Reply(step=step, direction=direction, attempt=attempt, outcome=outcome):
            said = type(outcome).__name__.lower()
            return f"reply of {step} ({direction} {attempt}): {said}"
        case Tick():
            return "timer"
        case Signal(name=name):
            return f"signal {name}"
        case RetryNow(step=step):
            return f"retry {step or 'every step'}"
        case Skip(step=step):
            return f"skip {step}"
        case _:
            return kind


def event_in_words(event: Event) -> str:
    """An event with its subject, and with what it says where another one says otherwise."""
    subject = about(event)
    if subject is None:
        return tag_of(event)
    step, direction, attempt = subject
    number = "" if attempt is None else f" {attempt}"
    return f"{tag_of(event)} {step} ({direction}{number})"
