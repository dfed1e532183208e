"""A trace as a waterfall: the tree of its spans, each with a bar in its place in time."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from orchestrator.cli.output import Line, Piece, line, one_line
from orchestrator.cli.times import duration
from orchestrator.trace_files import Span

_BAR_MIN: Final = 16
_NAMES_MAX: Final = 48
_REMARKS_MAX: Final = 60
_NS_PER_MS: Final = 1_000_000
_TICKS: Final = 8
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_FULL: Final = "█"
_POINT: Final = "▏"
_STYLES: Final = {"producer": "magenta", "consumer": "blue"}


class Row(NamedTuple):
    """A span in its place in the tree.

    Attributes:
        prefix: The branches that lead to it.
    """

    prefix: str
    span: Span


def tree(spans: Sequence[Span]) -> list[Row]:
    """Spans in the order of the tree, children in order of their starts.

    Spans whose parent is not among them stand at the top, so that none is lost from view.
    """
    known = {span.span_id for span in spans}
    children: dict[str | None, list[Span]] = {}
    for span in sorted(spans, key=lambda one: (one.start_ns, one.end_ns)):
        parent = span.parent_span_id if span.parent_span_id in known else None
        children.setdefault(parent, []).append(span)
    rows: list[Row] = []
    seen: set[str] = set()
    for root in children.get(None, ()):
        rows += _branch(root, children, "", "", seen)
    # Two spans that claim to be each other's parent would be lost otherwise.
    rows += [Row("", span) for span in spans if span.span_id not in seen]
    return rows


def waterfall(spans: Sequence[Span], width: int) -> list[Line]:
    """The waterfall of a trace.

    Args:
        spans: At least one.
        width: Columns.
    """
    rows = tree(spans)
    names = min(max(len(row.prefix) + len(row.span.name) for row in rows), _NAMES_MAX)
    services = max(len(span.service) for span in spans)
    took = 10
    remarks = max(sum(len(piece.text) for piece in _remarks(span)) for span in spans)
    bar = max(_BAR_MIN, width - names - services - took - 5 - min(remarks, _REMARKS_MAX))
    start = min(span.start_ns for span in spans)
    whole = max(max(span.end_ns for span in spans) - start, 1)
    whole_text = duration(whole / _NS_PER_MS)
    head = line(
        Piece("SPAN".ljust(names) + "  " + "SERVICE".ljust(services) + "  ", "bold"),
        Piece("0".ljust(bar - len(whole_text)) + whole_text, "dim"),
    )
    return [head, *(_line(row, start, whole, names, services, bar) for row in rows)]


def _branch(
    span: Span,
    children: Mapping[str | None, Sequence[Span]],
    prefix: str,
    below: str,
    seen: set[str],
) -> Iterator[Row]:
    if span.span_id in seen:
        return
    seen.add(span.span_id)
    yield Row(prefix, span)
    under = children.get(span.span_id, ())
    for child in under:
        last = child is under[-1]
        branch, deeper = ("└─ ", "   ") if last else ("├─ ", "│  ")
        yield from _branch(child, children, below + branch, below + deeper, seen)


def _line(row: Row, start: int, whole: int, names: int, services: int, bar: int) -> Line:
    span = row.span
    name = one_line(span.name)
    room = names - len(row.prefix)
    if len(name) > room:
        name = name[: max(room - 1, 1)] + "…"
    took = duration((span.end_ns - span.start_ns) / _NS_PER_MS)
    style = _style(span)
    return line(
        Piece(row.prefix, "dim"),
        Piece(name.ljust(max(room, 0)), style if span.error else ""),
        f"  {one_line(span.service):<{services}}  ",
        Piece(_bar(span, start, whole, bar), style),
        f" {took + ('…' if span.open else ''):>9}",
        *_remarks(span),
    )


def _style(span: Span) -> str:
    if span.error is not None:
        return "red"
    if span.open:
        return "cyan"
    return _STYLES.get(span.kind, "yellow" if span.name.startswith("compensate ") else "green")


def _remarks(span: Span) -> Iterator[Piece]:
    if span.error is not None:
        yield Piece(f"  ✗ {one_line(span.error)}", "red")
    if span.open:
        yield Piece("  still going on", "cyan")


def _bar(span: Span, start: int, whole: int, width: int) -> str:
    """A bar of eighths of a column; the shortest span still leaves a mark."""
    cells = width * _TICKS
    first = min((span.start_ns - start) * cells // whole, cells - 1)
    last = min(max((span.end_ns - start) * cells // whole, first + 1), cells)
    at, length = first // _TICKS, last - first
    if length < _TICKS:
        drawn = _EIGHTHS[length]
    else:
        full, rest = divmod(length, _TICKS)
        drawn = _FULL * full + (_EIGHTHS[rest] if rest else "")
    return (" " * at + drawn)[:width].ljust(width)
