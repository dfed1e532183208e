"""Asks the workers on a broker which queues they consume."""

from datetime import timedelta
from typing import Any, Final

from celery import Celery

from shared.broker_transport import BROKER_ERRORS

ANSWER_WITHIN: Final = timedelta(seconds=1)


def consumed_queues(app: Celery[Any], within: timedelta = ANSWER_WITHIN) -> frozenset[str] | None:
    """Queues that some worker consumes that answers in time.

    A worker of the pool ``solo`` does not answer while it runs a task.

    Returns:
        None where the broker cannot be asked.
    """
    try:
        answers = app.control.inspect(timeout=within.total_seconds()).active_queues() or {}
    except BROKER_ERRORS:
        return None
    return frozenset(queue["name"] for queues in answers.values() for queue in queues)
