"""Bus messages that a worker has no handler for: kept, not discarded as Celery would.

Celery rejects a message of an unknown task and only then tells of it, so that a crash in between
loses it. Here such a message is put aside first, and acknowledged when the broker has it there.
"""

from collections.abc import Callable
from typing import Any

import structlog
from celery import bootsteps
from typing_extensions import override

from shared import names
from shared.bus import dead, replying
from shared.bus.envelope import is_message
from shared.bus.policy import failure
from shared.bus.publisher import Publisher
from shared.bus.tracing import failed_attempt
from shared.errors import UnavailableError
from shared.messages import Failed
from shared.telemetry import logs

_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("shared.bus")


class KeepUnknown(bootsteps.Step):
    """Gives a worker's consumer an answer for tasks that it does not know."""

    @override
    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        # Before the consumer fills it, and looks a message's task up in it.
        parent.strategies = _Strategies(parent)


class _Strategies(dict[str, Callable[..., Any]]):
    """What the consumer does with a message, by the name of its task."""

    def __init__(self, consumer: Any) -> None:
        super().__init__()
        self._consumer = consumer
        self._publisher = Publisher(consumer.app)

    def __missing__(self, task: str) -> Callable[..., Any]:
        def keep(message: Any, *_: Any) -> None:
            if not is_message(message.headers):
                self._consumer.on_unknown_task(None, message, KeyError(task))
            elif self._put_aside(message):
                message.ack_log_error(_log, self._consumer.connection_errors)

        return keep

    def _put_aside(self, message: Any) -> bool:
        """Keep the message, or answer the query; False when the broker took neither."""
        headers = message.headers
        kind, name = headers[names.SAGA_MESSAGE_KIND], headers[names.SAGA_MESSAGE]
        queue = str((message.delivery_info or {}).get("routing_key") or "")
        if headers["task"] != name:
            queue = str(headers["task"])  # addressed to a subscriber, whose queue has its name
        why = failure(
            f"Unknown{str(kind).title()}",
            f"The worker {self._consumer.hostname} of queue {queue!r} has no handler for the "
            f"{kind} {name!r}.",
            retryable=False,
        )
        body = message.body
        raw = body.encode() if isinstance(body, str) else bytes(body)
        app = self._consumer.app
        with (
            logs.saga_context({**headers, "task_id": headers["id"], "task_name": headers["task"]}),
            failed_attempt(app, queue, headers, why),
        ):
            try:
                if kind == "query":
                    replying.reply(self._publisher, headers, Failed(failure=why))
                    _log.error("query.unknown", reason=why.message)
                else:
                    dead.bury(self._publisher, raw, headers, queue=queue, why=why)
            except UnavailableError as error:
                # Not acknowledged, it comes again.
                _log.error("message.not_kept", reason=error.message)
                return False
        return True
