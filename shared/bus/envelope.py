"""The headers of a bus message: those of Celery's protocol 2, which any Celery tool can read."""

from datetime import datetime
from typing import Any, Final

from celery.utils.nodenames import anon_nodename

from shared import names
from shared.contract import Wire

_HIDDEN: Final = "{...}"
"""Instead of the arguments, which Celery would write into logs and events."""

DEAD_HEADERS: Final = frozenset(
    {names.SAGA_DEAD_KIND, names.SAGA_DEAD_REASON, names.SAGA_DEAD_QUEUE, names.SAGA_DEAD_AT}
)


def task_headers(
    task: str, task_id: str, *, retries: int = 0, eta: datetime | None = None
) -> dict[str, Any]:
    """Headers of Celery's protocol 2.

    Args:
        task: Celery task name.
        task_id: Celery task id.
        retries: Attempts that have failed before.
        eta: Aware; not before this moment.
    """
    return {
        "lang": "py",
        "task": task,
        "id": task_id,
        "shadow": None,
        "eta": None if eta is None else eta.isoformat(),
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": retries,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": "()",
        "kwargsrepr": _HIDDEN,
        "origin": anon_nodename(),
        "ignore_result": True,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }


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
