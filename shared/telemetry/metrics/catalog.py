"""Every metric of the product. docs/metrics.md lists them, and a test holds it to this file."""

from collections.abc import Iterable
from functools import partial
from typing import Final

from opentelemetry.metrics import Observation

from shared.telemetry import logs, names, setup
from shared.telemetry.metrics import (
    BYTES,
    COUNTS,
    counter,
    gauge,
    histogram,
    observe,
    up_down_counter,
)
from shared.telemetry.outlet import OutletStats

_SAGA: Final = (names.SAGA_NAME,)
_STEP: Final = (names.SAGA_NAME, names.SAGA_STEP, names.SAGA_DIRECTION)

# Sagas, by the orchestrator that commits what happens to them ----------------------------------

STARTED = counter(
    names.METRIC_STARTED,
    unit="{saga}",
    description="Sagas that were taken up: counted with the first outcome of a step.",
    labels=_SAGA,
)
COMPLETED = counter(
    names.METRIC_COMPLETED,
    unit="{saga}",
    description="Sagas of which every step succeeded.",
    labels=_SAGA,
)
COMPENSATED = counter(
    names.METRIC_COMPENSATED,
    unit="{saga}",
    description="Sagas that were undone, whole.",
    labels=_SAGA,
)
STUCK = counter(
    names.METRIC_STUCK,
    unit="{saga}",
    description="Times that a saga got stuck: a person has to decide.",
    labels=_SAGA,
)
COMPENSATIONS = counter(
    names.METRIC_COMPENSATIONS,
    unit="{saga}",
    description="Sagas that turned back, by the first thing that went wrong.",
    labels=(names.SAGA_NAME, names.SAGA_CAUSE),
)
DURATION = histogram(
    names.METRIC_DURATION,
    description="From the start of a saga to its end.",
    labels=(names.SAGA_NAME, names.SAGA_STATUS),
)
STEP_ATTEMPTS = counter(
    names.METRIC_STEP_ATTEMPTS,
    unit="{attempt}",
    description="Attempts of steps that have ended, by outcome.",
    labels=(*_STEP, names.SAGA_OUTCOME),
)
STEP_RETRIES = counter(
    names.METRIC_STEP_RETRIES,
    unit="{attempt}",
    description="Attempts that went wrong and are followed by another one.",
    labels=_STEP,
)
STEP_DURATION = histogram(
    names.METRIC_STEP_DURATION,
    description="How long an attempt ran, by the participant's clock.",
    labels=(*_STEP, names.SAGA_OUTCOME),
)
STEP_QUEUE_WAIT = histogram(
    names.METRIC_STEP_QUEUE_WAIT,
    description="From the decision to send a command until a worker began it.",
    labels=_STEP,
)

# The orchestrator's own work ------------------------------------------------------------------

BATCH_MESSAGES = histogram(
    names.METRIC_BATCH_MESSAGES,
    unit="{message}",
    description="Messages that were handled in one transaction.",
    bounds=COUNTS,
)
BATCH_DURATION = histogram(
    names.METRIC_BATCH_DURATION,
    description="How long a batch took: decide, commit, publish.",
)
COMMANDS_PUBLISHED = counter(
    names.METRIC_COMMANDS_PUBLISHED,
    unit="{command}",
    description="Commands that the broker has taken.",
)
PUBLISH_FAILURES = counter(
    names.METRIC_PUBLISH_FAILURES,
    unit="{failure}",
    description="Times that the broker did not take commands; they stay in the outbox.",
)
STORE_CONFLICTS = counter(
    names.METRIC_STORE_CONFLICTS,
    unit="{saga}",
    description="Changes that were decided anew because somebody else was faster.",
)
DEAD_LETTERED = counter(
    names.METRIC_DEAD_LETTERED,
    unit="{message}",
    description="Messages that nobody could act on.",
)
RECONNECTS = counter(
    names.METRIC_RECONNECTS,
    unit="{reconnect}",
    description="Times that broker or store came back after they had been away.",
    labels=(names.DEPENDENCY,),
)

COORDINATOR_UP = gauge(
    names.METRIC_COORDINATOR_UP,
    description="1 while the loop of an orchestrator runs; there is none where it is missing.",
)
DEPENDENCY_UP = gauge(
    names.METRIC_DEPENDENCY_UP,
    description="Whether broker and store answered when the orchestrator last asked: 1 or 0.",
    labels=(names.DEPENDENCY,),
    rule="max",
)

# What the store holds: the same in every orchestrator, so queries take the max ------------------

show_in_flight = partial(
    observe,
    names.METRIC_IN_FLIGHT,
    unit="{saga}",
    description="Sagas that have not ended, in the store. At most 100,000 are counted.",
    labels=(names.SAGA_NAME, names.SAGA_STATUS),
    rule="max",
)
show_awaiting_room = partial(
    observe,
    names.METRIC_AWAITING_ROOM,
    unit="{saga}",
    description="Sagas that wait for room within a limit; of the saga itself the step is empty.",
    labels=(names.SAGA_NAME, names.SAGA_STEP),
    rule="max",
)
show_name_paused = partial(
    observe,
    names.METRIC_NAME_PAUSED,
    description="1 where an operator has paused all sagas of a name, 0 for other names.",
    labels=(names.SAGA_NAME,),
    rule="max",
)
show_timers_late = partial(
    observe,
    names.METRIC_TIMERS_LATE,
    unit="{saga}",
    description="Sagas whose timer has been due for more than five seconds.",
    rule="max",
)
show_timers_lateness = partial(
    observe,
    names.METRIC_TIMERS_LATENESS,
    unit="s",
    description="How long the oldest timer has been due; 0 where none is.",
    rule="max",
)
show_outbox_size = partial(
    observe,
    names.METRIC_OUTBOX_SIZE,
    unit="{command}",
    description="Commands that may not have reached the broker. At most 100,000 are counted.",
    rule="max",
)
show_outbox_age = partial(
    observe,
    names.METRIC_OUTBOX_AGE,
    unit="s",
    description="How long the oldest of them has been waiting; 0 where none is.",
    rule="max",
)
show_dead_letters = partial(
    observe,
    names.METRIC_DEAD_LETTERS,
    unit="{message}",
    description="Messages in the store that nobody could act on. At most 100,000 are counted.",
    rule="max",
)

# Participants ---------------------------------------------------------------------------------

PARTICIPANT_DURATION = histogram(
    names.METRIC_PARTICIPANT_DURATION,
    description="How long a worker took for an attempt, its commit included.",
    labels=(names.SAGA_TASK, names.SAGA_DIRECTION, names.SAGA_OUTCOME),
)
PARTICIPANT_LOST = counter(
    names.METRIC_PARTICIPANT_LOST,
    unit="{process}",
    description="Worker processes that were killed in a step.",
    labels=(names.SAGA_TASK,),
)

# The payload store --------------------------------------------------------------------------

PAYLOAD_DURATION = histogram(
    names.METRIC_PAYLOAD_DURATION,
    description="How long the payload store took for a value, or until it failed.",
    labels=(names.PAYLOAD_OPERATION, names.ERROR_TYPE),
)
PAYLOAD_SIZE = histogram(
    names.METRIC_PAYLOAD_SIZE,
    unit="By",
    description="How large values are that were read or written.",
    labels=(names.PAYLOAD_OPERATION,),
    bounds=BYTES,
)

# Buses ----------------------------------------------------------------------------------------

BUS_RETRIES = counter(
    names.METRIC_BUS_RETRIES,
    unit="{attempt}",
    description="Attempts of a handler that failed and are followed by another one.",
    labels=(names.BUS_MESSAGE_NAME,),
)
BUS_LATE_ANSWERS = counter(
    names.METRIC_BUS_LATE_ANSWERS,
    unit="{answer}",
    description="Answers to queries that came after their deadline, and were dropped.",
    labels=(names.BUS_MESSAGE_NAME,),
)

# Every process --------------------------------------------------------------------------------

PROCESSES = up_down_counter(
    names.METRIC_PROCESSES,
    unit="{process}",
    description="Processes whose metrics these are: the main process and its children.",
)


def _by_state(found: OutletStats) -> Iterable[Observation]:
    for state in ("exported", "dropped", "failed"):
        yield Observation(getattr(found, state), {names.STATE: state})


observe(
    names.METRIC_SPANS,
    lambda: _by_state(setup.stats()),
    unit="{span}",
    description="What became of finished spans: exported, dropped, failed.",
    labels=(names.STATE,),
    counts=True,
)
observe(
    names.METRIC_SPANS_QUEUED,
    lambda: setup.stats().queued,
    unit="{span}",
    description="Spans that wait for their export.",
)
observe(
    names.METRIC_LOG_RECORDS,
    lambda: _by_state(logs.export_stats()),
    unit="{record}",
    description="What became of log records for a collector: exported, dropped, failed.",
    labels=(names.STATE,),
    counts=True,
)
