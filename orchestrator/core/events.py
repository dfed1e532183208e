"""Facts about a saga, stored for ever in its history.

Old histories must fold in every later version: a field may be added with a default, never renamed
or removed, and a tag never changes its meaning.
"""

from datetime import datetime
from typing import Any

import msgspec

from shared.ids import Direction
from shared.messages import Execution, Failure, Parent


class Trace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Trace context of a saga: stored, never taken from what happens to be current.

    Attributes:
        trace_id: 32 hexadecimal digits.
        root_span_id: Span of the whole saga, reserved at the start and exported at the end.
        parent_span_id: Span of the caller, when its trace is continued.
        sampled: The sampling decision, made once.
        tracestate: W3C trace state of the caller, passed on.
        link: ``traceparent`` of the step of another saga that this one was started for, where it
            has a trace of its own; or of the saga that it was forked from.
        baggage: What of the caller's baggage may travel; every step gets it.
    """

    trace_id: str
    root_span_id: str
    parent_span_id: str | None = None
    sampled: bool = True
    tracestate: str = ""
    link: str = ""
    baggage: tuple[tuple[str, str], ...] = ()

    def parent(self, span_id: str) -> str:
        """The ``traceparent`` that makes a span of this trace the parent (W3C Trace Context)."""
        return f"00-{self.trace_id}-{span_id}-{'01' if self.sampled else '00'}"


class ForkedFrom(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a forked saga comes from.

    Attributes:
        saga_id: The saga that it goes on from in another way.
        step: From this step on everything is done anew.
    """

    saga_id: str
    step: str
    reason: str = ""
    by: str = ""


class SagaStarted(msgspec.Struct, frozen=True, kw_only=True, tag="saga_started"):
    """The input was valid and the saga exists.

    Attributes:
        secret: Makes the tokens with which its steps are completed from elsewhere.
        not_before: When its first step begins, if not at once.
        parent: The step of another saga that it was started for.
        fork: What it was forked from, if it was.
    """

    saga_id: str
    name: str
    version: int
    input: dict[str, Any]
    key: str | None
    deadline_at: datetime | None
    trace: Trace
    secret: str = ""
    not_before: datetime | None = None
    parent: Parent | None = None
    fork: ForkedFrom | None = None


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Who has done a step that was copied.

    Attributes:
        saga_id: The saga under whose id the participant knows the effect.
        link: ``traceparent`` of the step's span.
    """

    saga_id: str
    link: str


class StepCopied(msgspec.Struct, frozen=True, kw_only=True, tag="step_copied"):
    """The step had been done in the saga that this one was forked from, and counts as done.

    Attributes:
        attempt: Attempts that it took there.
        success: The attempt that succeeded; 0 for a step that was skipped.
        payload: What it was called with, for its compensation; None where nothing was called.
    """

    step: str
    origin: Origin
    attempt: int = 0
    success: int = 0
    output: Any = None
    undo: Any = None
    payload: dict[str, Any] | None = None
    by_hand: bool = False


class SagaForked(msgspec.Struct, frozen=True, kw_only=True, tag="saga_forked"):
    """Another saga goes on from a step of this one, which has ended.

    Attributes:
        to: The other saga.
        step: From this step on it does everything anew.
        steps: Whose effects belong to it from here on.
    """

    to: str
    step: str
    steps: tuple[str, ...] = ()
    reason: str = ""
    by: str = ""


class StepDispatched(msgspec.Struct, frozen=True, kw_only=True, tag="step_dispatched"):
    """One attempt of an action or a compensation begins; until `due_at` its end is awaited."""

    step: str
    direction: Direction
    attempt: int
    due_at: datetime


class StepAccepted(msgspec.Struct, frozen=True, kw_only=True, tag="step_accepted"):
    """The participant has taken the attempt on; its end is told from elsewhere, by a token.

    Attributes:
        due_at: Until when that is awaited.
    """

    step: str
    direction: Direction
    attempt: int
    due_at: datetime
    execution: Execution | None = None


class StepRecalled(msgspec.Struct, frozen=True, kw_only=True, tag="step_recalled"):
    """The sub-saga of the attempt in flight is called back; its end is awaited all the same."""

    step: str
    attempt: int
    reason: str = ""


class SubSagaBegan(msgspec.Struct, frozen=True, kw_only=True, tag="sub_saga_began"):
    """The sub-saga of the attempt in flight has said, when it was asked again, that it goes on."""

    step: str
    attempt: int


class UndoRequested(msgspec.Struct, frozen=True, kw_only=True, tag="undo_requested"):
    """The parent wants this saga undone, which goes on for that where it had ended.

    Attributes:
        attempt: Attempt of the parent's undo, which is answered when it is done; 0 while the
            parent still waits for the end of this saga, which is the answer.
        parent: Whom to answer, where the step belongs to a fork of the parent by now.
    """

    attempt: int = 0
    reason: str = ""
    parent: Parent | None = None


class UndoRefused(msgspec.Struct, frozen=True, kw_only=True, tag="undo_refused"):
    """The parent wants this saga undone, which is past its pivot; `parent` as there."""

    attempt: int
    reason: str
    parent: Parent | None = None


class StepExpanded(msgspec.Struct, frozen=True, kw_only=True, tag="step_expanded"):
    """The list of a step is known: it runs once for each of so many items."""

    step: str
    items: int


class SignalReceived(msgspec.Struct, frozen=True, kw_only=True, tag="signal_received"):
    """The first signal of this name."""

    name: str
    data: Any = None
    by: str = ""


class StepSucceeded(msgspec.Struct, frozen=True, kw_only=True, tag="step_succeeded"):
    """It happened. `undo` is set for actions only."""

    step: str
    direction: Direction
    attempt: int
    output: Any = None
    undo: Any = None
    execution: Execution | None = None


class StepRejected(msgspec.Struct, frozen=True, kw_only=True, tag="step_rejected"):
    """The participant said no to an action: nothing happened."""

    step: str
    attempt: int
    failure: Failure
    execution: Execution | None = None


class TaskUnknown(msgspec.Struct, frozen=True, kw_only=True, tag="task_unknown"):
    """The worker did not know the task of an action: this attempt never ran, and nobody said no."""

    step: str
    attempt: int
    failure: Failure
    execution: Execution | None = None


class StepFailed(msgspec.Struct, frozen=True, kw_only=True, tag="step_failed"):
    """An exception; nobody knows what happened. Without `retry_at` this was the last attempt.

    Attributes:
        undo: What the compensation needs, where the participant has said that.
    """

    step: str
    direction: Direction
    attempt: int
    failure: Failure
    retry_at: datetime | None = None
    execution: Execution | None = None
    undo: Any = None


class StepTimedOut(msgspec.Struct, frozen=True, kw_only=True, tag="step_timed_out"):
    """No reply before the deadline; nobody knows. Without `retry_at` this was the last attempt."""

    step: str
    direction: Direction
    attempt: int
    retry_at: datetime | None = None


class CancelRequested(msgspec.Struct, frozen=True, kw_only=True, tag="cancel_requested"):
    """Somebody asked that the saga be undone."""

    reason: str
    by: str


class DeadlineExceeded(msgspec.Struct, frozen=True, kw_only=True, tag="deadline_exceeded"):
    """The saga took longer than its definition allows."""


class CompensationStarted(msgspec.Struct, frozen=True, kw_only=True, tag="compensation_started"):
    """From here on there is only the way back."""


class SagaStuck(msgspec.Struct, frozen=True, kw_only=True, tag="saga_stuck"):
    """A step gave up where neither undoing nor going on is possible; an operator has to decide."""

    step: str
    direction: Direction


class HistoryFull(msgspec.Struct, frozen=True, kw_only=True, tag="history_full"):
    """The saga has as many events as it may have: it begins nothing more, and an operator decides."""

    events_max: int


class RoomAwaited(msgspec.Struct, frozen=True, kw_only=True, tag="room_awaited"):
    """Its turn has come, and a limit that sagas share leaves no room for it yet.

    Attributes:
        step: By its name in the definition, one word for all runs of a list; empty for the saga,
            which has not begun.
    """

    step: str = ""
    direction: Direction = "action"


class SagaPaused(msgspec.Struct, frozen=True, kw_only=True, tag="saga_paused"):
    """An operator: nothing new begins until it is resumed."""

    reason: str = ""
    by: str = ""


class SagaResumed(msgspec.Struct, frozen=True, kw_only=True, tag="saga_resumed"):
    """An operator: it goes on."""

    reason: str = ""
    by: str = ""


class RetryRequested(msgspec.Struct, frozen=True, kw_only=True, tag="retry_requested"):
    """An operator: the next attempt is due at `due_at`, with this payload if there is one."""

    step: str
    direction: Direction
    due_at: datetime
    payload: dict[str, Any] | None = None
    reason: str = ""
    by: str = ""


class StepSkipped(msgspec.Struct, frozen=True, kw_only=True, tag="step_skipped"):
    """The saga goes on as if the step, or its compensation, had been done.

    Attributes:
        condition: Because its condition did not hold; otherwise an operator said so.
    """

    step: str
    direction: Direction = "action"
    output: Any = None
    condition: bool = False
    reason: str = ""
    by: str = ""


class CompensationRequested(
    msgspec.Struct, frozen=True, kw_only=True, tag="compensation_requested"
):
    """An operator: give up going forward.

    Attributes:
        step: A pivot of unknown outcome; the operator vouches that it did not happen.
    """

    step: str = ""
    reason: str = ""
    by: str = ""


class SagaResolved(msgspec.Struct, frozen=True, kw_only=True, tag="saga_resolved"):
    """An operator: it has been put right by hand, and ends here."""

    reason: str = ""
    by: str = ""


class SagaCompleted(msgspec.Struct, frozen=True, kw_only=True, tag="saga_completed"):
    """Every step succeeded."""


class SagaCompensated(msgspec.Struct, frozen=True, kw_only=True, tag="saga_compensated"):
    """Whatever happened has been undone."""


Event = (
    SagaStarted
    | StepCopied
    | StepDispatched
    | StepAccepted
    | StepRecalled
    | SubSagaBegan
    | UndoRequested
    | UndoRefused
    | StepExpanded
    | SignalReceived
    | StepSucceeded
    | StepRejected
    | TaskUnknown
    | StepFailed
    | StepTimedOut
    | CancelRequested
    | DeadlineExceeded
    | CompensationStarted
    | SagaStuck
    | HistoryFull
    | RoomAwaited
    | SagaPaused
    | SagaResumed
    | RetryRequested
    | StepSkipped
    | CompensationRequested
    | SagaResolved
    | SagaCompleted
    | SagaCompensated
    | SagaForked
)


def tag_of(event: Event) -> str:
    """The stored name of an event, for example ``step_succeeded``."""
    return str(type(event).__struct_config__.tag)


def about(event: Event) -> tuple[str, Direction, int | None] | None:
    """Step, direction and attempt that an event is about; None for one about the whole saga."""
    match event:
        case StepDispatched() | StepAccepted() | StepSucceeded() | StepFailed() | StepTimedOut():
            return event.step, event.direction, event.attempt
        case StepRejected() | TaskUnknown() | StepRecalled() | SubSagaBegan():
            return event.step, "action", event.attempt
        case StepExpanded() | StepCopied():
            return event.step, "action", None
        case SagaStuck() | RetryRequested() | StepSkipped():
            return event.step, event.direction, None
        case RoomAwaited(step=step) if step:
            return step, event.direction, None
        case _:
            return None


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """An event in its place in a history.

    Attributes:
        sequence: From 1, without gaps.
        at: When it was decided.
    """

    sequence: int
    at: datetime
    event: Event
