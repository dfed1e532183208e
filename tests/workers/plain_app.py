"""A Celery app that knows nothing of sagas: what `install` has to cope with.

The tasks are written as teams write them; none of them may be changed for a test to pass.
"""

import os
import signal
from datetime import timedelta
from typing import Any

from celery import Celery, Task, shared_task
from celery.exceptions import Ignore, Reject
from typing_extensions import override

from shared.clock import pause


class ContextTask(Task[Any, Any]):
    """What Flask's documentation tells people to write."""

    abstract = True
    inside = False

    @override
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.inside = True
        try:
            return self.run(*args, **kwargs)
        finally:
            self.inside = False


app: Celery[Any] = Celery("plain", broker=os.environ.get("SAGA_BROKER_URL", "memory://"))
app.conf.worker_lost_wait = 1.0
app.conf.broker_connection_retry_on_startup = True
# What these make of a task must not decide whether a saga gets its answer.
app.conf.task_acks_late = False
app.conf.task_reject_on_worker_lost = False


@app.task(name="plain.add")
def add(x: int, y: int = 1) -> int:
    """Return a number."""
    return x + y


@app.task(name="plain.everything")
def everything(**fields: Any) -> list[str]:
    """Return the names of all arguments."""
    return sorted(fields)


@shared_task(name="plain.shared")
def shared(x: int) -> int:
    """Belong to whichever app there is."""
    return x


@app.task(name="plain.bound", bind=True)
def bound(self: Task[Any, Any], x: int) -> list[Any]:
    """Look at its own request."""
    return [x, self.request.retries]


@app.task(name="plain.in_context", bind=True, base=ContextTask)
def in_context(self: ContextTask, x: int) -> list[Any]:
    """Need the application's own ``__call__``."""
    return [x, self.inside]


class ClassBased(Task[Any, Any]):
    """A task of the old kind."""

    name = "plain.class_based"

    @override
    def run(self, x: int) -> int:
        return x * 10


app.register_task(ClassBased())


@app.task(name="plain.breaks")
def breaks() -> None:
    """Raise."""
    raise ConnectionError("no answer")


@app.task(name="plain.retries", bind=True, max_retries=2)
def retries(self: Task[Any, Any], succeed_at: int) -> int:
    """Retry by hand until it is the right attempt."""
    if self.request.retries < succeed_at:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task(
    name="plain.autoretries",
    bind=True,
    autoretry_for=(ConnectionError,),
    retry_kwargs={"max_retries": 2, "countdown": 0},
)
def autoretries(self: Task[Any, Any], succeed_at: int) -> int:
    """Be retried by Celery until it is the right attempt."""
    if self.request.retries < succeed_at:
        raise ConnectionError("not yet")
    return self.request.retries


@app.task(name="plain.ignores")
def ignores() -> None:
    """Tell Celery to forget about it."""
    raise Ignore


@app.task(name="plain.rejects_message")
def rejects_message() -> None:
    """Tell the broker to drop the message."""
    raise Reject("unusable", requeue=False)


@app.task(name="plain.not_json")
def not_json() -> object:
    """Return what nobody can send."""
    return {"when": timedelta, "what": object()}


@app.task(name="plain.too_large")
def too_large() -> str:
    """Return too much."""
    return "x" * 300_000


@app.task(name="plain.calls_itself")
def calls_itself(depth: int) -> int:
    """Use itself as a function."""
    return depth if not depth else int(calls_itself(depth - 1))


@app.task(name="plain.calls_another")
def calls_another(x: int) -> int:
    """Use another task as a function."""
    return int(add(x, 1)) * 2


@app.task(name="plain.soft_limit", soft_time_limit=1)
def soft_limit() -> None:
    """Be stopped by a soft time limit."""
    pause(30)


@app.task(name="plain.hard_limit", time_limit=1)
def hard_limit() -> None:
    """Be killed by a hard time limit."""
    pause(30)


@app.task(name="plain.dies")
def dies() -> None:
    """Take its process with it, each time."""
    os.kill(os.getpid(), signal.SIGKILL)
