"""What a step does, as data, beside calling a task: wait, or be a saga of its own.

Every work begins, is in flight with a time by which it has to end, and has an outcome; what differs
is the command that is sent: a task, none at all, or the start of a saga.
"""

import typing
from datetime import timedelta
from typing import Any

import msgspec

from orchestrator.core.references import Input, Output


class WaitFor(msgspec.Struct, frozen=True, tag="wait"):
    """Work of a step that ends when a signal comes, for example a human approval.

    A signal is a fact of the saga: the first of its name counts, whether the step has begun to wait
    or not, and its data are the output of every step that waits for it.

    Attributes:
        signal: Name of the signal.
        approval: The data must say ``{"approved": true}``; anything else rejects the step.
        otherwise: What happens when none has come in the step's `timeout`: the step is rejected,
            it fails, or it succeeds with `default` as its output.
        default: See `otherwise`.
    """

    signal: str
    approval: bool = False
    otherwise: typing.Literal["reject", "fail", "default"] = "reject"
    default: Any = None


class Sleep(msgspec.Struct, frozen=True, tag="sleep"):
    """Work of a step that ends by itself: after some time, or at a time of the input or an output.

    Attributes:
        lasts: How long.
        until: Reference to a time: ISO 8601 with its offset, for example ``2026-03-01T09:00:00Z``.
    """

    lasts: timedelta | None = None
    until: Input | Output | None = None


class SubSaga(msgspec.Struct, frozen=True, tag="saga"):
    """Work of a step that is a saga of its own: its newest version, started with the step's payload.

    When it completes the step succeeds, with the outputs of its steps by name as the output. When
    it is compensated nothing of it is left: the step is rejected, or failed where the sub-saga did
    not end by a rejection or a cancel. Undoing the step undoes it, also after it has completed.

    Attributes:
        name: Name of the saga.
        trace: It continues the trace of its parent, or has one of its own; then the two are linked.
    """

    name: str
    trace: typing.Literal["same", "linked"] = "same"


class Gather(msgspec.Struct, frozen=True, tag="gather"):
    """Work of the step that stands for a list of steps: its output is the list of theirs."""

    steps: tuple[str, ...]


Work = str | WaitFor | Sleep | SubSaga | Gather
"""What a step does: a Celery task by its name, a wait, or a saga."""
