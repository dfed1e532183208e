"""Every format of trace context, and baggage, in and out of headers, whatever the headers hold."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import baggage as otel_baggage
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.b3 import B3MultiFormat, B3SingleFormat
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.telemetry import header_propagator, propagation
from shared.telemetry.header_propagator import (
    HeaderPropagator,
    current_baggage,
    inject_current,
    parent_context,
)
from shared.telemetry.propagation import Format, Propagation, TraceParent, extract, inject
from tests.telemetry.records import OTHER_TRACE_ID, ROOT_ID, STEP_ID, TRACE_ID

HEADER = f"00-{TRACE_ID}-{ROOT_ID}-01"
Lines = Callable[[], list[dict[str, object]]]


@pytest.fixture(autouse=True)
def default_formats() -> Iterator[None]:
    """Each test begins with the default, and with nothing counted."""
    propagation._ignored.clear()
    propagation.configure(Propagation())
    yield
    propagation.configure(Propagation())
    propagation._ignored.clear()


def use(*formats: Format, keys: tuple[str, ...] = (), bytes_max: int = 1024) -> None:
    """Switch formats on."""
    propagation.configure(
        Propagation(formats=formats, baggage_keys=keys, baggage_bytes_max=bytes_max)
    )


def context_in(headers: Mapping[str, Any]) -> trace.SpanContext:
    """What the OpenTelemetry API sees of some headers."""
    return trace.get_current_span(parent_context(headers)).get_span_context()


# Formats -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "formats, expected",
    [
        (("tracecontext",), {"traceparent": HEADER, "tracestate": "a=1"}),
        (("b3",), {"b3": f"{TRACE_ID}-{ROOT_ID}-1"}),
        (
            ("b3multi",),
            {"x-b3-traceid": TRACE_ID, "x-b3-spanid": ROOT_ID, "x-b3-sampled": "1"},
        ),
        (
            ("b3", "tracecontext"),
            {"traceparent": HEADER, "tracestate": "a=1", "b3": f"{TRACE_ID}-{ROOT_ID}-1"},
        ),
        ((), {}),
        (("baggage",), {"baggage": "tenant=acme"}),
    ],
)
def test_every_configured_format_is_written(
    formats: tuple[Format, ...], expected: dict[str, str]
) -> None:
    """Whatever the next service understands."""
    use(*formats)
    headers: dict[str, str] = {}
    inject(headers, HEADER, "a=1", {"tenant": "acme"})
    assert expected == headers


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("formats", [("tracecontext",), ("b3",), ("b3multi",)])
def test_what_is_written_is_read_back(formats: tuple[Format, ...], sampled: bool) -> None:
    """Ids and decision survive every format."""
    use(*formats)
    headers: dict[str, Any] = {}
    inject(headers, f"00-{TRACE_ID}-{ROOT_ID}-0{sampled:d}")
    assert (
        TraceParent(trace_id=TRACE_ID, span_id=ROOT_ID, flags=int(sampled)),
        "",
    ) == extract(headers)


def test_the_first_configured_format_counts() -> None:
    """Where a request has two traces, the order of the configuration decides."""
    headers = {"traceparent": HEADER, "b3": f"{OTHER_TRACE_ID}-{STEP_ID}-1"}
    use("tracecontext", "b3")
    assert TRACE_ID == extract(headers)[0].trace_id  # type: ignore[union-attr]
    use("b3", "tracecontext")
    assert OTHER_TRACE_ID == extract(headers)[0].trace_id  # type: ignore[union-attr]


def test_a_malformed_header_leaves_the_way_to_the_next_format() -> None:
    """A broken traceparent does not hide a good B3."""
    use("tracecontext", "b3")
    parent, state = extract({"traceparent": "garbage", "b3": f"{TRACE_ID}-{ROOT_ID}-1"})
    assert (TraceParent(trace_id=TRACE_ID, span_id=ROOT_ID), "") == (parent, state)


def test_a_format_that_is_not_configured_is_not_read() -> None:
    """B3 is off by default: nobody can begin with it unasked."""
    assert (None, "") == extract({"b3": f"{TRACE_ID}-{ROOT_ID}-1"})


B3_CASES: list[dict[str, Any]] = [
    {"b3": f"{TRACE_ID}-{ROOT_ID}-1"},
    {"b3": f"{TRACE_ID}-{ROOT_ID}-0-{STEP_ID}"},
    {"b3": f"{TRACE_ID}-{ROOT_ID}-d"},
    {"b3": f"{TRACE_ID[16:]}-{ROOT_ID}-1"},
    {"b3": f"{TRACE_ID.upper()}-{ROOT_ID}-1"},
    {"b3": "0"},
    {"b3": f"{TRACE_ID}-{ROOT_ID[1:]}-1"},
    {"b3": f"{TRACE_ID[:-1]}g-{ROOT_ID}-1"},
    {"x-b3-traceid": TRACE_ID, "x-b3-spanid": ROOT_ID, "x-b3-sampled": "1"},
    {"x-b3-traceid": TRACE_ID, "x-b3-spanid": ROOT_ID, "x-b3-sampled": "0"},
    {"x-b3-traceid": TRACE_ID, "x-b3-spanid": ROOT_ID, "x-b3-flags": "1"},
    {"x-b3-traceid": TRACE_ID[16:], "x-b3-spanid": ROOT_ID, "x-b3-sampled": "true"},
    {"x-b3-traceid": TRACE_ID, "x-b3-sampled": "1"},
    {"x-b3-sampled": "0"},
]


@pytest.mark.parametrize("headers", B3_CASES)
def test_b3_is_read_as_the_published_propagator_reads_it(headers: dict[str, Any]) -> None:
    """Our reading and that of ``opentelemetry-propagator-b3`` agree."""
    use("b3" if "b3" in headers else "b3multi")
    context = B3MultiFormat().extract(headers, Context())
    expected = trace.get_current_span(context).get_span_context()
    found = context_in(headers)
    assert (expected.trace_id, expected.span_id) == (found.trace_id, found.span_id)
    assert expected.trace_flags == found.trace_flags


@pytest.mark.parametrize("one", ["b3", "b3multi", "tracecontext"])
def test_the_api_writes_what_the_published_propagators_write(one: Format) -> None:
    """Instrumentations that inject through the API give the usual headers."""
    published = {
        "b3": B3SingleFormat(),
        "b3multi": B3MultiFormat(),
        "tracecontext": TraceContextTextMapPropagator(),
    }
    use("tracecontext")
    context = parent_context({"traceparent": HEADER, "tracestate": "a=1"})
    expected: dict[str, str] = {}
    published[one].inject(expected, context)
    use(one)
    found: dict[str, str] = {}
    HeaderPropagator().inject(found, context)
    assert expected == found
    assert set(expected) <= HeaderPropagator().fields


@pytest.mark.parametrize("decision", [True, False])
def test_a_caller_that_has_not_decided_leaves_it_to_us(
    decision: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B3 without a sampling state is "deferred": our sampler decides, by the trace id."""
    use("b3")
    headers = {"b3": f"{TRACE_ID}-{ROOT_ID}"}
    parent, _ = extract(headers)
    assert parent is not None
    assert not parent.decided
    asked = []

    def decide(trace_id: str) -> bool:
        asked.append(trace_id)
        return decision

    monkeypatch.setattr(header_propagator, "_decide", decide)
    sampled = context_in(headers).trace_flags.sampled
    assert ([TRACE_ID], decision) == (asked, sampled)


@pytest.mark.parametrize(
    "formats, headers, trace_id, sampled",
    [
        # Datadog: W3C with its own state, and its own headers beside.
        (
            ("tracecontext",),
            {
                "traceparent": f"00-{TRACE_ID}-{ROOT_ID}-01",
                "tracestate": "dd=s:2;o:rum;p:b7ad6b7169203331;t.dm:-4;t.tid:0af7651916cd43dd",
                "x-datadog-trace-id": "9532127138774266268",
                "x-datadog-sampling-priority": "2",
            },
            TRACE_ID,
            True,
        ),
        # Zipkin's Brave in a task of another language: 64 bits, canonical case.
        (
            ("tracecontext", "b3multi"),
            {
                "X-B3-TraceId": "463ac35c9f6413ad",
                "X-B3-SpanId": "a2fb4a1d1a96d312",
                "X-B3-ParentSpanId": "0020000000000001",
                "X-B3-Sampled": "0",
            },
            "0000000000000000463ac35c9f6413ad",
            False,
        ),
        # W3C level 2: the random flag.
        (("tracecontext",), {"traceparent": f"00-{TRACE_ID}-{ROOT_ID}-03"}, TRACE_ID, True),
        # Elastic and New Relic: W3C with a tenant in the key of the state.
        (
            ("tracecontext",),
            {"traceparent": HEADER, "tracestate": "33@nr=0-0-33-278-7d6--0-1.2-1518,es=s:1"},
            TRACE_ID,
            True,
        ),
    ],
)
def test_callers_of_other_vendors_are_continued(
    formats: tuple[Format, ...], headers: dict[str, str], trace_id: str, sampled: bool
) -> None:
    """What their SDKs send, as they send it."""
    use(*formats)
    parent, state = extract(headers)
    assert parent is not None
    assert (trace_id, sampled) == (parent.trace_id, parent.sampled)
    assert headers.get("tracestate", "") == state
    assert {} == propagation.ignored()


def test_headers_of_http_are_found_in_any_case_and_as_bytes() -> None:
    """ASGI gives lower-case bytes, WSGI's and a proxy's names have capitals."""
    use("tracecontext", "b3multi")
    assert {"traceparent": [HEADER], "x-b3-traceid": ["1"]} == propagation.headers_of(
        [(b"TraceParent", HEADER.encode()), ("X-B3-TraceId", "1"), ("cookie", "secret")]
    )


# Malformed, oversized, hostile -------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers, counted",
    [
        ({"traceparent": "garbage"}, "traceparent malformed"),
        ({"traceparent": 7}, "traceparent not text"),
        ({"traceparent": {"a": 1}}, "traceparent not text"),
        ({"traceparent": [HEADER, HEADER]}, "traceparent repeated"),
        ({"traceparent": [HEADER, 7]}, "traceparent not text"),
        ({"traceparent": HEADER + "-" + "0" * 1_000_000}, "traceparent too long"),
        ({"traceparent": HEADER[:-1] + "٣"}, "traceparent malformed"),
        ({"traceparent": HEADER.encode()[:-1] + b"\xff"}, "traceparent malformed"),
        ({"b3": f"{TRACE_ID}-{ROOT_ID}-maybe"}, "b3 malformed"),
        ({"b3": "\n"}, ""),
        ({"x-b3-traceid": TRACE_ID, "x-b3-spanid": "x"}, "x-b3-traceid malformed"),
        ({"x-b3-traceid": [TRACE_ID, TRACE_ID]}, "x-b3-traceid repeated"),
        ({}, ""),
    ],
)
def test_what_is_wrong_is_ignored_and_counted(
    headers: dict[str, Any], counted: str, lines: Lines
) -> None:
    """A new trace starts; each reason is counted each time, and logged once without the value."""
    use("tracecontext", "b3", "b3multi")
    for _ in range(3):
        assert not context_in(headers).is_valid
        assert (None, "") == extract(headers, count=False)
    assert ({counted: 3} if counted else {}) == propagation.ignored()
    said = [line for line in lines() if line["event"] == "telemetry.header_ignored"]
    assert [counted] * len(said) == [f"{one['header']} {one['reason']}" for one in said]
    assert len(said) == bool(counted)


@pytest.mark.parametrize(
    "state, kept",
    [
        ("a=1, b=2 ,", "a=1,b=2"),
        (["a=1", "b=2"], "a=1,b=2"),
        ("a=1,a=2", ""),
        ("A=1", ""),
        ("a=" + "x" * 600, ""),
        (",".join(f"k{n}=1" for n in range(33)), ""),
        ("a=é", ""),
        ("a=1\r\nx: y", ""),
        (7, ""),
    ],
)
def test_a_wrong_tracestate_leaves_the_parent(state: object, kept: str) -> None:
    """The specification: the state may be dropped, the trace goes on."""
    parent, found = extract({"traceparent": HEADER, "tracestate": state})
    assert parent is not None
    assert kept == found
    assert bool(propagation.ignored()) == (not kept)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    headers=st.dictionaries(
        st.sampled_from(
            [
                *("traceparent", "tracestate", "b3", "baggage", "x-b3-traceid", "x-b3-spanid"),
                *("x-b3-sampled", "x-b3-flags", "X-B3-TraceId"),
            ]
        ),
        anything,
    )
)
@example(headers={"baggage": "%ff=1,a=%ff%fe,=,;,a=b;c"})
def test_nothing_in_a_header_ever_raises(headers: dict[str, Any]) -> None:
    """Any value in any of the headers is a context or is ignored, through the API too."""
    use(*get_args(Format), keys=("*",))
    context = parent_context(headers)
    written: dict[str, Any] = {}
    inject_current(written, context)
    assert all(isinstance(value, str) and value.isascii() for value in written.values())
    assert all(value.isprintable() for value in written.values())


# Baggage -----------------------------------------------------------------------------------------


def test_baggage_is_off_by_default() -> None:
    """What a caller attaches does not travel through, nor does what code sets."""
    assert {} == propagation.extract_baggage({"baggage": "tenant=acme"})
    written: dict[str, Any] = {}
    inject_current(written, otel_baggage.set_baggage("tenant", "acme"))
    assert {} == written


def test_only_what_is_allowed_passes() -> None:
    """In and out: a key that is not in the list stops here."""
    use("tracecontext", "baggage", keys=("tenant", "plan"))
    headers = {"traceparent": HEADER, "baggage": ["tenant=a%20b;prop=1, session=x", "plan=gold"]}
    context = parent_context(headers)
    assert {"tenant": "a b", "plan": "gold"} == dict(otel_baggage.get_all(context))
    context = otel_baggage.set_baggage("session", "x", context)
    assert {"tenant": "a b", "plan": "gold"} == current_baggage(context)
    written: dict[str, Any] = {}
    inject_current(written, context)
    assert {"traceparent": HEADER, "baggage": "tenant=a%20b,plan=gold"} == written


def test_switched_on_without_a_list_nothing_passes() -> None:
    """OTEL_PROPAGATORS=tracecontext,baggage is set by many a platform: it opens nothing."""
    use("baggage")
    assert {} == propagation.extract_baggage({"baggage": "tenant=acme"})


def test_a_star_lets_everything_pass() -> None:
    """For those who trust their callers."""
    use("baggage", keys=("*",))
    assert {"a": "1", "b": ""} == propagation.extract_baggage({"baggage": "a=1,b="})


@pytest.mark.parametrize(
    "header, found, counted",
    [
        ("a=1234567890,b=123456,c=1", {"a": "1234567890", "c": "1"}, {"baggage too large": 1}),
        ("a=" + "x" * 9000, {}, {"baggage too long": 1}),
        ("a=1,nonsense,b=2", {"a": "1", "b": "2"}, {"baggage malformed": 1}),
        ("a=1,é=2", {"a": "1"}, {"baggage malformed": 1}),
        (7, {}, {"baggage not text": 1}),
    ],
)
def test_baggage_has_limits(header: Any, found: dict[str, str], counted: dict[str, int]) -> None:
    """What has no room or no form is left out and counted, the rest stays."""
    use("baggage", keys=("*",), bytes_max=20)
    assert found == propagation.extract_baggage({"baggage": header})
    assert counted == propagation.ignored()


def test_the_process_uses_it_for_every_instrumentation(start_tracing: Callable[..., Any]) -> None:
    """After the start of traces the API's global propagator is ours."""
    start_tracing(propagators=("b3",))
    headers: dict[str, str] = {}
    propagate.inject(headers, propagate.extract({"b3": f"{TRACE_ID}-{ROOT_ID}-0"}))
    assert {"b3": f"{TRACE_ID}-{ROOT_ID}-0"} == headers
