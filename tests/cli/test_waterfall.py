"""The waterfall: the tree of spans, and bars in their place in time."""

from typing import Any

from orchestrator.cli.output import as_text
from orchestrator.cli.waterfall import tree, waterfall
from orchestrator.trace_files import Span

MS = 1_000_000


def _span(span_id: str, parent: str | None, start: int, end: int, **more: Any) -> Span:
    return Span(
        trace_id="t",
        span_id=span_id,
        parent_span_id=parent,
        name=more.pop("name", span_id),
        service=more.pop("service", "svc"),
        start_ns=start * MS,
        end_ns=end * MS,
        **more,
    )


SPANS = [
    _span("root", None, 0, 100),
    _span("late", "root", 50, 100, error="CardDeclined: no"),
    _span("early", "root", 0, 50),
    _span("child", "early", 25, 50, service="inventory"),
]


def test_children_stand_under_their_parents_in_order_of_time() -> None:
    """The branches show who called whom."""
    names = [row.prefix + row.span.name for row in tree(SPANS)]
    assert names == ["root", "├─ early", "│  └─ child", "└─ late"]


def test_who_started_first_stands_first_however_long_it_took() -> None:
    """Order is that of the starts, not of the ends."""
    rows = tree([_span("root", None, 0, 9), _span("b", "root", 2, 3), _span("a", "root", 1, 8)])
    assert [row.span.name for row in rows] == ["root", "a", "b"]


def test_a_span_without_its_parent_is_not_lost() -> None:
    """The caller's span, and a parent that nobody exported, are elsewhere."""
    rows = tree([*SPANS, _span("stray", "gone", 10, 20)])
    assert "stray" in [row.span.name for row in rows if not row.prefix]


def test_spans_in_a_circle_are_not_lost_and_do_not_hang() -> None:
    """Two broken spans that name each other as parent are still shown, once each."""
    rows = tree([_span("a", "b", 0, 1), _span("b", "a", 0, 1)])
    assert sorted(row.span.name for row in rows) == ["a", "b"]


def test_bars_stand_where_their_spans_were() -> None:
    """Half of the time is half of the width, at its place."""
    lines = as_text(waterfall(SPANS, 120)).splitlines()
    root, early, child, late = (row.count("█") for row in lines[1:])
    assert early == late
    assert abs(root - 2 * early) <= 1
    assert abs(early - 2 * child) <= 1
    assert lines[2].rindex("█") < lines[4].index("█")
    assert abs(lines[3].index("█") - (lines[2].index("█") + early // 2)) <= 1


def test_a_span_that_took_no_time_leaves_a_mark() -> None:
    """A send is a point, but it is there."""
    lines = as_text(waterfall([*SPANS, _span("send", "root", 100, 100)], 100)).splitlines()
    assert "▏" in next(row for row in lines if "send" in row)


def test_errors_and_open_spans_say_so() -> None:
    """A failed span shows its error, one that goes on shows that."""
    shown = as_text(waterfall([*SPANS, _span("now", "root", 60, 90, open=True)], 100))
    assert "✗ CardDeclined: no" in next(row for row in shown.splitlines() if "late" in row)
    assert "still going on" in next(row for row in shown.splitlines() if "now" in row)


def test_a_narrow_window_and_long_names_fit() -> None:
    """Names are cut, bars are not."""
    spans = [_span("root", None, 0, 10, name="x" * 300)]
    row = as_text(waterfall(spans, 60)).splitlines()[1]
    assert "…" in row
    assert "█" in row
    assert len(row) < 120
