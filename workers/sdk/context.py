"""What a step function is told besides its arguments."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
import structlog

from shared.errors import ConfigurationError
from shared.ids import Direction, idempotency_key
from shared.telemetry.propagation import parse_traceparent
from workers.sdk.heartbeat import Pulse


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """The first argument of every step function.

    Attributes:
        saga_id: Id of the saga; empty when the task was called without one. A compensation gets the
            id that its action got, also where a fork of that saga asks for it.
        saga_name: Name of its definition.
        step: Name of the step in it.
        direction: ``action`` or ``compensation``.
        attempt: Number of this attempt, from 1; the fencing token of the step.
        task: Celery task name.
        task_id: Celery task id.
        deadline_at: When the orchestrator stops waiting, aware; None where no one waits.
        traceparent: W3C trace context of the attempt, for systems that are not instrumented.
    """

    saga_id: str
    saga_name: str
    step: str
    direction: Direction
    attempt: int
    task: str
    task_id: str
    deadline_at: datetime | None = None
    traceparent: str | None = None
    _connection: sa.Connection | None = field(default=None, repr=False)
    _token: str = field(default="", repr=False)
    _pulse: Pulse | None = field(default=None, repr=False)

    @property
    def connection(self) -> sa.Connection:
        """The transaction of this step in the participant's database.

        Work done here commits together with the record that it was done. Leave commit and
        rollback to the SDK; `begin_nested` is free to use.

        Raises:
            ConfigurationError: The participant has no database.
        """
        if self._connection is None:
            raise ConfigurationError(
                f"Task {self.task!r} has no database connection.",
                hint='Give its participant one: Participant(app, "postgresql+psycopg://…").',
            )
        return self._connection

    def with_connection(self, connection: sa.Connection) -> "StepContext":
        """The same context, in a transaction."""
        return replace(self, _connection=connection)

    @property
    def token(self) -> str:
        """With it this attempt is completed from elsewhere, after the function returned `Later`.

        Whoever has it can end the attempt: hand it to the system that does the work, and to no
        other.

        Raises:
            ConfigurationError: Nobody waits for the attempt, or the saga was started by a version
                that made no tokens.
        """
        if not self._token:
            raise ConfigurationError(
                f"Task {self.task!r} has no token: it cannot be completed from elsewhere.",
                hint="Call it as a step of a saga that was started by this version or a later one.",
            )
        return self._token

    def heartbeat(self, progress: Any = None) -> None:
        """Say that this attempt is alive: its time-out begins anew.

        Call it as often as you like: at most one a second is sent. A broker that is away costs
        heartbeats, not the step.

        Args:
            progress: How far it is, for people: anything of at most 4,096 bytes as JSON.

        Raises:
            PayloadTooLarge: `progress` is larger.
            DecodeError: It is not JSON.
        """
        if self._pulse is not None:
            self._pulse.beat(progress)

    @property
    def idempotency_key(self) -> str:
        """``saga:step:direction``: the same for every attempt, for use with other systems."""
        if not self.saga_id:
            return self.task_id
        return idempotency_key(self.saga_id, self.step, self.direction)

    @property
    def trace_id(self) -> str | None:
        """The saga's trace id, 32 hexadecimal digits."""
        parent = parse_traceparent(self.traceparent)
        return parent.trace_id if parent else None

    @property
    def logger(self) -> structlog.stdlib.BoundLogger:
        """A logger named after the task.

        Its lines carry the saga, the step and the trace where `install_telemetry` was called.
        """
        logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(self.task)
        return logger
