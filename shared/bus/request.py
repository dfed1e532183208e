"""A bus message in a worker's main process, which survives what kills the handler.

A handler that kills its process again and again would be requeued for ever. Losses are
counted here; after `WORKER_LOSSES_MAX` the message is a dead letter. A handler that a hard time limit
has killed has failed: its policy says what follows.
"""

from collections import OrderedDict
from typing import Any, Final

import structlog
from celery import Celery, Task
from celery.exceptions import TimeLimitExceeded, WorkerLostError
from celery.worker.request import Request
from typing_extensions import override

from shared.bus import replying
from shared.bus.handling import follow_up
from shared.bus.policy import failure
from shared.bus.registry import registry_of
from shared.bus.tracing import failed_attempt
from shared.errors import UnavailableError
from shared.messages import Failed, Failure
from shared.telemetry import logs

WORKER_LOSSES_MAX: Final = 3
LOSSES_REMEMBERED_MAX: Final = 10_000

_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("shared.bus")
_losses: OrderedDict[str, int] = OrderedDict()


class BusRequest(Request):
    """A command, a query or a subscriber's event."""

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
        """The handler raised, in which case all is settled, or its process is gone."""
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        why: Failure | None = None
        if isinstance(error, TimeLimitExceeded):
            why = failure("TimeLimitExceeded", str(error), retryable=True)
        elif not return_ok and self._was_lost(error) and _count_loss(self.id) >= WORKER_LOSSES_MAX:
            text = f"The handler killed its worker process {WORKER_LOSSES_MAX} times: {error}"
            why = failure("WorkerLost", text, retryable=False)
        if why is not None and self._settled(why):
            # Acknowledged instead of requeued, and marked as a failure.
            variant: Task[Any, Any] = object.__new__(type(self._task))
            vars(variant).update(vars(self._task), reject_on_worker_lost=False)
            self._task = variant
        return super().on_failure(
            exc_info, send_failed_event=send_failed_event, return_ok=return_ok
        )

    def _was_lost(self, error: BaseException) -> bool:
        if self._already_cancelled or self._already_revoked:
            return False
        return isinstance(error, WorkerLostError | SystemExit | KeyboardInterrupt)

    def _settled(self, why: Failure) -> bool:
        registry = registry_of(self._app)
        handling = registry.find(self.name)
        if handling is None:
            return False
        raw: Any = self.message.body
        body = raw.encode() if isinstance(raw, str) else bytes(raw)
        headers = self.message.headers
        with (
            logs.saga_context({**headers, "task_id": self.id, "task_name": self.name}),
            failed_attempt(self._app, handling.queue, headers, why),
        ):
            try:
                if handling.kind == "query":
                    replying.reply(registry.publisher, headers, Failed(failure=why))
                else:
                    follow_up(registry, handling, headers, body, why)
            except UnavailableError as error:
                _log.error("message.not_settled", reason=error.message)
                return False
        return True


def _count_loss(task_id: str) -> int:
    _losses[task_id] = count = _losses.pop(task_id, 0) + 1
    while len(_losses) > LOSSES_REMEMBERED_MAX:
        _losses.popitem(last=False)
    return count
