"""How a worker's main process handles a saga step, whatever the task's own settings say.

A message with saga headers is acknowledged late and comes again when its process is lost; every
other message of the same task is handled exactly as the task's own settings ask for. The choice is
made per message by the strategy, the function that Celery calls for each one.

A task that kills its process again and again would be requeued for ever. Losses are counted
here, in the process that survives them: after `WORKER_LOSSES_MAX` the step is answered for.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import structlog
from celery import Celery, Task
from celery.exceptions import TimeLimitExceeded, WorkerLostError
from celery.utils.imports import symbol_by_name
from celery.worker.request import Request
from celery.worker.strategy import default
from kombu.exceptions import OperationalError
from typing_extensions import override

from shared.errors import DecodeError
from shared.messages import Failed, Failure
from shared.telemetry import logs, names
from shared.telemetry.metrics.catalog import PARTICIPANT_LOST
from workers.sdk.command import command_of, is_command
from workers.sdk.outcome import failure
from workers.sdk.reply import send_reply

STRATEGY: Final = "workers.sdk.request:strategy"
WORKER_LOST: Final = "WorkerLost"
TIME_LIMIT_EXCEEDED: Final = "TimeLimitExceeded"
WORKER_LOSSES_MAX: Final = 3
LOSSES_REMEMBERED_MAX: Final = 10_000

_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)
_losses: OrderedDict[str, int] = OrderedDict()


def strategy(task: Task[Any, Any], app: Celery[Any], consumer: Any) -> Callable[..., Any]:
    """Celery's strategy for a task: saga steps get a `StepRequest`, other messages what they had."""
    original = getattr(task, "saga_original_strategy", None)
    make = symbol_by_name(original) if original else default
    plain = make(task, app, consumer)
    step = make(_as_step(task), app, consumer)

    def handle(message: Any, *args: Any, **kwargs: Any) -> Any:
        chosen = step if is_command(message.headers) else plain
        return chosen(message, *args, **kwargs)

    return handle


class StepRequest(Request):
    """A message with saga headers in a worker's main process."""

    # Celery's own, which the stubs leave out.
    _task: Task[Any, Any]
    _app: Celery[Any]
    _already_cancelled: bool
    _already_revoked: bool

    def __init__(self, message: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(message, *args, **kwargs)
        # Celery's next line is "Task … received", before any signal.
        logs.remember_task(self.id, message.headers)

    @override
    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> Any:
        """The task raised, in which case it has sent its reply, or its process is gone.

        A hard time limit comes here too: Celery has killed the process, and nobody else answers.
        """
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, TimeLimitExceeded):
            self._answer(failure(TIME_LIMIT_EXCEEDED, str(error), retryable=True))
        elif not return_ok and self._was_lost(error) and self._count_loss() >= WORKER_LOSSES_MAX:
            text = f"The step killed its worker process {WORKER_LOSSES_MAX} times: {error}"
            self._answer(failure(WORKER_LOST, text, retryable=False))
            # Acknowledged instead of requeued, and marked as a failure.
            self._task = _variant(self._task, reject_on_worker_lost=False)
        return super().on_failure(
            exc_info, send_failed_event=send_failed_event, return_ok=return_ok
        )

    def _was_lost(self, error: BaseException) -> bool:
        if self._already_cancelled or self._already_revoked:
            return False
        return isinstance(error, WorkerLostError | SystemExit | KeyboardInterrupt)

    def _count_loss(self) -> int:
        PARTICIPANT_LOST.add(1, {names.SAGA_TASK: self.name})
        return _count_loss(self.id)

    def _answer(self, why: Failure) -> None:
        headers = self.message.headers
        with logs.saga_context({**headers, "task_id": self.id, "task_name": self.name}):
            try:
                command = command_of(headers)
                send_reply(self._app, command, Failed(failure=why))
            except DecodeError as error:
                _log.error("step.malformed", reason=error.message)
            except OperationalError as error:
                # The step's timeout takes its place.
                _log.warning("step.reply_not_sent", reason=str(error))
            else:
                _log.warning("step.failed", kind=why.kind, reason=why.message)


def _count_loss(task_id: str) -> int:
    _losses[task_id] = count = _losses.pop(task_id, 0) + 1
    while len(_losses) > LOSSES_REMEMBERED_MAX:
        _losses.popitem(last=False)
    return count


def _as_step(task: Task[Any, Any]) -> Task[Any, Any]:
    request: type[Request] = symbol_by_name(task.Request)
    if not issubclass(request, StepRequest):
        # A task may have a request class of its own; plain `Request` gives plain `StepRequest`.
        request = (
            StepRequest
            if request is Request
            else type(f"Step{request.__name__}", (StepRequest, request), {})
        )
    return _variant(
        task,
        acks_late=True,
        reject_on_worker_lost=True,
        retry_on_worker_lost=False,
        acks_on_failure=True,
        acks_on_timeout=True,
        Request=request,
    )


def _variant(task: Task[Any, Any], **settings: Any) -> Task[Any, Any]:
    """The same task with other settings, for the main process only; `copy` gives the original."""
    variant: Task[Any, Any] = object.__new__(type(task))
    vars(variant).update(vars(task), **settings)
    return variant
