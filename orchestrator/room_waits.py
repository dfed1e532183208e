"""How long a saga waited for room within the limits that sagas share, read from its history."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final, Literal

import msgspec

from orchestrator.core.events import Event, Recorded, RoomAwaited, StepDispatched
from orchestrator.core.room import SAGA, step_of
from orchestrator.core.state import SagaState, evolve
from shared.ids import Direction

Outcome = Literal["succeeded", "cancelled", "abandoned"]

GOT_ROOM: Final = "succeeded"
NOT_NEEDED: Final = "cancelled"
STILL_WAITS: Final = "abandoned"


class RoomWait(msgspec.Struct, frozen=True, kw_only=True):
    """One wait, from the turn that had no room to what ended it.

    Attributes:
        step: Whose limit it is, by the name in the definition; empty for that of the saga.
        begun: Sequence of the event with which it began.
        sequence: Of the event that ended it; of the first one while it waits.
        ended_at: None while it waits.
        outcome: ``succeeded`` when there was room, ``cancelled`` when none was needed any more,
            ``abandoned`` while it waits.
    """

    step: str
    direction: Direction
    begun: int
    sequence: int
    began_at: datetime
    ended_at: datetime | None = None
    outcome: Outcome = STILL_WAITS


def room_waits(history: Sequence[Recorded]) -> Iterator[RoomWait]:
    """Every wait for room of a saga, in the order in which they ended.

    When one is over is for the state to say (`SagaState.awaited`): an attempt, a turn back, the
    word of an operator. So the history is folded; that of a saga that never waited is not.
    """
    if not any(isinstance(one.event, RoomAwaited) for one in history):
        return
    state: SagaState | None = None
    waiting: dict[str, RoomWait] = {}
    for recorded in history:
        event = recorded.event
        state = evolve(state, event)
        if isinstance(event, RoomAwaited):
            waiting[event.step] = RoomWait(
                step=event.step,
                direction=event.direction,
                begun=recorded.sequence,
                sequence=recorded.sequence,
                began_at=recorded.at,
            )
        awaited = () if state.status.final else state.awaited
        for step in [one for one in waiting if one not in awaited]:
            yield msgspec.structs.replace(
                waiting.pop(step),
                sequence=recorded.sequence,
                ended_at=recorded.at,
                outcome=GOT_ROOM if _began(step, event) else NOT_NEEDED,
            )
    yield from waiting.values()


def _began(step: str, event: Event) -> bool:
    """Whether what waited has begun with an event."""
    return isinstance(event, StepDispatched) and step in {SAGA, step_of(event.step)}
