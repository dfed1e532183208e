"""The form of a golden history, version 1: what arrived when, and what followed."""

from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.core.definition import Definition
from orchestrator.core.events import Event
from orchestrator.core.limits import Limits
from orchestrator.core.machine import NO_LIMITS, Decision
from orchestrator.core.messages import (
    Cancel,
    CompensateNow,
    Complete,
    HandOver,
    Heartbeat,
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
from orchestrator.core.state import SagaState
from orchestrator.core.timers import sub_sagas_undoing, wake_at
from shared.messages import Reply

FOLDER = Path(__file__).parent / "v1"
SUMS = FOLDER / "SHA256SUMS"

_KINDS: dict[str, type[Message]] = {
    "start": Start,
    "reply": Reply,
    "tick": Tick,
    "cancel": Cancel,
    "pause": Pause,
    "resume": Resume,
    "retry": RetryNow,
    "skip": Skip,
    "resolve": Resolve,
    "compensate": CompensateNow,
    "complete": Complete,
    "heartbeat": Heartbeat,
    "signal": Signal,
    "undo": Undo,
    "hand_over": HandOver,
}


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """A message, and the decision that it led to.

    Attributes:
        kind: The kind of message, for example ``start`` or ``reply``.
        message: Its fields.
        events: What happened.
        sent: Ids of the commands.
    """

    at: datetime
    kind: str
    message: dict[str, Any]
    events: tuple[Event, ...]
    sent: tuple[str, ...]
    wake_at: datetime | None
    refused: str = ""

    @property
    def arrived(self) -> Message:
        """The message as the machine takes it."""
        return msgspec.convert(self.message, _KINDS[self.kind])


class GoldenHistory(msgspec.Struct, frozen=True, kw_only=True):
    """A saga from its start to where it got.

    Attributes:
        form: Version of this file format.
        about: What the history shows.
        state: The state at the end.
        limits: How much the saga may do.
    """

    form: int
    about: str
    definition: Definition
    arrivals: tuple[Arrival, ...]
    state: SagaState
    limits: Limits = NO_LIMITS


def timer_of(definition: Definition, decision: Decision) -> datetime | None:
    """When a saga wanted to be woken by version 1: it asked no sub-saga again.

    Instead, a sub-saga that was being undone had a time-out.
    """
    state = decision.state
    if decision.wake_at is None or state is None or not state.inquiries:
        return decision.wake_at
    times = [wake_at(definition, msgspec.structs.replace(state, inquiries={}))]
    times += [state.step(name).due_at for name in sub_sagas_undoing(definition, state)]
    return min((at for at in times if at), default=None)


def kind_of(message: Message) -> str:
    """The name of a kind of message in the files."""
    return next(kind for kind, known in _KINDS.items() if isinstance(message, known))
