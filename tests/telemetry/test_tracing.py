import asyncio
import inspect
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from typing_extensions import override

from shared.telemetry import operations, setup, tracing
from shared.telemetry.header_propagator import parent_context
from shared.telemetry.tracing import span, traced
from tests.servers.otlp import OtlpReceiver, ReceivedSpan
from tests.telemetry.conftest import StartTracing
from tests.telemetry.records import ROOT_ID, TRACE_ID


class Spans:
    """What a real receiver got."""

    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    def __call__(self) -> dict[str, ReceivedSpan]:
        assert setup.flush()
        found = self._receiver.spans()
        assert len(found) == len({one.name for one in found})
        return {one.name: one for one in found}


@pytest.fixture
def spans(otlp_http: OtlpReceiver, start_tracing: StartTracing) -> Spans:
    """Traces are on; call it for the spans so far, by name."""
    start_tracing(otlp_http)
    return Spans(otlp_http)


class Wrong(Exception):
    """Something of the application's own."""


def current_id() -> str:
    """Id of the current span."""
    return trace.format_span_id(trace.get_current_span().get_span_context().span_id)


def test_a_block_is_a_span_with_its_attributes(spans: Spans) -> None:
    """What is known at the start and what is found out later are both on it."""
    operation = operations.database("postgresql", "SELECT", collection="orders")
    with span(operation, {"order.id": "7"}) as recorded:
        recorded.set_attribute("rows", 3)
    found = spans()["SELECT orders"]
    assert ("client", "unset", ()) == (found.kind, found.status, found.events)
    assert {"db.system.name": "postgresql", "order.id": "7", "rows": 3}.items() <= (
        found.attributes.items()
    )


def test_spans_of_the_plain_api_are_parents_and_children(spans: Spans) -> None:
    """Our spans and those of any library stand in one tree."""
    tracer = trace.get_tracer("a.library")
    with tracer.start_as_current_span("outer"), span("ours"):
        tracer.start_span("inner").end()
    found = spans()
    assert found["outer"].span_id == found["ours"].parent_id
    assert found["ours"].span_id == found["inner"].parent_id
    assert {found["outer"].trace_id} == {one.trace_id for one in found.values()}


def test_an_exception_is_recorded_and_goes_on(spans: Spans) -> None:
    """Type, message, stack, ``error.type`` and status ERROR; the caller gets the exception."""
    with pytest.raises(Wrong, match="no money"), span("charge"):
        raise Wrong("no money")
    found = spans()["charge"]
    kind = f"{__name__}.Wrong"
    assert ("error", "no money", kind) == (
        found.status,
        found.status_message,
        found.attributes["error.type"],
    )
    (event,) = found.event_attributes
    assert (kind, "no money") == (event["exception.type"], event["exception.message"])
    assert "test_an_exception_is_recorded_and_goes_on" in event["exception.stacktrace"]


def test_an_expected_exception_is_no_error(spans: Spans) -> None:
    """Control flow, such as Celery's Retry, leaves the span as it is."""
    with pytest.raises(Wrong), span("retry", expected=(Wrong,)):
        raise Wrong
    assert "unset" == spans()["retry"].status


def test_an_exception_without_text_is_recorded_all_the_same(spans: Spans) -> None:
    """Somebody else's broken ``__str__`` must not take the place of their error."""

    class Mute(Exception):
        @override
        def __str__(self) -> str:
            raise ValueError

    with pytest.raises(Mute), span("mute"):
        raise Mute
    assert "<Mute whose text raises ValueError>" == spans()["mute"].status_message


def test_a_parent_from_headers(spans: Spans) -> None:
    """A message's trace is continued, whatever is current."""
    with span("unrelated"):
        parent = parent_context({"traceparent": f"00-{TRACE_ID}-{ROOT_ID}-01"})
        with span("continued", parent=parent):
            pass
    found = spans()["continued"]
    assert (TRACE_ID, ROOT_ID, True) == (found.trace_id, found.parent_id, found.parent_is_remote)


def test_a_decorated_function(spans: Spans) -> None:
    """Without an argument the span has the function's name, and says where it stands."""

    @traced
    def price(order_id: str) -> int:
        """Say what it costs."""
        return len(order_id)

    assert 3 == price("o-1")
    assert ("price", "Say what it costs.") == (price.__name__, price.__doc__)
    (found,) = spans().values()
    assert found.name.endswith("<locals>.price")
    assert f"{__name__}.{found.name}" == found.attributes["code.function.name"]


def test_arguments_and_result_are_attributes_on_request(spans: Spans) -> None:
    """Named parameters, defaults too, are on the span from the start; the result at the end."""

    @traced("price", arguments={"order_id": "order.id", "rush": "order.rush"}, result="total")
    def price(order_id: str, *, rush: bool = False) -> int:
        return 12

    @traced("pick", result=lambda found: {"first": found[0], "count": len(found)})
    def pick() -> list[str]:
        return ["a", "b"]

    price("o-1")
    pick()
    assert {"order.id": "o-1", "order.rush": False, "total": 12}.items() <= (
        spans()["price"].attributes.items()
    )
    assert {"first": "a", "count": 2}.items() <= spans()["pick"].attributes.items()


def test_a_result_that_cannot_be_described_is_still_a_result(spans: Spans) -> None:
    """The function has succeeded; that its describer has a fault is a line in the log."""

    @traced("pick", result=lambda found: found["missing"])
    def pick() -> dict[str, Any]:
        return {}

    assert {} == pick()
    assert "unset" == spans()["pick"].status


def test_long_values_are_cut(spans: Spans) -> None:
    """An argument of any size does not make a span of that size."""

    @traced("long", arguments={"text": "text"})
    def long(text: str) -> None: ...

    long("x" * 5000)
    assert tracing.VALUE_CHARS_MAX == len(spans()["long"].attributes["text"])


def test_a_parameter_that_does_not_exist_is_refused_at_once() -> None:
    """A typing error shows when the module is imported, not at the first call."""
    with pytest.raises(TypeError, match="price has no parameter oder_id"):

        @traced(arguments={"oder_id": "order.id"})
        def price(order_id: str) -> None: ...


def test_a_call_with_wrong_arguments_says_what_python_says(spans: Spans) -> None:
    """The decorator does not hide which argument is missing."""

    @traced("price", arguments={"order_id": "order.id"})
    def price(order_id: str) -> None: ...

    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        price()  # type: ignore[call-arg]
    assert "TypeError" == spans()["price"].attributes["error.type"]


def test_a_coroutine_is_a_span_until_it_returns(spans: Spans) -> None:
    """Concurrent ones do not become each other's parents."""

    @traced("one", result="result")
    async def one(gate: asyncio.Event) -> str:
        await gate.wait()
        return current_id()

    @traced("two")
    async def two(gate: asyncio.Event) -> str:
        gate.set()
        raise Wrong("no")

    async def both() -> tuple[Any, Any]:
        gate = asyncio.Event()
        return await asyncio.gather(one(gate), two(gate), return_exceptions=True)

    assert inspect.iscoroutinefunction(one)
    inner, error = asyncio.run(both())
    found = spans()
    assert (found["one"].span_id, inner) == (inner, found["one"].attributes["result"])
    assert isinstance(error, Wrong)
    assert ("error", "") == (found["two"].status, found["two"].parent_id)


def test_a_generator_is_a_span_that_is_current_inside_only(spans: Spans) -> None:
    """What its consumer does between two items is not its child."""

    @traced("items", result="result")
    def items() -> Generator[str, None, str]:
        yield current_id()
        yield current_id()
        return "end"

    seen = []
    with span("outside"):
        for inner in items():
            seen.append(inner)
            span_id = current_id()
            assert span_id != inner
    found = spans()
    assert [found["items"].span_id] * 2 == seen
    assert (found["outside"].span_id, "end") == (
        found["items"].parent_id,
        found["items"].attributes["result"],
    )


def test_a_generator_gets_what_is_sent_thrown_and_closed(spans: Spans) -> None:
    """The decorated generator is the same to its consumer."""
    closed = []

    def plain() -> Any:
        try:
            got = yield 1
            try:
                yield got
            except Wrong as error:
                yield str(error)
            yield "more"
        finally:
            closed.append(current_id())

    generator = traced("g")(plain)()
    assert (1, "sent", "thrown") == (
        next(generator),
        generator.send("sent"),
        generator.throw(Wrong("thrown")),
    )
    generator.close()
    found = spans()["g"]
    assert ([found.span_id], "unset") == (closed, found.status)


def test_a_generator_that_fails_is_an_error(spans: Spans) -> None:
    """What leaves it is recorded."""

    @traced("g")
    def fails() -> Iterator[int]:
        yield 1
        raise Wrong("no")

    with pytest.raises(Wrong):
        list(fails())
    assert ("error", "no") == (spans()["g"].status, spans()["g"].status_message)


def test_an_async_generator(spans: Spans) -> None:
    """As a generator: FastAPI's dependencies with ``yield`` are such."""

    @traced("a")
    async def items() -> AsyncIterator[str]:
        try:
            yield current_id()
            yield current_id()
        except Wrong as error:
            yield str(error)

    async def consume() -> list[str]:
        found = [one async for one in items()]
        broken: Any = items()
        await anext(broken)
        thrown = await broken.athrow(Wrong("thrown"))
        await broken.aclose()
        return [*found, thrown]

    assert inspect.isasyncgenfunction(items)
    first, second, thrown = asyncio.run(consume())
    assert (first, "thrown") == (second, thrown)
    assert setup.flush()


@pytest.mark.parametrize(
    "status, side, expected",
    [
        (200, "server", "unset"),
        (404, "server", "unset"),
        (500, "server", "error"),
        (404, "client", "error"),
        (302, "client", "unset"),
    ],
)
def test_the_status_of_a_response(spans: Spans, status: int, side: Any, expected: str) -> None:
    """A refusal is an error for who asked, not for who answered."""
    with span(operations.http_server("GET", path="/")) as recorded:
        tracing.set_http_status(recorded, status, side=side)
    found = spans()["GET"]
    assert (expected, status) == (found.status, found.attributes["http.response.status_code"])
    assert (str(status) if expected == "error" else None) == found.attributes.get("error.type")
