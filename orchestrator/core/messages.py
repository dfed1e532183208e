"""What arrives at a saga: from a client, a participant, a timer or an operator."""

from datetime import datetime
from typing import Any

import msgspec

from orchestrator.core.events import ForkedFrom, StepCopied, StepExpanded, Trace
from shared.ids import Direction
from shared.messages import Parent, Reply


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Begin a saga; the input has been checked.

    Attributes:
        undo: Its parent wants it undone before it has begun: it never does anything.
        pause: All sagas of its name are paused: it begins nothing until it is resumed.
        fork: What it is forked from, if it is.
        copied: What had been done there and counts as done.
    """

    saga_id: str
    input: dict[str, Any]
    trace: Trace
    key: str | None = None
    secret: str = ""
    not_before: datetime | None = None
    parent: Parent | None = None
    undo: "Undo | None" = None
    pause: "Pause | None" = None
    fork: ForkedFrom | None = None
    copied: tuple[StepExpanded | StepCopied, ...] = ()


class Undo(msgspec.Struct, frozen=True, kw_only=True):
    """The parent wants this saga undone; with attempt 0 it still waits for how this saga ends.

    Attributes:
        parent: Who is answered; a fork of the parent asks with another one than it started with.
    """

    attempt: int = 0
    reason: str = ""
    parent: Parent | None = None


class HandOver(msgspec.Struct, frozen=True, kw_only=True):
    """Another saga is forked from this one, and takes the effects of some steps over.

    Attributes:
        to: The other saga.
        step: From this step on it does everything anew.
        steps: Whose effects are its own from here on.
    """

    to: str
    step: str
    steps: tuple[str, ...] = ()
    reason: str = ""
    by: str = ""


class Tick(msgspec.Struct, frozen=True):
    """A timer of the saga is due."""


class Cancel(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants the saga undone."""

    reason: str = ""
    by: str = ""


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """Something that steps may wait for has happened; the first of a name counts."""

    name: str
    data: Any = None
    by: str = ""


class Complete(msgspec.Struct, frozen=True, kw_only=True):
    """The end of an attempt that was accepted, told from elsewhere.

    Attributes:
        proof: What only a holder of the attempt's token can know.
    """

    reply: Reply
    proof: str


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt in flight is alive, and so far."""

    step: str
    direction: Direction
    attempt: int
    progress: Any = None


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """Begin nothing new: no step, no attempt, no compensation. What is in flight ends."""

    reason: str = ""
    by: str = ""


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """Go on after a pause."""

    reason: str = ""
    by: str = ""


class RetryNow(msgspec.Struct, frozen=True, kw_only=True):
    """Make the next attempt now, or one more where the step has given up.

    Attributes:
        step: Which; empty for every step of which it can be asked.
        payload: Keyword arguments instead of those that the definition makes, from now on.
    """

    step: str = ""
    payload: dict[str, Any] | None = None
    reason: str = ""
    by: str = ""


class Skip(msgspec.Struct, frozen=True, kw_only=True):
    """Go on as if the step, or its compensation, had been done.

    Attributes:
        output: What later steps see as the step's output.
    """

    step: str
    output: Any = None
    reason: str = ""
    by: str = ""


class Resolve(msgspec.Struct, frozen=True, kw_only=True):
    """End a stuck saga: somebody has put things right by hand."""

    reason: str = ""
    by: str = ""


class CompensateNow(msgspec.Struct, frozen=True, kw_only=True):
    """Give up going forward.

    A cancel that may do one thing more: where nobody knows whether the pivot happened, the operator
    vouches that it did not.
    """

    reason: str = ""
    by: str = ""


Operator = Pause | Resume | RetryNow | Skip | Resolve | CompensateNow
Message = (
    Start | Undo | HandOver | Reply | Complete | Heartbeat | Signal | Tick | Cancel | Operator
)
