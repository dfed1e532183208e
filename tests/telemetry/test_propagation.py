import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.telemetry.propagation import (
    TRACESTATE_CHARS_MAX,
    TraceParent,
    extract,
    format_traceparent,
    from_environment,
    inject,
    parse_traceparent,
)

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
HEADER = f"00-{TRACE_ID}-{SPAN_ID}-01"


def test_a_header_is_read() -> None:
    """The example of the specification gives its ids and its decision."""
    parent = parse_traceparent(HEADER)
    assert TraceParent(trace_id=TRACE_ID, span_id=SPAN_ID, flags=1) == parent
    assert parent.sampled


@pytest.mark.parametrize(
    "flags, sampled", [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)]
)
def test_flags_are_bits(flags: str, sampled: bool) -> None:
    """Only the lowest bit says whether the caller samples (SDKs write 03 now)."""
    parent = parse_traceparent(f"00-{TRACE_ID}-{SPAN_ID}-{flags}")
    assert parent is not None
    assert sampled == parent.sampled


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        b"00",
        "",
        "garbage",
        f"00-{TRACE_ID}-{SPAN_ID}",
        f"00-{TRACE_ID}-{SPAN_ID}-1",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID[:-1]}٣-{SPAN_ID}-01",
    ],
)
def test_what_breaks_the_grammar_is_ignored(value: object) -> None:
    """Nothing of a malformed header is used, and nothing is raised."""
    assert parse_traceparent(value) is None
    assert (None, "") == extract({"traceparent": value, "tracestate": "a=b"})


def test_a_newer_version_is_read_by_its_known_part() -> None:
    """A version of the future may have more fields behind the known ones."""
    assert parse_traceparent(f"01-{TRACE_ID}-{SPAN_ID}-01-what-comes-later") is not None


@given(st.text() | st.from_regex(re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")))
@example(HEADER + "\n")
def test_nothing_is_ever_raised(value: str) -> None:
    """Any text is either a header, whose ids then are well-formed, or ignored."""
    parent = parse_traceparent(value)
    if parent is not None:
        assert re.fullmatch("[0-9a-f]{32}", parent.trace_id)
        assert re.fullmatch("[0-9a-f]{16}", parent.span_id)


@pytest.mark.parametrize("sampled", [True, False])
def test_what_is_written_is_read_back(sampled: bool) -> None:
    """Headers that carry a context give the same context."""
    headers: dict[str, object] = {}
    inject(headers, format_traceparent(TRACE_ID, SPAN_ID, sampled=sampled), "a=1,b=2")
    parent, tracestate = extract(headers)
    assert TraceParent(trace_id=TRACE_ID, span_id=SPAN_ID, flags=int(sampled)) == parent
    assert tracestate == "a=1,b=2"


def test_no_tracestate_is_written_where_there_is_none() -> None:
    """An empty ``tracestate`` header would be noise on every message."""
    headers: dict[str, object] = {}
    inject(headers, HEADER)
    assert {"traceparent": HEADER} == headers


@pytest.mark.parametrize("tracestate", [None, 5, "a=" + "b" * TRACESTATE_CHARS_MAX])
def test_a_bad_tracestate_does_not_spoil_the_parent(tracestate: object) -> None:
    """What is too long or no text is left out; the trace is continued."""
    parent, state = extract({"traceparent": HEADER, "tracestate": tracestate})
    assert parent is not None
    assert state == ""


def test_the_calling_program_is_found_in_the_environment() -> None:
    """TRACEPARENT and TRACESTATE continue the trace of a script that calls the command."""
    parent, state = from_environment({"TRACEPARENT": HEADER, "TRACESTATE": "a=b"})
    assert (parse_traceparent(HEADER), "a=b") == (parent, state)
    assert (None, "") == from_environment({"TRACESTATE": "a=b"})
