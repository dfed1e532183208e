"""WSGI: every way in which a request goes, seen by a real collector."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest
import structlog
from opentelemetry import trace

from shared.telemetry.http import HttpOptions, WsgiTracing, current_request_id
from tests.servers.otlp import ReceivedSpan
from tests.web.calls import SPAN_ID, TRACE_ID, TRACEPARENT, wsgi_get
from tests.web.conftest import Lines, Spans

log = structlog.stdlib.get_logger("tests.web")


def answering(
    body: Iterable[bytes] = (b"ok",), status: str = "200 OK", *headers: tuple[str, str]
) -> WSGIApplication:
    """An application that always says the same."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response(status, list(headers))
        return body

    return WsgiTracing(app)


def is_current() -> bool:
    """Whether a span is recorded in the running code."""
    return trace.get_current_span().is_recording()


def outcome(span: ReceivedSpan) -> tuple[str, object]:
    """How a span ended."""
    return span.status, span.attributes.get("error.type")


def test_a_request_continues_the_trace_of_its_caller(spans: Spans) -> None:
    """One SERVER span with the same attributes as in ASGI; the answer names the trace."""
    answer = wsgi_get(
        answering(),
        "/orders/\xc3\xa9",
        headers={"traceparent": TRACEPARENT, "x-request-id": "r-1", "user-agent": "curl/8"},
        query="sku=abc",
        SCRIPT_NAME="/shop",
    )
    (span,) = spans()
    assert (TRACE_ID, SPAN_ID, "server", "unset", "GET") == (
        span.trace_id,
        span.parent_id,
        span.kind,
        span.status,
        span.name,
    )
    assert {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.request.id": "r-1",
        "url.path": "/shop/orders/%C3%A9",
        "url.query": "sku=REDACTED",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "shop.example",
        "server.port": 8443,
        "client.address": "192.0.2.7",
        "network.peer.address": "192.0.2.7",
        "user_agent.original": "curl/8",
    } == span.attributes
    assert (TRACE_ID, "r-1", "ok") == (
        answer.headers["x-trace-id"],
        answer.headers["x-request-id"],
        answer.text,
    )


def test_a_hostile_request_id_is_replaced_for_the_application_too(spans: Spans) -> None:
    """What it sees, logs and answers is one harmless id."""
    seen: list[str] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        seen.extend([environ["HTTP_X_REQUEST_ID"], current_request_id()])
        start_response("200 OK", [("X-Request-Id", "mine")])
        return []

    answer = wsgi_get(WsgiTracing(app), headers={"x-request-id": "a\nb"})
    assert [answer.headers["x-request-id"]] * 2 == seen
    assert 36 == len(seen[0])
    assert "" == current_request_id()


def test_lines_carry_the_ids_while_the_body_is_made(spans: Spans, lines: Lines) -> None:
    """A generator runs while the server sends, long after the application has returned."""

    def body() -> Iterator[bytes]:
        for part in (b"a", b"b"):
            log.info("part")
            assert is_current()
            yield part

    answer = wsgi_get(answering(body()))
    assert not is_current()
    (span,) = spans()
    assert [(span.trace_id, span.span_id, answer.headers["x-request-id"])] * 2 == [
        (line["trace_id"], line["span_id"], line["request_id"]) for line in lines()
    ]
    assert "ab" == answer.text


def test_between_the_parts_nothing_is_current(spans: Spans) -> None:
    """The server's own code, which may serve another request meanwhile, is left alone."""

    def body() -> Iterator[bytes]:
        yield b"a"
        yield b"b"

    app = answering(body())
    for _ in app({"REQUEST_METHOD": "GET", "wsgi.url_scheme": "http"}, lambda *_: lambda _: None):
        assert not is_current()


@pytest.mark.parametrize(
    "status, expected", [("404 Not Found", ("unset", None)), ("503 Busy", ("error", "503"))]
)
def test_only_the_servers_own_faults_are_errors(
    status: str, expected: tuple[str, object], spans: Spans
) -> None:
    """4xx is the caller's mistake."""
    wsgi_get(answering((), status))
    assert expected == outcome(spans()[0])


def test_exceptions_before_and_in_the_answer(spans: Spans, lines: Lines) -> None:
    """Recorded, logged with the ids, and raised on."""

    def before(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        raise LookupError("no such order")

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise OSError("disk")

    first = wsgi_get(WsgiTracing(before))
    second = wsgi_get(answering(broken()))
    assert isinstance(first.raised, LookupError)
    assert isinstance(second.raised, OSError)
    found = spans()
    assert [("error", "LookupError"), ("error", "OSError")] == [outcome(span) for span in found]
    assert [("exception",), ("exception",)] == [span.events for span in found]
    assert [None, 200] == [span.attributes.get("http.response.status_code") for span in found]
    assert ["http.request_failed"] * 2 == [line["event"] for line in lines()]
    assert [span.trace_id for span in found] == [line["trace_id"] for line in lines()]


def test_an_error_page_in_place_of_the_answer(spans: Spans) -> None:
    """PEP 3333: `start_response` once more, with the exception."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        try:
            raise ValueError("late")
        except ValueError:
            start_response("500 Sorry", [], sys.exc_info())
        return [b"sorry"]

    answer = wsgi_get(WsgiTracing(app))
    assert (500, "sorry") == (answer.status, answer.text)
    (span,) = spans()
    assert ("error", "ValueError") == outcome(span)
    assert 500 == span.attributes["http.response.status_code"]


@pytest.mark.parametrize(
    "headers, method, expected",
    [
        ([], "GET", ("error", "client_disconnected")),
        ([("Content-Length", "9")], "GET", ("error", "client_disconnected")),
        ([("Content-Length", "1")], "GET", ("unset", None)),
        ([], "HEAD", ("unset", None)),
    ],
)
def test_a_client_that_goes_away(
    headers: list[tuple[str, str]], method: str, expected: tuple[str, object], spans: Spans
) -> None:
    """The server closes the body early; that is fine only where nothing more was due."""

    def body() -> Iterator[bytes]:
        yield b"a"
        yield b"b"

    wsgi_get(answering(body(), "200 OK", *headers), method=method, parts_max=1)
    assert expected == outcome(spans()[0])


def test_work_at_the_close_has_its_own_span_when_it_fails(spans: Spans, lines: Lines) -> None:
    """The answer was whole: it is not the request that failed."""

    class Body(list[bytes]):
        def close(self) -> None:
            raise ConnectionError("no mail server")

    answer = wsgi_get(answering(Body([b"ok"])))
    assert isinstance(answer.raised, ConnectionError)
    served, failed = sorted(spans(), key=lambda span: span.start_ns)
    assert ("unset", None) == outcome(served)
    assert ("background GET", served.span_id) == (failed.name, failed.parent_id)
    assert ("error", "ConnectionError") == outcome(failed)
    assert ["http.background_failed"] == [line["event"] for line in lines()]


def test_body_of_one_part_keeps_its_length(spans: Spans) -> None:
    """Servers take the Content-Length from it."""
    environ: dict[str, Any] = {"REQUEST_METHOD": "GET", "wsgi.url_scheme": "http"}
    sized = answering([b"ok"])(environ.copy(), lambda *_: lambda _: None)
    unsized = answering(iter([b"ok"]))(environ.copy(), lambda *_: lambda _: None)
    assert 1 == len(sized)  # type: ignore[arg-type]  # that is the question
    assert not hasattr(unsized, "__len__")


def test_what_is_not_traced_is_passed_on(spans: Spans) -> None:
    """Health checks, and a request that has its span already."""
    app = answering()
    wsgi_get(WsgiTracing(app, HttpOptions(untraced=frozenset({"/health"}))), "/health")
    wsgi_get(WsgiTracing(app), "/twice")
    assert ["/health", "/twice"] == [span.attributes["url.path"] for span in spans()]


def test_route_of_another_framework(spans: Spans) -> None:
    """A function finds it in the environ."""
    options = HttpOptions(route=lambda environ: environ["MY_ROUTE"])
    wsgi_get(WsgiTracing(answering(), options), MY_ROUTE="/orders/:id")
    assert "GET /orders/:id" == spans()[0].name
