"""The wire contract's names: queues, tasks and headers. They stand here and nowhere else.

Every saga header begins with ``saga_``: custom Celery headers share one namespace with the
protocol's own, and a header called ``id`` would overwrite the task id.
"""

from typing import Final

# Queues --------------------------------------------------------------------------------------

REPLIES_QUEUE: Final = "saga.replies"
"""Every inbound message of the orchestrator: replies, starts, cancels, signals."""

ORCHESTRATOR_QUEUE: Final = "saga.orchestrator"
"""The default queue of the orchestrator's own Celery app; carries nothing of a saga."""

DEAD_LETTERS_QUEUE: Final = "saga.dead-letters"
"""Where the buses keep a message that nobody could handle, with the reason in its headers."""

EVENTS_EXCHANGE: Final = "saga.events"
"""Topic exchange of the event bus; the routing key is the event's name."""

ANSWERS_PREFIX: Final = "saga.answers."
"""Begins the name of the queue on which a process that asks queries gets its answers."""

# Inbound tasks, on `REPLIES_QUEUE` -----------------------------------------------------------

REPLY_TASK: Final = "saga.reply"
START_TASK: Final = "saga.start"
CANCEL_TASK: Final = "saga.cancel"
SIGNAL_TASK: Final = "saga.signal"
COMPLETE_TASK: Final = "saga.complete"
HEARTBEAT_TASK: Final = "saga.heartbeat"
UNDO_TASK: Final = "saga.undo"
"""Between sagas: undo a sub-saga, or call it back while it runs."""

ANSWER_TASK: Final = "saga.answer"
"""An answer to a query, on the queue of the process that asked."""

INBOUND_TASKS: Final = (
    REPLY_TASK,
    START_TASK,
    CANCEL_TASK,
    SIGNAL_TASK,
    COMPLETE_TASK,
    HEARTBEAT_TASK,
    UNDO_TASK,
)

# Headers of a command ------------------------------------------------------------------------

SAGA_ID: Final = "saga_id"
SAGA_NAME: Final = "saga_name"
SAGA_VERSION: Final = "saga_version"
SAGA_STEP: Final = "saga_step"
SAGA_DIRECTION: Final = "saga_direction"
SAGA_ATTEMPT: Final = "saga_attempt"
SAGA_REPLY_TO: Final = "saga_reply_to"
SAGA_DEADLINE: Final = "saga_deadline"
SAGA_TOKEN: Final = "saga_token"  # noqa: S105 - the name of a header
"""With it the attempt can be completed from elsewhere: `saga.complete`."""
SAGA_ORIGIN_ID: Final = "saga_origin_id"
"""Of a compensation in a forked saga: the saga whose effect it undoes."""

# Headers of the buses' messages ----------------------------------------------------------------

SAGA_MESSAGE: Final = "saga_message"
"""Name of the command, query or event: ``orders.create``."""
SAGA_MESSAGE_KIND: Final = "saga_message_kind"
"""``command``, ``query`` or ``event``."""
SAGA_EVENT_ID: Final = "saga_event_id"
"""Id of an event, the same for every subscriber; each one's task id is derived from it."""
SAGA_DEAD_KIND: Final = "saga_dead_kind"
SAGA_DEAD_REASON: Final = "saga_dead_reason"
SAGA_DEAD_QUEUE: Final = "saga_dead_queue"
"""The queue that a dead letter lay in, to which it goes back when it is sent again."""
SAGA_DEAD_AT: Final = "saga_dead_at"

# Trace context of every message ------------------------------------------------------------------

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
BAGGAGE: Final = "baggage"

# Headers of HTTP, in lower case ----------------------------------------------------------------

HTTP_TRACE_ID: Final = "x-trace-id"
"""Answered with every response: the trace that it belongs to."""

HTTP_REQUEST_ID: Final = "x-request-id"
"""Taken from the caller when it is harmless, else made; answered with every response."""

SEALED: Final = "saga_sealed"
"""The only field of a payload that is encrypted, and the mark of a text that is; see `sealing`."""

UNDO_ARGUMENT: Final = "undo"
"""Keyword argument of a compensation that carries the action's undo data."""


def participant_queue(task: str) -> str:
    """Queue of a participant's task, when the step names none.

    Args:
        task: Celery task name, for example ``inventory.reserve``.

    Returns:
        What stands before the first dot (``inventory``), or the whole name where there is none.
    """
    return task.partition(".")[0]


def subscriber_queue(service: str, subscriber: str) -> str:
    """Queue of an event's subscriber, which is also the name of its task.

    Args:
        service: ``billing``.
        subscriber: Unique in the service: ``send-invoice``.
    """
    return f"{service}.on.{subscriber}"
