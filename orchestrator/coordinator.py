"""The loop that feeds the engine: messages, due timers, and what a crash left behind.

It blocks for the first message and then takes what is already there: under load the batches grow
by themselves, and no timer adds latency but for a short rest under load (`REST`). Broker and store may each be away: the loop says so once,
waits with back-off, goes on with the other where it can, and says when it is back.
"""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Final, Protocol

import structlog

from orchestrator.engine import Engine
from orchestrator.ports import Delivery
from shared import faults
from shared.backoff import Backoff, delay
from shared.clock import monotonic
from shared.errors import UnavailableError
from shared.telemetry import names
from shared.telemetry.metrics import catalog
from shared.telemetry.metrics.registry import REGISTRY

TIMER_INTERVAL: Final = timedelta(milliseconds=200)
SETTLE_INTERVAL: Final = timedelta(seconds=1)
SWEEP_INTERVAL: Final = timedelta(seconds=1)
RETRACE_INTERVAL: Final = timedelta(seconds=5)
SURVEY_INTERVAL: Final = timedelta(seconds=5)
AUDIT_INTERVAL: Final = timedelta(seconds=5)
TIMERS_MAX: Final = 200

BACKLOG_MAX: Final = timedelta(seconds=10)
"""How long timers wait, at most, while batches are full: what they ask may be answered already."""

SWEEP_MAX: Final = 500

BUSY_FROM: Final = 3
"""A batch of so many messages says that more are on their way."""

REST: Final = timedelta(milliseconds=5)
"""Pause after such a batch, in which the next one grows.

A batch costs 0.6 ms of CPU and a message in it 0.35: under full load the pause takes a third off the
coordinator's CPU, and gives it to the workers that the sagas wait for. Where nothing is busy there
is no pause: a saga alone, or two or three of them, never wait.
"""

RECONNECT: Final = Backoff(wait_first=timedelta(milliseconds=100), wait_max=timedelta(seconds=5))

log = structlog.get_logger(__name__)


class Stop(Protocol):
    """What ends a coordinator, and any of its waits: a `threading.Event`."""

    def is_set(self) -> bool:
        """Whether it is to end."""

    def set(self) -> None:
        """End it."""

    def wait(self, timeout: float) -> object:
        """Wait so many seconds, or until it is to end."""


class Coordinator:
    """Runs an engine until it is told to stop.

    Args:
        engine: What to run. The coordinator is its only user in this process.
        batch_messages_max: Most messages that one transaction takes.
        republish_after: Age at which an outbox row counts as left behind.
        rest: Pause after a large batch.
        stopping: Ends it; by default an event of its own.
        monotonic: Seconds since an arbitrary moment.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        batch_messages_max: int = 200,
        republish_after: timedelta = timedelta(seconds=5),
        rest: timedelta = REST,
        stopping: Stop | None = None,
        monotonic: Callable[[], float] = monotonic,
    ) -> None:
        self._engine = engine
        self._batch_messages_max = batch_messages_max
        self._rest_s = rest.total_seconds()
        self._stopping = stopping or threading.Event()
        self._monotonic = monotonic
        self._broker = Dependency("broker", self._stopping, monotonic)
        self._store = Dependency("store", self._stopping, monotonic)
        chores: list[tuple[timedelta, _Work]] = [
            (TIMER_INTERVAL, engine.admit),
            (AUDIT_INTERVAL, lambda: engine.audit(TIMERS_MAX)),
            (SETTLE_INTERVAL, engine.settle),
            (SWEEP_INTERVAL, lambda: engine.republish(republish_after, SWEEP_MAX) == SWEEP_MAX),
            (RETRACE_INTERVAL, lambda: engine.retrace(SWEEP_MAX) == SWEEP_MAX),
        ]
        if REGISTRY.on:
            chores.append((SURVEY_INTERVAL, engine.survey))
        timers = _Chore(
            TIMER_INTERVAL,
            lambda: engine.tick(TIMERS_MAX) == TIMERS_MAX,
            monotonic,
            patience=BACKLOG_MAX,
        )
        others = [_Chore(interval, work, monotonic) for interval, work in chores]
        self._chores = (timers, *others)

    def run(self) -> None:
        """Work until `stop`; an error other than a broker or store that is away ends it."""
        log.info("coordinator.started")
        catalog.COORDINATOR_UP.set(1)
        try:
            self._run()
        finally:
            catalog.COORDINATOR_UP.set(0)
        log.info("coordinator.stopped")

    def _run(self) -> None:
        while not self._stopping.is_set():
            deliveries = self._receive()
            if deliveries:
                self._handle(deliveries)
            backlog = len(deliveries) >= self._batch_messages_max
            now = self._monotonic()
            for chore in self._chores:
                if (
                    now >= chore.due_at(backlog=backlog)
                    and not self._stopping.is_set()
                    and not self._store.attempt(chore.run)
                ):
                    # Replies come before timers when the store is back: what they answer is not late.
                    break
        self._store.attempt(self._engine.settle)
        # Messages in hand go back to the queue at once.
        self._broker.attempt(self._engine.close)

    def stop(self) -> None:
        """Make `run` return after the batch in hand. Never raises, from any thread."""
        self._stopping.set()
        self._engine.transport.interrupt()

    def _receive(self) -> list[Delivery]:
        received: list[Delivery] = []
        until_timers = max(0.0, min([one.next_at for one in self._chores]) - self._monotonic())

        def receive() -> None:
            received.extend(self._engine.transport.receive(self._batch_messages_max, until_timers))

        self._broker.attempt(receive)
        return received

    def _handle(self, deliveries: list[Delivery]) -> None:
        catalog.BATCH_MESSAGES.record(len(deliveries))
        begun_at = monotonic()
        # They are not acknowledged yet: if the store stays away and we die, they come again.
        while not self._store.attempt(lambda: self._engine.handle(deliveries)):
            if self._stopping.is_set():
                return
        catalog.BATCH_DURATION.record(monotonic() - begun_at)
        faults.reach("orchestrator:after-publish-before-ack")
        if self._rest_s and len(deliveries) >= BUSY_FROM:
            # Before it, because an acknowledgement takes along what has come by then.
            self._stopping.wait(self._rest_s)
        self._broker.attempt(lambda: self._engine.transport.acknowledge(deliveries))


_Work = Callable[[], bool | timedelta | None]
"""Says True where there was more than it took, or when there is something to do again."""


class _Chore:
    """Something to do now and then; at once again when there was more than it took.

    Args:
        interval: How often.
        work: What to do.
        monotonic: Seconds since an arbitrary moment.
        patience: How much longer it may wait while there is a backlog of messages.

    Attributes:
        next_at: When it is to be done, as `monotonic` tells the time.
    """

    def __init__(
        self,
        interval: timedelta,
        work: "_Work",
        monotonic: Callable[[], float],
        *,
        patience: timedelta = timedelta(0),
    ) -> None:
        self._interval_s = interval.total_seconds()
        self._patience_s = patience.total_seconds()
        self._work = work
        self._monotonic = monotonic
        self.next_at = monotonic()

    def due_at(self, *, backlog: bool) -> float:
        return self.next_at + self._patience_s if backlog else self.next_at

    def run(self) -> None:
        self.next_at = self._monotonic() + self._interval_s
        match self._work():
            case timedelta() as wait:
                self.next_at = min(self.next_at, self._monotonic() + wait.total_seconds())
            case True:
                self.next_at = self._monotonic()
            case _:
                pass


class Dependency:
    """Broker or store: says once that it is away, and once that it is back.

    Args:
        name: ``broker`` or ``store``, for the log.
        stopping: Ends a wait early.
        monotonic: Seconds since an arbitrary moment.
    """

    def __init__(
        self, name: str, stopping: Stop, monotonic: Callable[[], float] = monotonic
    ) -> None:
        self._name = name
        self._stopping = stopping
        self._monotonic = monotonic
        self._failures = 0
        self._away_since = 0.0
        self._shown: bool | None = None

    def attempt(self, work: Callable[[], object]) -> bool:
        """Do something; after a failure wait, longer each time. Returns whether it worked."""
        try:
            work()
        except UnavailableError as error:
            if not self._failures:
                self._away_since = self._monotonic()
                log.error("dependency.unavailable", dependency=self._name, error=str(error))  # noqa: TRY400 - expected, and told in one line
            self._failures += 1
            if self._shown is not False:
                self._show(up=False)
            wait = delay(RECONNECT, self._failures, self._name)
            self._stopping.wait(wait.total_seconds())
            return False
        if self._failures:
            away = round(self._monotonic() - self._away_since, 1)
            log.warning(
                "dependency.recovered",
                dependency=self._name,
                away_seconds=away,
                attempts=self._failures,
            )
            catalog.RECONNECTS.add(1, {names.DEPENDENCY: self._name})
            self._failures = 0
        if self._shown is not True:
            self._show(up=True)
        return True

    def _show(self, *, up: bool) -> None:
        self._shown = up
        catalog.DEPENDENCY_UP.set(int(up), {names.DEPENDENCY: self._name})
