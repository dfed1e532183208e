"""What crosses the border between the orchestrator and the participants.

A `Command` goes out as an ordinary Celery task message: the payload is its keyword arguments, the
rest stands in its headers. A `Reply` comes back as a call of the task ``saga.reply`` whose keyword
arguments are its fields. No exception crosses the broker: a failure is a value.
"""

from datetime import datetime
from typing import Annotated, Any, Final

import msgspec

from shared import names
from shared.ids import Direction

FAILURE_MESSAGE_CHARS_MAX = 2_000
FAILURE_TRACEBACK_CHARS_MAX = 8_000
TRACEBACK_CHARS_READ = 4 * FAILURE_TRACEBACK_CHARS_MAX
"""More is searched for secrets than is kept: none must hide at the edge."""
PROGRESS_BYTES_MAX = 4_096

TASK_UNKNOWN: Final = "TaskUnknown"
"""Kind of the failure that a worker answers with for a task that it does not know.

No participant should reject a step with it: an action with this kind has not been refused, it never
ran, and an operator decides.
"""

AwareDatetime = Annotated[datetime, msgspec.Meta(tz=True)]


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why an attempt did not succeed.

    Attributes:
        kind: Stable machine-readable name: a reject code, or the exception's class name.
        message: One line for people.
        retryable: Whether another attempt may go better.
        traceback: Text, cut to `FAILURE_TRACEBACK_CHARS_MAX`; empty where there is none.
    """

    kind: str
    message: str = ""
    retryable: bool = True
    traceback: str = ""


class Execution(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where and when an attempt ran, by the participant's own clock."""

    worker: str
    started_at: datetime
    ended_at: datetime


class Succeeded(msgspec.Struct, frozen=True, kw_only=True, tag="succeeded", omit_defaults=True):
    """The action happened. `undo` is what its compensation needs; by default the output."""

    output: Any = None
    undo: Any = None


class Rejected(msgspec.Struct, frozen=True, kw_only=True, tag="rejected"):
    """The participant said no: nothing happened, and nothing is retried."""

    failure: Failure


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed", omit_defaults=True):
    """An exception: nobody knows what happened. `undo` as of a success, where it is known."""

    failure: Failure
    undo: Any = None


class Accepted(msgspec.Struct, frozen=True, kw_only=True, tag="accepted"):
    """The participant has taken it on: the end is told later, with the attempt's token."""


Ended = Succeeded | Rejected | Failed
Outcome = Ended | Accepted


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a step, on its way to a participant.

    Attributes:
        id: Celery task id, derived from saga, step, direction and attempt.
        task: Celery task name.
        queue: Celery queue of the participant.
        payload: Keyword arguments of the task.
        deadline_at: When the orchestrator stops waiting for the reply.
        traceparent: W3C trace context whose span is the attempt's ``send`` span.
        tracestate: W3C trace state of the caller, empty where there was none.
        token: With it the attempt can be completed from elsewhere; empty for sagas that were
            started before there were tokens.
        baggage: What of the caller's baggage may travel.
        origin_id: The saga whose effect a compensation undoes, where it is another one: the one
            that this saga was forked from.
    """

    id: str
    saga_id: str
    saga_name: str
    saga_version: int
    step: str
    direction: Direction
    attempt: int
    task: str
    queue: str
    payload: dict[str, Any]
    deadline_at: datetime
    traceparent: str
    tracestate: str = ""
    token: str = ""
    baggage: dict[str, str] = {}
    origin_id: str = ""

    @property
    def is_event(self) -> bool:
        """Whether it is an event that a saga publishes: for all subscribers, with no reply."""
        return self.queue == names.EVENTS_EXCHANGE


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one attempt."""

    saga_id: str
    step: str
    direction: Direction
    attempt: int
    outcome: Outcome
    execution: Execution | None = None


class Parent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The step of another saga that a saga was started for: it is told how the saga ends.

    Attributes:
        depth: How many sagas stand above it.
        link: ``traceparent`` of the attempt, where the sub-saga has a trace of its own; empty where
            it continues that of its parent.
        above: The sagas above it by name, each with the step that waits for what is below it.
    """

    saga_id: str
    step: str
    attempt: int
    depth: int = 1
    link: str = ""
    above: tuple[tuple[str, str], ...] = ()


class StartRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A start that comes as a message (`saga.start`): from beat, or from another service.

    Attributes:
        name: Saga name; its newest version is started.
        input: Fields of the saga's input type.
        key: Business key: a second start with the same name and key starts nothing.
        saga_id: Id for the new saga; derived from the message's id where it is missing.
        traceparent: Trace of the caller, continued by the saga.
        not_before: When the first step begins; at once where it is missing or past.
        parent: The step of another saga that it is started for.
        tracestate: Of the caller.
        baggage: Of the caller; what is allowed of it (`shared.telemetry.propagation`) travels on.
        began: Of a sub-saga that is asked how it ends: it is known to have begun; if it is not
            found, it was removed, and is not started anew.
    """

    name: str
    input: dict[str, Any]
    key: str | None = None
    saga_id: str | None = None
    traceparent: str | None = None
    tracestate: str = ""
    not_before: AwareDatetime | None = None
    parent: Parent | None = None
    baggage: dict[str, str] = {}
    began: bool = False


class CancelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Asks that a saga be undone (`saga.cancel`)."""

    saga_id: str
    reason: str = ""
    by: str = ""


class SignalRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Tells a saga that something has happened that its steps may wait for (`saga.signal`).

    The first signal of a name counts, whether a step waits for it already or not.
    """

    saga_id: str
    name: str
    data: Any = None
    by: str = ""


class CompleteRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Ends an attempt that answered `Accepted` (`saga.complete`).

    Attributes:
        token: From the attempt's header ``saga_token``.
        outcome: How it ended, as in a reply.
    """

    token: str
    outcome: Ended


class HeartbeatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Says that an attempt is alive (`saga.heartbeat`): its time-out begins anew.

    Attributes:
        progress: How far it is: anything of at most `PROGRESS_BYTES_MAX` bytes as JSON.
    """

    saga_id: str
    step: str
    direction: Direction
    attempt: int
    progress: Any = None


class UndoRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Asks a sub-saga to undo itself (`saga.undo`), or never to begin.

    Attributes:
        saga_id: The sub-saga.
        start: What started it, or will: whichever message comes first.
        attempt: Attempt of the undo, which is answered; 0 calls back a sub-saga that runs, and its
            end is the answer.
        began: It is known to have begun; if it is not found, it was removed.
    """

    saga_id: str
    start: StartRequest
    attempt: int = 0
    began: bool = False
    reason: str = ""


class Undecodable(msgspec.Struct, frozen=True, kw_only=True):
    """A message that cannot be read; goes to the dead letters with the reason.

    Attributes:
        reason: What is wrong with it.
        task: Task name from its headers, empty where it has none.
        body: The raw body as text, undecodable bytes escaped.
    """

    reason: str
    task: str
    body: str


class EventArrived(msgspec.Struct, frozen=True, kw_only=True):
    """An event of the bus that a saga may start on.

    Attributes:
        event_id: The same for every copy of it.
        name: ``orders.created``.
        fields: What it says.
        traceparent: Trace of whoever published it, continued by the saga.
    """

    event_id: str
    name: str
    fields: dict[str, Any]
    traceparent: str | None = None
    tracestate: str = ""
    baggage: dict[str, str] = {}


Request = (
    Reply
    | StartRequest
    | CancelRequest
    | SignalRequest
    | CompleteRequest
    | HeartbeatRequest
    | UndoRequest
)
"""What can be asked of the orchestrator, or told, through the broker."""

Inbound = Request | EventArrived | Undecodable
