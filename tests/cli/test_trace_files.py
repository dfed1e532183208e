"""Traces back out of OTLP JSON files, and what the store adds to them."""

import json
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from orchestrator.core.limits import Limits
from orchestrator.core.machine import NO_LIMITS
from orchestrator.core.state import Status
from orchestrator.trace_files import Span, read_trace
from orchestrator.trace_view import merged, projected_spans
from shared.telemetry import setup
from shared.telemetry.config import TracingConfig
from shared.telemetry.spans import SpanError, SpanLink, SpanRecord
from tests.cli import stories
from tests.cli.stories import T0, Story

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
OTHER_ID = "1af7651916cd43dd8448eb211c80319c"


def _record(span_id: str = "b7ad6b7169203331", trace_id: str = TRACE_ID) -> SpanRecord:
    return SpanRecord(
        name="send inventory",
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id="00f067aa0ba902b7",
        start=T0,
        end=T0 + timedelta(microseconds=1500),
        kind="producer",
        attributes={"saga.id": "s", "saga.attempt": 2, "ok": True, "many": ["a", "b"], "f": 0.5},
        links=(SpanLink(trace_id=TRACE_ID, span_id="00f067aa0ba902b8"),),
        error=SpanError(type="CardDeclined", message="no"),
    )


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A folder with the files of a process that exported spans of two traces."""
    config = TracingConfig(service_name="payment", traces_dir=tmp_path)
    setup.start("payment", config)
    setup.emit([_record(), _record("b7ad6b7169203332", OTHER_ID)])
    assert setup.shutdown(timedelta(seconds=5))
    return tmp_path


def test_a_span_comes_back_as_it_was_written(exported: Path) -> None:
    """Ids, times to the microsecond, attributes of every type, links, the error and the service."""
    start_ns = int(T0.timestamp()) * 10**9
    assert [
        Span(
            trace_id=TRACE_ID,
            span_id="b7ad6b7169203331",
            parent_span_id="00f067aa0ba902b7",
            name="send inventory",
            service="payment",
            kind="producer",
            start_ns=start_ns,
            end_ns=start_ns + 1_500_000,
            error="CardDeclined: no",
            attributes={
                "saga.id": "s",
                "saga.attempt": 2,
                "ok": True,
                "many": ["a", "b"],
                "f": 0.5,
                "error.type": "CardDeclined",
            },
            links=("00f067aa0ba902b8",),
        )
    ] == read_trace(exported, TRACE_ID)


def test_a_trace_of_which_nothing_is_known_is_empty(tmp_path: Path, exported: Path) -> None:
    """Also where there is no folder."""
    assert read_trace(exported, "f" * 32) == []
    assert read_trace(tmp_path / "nowhere", TRACE_ID) == []


def test_a_span_that_was_exported_twice_counts_once(exported: Path) -> None:
    """After crash recovery a span is exported again; the one that ends last is right."""
    line = json.loads(next(exported.glob("*.jsonl")).read_text().splitlines()[0])
    span = line["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    end = int(span["endTimeUnixNano"])
    for number, later in enumerate((9, 5)):
        span["endTimeUnixNano"] = str(end + later)
        (exported / f"z-{number}.jsonl").write_text(json.dumps(line) + "\n")
    assert [end + 9] == [one.end_ns for one in read_trace(exported, TRACE_ID)]


def test_a_line_that_a_crash_cut_short_is_passed_over(exported: Path) -> None:
    """The spans of the other lines are still there."""
    file = next(exported.glob("*.jsonl"))
    whole = file.read_bytes()
    file.write_bytes(whole + whole[: len(whole) // 2] + b"\n\xff" + TRACE_ID.encode() + b"\n")
    assert len(read_trace(exported, TRACE_ID)) == 1


def _projected(story: Story) -> list[Span]:
    found = story.client.story(story.saga_id)
    return projected_spans(*found, system="redis", now=story.now + timedelta(seconds=1))


def test_the_store_alone_gives_the_whole_trace() -> None:
    """With a collector there are no files: root, start, steps, sends and processes all the same."""
    spans = _projected(stories.completed())
    assert sorted(span.name for span in spans) == [
        *("process flights", "process hotels", "saga trip", "saga.start trip"),
        *("send flights", "send hotels", "step flight", "step hotel"),
    ]
    known = {span.span_id for span in spans}
    assert [span.name for span in spans if span.parent_span_id not in known] == ["saga trip"]
    assert not any(span.open for span in spans)
    assert {"orchestrator", "flights", "hotels"} == {span.service for span in spans}


def test_a_saga_in_flight_is_open_up_to_now() -> None:
    """Its root and the step in flight go on; the step that has ended does not."""
    story = Story()
    story.succeeds("flight")
    spans = {span.name: span for span in _projected(story)}
    now_ns = spans["saga trip"].end_ns
    assert {"saga trip", "step hotel"} == {name for name, span in spans.items() if span.open}
    assert spans["step hotel"].end_ns == now_ns
    assert now_ns - spans["saga trip"].start_ns == 1_010_000_000


def test_a_saga_whose_history_was_full_keeps_what_came_before() -> None:
    """It is resumed, ends, and nobody has taken its spans: all of them come from the store."""
    story = Story(limits=Limits(events_max=3))
    story.succeeds("flight")
    statuses = [story.view.status]
    story.engine._loop._limits = NO_LIMITS
    story.now += timedelta(seconds=1)
    story.client.resume(story.saga_id, reason="more room")
    story.succeeds("hotel")
    assert [*statuses, story.view.status] == [Status.STUCK, Status.COMPLETED]
    names = [span.name for span in _projected(story)]
    assert {"step flight", "step hotel"} < {*names}
    assert len(names) == len({*names})


def test_a_saga_that_got_stuck_keeps_what_came_before() -> None:
    """A projection gives only what is new since it got stuck; a look at it shows all."""
    names = [span.name for span in _projected(stories.stuck())]
    assert "step flight" in names
    assert "compensate flight" in names


def test_what_a_process_exported_is_not_replaced() -> None:
    """Of the projection only the gaps are taken: a participant's own span wins over a guess."""
    projected = _projected(stories.completed())
    send = next(span for span in projected if span.name == "send flights")
    own = [
        msgspec.structs.replace(send, projected=False),
        msgspec.structs.replace(
            send,
            span_id="00f067aa0ba902b7",
            parent_span_id=send.span_id,
            name="process flights (own)",
            kind="consumer",
            projected=False,
        ),
    ]
    spans = merged(own, projected)
    names = [span.name for span in spans]
    assert len(spans) == len(projected)
    assert "process flights" not in names
    assert "process flights (own)" in names
    assert [span.projected for span in spans if span.name == "send flights"] == [False]
