"""The wire contract's names: queues, tasks and headers. They stand here and nowhere else.

Every saga header begins with ``saga_``: custom Celery headers share one namespace with the
protocol's own, and a header called ``id`` would overwrite the task id (FACTS.md, L13).
"""

from typing import Final

# Queues --------------------------------------------------------------------------------------

REPLIES_QUEUE: Final = "saga.replies"
"""Every inbound message of the orchestrator: replies, starts, cancels, signals."""

ORCHESTRATOR_QUEUE: Final = "saga.orchestrator"
"""The default queue of the orchestrator's own Celery app; carries nothing of a saga."""

# Inbound tasks, on `REPLIES_QUEUE` -----------------------------------------------------------

REPLY_TASK: Final = "saga.reply"
START_TASK: Final = "saga.start"
CANCEL_TASK: Final = "saga.cancel"
SIGNAL_TASK: Final = "saga.signal"

INBOUND_TASKS: Final = (REPLY_TASK, START_TASK, CANCEL_TASK, SIGNAL_TASK)

# Headers of a command ------------------------------------------------------------------------

SAGA_ID: Final = "saga_id"
SAGA_NAME: Final = "saga_name"
SAGA_VERSION: Final = "saga_version"
SAGA_STEP: Final = "saga_step"
SAGA_DIRECTION: Final = "saga_direction"
SAGA_ATTEMPT: Final = "saga_attempt"
SAGA_REPLY_TO: Final = "saga_reply_to"
SAGA_DEADLINE: Final = "saga_deadline"

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
BAGGAGE: Final = "baggage"

# Headers of HTTP, in lower case ----------------------------------------------------------------

HTTP_TRACE_ID: Final = "x-trace-id"
"""Answered with every response: the trace that it belongs to."""

HTTP_REQUEST_ID: Final = "x-request-id"
"""Taken from the caller when it is harmless, else made; answered with every response."""

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
