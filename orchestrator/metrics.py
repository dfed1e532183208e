"""What was decided, as metrics: counted once, by the orchestrator that has committed it.

A start is committed by whoever calls the client, often a short process that nobody scrapes. So a
saga counts as started with its first outcome of a step, which comes to an orchestrator; of several
it is the one whose compare-and-set has won.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from orchestrator.core.definition import Definition
from orchestrator.core.events import (
    CompensationStarted,
    HistoryFull,
    SagaCompensated,
    SagaCompleted,
    SagaStuck,
    StepFailed,
    StepRejected,
    StepSucceeded,
    StepTimedOut,
    TaskUnknown,
)
from orchestrator.core.state import Phase, SagaState
from orchestrator.ports import Change, SagaRow, Store, Survey
from orchestrator.projection import step_span_id
from shared.clock import Clock
from shared.ids import Direction
from shared.telemetry import names
from shared.telemetry.metrics import Observation, catalog
from shared.telemetry.metrics.registry import REGISTRY

TIMER_LATE: Final = timedelta(seconds=5)
"""How long after its time a timer counts as late; they are looked for five times a second."""

SHOWN_FOR: Final = timedelta(seconds=30)
"""How long the last look at the store is shown: what cannot be asked is not known."""

Ended = StepSucceeded | StepRejected | TaskUnknown | StepFailed | StepTimedOut

_OUTCOMES = {
    StepSucceeded: "succeeded",
    StepRejected: "rejected",
    StepFailed: "failed",
    StepTimedOut: "timed_out",
    TaskUnknown: "task_unknown",
}


def committed(
    changes: Iterable[Change],
    before: Mapping[str, SagaRow],
    definition_of: Callable[[SagaRow], Definition],
) -> None:
    """Count what was committed; nothing happens where metrics are off.

    Args:
        changes: What was committed.
        before: The rows before that, by saga id.
        definition_of: Gives the definition of a saga.
    """
    if not REGISTRY.on:
        return
    try:
        for change in changes:
            row = before.get(change.row.saga_id)
            _measure(change, row.state if row else None, definition_of(change.row))
    except Exception as error:  # noqa: BLE001 - it is committed: what cannot be counted must not stop it
        REGISTRY.complain(names.METRIC_STEP_ATTEMPTS, f"a change was not counted: {error!r}")


def set_aside(*, conflicts: int, letters: int) -> None:
    """Count changes that somebody else was faster with, and messages that became dead letters."""
    catalog.STORE_CONFLICTS.add(conflicts)
    catalog.DEAD_LETTERED.add(letters)


def published(commands: int) -> None:
    """Count commands that the broker has taken; none is a failure."""
    catalog.COMMANDS_PUBLISHED.add(commands)
    catalog.PUBLISH_FAILURES.add(0 if commands else 1)


class StoreGauges:
    """What the last look at the store has found, as gauges.

    Each orchestrator shows all of the store, so that queries take the ``max`` over them.

    Args:
        clock: Tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: Survey | None = None
        self._at = clock()
        self._ends = [
            catalog.show_in_flight(self._in_flight),
            catalog.show_awaiting_room(self._awaiting_room),
            catalog.show_name_paused(self._paused),
            *(
                show(partial(self._one, value))
                for show, value in (
                    (catalog.show_timers_late, lambda seen, _: seen.timers_late),
                    (catalog.show_timers_lateness, lambda seen, at: _age(seen.timer_due_at, at)),
                    (catalog.show_outbox_size, lambda seen, _: seen.outbox_size),
                    (catalog.show_outbox_age, lambda seen, at: _age(seen.outbox_since, at)),
                    (catalog.show_dead_letters, lambda seen, _: seen.dead_letters),
                )
            ),
        ]

    def look(self, store: Store) -> None:
        """Ask the store.

        Raises:
            UnavailableError: It cannot be reached; what was seen last is shown for a while.
        """
        at = self._clock()
        self._seen, self._at = store.survey(at - TIMER_LATE), at

    def close(self) -> None:
        """Show nothing any more."""
        for end in self._ends:
            end()

    def _fresh(self) -> Survey | None:
        return self._seen if self._clock() - self._at <= SHOWN_FOR else None

    def _one(self, value: Callable[[Survey, datetime], float]) -> Iterable[Observation]:
        seen = self._fresh()
        return [] if seen is None else [Observation(value(seen, self._at))]

    def _in_flight(self) -> Iterable[Observation]:
        seen = self._fresh()
        for (name, status), sagas in (seen.in_flight if seen else {}).items():
            yield Observation(sagas, {names.SAGA_NAME: name, names.SAGA_STATUS: status.value})

    def _awaiting_room(self) -> Iterable[Observation]:
        seen = self._fresh()
        for (name, step), sagas in (seen.awaiting_room if seen else {}).items():
            yield Observation(sagas, {names.SAGA_NAME: name, names.SAGA_STEP: step})

    def _paused(self) -> Iterable[Observation]:
        seen = self._fresh()
        known = {name for name, _ in seen.in_flight} | seen.paused if seen else set()
        for name in sorted(known):
            paused = seen is not None and name in seen.paused
            yield Observation(int(paused), {names.SAGA_NAME: name})


def _age(since: datetime | None, at: datetime) -> float:
    return 0.0 if since is None else max(0.0, (at - since).total_seconds())


def _measure(change: Change, before: SagaState | None, definition: Definition) -> None:
    state = change.row.state
    saga = {names.SAGA_NAME: state.name}
    new = before is not None and _untouched(before)
    for recorded in change.events:
        event = recorded.event
        match event:
            case StepSucceeded() | StepRejected() | TaskUnknown() | StepFailed() | StepTimedOut():
                if new:
                    new = False
                    catalog.STARTED.add(1, saga)
                _measure_attempt(event, state, before, definition)
            case CompensationStarted():
                cause = state.cause.kind.value if state.cause else ""
                catalog.COMPENSATIONS.add(1, {**saga, names.SAGA_CAUSE: cause})
            case SagaStuck() | HistoryFull():
                catalog.STUCK.add(1, saga)
            case SagaCompleted():
                catalog.COMPLETED.add(1, saga)
                _measure_end(state, change.row.started_at, recorded.at)
            case SagaCompensated():
                catalog.COMPENSATED.add(1, saga)
                _measure_end(state, change.row.started_at, recorded.at)
            case _:
                pass


def _measure_end(state: SagaState, started_at: datetime, ended_at: datetime) -> None:
    trace = state.trace
    # One that failed has a trace even if it was not sampled.
    shown = trace.sampled or state.went_wrong
    catalog.DURATION.record_in(
        trace.trace_id if shown else "",
        trace.root_span_id,
        (ended_at - started_at).total_seconds(),
        {names.SAGA_NAME: state.name, names.SAGA_STATUS: state.status.value},
    )


def _measure_attempt(
    event: Ended, state: SagaState, before: SagaState | None, definition: Definition
) -> None:
    direction: Direction = (
        "action" if isinstance(event, StepRejected | TaskUnknown) else event.direction
    )
    step = {
        names.SAGA_NAME: state.name,
        names.SAGA_STEP: event.step,
        names.SAGA_DIRECTION: direction,
    }
    ended = {**step, names.SAGA_OUTCOME: _OUTCOMES[type(event)]}
    catalog.STEP_ATTEMPTS.add(1, ended)
    if isinstance(event, StepFailed | StepTimedOut) and event.retry_at is not None:
        catalog.STEP_RETRIES.add(1, step)
    if isinstance(event, StepTimedOut) or event.execution is None:
        return
    execution = event.execution
    trace_id = span_id = ""
    if state.trace.sampled:
        trace_id = state.trace.trace_id
        span_id = step_span_id(state.saga_id, event.step, direction)
    ran = (execution.ended_at - execution.started_at).total_seconds()
    catalog.STEP_DURATION.record_in(trace_id, span_id, max(0.0, ran), ended)
    sent_at = _sent_at(event, direction, before, definition)
    if sent_at is not None:
        # Not below zero: the participant's clock may be behind ours.
        waited = max(0.0, (execution.started_at - sent_at).total_seconds())
        catalog.STEP_QUEUE_WAIT.record_in(trace_id, span_id, waited, step)


def _sent_at(
    event: Ended, direction: Direction, before: SagaState | None, definition: Definition
) -> datetime | None:
    """When the attempt was dispatched: its timer was set to that plus the timeout."""
    planned = definition.by_name.get(event.step)
    if before is None or planned is None:
        return None
    step = before.step(event.step)
    forward = direction == "action"
    current = step.attempt if forward else step.undo_attempt
    in_flight = step.phase is (Phase.RUNNING if forward else Phase.UNDOING)
    if not in_flight or current != event.attempt or step.due_at is None:
        return None
    return step.due_at - planned.timeout


def _untouched(state: SagaState) -> bool:
    """Whether no step of a saga has had an outcome."""
    return all(
        step.origin or (step.phase is Phase.RUNNING and step.attempt == 1)
        for step in state.steps.values()
    )
