import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.telemetry.metrics.children import ChildFile, Children
from shared.telemetry.metrics.openmetrics import prometheus_name, render
from shared.telemetry.metrics.snapshot import (
    Exemplar,
    Family,
    Kind,
    Rule,
    Series,
    Snapshot,
    lasting,
    merged,
)
from tests.metrics.read import OPENMETRICS, Scrape


def snapshot(*families: Family, started_at: float = 1.0) -> Snapshot:
    """Of one process."""
    return Snapshot(started_at=started_at, families=list(families))


def numbers(
    name: str, kind: Kind, value: float, *, rule: Rule = "sum", region: str = "eu"
) -> Family:
    """A metric with one series."""
    return Family(name=name, kind=kind, rule=rule, series=[Series((("region", region),), value)])


def times(counts: list[int], **exemplars: Exemplar) -> Family:
    """A histogram with two bounds."""
    found = {int(bucket[1:]): exemplar for bucket, exemplar in exemplars.items()}
    series = Series((), float(sum(counts)), counts, found)
    return Family(name="times", kind="histogram", unit="s", bounds=[1.0, 2.0], series=[series])


def test_processes_become_one() -> None:
    """Counters and histograms add up, gauges follow their rule, the newest exemplar stays."""
    old, new = Exemplar(0.5, "a" * 32, "b" * 16, 10.0), Exemplar(0.6, "c" * 32, "d" * 16, 20.0)
    one = snapshot(
        numbers("count", "counter", 2),
        numbers("sum", "gauge", 3),
        numbers("max", "gauge", 3, rule="max"),
        times([1, 0, 2], b0=new),
        started_at=5.0,
    )
    other = snapshot(
        numbers("count", "counter", 5),
        numbers("count", "counter", 7, region="us"),
        numbers("sum", "gauge", 4),
        numbers("max", "gauge", 4, rule="max"),
        times([1, 1, 0], b0=old, b1=old),
        started_at=3.0,
    )
    found = merged([one, other])
    assert 3.0 == found.started_at
    assert {"count": [7, 7], "max": [4], "sum": [7], "times": [5.0]} == {
        family.name: [series.value for series in family.series] for family in found.families
    }
    (both,) = found.families[3].series
    assert ([2, 1, 2], {0: new, 1: old}) == (both.buckets, both.exemplars)


def test_processes_that_disagree_are_not_mixed() -> None:
    """Buckets with other bounds cannot be added: the first process is right."""
    other = msgspec.structs.replace(times([9, 9, 9]), bounds=[5.0, 6.0])
    (found,) = merged([snapshot(times([1, 1, 1])), snapshot(other)]).families
    assert [1, 1, 1] == found.series[0].buckets


def test_of_an_ended_process_the_counts_last() -> None:
    """Its gauges say nothing any more."""
    ended = snapshot(
        numbers("count", "counter", 1), numbers("level", "gauge", 1), numbers("n", "updown", 1)
    )
    assert ["count"] == [one.name for one in lasting(ended).families]


@given(st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=1, max_size=6))
def test_merging_loses_nothing_in_any_grouping(processes: list[list[int]]) -> None:
    """Merged one by one or all at once, each bucket holds the sum of all processes."""
    snapshots = [snapshot(times(counts)) for counts in processes]
    at_once = merged(snapshots)
    one_by_one = snapshots[0]
    for other in snapshots[1:]:
        one_by_one = merged([one_by_one, other])
    assert at_once == one_by_one
    expected = [sum(counts) for counts in zip(*processes, strict=True)]
    assert expected == at_once.families[0].series[0].buckets


def test_a_snapshot_comes_back_from_its_file_as_it_was() -> None:
    """Labels, buckets and exemplars included."""
    written = snapshot(times([1, 2, 3], b2=Exemplar(3.0, "a" * 32, "b" * 16, 1.5)))
    assert written == msgspec.json.decode(msgspec.json.encode(written), type=Snapshot)


# Children -------------------------------------------------------------------------------------


def write_as_ended(folder: Path, what: Snapshot) -> None:
    """Leave the file of a child that has ended."""
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    )
    (folder / f"{ended.stdout.strip()}-{os.urandom(4).hex()}.json").write_bytes(
        msgspec.json.encode(what)
    )


def total(found: Snapshot, name: str) -> float:
    """The sum of a metric's series."""
    return sum(
        one.value for family in found.families if family.name == name for one in family.series
    )


def test_the_totals_of_ended_children_stay_and_their_files_go() -> None:
    """However many children have come and gone, no counter goes back and nothing piles up."""
    children = Children(label_values_max=100)
    own = snapshot(numbers("count", "counter", 1))
    seen = []
    for _ in range(3):
        ended = snapshot(numbers("count", "counter", 2), numbers("level", "gauge", 9))
        write_as_ended(children.folder, ended)
        seen.append(total(children.gather(own), "count"))
        assert 0 == total(children.gather(own), "level")
        assert [] == list(children.folder.iterdir())
    assert [3, 5, 7] == seen
    children.close()
    assert not children.folder.exists()


def test_a_living_child_is_read_again_and_again() -> None:
    """Its file is its latest word, and stays."""
    children = Children(label_values_max=100)
    file = ChildFile(children.folder)
    for value in (2, 5):
        file.write(snapshot(numbers("count", "counter", value), numbers("level", "gauge", value)))
        found = children.gather(snapshot(numbers("level", "gauge", 1)))
        assert (value, value + 1) == (total(found, "count"), total(found, "level"))
    children.upkeep()
    assert 1 == len(list(children.folder.iterdir()))
    children.close()


def test_labels_are_bounded_over_all_children() -> None:
    """Each recycled child has its own few values; together they would be any number."""
    children = Children(label_values_max=4)
    for number in range(10):
        file = ChildFile(children.folder)
        file.write(snapshot(numbers("count", "counter", 1, region=f"r-{number}")))
    (found,) = children.gather(snapshot()).families
    assert (5, 10) == (len(found.series), sum(one.value for one in found.series))
    children.close()


def test_a_file_that_cannot_be_read_is_passed_over() -> None:
    """Half a disk is no reason to hide all metrics."""
    children = Children(label_values_max=4)
    (children.folder / f"{os.getpid()}-broken.json").write_text("{")
    assert 1 == total(children.gather(snapshot(numbers("count", "counter", 1))), "count")
    children.close()


# OpenMetrics ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, unit, kind, expected",
    [
        ("saga.started", "{saga}", "counter", "saga_started_total"),
        ("saga.step.duration", "s", "histogram", "saga_step_duration_seconds"),
        ("payload.bytes", "By", "gauge", "payload_bytes"),
        ("7-up", "", "gauge", "_7_up"),
    ],
)
def test_names_are_those_of_opentelemetry_for_prometheus(
    name: str, unit: str, kind: str, expected: str
) -> None:
    """Underscores, the unit in words, and ``_total`` for counters."""
    assert expected == prometheus_name(name, unit, kind)


def test_openmetrics_has_everything() -> None:
    """The parser of the Prometheus project reads it, exemplars included."""
    exemplar = Exemplar(1.5, "a" * 32, "b" * 16, 100.25)
    given = snapshot(
        numbers("saga.started", "counter", 3, region='two"words\n'),
        numbers("level", "gauge", 2.5),
        times([1, 2, 0], b1=exemplar),
    )
    body, content_type = render(given, {"service.name": "inventory"}, OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    found = Scrape(body.decode())
    assert 3 == found.value("saga_started_total", region='two"words\n')
    assert 2.5 == found.value("level")
    assert [1, 3, 3] == [
        found.value("times_seconds_bucket", le=le) for le in ("1.0", "2.0", "+Inf")
    ]
    assert (3, 3.0) == (found.value("times_seconds_count"), found.value("times_seconds_sum"))
    assert [{"service_name": "inventory"}] == found.labels("target_info")
    ((shown, value, at),) = [
        (one.labels, one.value, float(one.timestamp))
        for one in found.exemplars("times_seconds_bucket")
    ]
    assert ({"trace_id": "a" * 32, "span_id": "b" * 16}, 1.5, 100.25) == (shown, value, at)


def test_the_older_text_has_no_exemplars() -> None:
    """A browser gets what it can show."""
    given = snapshot(times([1, 0, 0], b0=Exemplar(0.5, "a" * 32, "b" * 16, 1.0)))
    body, content_type = render(given, {}, "text/html")
    assert content_type.startswith("text/plain")
    assert b"# {" not in body
    assert b'times_seconds_bucket{le="1.0"} 1.0' in body


def test_names_that_differ_in_dots_alone_do_not_spoil_the_text() -> None:
    """The first one is shown; twice the same name would be an error for all of them."""
    given = snapshot(numbers("a.b", "counter", 1), numbers("a_b", "counter", 2))
    assert 1 == Scrape(render(given, {}, OPENMETRICS)[0].decode()).value("a_b_total")
