from dataclasses import replace

import pytest

from tests.servers.otlp import ReceivedSpan
from tests.servers.spantree import assert_one_tree

TRACE_ID = "a" * 32
MS = 1_000_000


def span(
    span_id: str, parent_id: str = "", start_ms: int = 100, end_ms: int = 200
) -> ReceivedSpan:
    """A span of one trace."""
    return ReceivedSpan(
        trace_id=TRACE_ID,
        span_id=span_id,
        parent_id=parent_id,
        name=f"span {span_id}",
        kind="internal",
        start_ns=start_ms * MS,
        end_ns=end_ms * MS,
        attributes={},
        status="unset",
        status_message="",
        links=(),
        events=(),
        service="s",
        resource={},
        tracestate="",
        parent_is_remote=False,
    )


TREE = [span("1"), span("2", "1"), span("3", "2", 150, 900), span("4", "1")]


def test_a_tree_passes() -> None:
    """Order of arrival does not matter, and a child may end after its parent."""
    assert TREE[0] is assert_one_tree(TREE[::-1], TRACE_ID)


def test_a_caller_may_be_the_root() -> None:
    """A trace that began elsewhere is a tree below the caller's span."""
    spans = [span("1", "caller"), span("2", "1")]
    assert spans[0] is assert_one_tree(spans, TRACE_ID, remote_parent_id="caller")
    with pytest.raises(AssertionError, match="0 roots instead of one"):
        assert_one_tree(spans, TRACE_ID)


@pytest.mark.parametrize(
    "spans, problem",
    [
        ([], "0 roots instead of one"),
        ([*TREE, span("5")], "2 roots instead of one"),
        ([*TREE, span("5", "9")], "'span 5' is an orphan: nobody sent its parent 9"),
        ([*TREE, replace(span("5", "1"), trace_id="b" * 32)], "is in trace bbbb"),
        ([*TREE, span("2", "1")], "1 span ids were received twice"),
        ([*TREE, span("5", "1", start_ms=80)], "'span 5' begins before its parent 'span 1'"),
        ([*TREE, span("5", "1", start_ms=190, end_ms=180)], "'span 5' ends before it begins"),
        ([*TREE, span("5", "6"), span("6", "5")], "a cycle of 2 spans"),
    ],
)
def test_anything_else_is_named_and_drawn(spans: list[ReceivedSpan], problem: str) -> None:
    """A failure says what is wrong, and shows the whole tree."""
    with pytest.raises(AssertionError) as caught:
        assert_one_tree(spans, TRACE_ID)
    assert problem in str(caught.value)
    assert not spans or "span 1 [s] internal unset" in str(caught.value)
