"""Signs of life of a long step."""

from typing import Any, Final

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from shared import codec
from shared.clock import monotonic
from shared.errors import PayloadTooLarge
from shared.messages import PROGRESS_BYTES_MAX, HeartbeatRequest
from workers.sdk.command import StepCommand
from workers.sdk.reply import send

INTERVAL_MIN_S: Final = 1.0

_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)


class Pulse:
    """The heartbeats of one attempt, at most one a second.

    Args:
        app: The service's Celery app.
        command: The attempt.
    """

    def __init__(self, app: Celery[Any], command: StepCommand) -> None:
        self._app = app
        self._command = command
        self._next = 0.0

    def beat(self, progress: Any) -> None:
        """Send one, unless the last one is fresh.

        Raises:
            PayloadTooLarge: `progress` is over the limit.
            DecodeError: It is not JSON.
        """
        size = len(codec.encode(progress))
        if size > PROGRESS_BYTES_MAX:
            raise PayloadTooLarge(
                f"The progress is {size} bytes as JSON; the limit is {PROGRESS_BYTES_MAX} bytes.",
                hint="Say in a few words how far the step is.",
            )
        now = monotonic()
        if now < self._next:
            return
        self._next = now + INTERVAL_MIN_S
        command = self._command
        request = HeartbeatRequest(
            saga_id=command.saga_id,
            step=command.step,
            direction=command.direction,
            attempt=command.attempt,
            progress=progress,
        )
        try:
            send(self._app, command, request, patient=False)
        except OperationalError as error:
            # The next one may come through; without any the step's time-out decides.
            _log.warning("step.heartbeat_not_sent", reason=str(error))
