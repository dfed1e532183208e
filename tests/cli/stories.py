"""Sagas that were told step by step, on a store in memory and a clock that tests move by hand."""

from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.catalog import Catalog
from orchestrator.client import Client
from orchestrator.core.definition import Retry, Saga, Step
from orchestrator.core.limits import Limits
from orchestrator.core.machine import NO_LIMITS
from orchestrator.engine import Engine
from orchestrator.ports import Delivery
from orchestrator.store.memory import MemoryStore
from orchestrator.tracing import SagaTracing
from orchestrator.transport.memory import MemoryTransport
from orchestrator.views import SagaView
from shared.backoff import Backoff
from shared.ids import Direction
from shared.messages import (
    TASK_UNKNOWN,
    Execution,
    Failed,
    Failure,
    Outcome,
    Rejected,
    Reply,
    Succeeded,
)
from tests.core.builders import Order

T0 = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
LAST_TRY = Retry(attempts=1)
TWO_TRIES = Retry(attempts=2, backoff=Backoff(wait_first=timedelta(seconds=4)))

TRIP = Saga(
    name="trip",
    version=3,
    input=Order,
    deadline=timedelta(hours=1),
    steps=(
        Step("flight", "flights.book", "flights.cancel", compensation_retry=LAST_TRY),
        Step("hotel", "hotels.book", "hotels.cancel", retry=TWO_TRIES),
    ),
)


class Story:
    """One saga ``trip``, started at `T0`.

    Attributes:
        now: Time of what happens next; every reply takes 10 ms.
    """

    def __init__(self, key: str | None = None, limits: Limits = NO_LIMITS) -> None:
        self.now = T0
        self.engine = Engine(
            store=MemoryStore(),
            transport=MemoryTransport(),
            catalog=Catalog([TRIP]),
            tracing=SagaTracing(system="redis", clock=lambda: self.now),
            clock=lambda: self.now,
            limits=limits,
        )
        self.client = Client(self.engine)
        self.saga_id = self.client.start("trip", {"order_id": "o-1"}, key=key).row.saga_id

    def succeeds(self, step: str, attempt: int = 1, direction: Direction = "action") -> None:
        """The step succeeds."""
        self._reply(step, attempt, direction, Succeeded(output={"ref": step}))

    def is_unheard(self, step: str, direction: Direction = "action") -> None:
        """No worker knows the task, and one says so."""
        failure = Failure(kind=TASK_UNKNOWN, message="No worker knows it.", retryable=False)
        undo = direction == "compensation"
        self._reply(
            step, 1, direction, Failed(failure=failure) if undo else Rejected(failure=failure)
        )

    def rejects(self, step: str) -> None:
        """The participant says no."""
        no = Failure(kind="FullyBooked", message="no room\nleft", retryable=False)
        self._reply(step, 1, "action", Rejected(failure=no))

    def fails(self, step: str, attempt: int = 1, direction: Direction = "action") -> None:
        """An exception."""
        self._reply(step, attempt, direction, Failed(failure=Failure(kind="OSError", message="x")))

    def passes(self, wait: timedelta) -> None:
        """Time passes, and timers with it."""
        self.now += wait
        self.engine.tick(10)

    @property
    def view(self) -> SagaView:
        """The saga as people see it."""
        return self.client.view(self.saga_id)

    def _reply(self, step: str, attempt: int, direction: Direction, outcome: Outcome) -> None:
        started_at = self.now + timedelta(milliseconds=2)
        self.now += timedelta(milliseconds=10)
        reply = Reply(
            saga_id=self.saga_id,
            step=step,
            direction=direction,
            attempt=attempt,
            outcome=outcome,
            execution=Execution(worker=f"{step}@host", started_at=started_at, ended_at=self.now),
        )
        self.engine.handle([Delivery(message=reply, task="saga.reply", body="")])


def completed() -> Story:
    """Both steps succeed."""
    story = Story(key="o-1")
    story.succeeds("flight")
    story.succeeds("hotel")
    return story


def compensated() -> Story:
    """The hotel says no, the flight is undone."""
    story = Story()
    story.succeeds("flight")
    story.rejects("hotel")
    story.succeeds("flight", direction="compensation")
    return story


def retrying() -> Story:
    """The hotel has failed once, and has four seconds at most until its next attempt."""
    story = Story()
    story.succeeds("flight")
    story.fails("hotel")
    return story


def stuck() -> Story:
    """The hotel says no, and the flight cannot be undone."""
    story = Story()
    story.succeeds("flight")
    story.rejects("hotel")
    story.fails("flight", direction="compensation")
    return story


def fields(**more: Any) -> dict[str, Any]:
    """A log line."""
    return {
        "timestamp": "2026-01-01T12:00:00.123456Z",
        "level": "info",
        "event": "step.succeeded",
        "logger": "orchestrator",
        "service": "orchestrator",
        **more,
    }
