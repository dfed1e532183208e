"""The headers of a bus message: those of Celery's protocol 2, which any Celery tool can read."""

from typing import Any, Final

from celery.utils.nodenames import anon_nodename

from shared import envelope, names
from shared.contract import Wire

DEAD_HEADERS: Final = frozenset(
    {names.SAGA_DEAD_KIND, names.SAGA_DEAD_REASON, names.SAGA_DEAD_QUEUE, names.SAGA_DEAD_AT}
)


def task_headers(task: str, task_id: str, *, retries: int = 0) -> dict[str, Any]:
    """Headers of Celery's protocol 2.

    Args:
        task: Celery task name.
        task_id: Celery task id.
        retries: Attempts that have failed before.
    """
    made = envelope.headers(task=task, task_id=task_id, origin=anon_nodename())
    made["retries"] = retries
    return made


def message_headers(wire: Wire, message_id: str) -> dict[str, Any]:
    """Headers of a new message; an event's id is also in a header of its own.

    Args:
        wire: What it is.
        message_id: Its id, which is also its Celery task id.
    """
    headers = task_headers(wire.name, message_id)
    headers[names.SAGA_MESSAGE] = wire.name
    headers[names.SAGA_MESSAGE_KIND] = wire.kind
    if wire.kind == "event":
        headers[names.SAGA_EVENT_ID] = message_id
    return headers


def is_message(headers: Any) -> bool:
    """Whether these are the headers of a bus message."""
    return isinstance(headers, dict) and isinstance(headers.get(names.SAGA_MESSAGE), str)
