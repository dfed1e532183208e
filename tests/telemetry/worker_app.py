"""A Celery app for the tests of workers: tasks that succeed, fail, log and are retried."""

import logging
from typing import Any

import structlog
from celery import Task

from shared.celery_app import make_app
from shared.settings import settings

app = make_app("tests.telemetry.worker_app", service="default-service", settings=settings)

log = structlog.stdlib.get_logger("tests.worker")


@app.task(name="inventory.reserve")
def reserve(number: int = 0) -> int:
    """Succeed, and log twice."""
    log.info("reserved", number=number)
    logging.getLogger("a.library").info("number %d", number)
    return number


@app.task(name="inventory.fail")
def fail() -> None:
    """Fail."""
    raise ValueError("no stock")


@app.task(name="inventory.again", bind=True, max_retries=1)
def again(self: "Task[Any, Any]") -> None:
    """Fail once, then succeed."""
    if not self.request.retries:
        raise self.retry(exc=KeyError("not yet"), countdown=0)


@app.task(name="inventory.hand_on")
def hand_on() -> None:
    """Send tasks of others: one that this app knows, and one that it does not."""
    reserve.apply_async(queue="inventory")
    app.send_task("payment.unknown", queue="nobody")


@app.task(name="inventory.gone_wrong")
def gone_wrong(request: Any, error: Any, traceback: Any) -> None:
    """A handler of ``link_error``: Celery calls it in the worker whose task has failed."""
    log.info("gone wrong", error=str(error))
    reserve.apply_async(queue="inventory")
