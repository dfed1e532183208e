"""Says whether spans form one tree, and draws them where they do not."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import timedelta

from tests.servers.otlp import ReceivedSpan

SLACK = timedelta(milliseconds=5)
"""Clocks of processes on one machine are one clock; what differs is when each reads it."""


def assert_one_tree(
    spans: Iterable[ReceivedSpan],
    trace_id: str,
    *,
    remote_parent_id: str = "",
    slack: timedelta = SLACK,
) -> ReceivedSpan:
    """Check that all spans are one trace, with one root, no orphan and no span twice.

    Args:
        spans: All that was received; a span of another trace is a mistake, too.
        trace_id: The trace that they belong to.
        remote_parent_id: Span of a caller that continues here; the root hangs below it.
        slack: How far a span may begin before its parent. A child may end after its parent: a
            producer's span ends long before its consumer's begins.

    Returns:
        The root.
    """
    found = list(spans)
    problems = list(_problems(found, trace_id, remote_parent_id, slack))
    assert not problems, "\n".join([*problems, "", draw(found)])
    return next(span for span in found if span.parent_id == remote_parent_id)


def draw(spans: Iterable[ReceivedSpan]) -> str:
    """The spans as an indented tree, for people."""
    found = sorted(spans, key=lambda span: span.start_ns)
    known = {span.span_id for span in found}
    children = defaultdict(list)
    for span in found:
        children[span.parent_id if span.parent_id in known else ""].append(span)
    begin = found[0].start_ns if found else 0
    lines: list[str] = []

    def add(span: ReceivedSpan, depth: int) -> None:
        orphan = f" (orphan of {span.parent_id})" if not depth and span.parent_id else ""
        lines.append(
            f"{'  ' * depth}{span.name} [{span.service}] {span.kind} {span.status} "
            f"{(span.start_ns - begin) / 1e6:.1f}..{(span.end_ns - begin) / 1e6:.1f} ms "
            f"{span.trace_id[:8]}/{span.span_id}{orphan}"
        )
        for child in children[span.span_id]:
            add(child, depth + 1)

    for top in children[""]:
        add(top, 0)
    return "\n".join(lines) or "(no spans)"


def _problems(
    spans: list[ReceivedSpan], trace_id: str, remote_parent_id: str, slack: timedelta
) -> Iterable[str]:
    by_id = {span.span_id: span for span in spans}
    if len(by_id) != len(spans):
        yield f"{len(spans) - len(by_id)} span ids were received twice"
    roots = [span.name for span in spans if span.parent_id == remote_parent_id]
    if len(roots) != 1:
        yield f"{len(roots)} roots instead of one: {roots}"
    for span in spans:
        parent = by_id.get(span.parent_id)
        if span.trace_id != trace_id:
            yield f"{span.name!r} is in trace {span.trace_id}, not {trace_id}"
        if span.end_ns < span.start_ns:
            yield f"{span.name!r} ends before it begins"
        if parent is None:
            if span.parent_id != remote_parent_id:
                yield f"{span.name!r} is an orphan: nobody sent its parent {span.parent_id}"
        elif span.start_ns < parent.start_ns - slack / timedelta(microseconds=1) * 1000:
            yield f"{span.name!r} begins before its parent {parent.name!r}"
    # A cycle has no root of its own and no orphan: count what can be reached from above.
    reached = {span.span_id for span in spans if span.parent_id not in by_id}
    while more := {span.span_id for span in spans if span.parent_id in reached} - reached:
        reached |= more
    if len(reached) != len(by_id):
        yield f"a cycle of {len(by_id) - len(reached)} spans"
