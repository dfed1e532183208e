"""Who runs, as far as workers answer, and how long a step is lost at worst."""

from datetime import timedelta
from typing import Any

import pytest

from orchestrator.core.definition import Saga, Step, WaitFor
from orchestrator.doctor import checkup, running
from orchestrator.doctor.findings import Code, Severity
from orchestrator.doctor.recovery import worst_case
from orchestrator.doctor.running import Running
from orchestrator.sagas.place_order import PLACE_ORDER
from tests.cli.stories import TRIP
from tests.doctor.conftest import bad

WRONG, ADVICE = Severity.WRONG, Severity.ADVICE
ORCHESTRATOR = Running(name="o@h", queues=frozenset({"saga.orchestrator"}))
SAFE = {
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "worker_prefetch_multiplier": 1,
    "task_time_limit": 60,
}
TASKS = frozenset({"flights.book", "flights.cancel", "hotels.book", "hotels.cancel"})
ALL = Running(
    name="p@h",
    queues=frozenset({"flights", "hotels"}),
    tasks=TASKS,
    conf=SAFE,
    pool="prefork",
)


def _bad(*workers: Running, system: str = "redis") -> list[Any]:
    return bad(running.check_workers(workers, [TRIP.definition], system))


def _changed(**changes: Any) -> Running:
    conf = {**SAFE, **changes.pop("conf", {})}
    return Running(
        **{
            "name": "p@h",
            "queues": ALL.queues,
            "tasks": TASKS,
            "conf": conf,
            "pool": "prefork",
            **changes,
        }
    )


def test_everybody_is_there() -> None:
    """Nothing to say."""
    assert _bad(ORCHESTRATOR, ALL) == []


@pytest.mark.parametrize(
    "workers, expected",
    [
        ((), [(WRONG, Code.NO_WORKER)]),
        ((ALL,), [(WRONG, Code.NO_ORCHESTRATOR)]),
        ((ORCHESTRATOR,), 2 * [(WRONG, Code.QUEUE_WITHOUT_WORKER)]),
        (
            (ORCHESTRATOR, _changed(tasks=TASKS - {"hotels.cancel"})),
            [(WRONG, Code.TASK_UNKNOWN)],
        ),
        (
            (ORCHESTRATOR, _changed(conf={"task_acks_late": False})),
            [(ADVICE, Code.ACKS_EARLY)],
        ),
        (
            (ORCHESTRATOR, _changed(conf={"task_reject_on_worker_lost": None})),
            [(ADVICE, Code.ACKS_EARLY)],
        ),
        (
            (ORCHESTRATOR, _changed(conf={"worker_prefetch_multiplier": 4})),
            [(ADVICE, Code.PREFETCH)],
        ),
        ((ORCHESTRATOR, _changed(pool="threads")), [(ADVICE, Code.POOL)]),
        ((ORCHESTRATOR, _changed(conf={"task_time_limit": None})), [(ADVICE, Code.POOL)]),
    ],
)
def test_what_is_missing_or_set_up_wrongly(workers: Any, expected: list[Any]) -> None:
    """Each with its own finding."""
    assert _bad(*workers) == expected


def test_the_missing_participant_is_named() -> None:
    """With the steps that would wait for it, and how to start it."""
    found = running.check_workers(
        [ORCHESTRATOR, _changed(queues=frozenset({"hotels"}))], [TRIP.definition], "redis"
    )
    (missing,) = (one for one in found if one.severity is WRONG)
    assert "the queue flights: trip/flight" in missing.message
    assert "-Q flights" in missing.advice


def test_a_worker_that_says_little_is_not_accused() -> None:
    """Old versions and other languages do not answer every question."""
    quiet = Running(name="p@h", queues=ALL.queues)
    assert _bad(ORCHESTRATOR, quiet) == []


@pytest.mark.parametrize(
    "system, visibility_s, by, parts",
    [
        ("redis", 300, "next attempt", [5, 1, 30, 0.2, 1]),
        ("redis", 10, "redelivery", [5, 1, 10, 5]),
        ("rabbitmq", 300, "next attempt", [5, 1, 30, 0.2, 1]),
        ("filesystem", 300, "next attempt", [5, 1, 30, 0.2, 1]),
    ],
)
def test_the_worst_case_is_the_sum_of_its_parts(
    system: str, visibility_s: int, by: str, parts: list[float]
) -> None:
    """By what is faster: the broker gives it back, or the next attempt is sent."""
    found = worst_case(
        [PLACE_ORDER.definition],
        system=system,
        visibility_timeout=timedelta(seconds=visibility_s),
        republish_after=timedelta(seconds=5),
    )
    assert found is not None
    assert (found.by, [part.seconds for part in found.parts]) == (by, parts)
    assert found.seconds == pytest.approx(sum(parts))


def test_a_step_that_only_waits_needs_nobody_and_cannot_be_lost() -> None:
    """An approval may take a week; no worker has it in hand."""
    approval = Step("approve", WaitFor("approval"), timeout=timedelta(days=7))
    saga = Saga(name="trip", version=4, input=TRIP.input, steps=(*TRIP.steps, approval)).definition
    assert bad(running.check_workers([ORCHESTRATOR, ALL], [saga], "redis")) == []
    found = worst_case(
        [saga],
        system="redis",
        visibility_timeout=timedelta(hours=1),
        republish_after=timedelta(seconds=5),
    )
    assert found is not None
    assert found.seconds < 60
    assert checkup._longest([saga])[0] == timedelta(seconds=30)


def test_without_a_definition_nothing_can_be_lost() -> None:
    """And no step is named."""
    nothing = worst_case(
        [], system="redis", visibility_timeout=timedelta(0), republish_after=timedelta(0)
    )
    assert nothing is None
