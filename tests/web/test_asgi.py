"""ASGI: every way in which a request begins, goes on and ends, seen by a real collector."""

import asyncio
import logging
import time
from typing import Any

import pytest
import structlog
from opentelemetry import trace

from shared.telemetry.http import AsgiTracing, HttpOptions, current_request_id
from shared.telemetry.http_asgi import App, Message, Receive, Scope, Send
from shared.telemetry.metrics.instruments import Histogram
from shared.telemetry.metrics.registry import Registry
from tests.metrics.conftest import registry
from tests.servers.otlp import OtlpReceiver
from tests.telemetry.conftest import StartTracing
from tests.web.calls import SPAN_ID, TRACE_ID, TRACEPARENT, get, request
from tests.web.conftest import Lines, Spans

__all__ = ["registry"]

log = structlog.stdlib.get_logger("tests.web")


def start(status: int = 200, *headers: tuple[bytes, bytes], **more: Any) -> Message:
    """The beginning of an answer."""
    return {"type": "http.response.start", "status": status, "headers": list(headers), **more}


def body(text: str = "", *, more: bool = False) -> Message:
    """A part of an answer."""
    return {"type": "http.response.body", "body": text.encode(), "more_body": more}


def answering(*messages: Message) -> AsgiTracing:
    """An application that always says the same."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return AsgiTracing(app)


OK = answering(start(), body("ok"))


def test_a_request_continues_the_trace_of_its_caller(spans: Spans) -> None:
    """One SERVER span, below the caller's span; the answer says which trace it is."""
    answer = get(OK, headers={"traceparent": TRACEPARENT, "tracestate": "vendor=1"})
    (span,) = spans()
    assert (TRACE_ID, SPAN_ID, "server", "unset", "vendor=1", True) == (
        span.trace_id,
        span.parent_id,
        span.kind,
        span.status,
        span.tracestate,
        span.parent_is_remote,
    )
    assert 200 == span.attributes["http.response.status_code"]
    assert TRACE_ID == answer.headers["x-trace-id"]


def test_a_request_without_a_caller_begins_a_trace(spans: Spans) -> None:
    """Also when something is current in the server: that is nobody's caller."""
    with trace.get_tracer("test").start_as_current_span("left behind"):
        answer = get(OK)
    found = {span.name: span for span in spans()}
    assert answer.headers["x-trace-id"] == found["GET"].trace_id
    assert "" == found["GET"].parent_id
    assert found["GET"].trace_id != found["left behind"].trace_id


@pytest.mark.parametrize(
    "headers",
    [
        [("traceparent", "00-garbage")],
        [("traceparent", TRACEPARENT.upper())],
        [("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT.replace("0af", "1af"))],
        [("traceparent", "é" * 5000)],
    ],
)
def test_a_malformed_trace_is_ignored(headers: list[tuple[str, str]], spans: Spans) -> None:
    """The request is served all the same, in a trace of its own."""
    answer = get(OK, headers=headers)
    (span,) = spans()
    assert ("ok", "") == (answer.text, span.parent_id)
    assert span.trace_id != TRACE_ID


@pytest.mark.parametrize("given", ["r-1", "0190.a:b/c=d@e+f_g", "x" * 128])
def test_a_harmless_request_id_is_kept(given: str, spans: Spans) -> None:
    """Answered, in the span, in the log, and what the application itself sees."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append([value for name, value in scope["headers"] if name == b"x-request-id"])
        seen.append(current_request_id())
        await send(start())
        await send(body())

    answer = get(AsgiTracing(app), headers={"X-Request-Id": given})
    assert given == answer.headers["x-request-id"]
    assert [[given.encode()], given] == seen
    assert given == spans()[0].attributes["http.request.id"]
    assert "" == current_request_id()


@pytest.mark.parametrize(
    "given",
    [["a b"], ["a\nb"], ["x" * 129], ["<script>"], [""], ["é"], ["-x"], ["one", "two"]],
)
def test_a_hostile_request_id_is_replaced(given: list[str], spans: Spans) -> None:
    """It would end up in log lines and in other people's terminals."""
    answer = get(OK, headers=[("x-request-id", one) for one in given])
    assert answer.headers["x-request-id"] not in {*given, ",".join(given)}
    assert 36 == len(answer.headers["x-request-id"])


def test_ids_of_the_application_are_not_answered_twice(spans: Spans) -> None:
    """The ids in the answer are those of the log and of the trace."""
    app = answering(start(200, (b"X-Request-ID", b"mine"), (b"x-kept", b"1")), body())
    answer = get(app, headers={"x-request-id": "r-1"})
    assert ("r-1", "1") == (answer.headers["x-request-id"], answer.headers["x-kept"])


def test_every_line_of_a_request_carries_its_ids(spans: Spans, lines: Lines) -> None:
    """From our code, from a library, from a thread; also when the body has ended already."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        log.info("ours")
        logging.getLogger("a.library").warning("theirs")
        await asyncio.to_thread(log.info, "from a thread")
        await send(start())
        await send(body())
        log.info("in the background")

    log.info("before")
    answer = get(AsgiTracing(app))
    log.info("after")
    (span,) = spans()
    ids = {
        "trace_id": answer.headers["x-trace-id"],
        "span_id": span.span_id,
        "request_id": answer.headers["x-request-id"],
    }
    found = {str(line["event"]): line for line in lines()}
    for event in ("ours", "theirs", "from a thread", "in the background"):
        assert ids.items() <= found[event].items(), event
    for event in ("before", "after"):
        assert not ids.keys() & found[event].keys(), event


def test_a_request_that_is_not_sampled_has_ids_all_the_same(
    otlp_http: OtlpReceiver, start_tracing: StartTracing, lines: Lines
) -> None:
    """The caller decided; whoever looks for the trace id finds the log lines."""
    start_tracing(otlp_http)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        log.info("unsampled")
        await send(start())
        await send(body())

    answer = get(AsgiTracing(app), headers={"traceparent": TRACEPARENT[:-2] + "00"})
    assert TRACE_ID == answer.headers["x-trace-id"]
    assert TRACE_ID == lines()[0]["trace_id"]
    assert [] == otlp_http.spans()


def test_without_telemetry_requests_are_served(lines: Lines) -> None:
    """Nothing was set up: the caller's trace goes on, and a request id is answered."""
    answer = get(OK, headers={"traceparent": TRACEPARENT})
    assert (TRACE_ID, "ok") == (answer.headers["x-trace-id"], answer.text)
    answer = get(OK)
    assert {"x-request-id"} == answer.headers.keys()


@pytest.mark.parametrize("status, expected", [(404, "unset"), (499, "unset"), (500, "error")])
def test_only_the_servers_own_faults_are_errors(status: int, expected: str, spans: Spans) -> None:
    """4xx is the caller's mistake."""
    get(answering(start(status), body()))
    (span,) = spans()
    assert (expected, status) == (span.status, span.attributes["http.response.status_code"])
    assert ("500" if status == 500 else None) == span.attributes.get("error.type")
    assert "" == span.status_message


def test_an_exception_before_the_answer(spans: Spans, lines: Lines) -> None:
    """Recorded with its event, logged with the ids of the request, and raised on."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("no such order")

    answer = get(AsgiTracing(app), headers={"x-request-id": "r-1"})
    assert isinstance(answer.raised, LookupError)
    (span,) = spans()
    assert ("error", "no such order", "LookupError", ("exception",)) == (
        span.status,
        span.status_message,
        span.attributes["error.type"],
        span.events,
    )
    assert "http.response.status_code" not in span.attributes
    (line,) = lines()
    expected = {
        "event": "http.request_failed",
        "level": "error",
        "request_id": "r-1",
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "error_type": "LookupError",
    }
    assert expected.items() <= line.items()
    assert "LookupError: no such order" in str(line["exception"])


def test_an_exception_in_the_middle_of_the_answer(spans: Spans) -> None:
    """The status was sent already and is kept; the span is an error all the same."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body("half", more=True))
        raise OSError("disk")

    answer = get(AsgiTracing(app))
    assert isinstance(answer.raised, OSError)
    (span,) = spans()
    assert ("error", "OSError", 200) == (
        span.status,
        span.attributes["error.type"],
        span.attributes["http.response.status_code"],
    )


def test_an_exception_that_was_answered_first(spans: Spans) -> None:
    """Frameworks answer 500 and then raise again: it is the request's own exception."""
    raised: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(500))
        await send(body("sorry"))
        await asyncio.sleep(0.01)
        raised.append(time.time_ns())
        raise ValueError("x")

    answer = get(AsgiTracing(app))
    assert isinstance(answer.raised, ValueError)
    (span,) = spans()
    assert ("error", "ValueError", 500, ("exception",)) == (
        span.status,
        span.attributes["error.type"],
        span.attributes["http.response.status_code"],
        span.events,
    )
    assert span.end_ns < raised[0]  # when the answer had ended


def test_a_cancelled_request(spans: Spans) -> None:
    """A server that shuts down, or a time-out around the application."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(60)

    async def cancelled() -> None:
        task = asyncio.create_task(request(AsgiTracing(app), "/"))
        await asyncio.sleep(0)
        task.cancel()
        assert isinstance((await task).raised, asyncio.CancelledError)

    asyncio.run(cancelled())
    (span,) = spans()
    assert ("error", "asyncio.exceptions.CancelledError") == (
        span.status,
        span.attributes["error.type"],
    )


def test_a_stream_lasts_until_its_last_part(spans: Spans) -> None:
    """Not until the first byte, and not until the background work is over."""
    ended: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        for part in ("a", "b"):
            await send(body(part, more=True))
            await asyncio.sleep(0.01)
        assert trace.get_current_span().is_recording()
        await send(body())
        ended.append(time.time_ns())
        assert not trace.get_current_span().is_recording()

    assert get(AsgiTracing(app)).raised is None
    (span,) = spans()
    assert span.start_ns + 20e6 <= span.end_ns <= ended[0]


def test_trailers_are_a_part_of_the_answer(spans: Spans) -> None:
    """The body is not the end where trailers were announced."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(trailers=True))
        await send(body("x"))
        assert trace.get_current_span().is_recording()
        await send({"type": "http.response.trailers", "headers": [], "more_trailers": False})
        assert not trace.get_current_span().is_recording()

    assert get(AsgiTracing(app)).raised is None
    assert "unset" == spans()[0].status


def test_background_work_that_fails_has_its_own_span(spans: Spans, lines: Lines) -> None:
    """The request was answered well; the failure is seen below it all the same."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body())
        with trace.get_tracer("test").start_as_current_span("send mail"):
            raise ConnectionError("no mail server")

    answer = get(AsgiTracing(app))
    assert isinstance(answer.raised, ConnectionError)
    found = {span.name: span for span in spans()}
    served, failed = found["GET"], found["background GET"]
    assert "unset" == served.status
    assert (served.trace_id, served.span_id, "error", "ConnectionError", served.end_ns) == (
        failed.trace_id,
        failed.parent_id,
        failed.status,
        failed.attributes["error.type"],
        failed.start_ns,
    )
    assert served.span_id == found["send mail"].parent_id
    assert ["http.background_failed"] == [line["event"] for line in lines()]


def test_a_client_that_goes_away(spans: Spans) -> None:
    """The answer was not finished: an error, but nobody's exception."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body("half", more=True))
        await receive()

    get(AsgiTracing(app), received=[{"type": "http.disconnect"}])
    (span,) = spans()
    assert ("error", "client_disconnected", ()) == (
        span.status,
        span.attributes["error.type"],
        span.events,
    )


def test_a_client_that_goes_away_while_the_server_sends(spans: Spans, lines: Lines) -> None:
    """Newer servers raise an OSError; that is no failure of the application."""

    def gone(message: Message) -> None:
        if message.get("body"):
            raise BrokenPipeError

    answer = get(OK, on_sent=gone)
    assert isinstance(answer.raised, BrokenPipeError)
    (span,) = spans()
    assert ("error", "client_disconnected") == (span.status, span.attributes["error.type"])
    assert [] == lines()


def test_a_client_that_leaves_with_the_whole_answer_is_fine(spans: Spans) -> None:
    """Every connection ends with a disconnect some time."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body())
        assert "http.disconnect" == (await receive())["type"]

    get(AsgiTracing(app), received=[{"type": "http.disconnect"}])
    assert "unset" == spans()[0].status


def test_an_application_that_does_not_answer(spans: Spans) -> None:
    """The server makes a 500 of it; the span says why."""
    get(answering())
    assert "response_incomplete" == spans()[0].attributes["error.type"]


def test_head_is_a_request_like_any_other(spans: Spans) -> None:
    """Its answer has no body, and is whole without one."""
    get(answering(start(200, (b"content-length", b"5")), body()), method="HEAD")
    (span,) = spans()
    assert ("HEAD", "unset") == (span.name, span.status)


def test_an_unknown_method_makes_no_span_name(spans: Spans) -> None:
    """`HTTP` stands for whatever was sent."""
    get(OK, method="HACK")
    (span,) = spans()
    assert ("HTTP", "_OTHER") == (span.name, span.attributes["http.request.method"])


def test_what_is_not_traced_is_passed_on(spans: Spans) -> None:
    """The server's own start and end, and health checks."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])
        assert not trace.get_current_span().is_recording()

    traced = AsgiTracing(app, HttpOptions(untraced=frozenset({"/health"})))
    get(traced, type="lifespan")
    get(traced, "/health")
    assert ["lifespan", "http"] == seen
    assert [] == spans()


def test_two_middlewares_make_one_span(spans: Spans) -> None:
    """Once around the application and once more inside of it."""
    get(AsgiTracing(OK))
    assert 1 == len(spans())


def test_route_of_another_framework(spans: Spans, lines: Lines) -> None:
    """A function finds it; one that breaks costs the route, not the request."""
    app = AsgiTracing(OK, HttpOptions(route=lambda scope: f"{scope['path'][:3]}/*"))
    get(app, "/ab/17")
    assert "GET /ab/*" == spans()[0].name
    broken = AsgiTracing(OK, HttpOptions(route=lambda scope: str(scope["no such key"])))
    assert "ok" == get(broken).text
    assert "ok" == get(broken).text
    assert ["http.route_not_found"] == [line["event"] for line in lines()]


def test_recorded_headers_are_those_of_the_list(spans: Spans) -> None:
    """Of the request and of the answer; several of a name are joined."""
    options = HttpOptions(
        request_headers=frozenset({"x-tenant"}), response_headers=frozenset({"x-cache"})
    )
    messages = [start(200, (b"X-Cache", b"hit"), (b"Set-Cookie", b"s=1")), body()]
    get(
        AsgiTracing(answering(*messages), options),
        headers=[("X-Tenant", "a"), ("x-tenant", "b"), ("cookie", "s=1")],
    )
    recorded = {key: value for key, value in spans()[0].attributes.items() if ".header." in key}
    assert {
        "http.request.header.x-tenant": ["a,b"],
        "http.response.header.x-cache": ["hit"],
    } == recorded


# Websockets ---------------------------------------------------------------------------------


def talking(*messages: Message, until: str = "websocket.disconnect") -> App:
    """An application that says something after the handshake and then listens."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert "websocket.connect" == (await receive())["type"]
        for message in messages:
            await send(message)
        while until and (await receive())["type"] != until:
            pass

    return AsgiTracing(app)


CONNECT: Message = {"type": "websocket.connect"}
ACCEPT: Message = {"type": "websocket.accept", "headers": [(b"x-kept", b"1")]}
WS: dict[str, Any] = {"type": "websocket", "scheme": "ws", "method": "GET"}


def test_a_websocket_is_one_span(spans: Spans) -> None:
    """From the handshake, which is answered with the ids, to the close of either side."""
    answer = get(
        talking(ACCEPT),
        headers={"traceparent": TRACEPARENT},
        received=[
            CONNECT,
            {"type": "websocket.receive", "text": "hello"},
            {"type": "websocket.disconnect", "code": 1001},
        ],
        **WS,
    )
    assert (TRACE_ID, "1") == (answer.headers["x-trace-id"], answer.headers["x-kept"])
    (span,) = spans()
    expected = {
        "http.request.method": "GET",
        "http.response.status_code": 101,
        "network.protocol.name": "websocket",
        "url.scheme": "ws",
        "websocket.close_code": 1001,
    }
    assert expected.items() <= span.attributes.items()
    assert ("server", "unset", TRACE_ID) == (span.kind, span.status, span.trace_id)


def test_a_websocket_that_the_application_closes(spans: Spans) -> None:
    """With its code; 1011 says that the server is at fault."""
    for code in (1000, 1011):
        get(
            talking(ACCEPT, {"type": "websocket.close", "code": code}, until=""),
            received=[CONNECT],
            **WS,
        )
    normal, broken = spans()
    assert ("unset", 1000) == (normal.status, normal.attributes["websocket.close_code"])
    assert ("error", "1011") == (broken.status, broken.attributes["error.type"])


def test_a_websocket_that_is_refused(spans: Spans) -> None:
    """A close before it was accepted is answered with 403, or by an answer of its own."""
    get(talking({"type": "websocket.close"}, until=""), received=[CONNECT], **WS)
    answer = get(
        talking(
            {"type": "websocket.http.response.start", "status": 429, "headers": []},
            {"type": "websocket.http.response.body", "body": b"slow down"},
            until="",
        ),
        received=[CONNECT],
        **WS,
    )
    assert "x-trace-id" in answer.headers
    statuses = [span.attributes["http.response.status_code"] for span in spans()]
    assert [403, 429] == statuses
    assert ["unset", "unset"] == [span.status for span in spans()]


def test_a_websocket_whose_client_vanishes(spans: Spans) -> None:
    """The exception that frameworks raise then is a farewell, any other is a failure."""

    class WebSocketDisconnect(Exception):
        pass

    def app(error: Exception) -> App:
        async def listen(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            await send(ACCEPT)
            await receive()
            raise error

        return AsgiTracing(listen)

    for error in (WebSocketDisconnect(), LookupError("x")):
        answer = get(app(error), received=[CONNECT, {"type": "websocket.disconnect"}], **WS)
        assert error is answer.raised
    farewell, failed = spans()
    assert ("unset", 1006) == (farewell.status, farewell.attributes["websocket.close_code"])
    assert ("error", "LookupError") == (failed.status, failed.attributes["error.type"])


def test_a_websocket_that_is_never_answered(spans: Spans) -> None:
    """Whether the application forgot it or the client did not wait."""
    get(talking(until=""), received=[CONNECT], **WS)
    get(talking(), received=[CONNECT, {"type": "websocket.disconnect", "code": 1006}], **WS)
    assert ["response_incomplete", "client_disconnected"] == [
        span.attributes["error.type"] for span in spans()
    ]


# Secrets ------------------------------------------------------------------------------------


def test_planted_secrets_reach_neither_the_collector_nor_the_log(
    spans: Spans, lines: Lines
) -> None:
    """In the path, the query, headers that are recorded, the agent, and an exception."""
    planted = ("hunter2", "ada@example.org", "eyJhbGciOiJIUzI1NiJ9", "4111111111111111")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("no user with password=hunter2 at ada@example.org")

    options = HttpOptions(
        request_headers=frozenset({"x-tenant"}), query_parameters=frozenset({"page"})
    )
    get(
        AsgiTracing(app, options),
        "/reset/ada@example.org/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJlLXg",
        query="token=hunter2&page=4111111111111111",
        headers={"x-tenant": "ada@example.org", "user-agent": "x password=hunter2"},
    )
    (span,) = spans()
    assert "LookupError" == span.attributes["error.type"]
    shown = f"{span} {lines()}"
    assert [] == [secret for secret in planted if secret in shown]


# Metrics ------------------------------------------------------------------------------------


def test_requests_are_measured(spans: Spans, registry: Registry) -> None:
    """By method, route, status and error, with the trace as exemplar; websockets are not."""
    options = HttpOptions(route=lambda _: "/orders/{order_id}")

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError

    duration = next(
        one for one in registry.instruments() if one.name == "http.server.request.duration"
    )
    assert isinstance(duration, Histogram)
    duration.forget()
    answers = [
        get(AsgiTracing(OK._app, options), "/orders/17"),
        get(AsgiTracing(OK._app, options), "/orders/18"),
        get(AsgiTracing(broken)),
    ]
    get(talking(ACCEPT, until=""), received=[CONNECT], **WS)
    assert [2, 0] == [len([one for one in answers if one.status == 200]), answers[2].status]
    measured = {series.labels: series for series in duration.series()}
    assert {
        (
            ("http.request.method", "GET"),
            ("http.response.status_code", "200"),
            ("http.route", "/orders/{order_id}"),
        ): 2,
        (("error.type", "LookupError"), ("http.request.method", "GET")): 1,
    } == {tuple(sorted(labels)): sum(one.buckets) for labels, one in measured.items()}
    exemplars = {one.trace_id for series in measured.values() for one in series.exemplars.values()}
    assert exemplars
    assert exemplars <= {span.trace_id for span in spans() if span.kind == "server"}
