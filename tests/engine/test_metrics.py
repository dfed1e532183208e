"""What the engine and the coordinator count, on the store and the transport in memory."""

import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from typing_extensions import override

from orchestrator import metrics
from orchestrator.client import Client
from orchestrator.coordinator import Coordinator, Dependency
from orchestrator.core.limits import Limit
from orchestrator.core.state import Status
from orchestrator.metrics import SHOWN_FOR, StoreGauges
from orchestrator.ports import Delivery, Survey
from orchestrator.store.memory import MemoryStore
from shared.errors import UnavailableError
from shared.messages import Execution, Reply, Undecodable
from shared.telemetry.metrics.registry import Registry
from shared.telemetry.metrics.snapshot import Series
from tests.core.builders import T0, failed, rejected, saga, step, succeeded
from tests.engine.test_engine import Bench, of
from tests.metrics.conftest import registry

__all__ = ["registry"]


@pytest.fixture
def bench(registry: Registry) -> Iterator[Bench]:
    """An engine that is measured, with a saga of two steps."""
    made = Bench()
    yield made
    made.engine.close()


def ran(reply: Reply, after: timedelta, seconds: float) -> Reply:
    """A reply that says when it was worked on."""
    begun = T0 + after
    execution = Execution(
        worker="w", started_at=begun, ended_at=begun + timedelta(seconds=seconds)
    )
    return msgspec.structs.replace(reply, execution=execution)


def found(registry: Registry, name: str) -> dict[str, Series]:
    """The series of a metric by the values of their labels."""
    families = {one.name: one for one in registry.snapshot().families}
    if name not in families:
        return {}
    return {" ".join(value for _, value in one.labels): one for one in families[name].series}


def counts(registry: Registry, name: str) -> dict[str, float]:
    """The same as numbers."""
    return {labels: one.value for labels, one in found(registry, name).items()}


def test_a_saga_that_completes(bench: Bench, registry: Registry) -> None:
    """Started once, with the first outcome; durations and waits carry its trace."""
    started = bench.start()
    saga_id, trace = started.row.saga_id, started.row.state.trace
    assert {} == counts(registry, "saga.started")
    bench.now = T0 + timedelta(seconds=3)
    bench.arrive(of(saga_id, ran(succeeded("a"), timedelta(seconds=2), 0.5)))
    bench.now = T0 + timedelta(seconds=9)
    bench.arrive(of(saga_id, ran(succeeded("b"), timedelta(seconds=4), 0.25)))
    bench.arrive(of(saga_id, succeeded("b")))

    assert {"test": 1} == counts(registry, "saga.started")
    assert {"test": 1} == counts(registry, "saga.completed")
    assert {"action test succeeded a": 1, "action test succeeded b": 1} == counts(
        registry, "saga.step.attempts"
    )
    assert {"action test a": 2.0, "action test b": 1.0} == counts(registry, "saga.step.queue_wait")
    assert {"action test succeeded a": 0.5, "action test succeeded b": 0.25} == counts(
        registry, "saga.step.duration"
    )
    (duration,) = found(registry, "saga.duration").values()
    assert (9.0, [(9.0, trace.trace_id, trace.root_span_id)] if trace.sampled else []) == (
        duration.value,
        [(one.value, one.trace_id, one.span_id) for one in duration.exemplars.values()],
    )
    assert {"": 2} == counts(registry, "saga.commands.published")


def test_a_saga_that_fails_has_its_trace_as_exemplar_although_it_is_not_sampled(
    bench: Bench, registry: Registry
) -> None:
    """Compensated and retried, by cause; every failure has a trace to look at."""
    row = bench.start().row
    assert not row.state.trace.sampled, "no telemetry runs here"
    saga_id = row.saga_id
    bench.arrive(of(saga_id, failed("a")))
    bench.now += timedelta(minutes=2)
    bench.engine.tick(10)
    bench.arrive(of(saga_id, succeeded("a", attempt=2)))
    bench.arrive(of(saga_id, rejected("b")))
    bench.arrive(of(saga_id, succeeded("a", direction="compensation")))
    assert bench.status(saga_id) is Status.COMPENSATED

    assert {"action test a": 1} == counts(registry, "saga.step.retries")
    assert {"rejected test": 1} == counts(registry, "saga.compensations")
    assert {"test": 1} == counts(registry, "saga.compensated")
    assert {"test": 1} == counts(registry, "saga.started")
    assert {
        "action test failed a": 1,
        "action test succeeded a": 1,
        "action test rejected b": 1,
        "compensation test succeeded a": 1,
    } == counts(registry, "saga.step.attempts")
    (duration,) = found(registry, "saga.duration").values()
    assert [row.state.trace.trace_id] == [one.trace_id for one in duration.exemplars.values()]


def test_a_late_answer_says_nothing_about_the_queue(bench: Bench, registry: Registry) -> None:
    """When its attempt was sent is not known any more; how long it ran is."""
    saga_id = bench.start().row.saga_id
    bench.arrive(of(saga_id, failed("a")))
    bench.arrive(of(saga_id, ran(succeeded("a"), timedelta(seconds=2), 0.5)))
    assert {} == counts(registry, "saga.step.queue_wait")
    assert {"action test succeeded a": 0.5} == counts(registry, "saga.step.duration")


def test_time_outs_and_stuck_sagas(bench: Bench, registry: Registry) -> None:
    """An attempt without an answer has an outcome, and no duration."""
    bench = Bench(saga(step("a", compensation=None, pivot=True), step("b", compensation=None)))
    saga_id = bench.start().row.saga_id
    bench.arrive(of(saga_id, succeeded("a")))
    for _ in range(12):
        bench.now += timedelta(minutes=5)
        bench.engine.tick(10)
    assert bench.status(saga_id) is Status.STUCK
    assert {"test": 1} == counts(registry, "saga.stuck")
    outcomes = counts(registry, "saga.step.attempts")
    assert outcomes["action test timed_out b"] == 1 + counts(registry, "saga.step.retries").get(
        "action test b", 0
    )
    bench.engine.close()


def test_dead_letters_conflicts_and_failures_to_publish(
    bench: Bench, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not go as it should is counted, from zero on."""
    saga_id = bench.start().row.saga_id
    names_of = ("saga.dead_lettered", "saga.store.conflicts", "saga.publish.failures")
    assert [{"": 0}] * 3 == [counts(registry, name) for name in names_of]

    unread = Undecodable(reason="no JSON", task="saga.reply", body="{")
    bench.engine.handle([Delivery(message=unread, task="saga.reply", body="{")])

    commit = bench.store.commit
    conflicts = [frozenset({saga_id})]

    def commit_late(changes: Any, **others: Any) -> frozenset[str]:
        return conflicts.pop() if conflicts else commit(changes, **others)

    def publish(commands: object) -> None:
        raise UnavailableError("away")

    monkeypatch.setattr(bench.store, "commit", commit_late)
    monkeypatch.setattr(bench.transport, "publish", publish)
    bench.arrive(of(saga_id, succeeded("a")))
    assert [{"": 1}] * 3 == [counts(registry, name) for name in names_of]
    assert {"action test succeeded a": 1} == counts(registry, "saga.step.attempts")


def test_what_cannot_be_counted_does_not_stop_what_is_committed(
    bench: Bench, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake in counting costs a number, not a saga; the log says so."""
    saga_id = bench.start().row.saga_id
    monkeypatch.setattr(metrics, "_measure", lambda *_: 1 // 0)
    bench.arrive(of(saga_id, succeeded("a")))
    bench.arrive(of(saga_id, succeeded("b")))
    assert bench.status(saga_id) is Status.COMPLETED
    assert {"saga.step.attempts"} == registry._complained


def test_the_store_is_shown_as_it_was_seen_and_not_for_ever(registry: Registry) -> None:
    """In flight by name and status, ages at the time of the look; nothing once it is old."""
    bench = Bench()
    bench.start()
    gauges = StoreGauges(bench.clock)
    assert {} == found(registry, "saga.in_flight")
    bench.now += timedelta(seconds=40)
    gauges.look(bench.store)
    in_flight = {"test running": 1, "test compensating": 0, "test stuck": 0}
    assert in_flight == counts(registry, "saga.in_flight")
    assert {} == counts(registry, "saga.awaiting_room")
    assert {"test": 0} == counts(registry, "saga.name_paused")
    assert {"": 1} == counts(registry, "saga.timers.late")
    assert {"": 10.0} == counts(registry, "saga.timers.lateness")
    assert {"": 40.0} == counts(registry, "saga.outbox.age")
    assert ({"": 1}, {"": 0}) == (
        counts(registry, "saga.outbox.size"),
        counts(registry, "saga.dead_letters"),
    )
    bench.now += SHOWN_FOR + timedelta(seconds=1)
    assert {} == found(registry, "saga.in_flight")
    gauges.look(bench.store)
    gauges.close()
    assert {} == found(registry, "saga.outbox.age")
    bench.engine.close()


def test_who_waits_for_room_and_which_names_are_paused_is_shown(registry: Registry) -> None:
    """By name and step; zeros, too, so that a line goes down again."""
    bench = Bench()
    client = Client(bench.engine)
    client.controls.set_limit("test", Limit(in_flight=1), step="a", reason="r")
    client.controls.set_limit("test", Limit(in_flight=9), reason="r")
    for _ in range(3):
        bench.start()
    gauges = StoreGauges(bench.clock)
    gauges.look(bench.store)
    assert {"test a": 2, "test ": 0} == counts(registry, "saga.awaiting_room")
    client.controls.pause("test", reason="r")
    gauges.look(bench.store)
    assert {"test": 1} == counts(registry, "saga.name_paused")
    client.controls.resume("test")
    gauges.look(bench.store)
    assert {"test": 0} == counts(registry, "saga.name_paused")
    gauges.close()
    bench.engine.close()


def test_a_coordinator_shows_that_it_runs_and_what_it_depends_on(registry: Registry) -> None:
    """Up while its loop runs; batches, and the survey, are its own."""
    bench = Bench()
    saga_id = bench.start().row.saga_id
    bench.broker.send(of(saga_id, succeeded("a")), "")
    stopping = threading.Event()
    coordinator = Coordinator(bench.engine, stopping=stopping)
    seen: list[dict[str, float]] = []

    def watch() -> None:
        while not counts(registry, "saga.batch.messages"):
            stopping.wait(0.01)
        seen.append(counts(registry, "saga.coordinator.up"))
        coordinator.stop()

    watcher = threading.Thread(target=watch)
    watcher.start()
    coordinator.run()
    watcher.join()
    assert [{"": 1}] == seen
    assert {"": 0} == counts(registry, "saga.coordinator.up")
    assert {"broker": 1, "store": 1} == counts(registry, "saga.dependency.up")
    assert {"": 1} == counts(registry, "saga.batch.messages")


def test_a_dependency_that_comes_back_is_counted(registry: Registry) -> None:
    """Down at the first failure, up and counted at the next success."""
    stopping = threading.Event()
    stopping.set()
    store = Dependency("store", stopping)

    def away() -> None:
        raise UnavailableError("away")

    store.attempt(away)
    assert {"store": 0} == counts(registry, "saga.dependency.up")
    store.attempt(away)
    store.attempt(lambda: None)
    assert {"store": 1} == counts(registry, "saga.dependency.up")
    assert {"store": 1} == counts(registry, "saga.reconnects")


def test_nothing_is_asked_of_the_store_while_metrics_are_off() -> None:
    """A coordinator without metrics has no chore for them."""

    class Unasked(MemoryStore):
        @override
        def survey(self, late_before: datetime) -> Survey:
            raise AssertionError("asked")

    bench = Bench(store=Unasked())
    coordinator = Coordinator(bench.engine)
    assert 6 == len(coordinator._chores)
    bench.engine.close()
