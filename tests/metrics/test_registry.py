import os
import signal
import threading
from collections.abc import Iterable
from functools import partial

import pytest
from opentelemetry import metrics as api
from opentelemetry import trace
from opentelemetry.context import Context

from shared.telemetry import names
from shared.telemetry.metrics import (
    COUNTS,
    Observation,
    counter,
    gauge,
    histogram,
    observe,
    up_down_counter,
)
from shared.telemetry.metrics.cardinality import OTHER
from shared.telemetry.metrics.meter import RegistryMeterProvider
from shared.telemetry.metrics.registry import REGISTRY, Registry
from shared.telemetry.metrics.snapshot import Family, Labels

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"


def family(registry: Registry, name: str) -> Family:
    """A metric of a snapshot."""
    (found,) = (one for one in registry.snapshot().families if one.name == name)
    return found


def values(registry: Registry, name: str) -> dict[Labels, float]:
    """Its series."""
    return {one.labels: one.value for one in family(registry, name).series}


def in_span(sampled: bool) -> Context:
    """A context whose current span has the ids above."""
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if sampled else 0)
    context = trace.SpanContext(int(TRACE_ID, 16), int(SPAN_ID, 16), False, flags)
    return trace.set_span_in_context(trace.NonRecordingSpan(context))


def test_a_metric_of_ones_own_is_one_line(registry: Registry) -> None:
    """Counters add up by their labels, whatever the order of these."""
    counter("orders.created").add(1, {"region": "eu", "vip": True})
    counter("orders.created").add(2, {"vip": True, "region": "eu"})
    counter("orders.created").add()
    assert {(("region", "eu"), ("vip", "true")): 3, (): 1} == values(registry, "orders.created")


def test_nothing_is_kept_while_metrics_are_off() -> None:
    """A measurement before the start is not there after it."""
    assert not REGISTRY.on
    counter("test.off").add(1)
    histogram("test.off.seconds").record(1)
    gauge("test.off.gauge").set(1)
    assert [] == [one for one in REGISTRY.snapshot().families if one.name.startswith("test.off")]


def test_a_gauge_is_its_last_value_and_an_up_down_counter_a_sum(registry: Registry) -> None:
    """Up and down."""
    gauge("test.gauge").set(3)
    gauge("test.gauge").set(2)
    up_down_counter("test.updown").add(3)
    up_down_counter("test.updown").add(-2)
    assert ({(): 2}, {(): 1}) == (values(registry, "test.gauge"), values(registry, "test.updown"))


def test_a_value_falls_into_the_bucket_whose_bound_it_does_not_exceed(registry: Registry) -> None:
    """Bounds are inclusive, as Prometheus's ``le`` says, and the last bucket has none."""
    sizes = histogram("test.sizes", unit="", bounds=(10, 1))
    for size in (0.5, 1, 1.5, 10, 11):
        sizes.record(size)
    found = family(registry, "test.sizes")
    assert ([1.0, 10.0], [2, 2, 1], 24.0) == (
        found.bounds,
        found.series[0].buckets,
        found.series[0].value,
    )


def test_the_newest_sampled_span_of_a_bucket_is_its_exemplar(registry: Registry) -> None:
    """The trace to look at; a span that is not sampled leads nowhere."""
    durations = histogram("test.durations")
    durations.record(0.2, context=in_span(sampled=True))
    durations.record(0.21, context=in_span(sampled=False))
    durations.record_in("f" * 32, "e" * 16, 40)
    exemplars = family(registry, "test.durations").series[0].exemplars
    assert {5: (0.2, TRACE_ID, SPAN_ID), 12: (40, "f" * 32, "e" * 16)} == {
        bucket: (one.value, one.trace_id, one.span_id) for bucket, one in exemplars.items()
    }


def test_values_over_the_limit_become_other(registry: Registry) -> None:
    """The number of series is bounded, and nothing that was measured is lost."""
    registry.start(label_values_max=3)
    for number in range(50):
        counter("test.wide").add(1, {"customer": f"c-{number}", "region": "eu"})
    found = values(registry, "test.wide")
    assert 4 == len(found)
    assert 47 == found[("customer", OTHER), ("region", "eu")]
    assert 3 >= len(counter("test.wide")._found)


def test_sets_of_labels_over_the_limit_become_other(registry: Registry) -> None:
    """A hundred values of each of four labels would be a hundred million series."""
    registry.cardinality.series_max = 5
    for number in range(20):
        counter("test.many").add(1, {"a": number % 5, "b": number % 4})
    found = values(registry, "test.many")
    assert (6, 20) == (len(found), sum(found.values()))
    assert (("a", OTHER), ("b", OTHER)) in found


@pytest.mark.parametrize("label", ["saga_id", "saga.id", "trace_id", "task_id"])
def test_an_id_is_never_a_label(registry: Registry, label: str) -> None:
    """It would be a series for each saga: it is left out."""
    for number in range(3):
        counter("test.ids").add(1, {label: f"s-{number}", "region": "eu"})
    assert {(("region", "eu"),): 3} == values(registry, "test.ids")


def test_a_label_may_be_a_list(registry: Registry) -> None:
    """The API allows it; a dictionary key would not."""
    counter("test.lists").add(1, {"tags": ["a", "b"]})
    counter("test.lists").add(1, {"tags": ["a", "b"]})
    assert {(("tags", "['a', 'b']"),): 2} == values(registry, "test.lists")


def test_a_counter_does_not_go_back(registry: Registry) -> None:
    """A negative amount is left out: a fall would look like a restart."""
    counter("test.falling").add(2)
    counter("test.falling").add(-1)
    assert {(): 2} == values(registry, "test.falling")


def test_one_name_is_one_kind(registry: Registry) -> None:
    """The mistake is named where it is made."""
    counter("test.kind")
    with pytest.raises(ValueError, match="'test\\.kind' exists already, as a Counter"):
        gauge("test.kind")


def test_an_observed_value_is_looked_up_at_each_reading(registry: Registry) -> None:
    """A number, or one for each set of labels; until it is ended."""
    items = [1, 2]
    end = observe("test.items", lambda: len(items))

    def by_hall() -> Iterable[Observation]:
        return [Observation(1, {"hall": "a"}), Observation(2, {"hall": "b"})]

    observe("test.halls", by_hall)
    assert {(): 2} == values(registry, "test.items")
    items.append(3)
    assert {(): 3} == values(registry, "test.items")
    assert {(("hall", "a"),): 1, (("hall", "b"),): 2} == values(registry, "test.halls")
    end()
    assert "test.items" not in {one.name for one in registry.snapshot().families}


def test_of_two_views_of_the_same_thing_the_largest_counts(registry: Registry) -> None:
    """Where the rule says so: two engines in one process show one store."""
    for value in (2, 3):
        observe("test.seen", partial(int, value), rule="max")
        observe("test.parts", partial(int, value))
    assert ({(): 3}, {(): 5}) == (values(registry, "test.seen"), values(registry, "test.parts"))


def test_a_callback_that_fails_hides_no_other_metric(registry: Registry) -> None:
    """It is left out, and the log says so once."""
    observe("test.broken", lambda: 1 // 0)
    counter("test.whole").add()
    found = {one.name for one in registry.snapshot().families}
    assert "test.whole" in found
    assert "test.broken" not in found
    assert {"test.broken"} == registry._complained


def test_the_plain_api_records_here_too(registry: Registry) -> None:
    """Libraries that measure by the OpenTelemetry API are exported with the rest."""
    meter = RegistryMeterProvider(registry).get_meter("a.library")
    meter.create_counter("lib.calls", "{call}", "Calls.").add(2, {"method": "GET"})
    meter.create_up_down_counter("lib.open").add(1)
    meter.create_gauge("lib.level").set(7)
    bounds = [1.0, 2.0]
    meter.create_histogram("lib.time", "s", explicit_bucket_boundaries_advisory=bounds).record(1.5)
    meter.create_observable_gauge("lib.seen", [lambda _: [api.Observation(5)]])
    meter.create_observable_counter("lib.total", [iter_of(4)])
    meter.create_observable_up_down_counter("lib.now", [lambda _: [api.Observation(6)]])
    assert {(("method", "GET"),): 2} == values(registry, "lib.calls")
    assert [0, 1, 0] == family(registry, "lib.time").series[0].buckets
    for name, value in {"open": 1, "level": 7, "seen": 5, "total": 4, "now": 6}.items():
        assert {(): value} == values(registry, f"lib.{name}")


def iter_of(value: float) -> "api.CallbackT":
    """A callback as a generator, which the API allows too."""

    def generate() -> "Iterable[Iterable[api.Observation]]":
        while True:
            yield [api.Observation(value)]

    return iter(generate())  # type: ignore[return-value]  # `send` is not used


def test_a_library_that_takes_a_name_again_does_not_fail(registry: Registry) -> None:
    """Its mistake is logged and its measurements are lost; the application goes on."""
    meter = RegistryMeterProvider(registry).get_meter("a.library")
    meter.create_counter("lib.twice").add(1)
    meter.create_histogram("lib.twice").record(1)
    assert {(): 1} == values(registry, "lib.twice")
    assert {"lib.twice"} == registry._complained


def test_threads_lose_no_measurement(registry: Registry) -> None:
    """Adding is not one step for the interpreter."""
    numbers, sizes = counter("test.threads"), histogram("test.threads.sizes", bounds=COUNTS)

    def work() -> None:
        for _ in range(2000):
            numbers.add(1, {"a": "b"})
            sizes.record(3)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(("a", "b"),): 8000} == values(registry, "test.threads")
    assert 8000 == sum(family(registry, "test.threads.sizes").series[0].buckets)


def test_a_forked_child_begins_at_zero(registry: Registry) -> None:
    """What it inherits is its parent's; the lock of another thread is not held for ever."""
    counter("test.forked").add(5)
    with registry.lock:
        pid = os.fork()
        if pid == 0:
            # A lock that is held for ever must not hold up the tests.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(5)
            counter("test.forked").add(42)
            os._exit(int(values(registry, "test.forked")[()]))
    assert 42 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert {(): 5} == values(registry, "test.forked")


def test_every_metric_of_ours_is_named_in_the_vocabulary() -> None:
    """`names` has them all, and nothing else."""
    from shared.telemetry.metrics import catalog  # noqa: F401 - makes them

    named = {value for key, value in vars(names).items() if key.startswith("METRIC_")}
    assert {one.name for one in REGISTRY.instruments() if one.name.startswith("saga.")} <= named
