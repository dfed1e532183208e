"""FastAPI, Starlette, Flask and Django: their routes name the span, their errors are seen."""

import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import flask
import pytest
import structlog
from fastapi import APIRouter, BackgroundTasks, FastAPI, HTTPException
from opentelemetry import trace
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from shared.telemetry.http import AsgiTracing, WsgiTracing
from shared.telemetry.http_asgi import App
from tests.servers.otlp import ReceivedSpan
from tests.web import django_site
from tests.web.calls import TRACE_ID, TRACEPARENT, Answer, get, wsgi_get
from tests.web.conftest import Lines, Spans

log = structlog.stdlib.get_logger("tests.web")


def seen(span: ReceivedSpan) -> tuple[str, object, str, object]:
    """Name, status code, status and error type of a span."""
    attributes = span.attributes
    return (
        span.name,
        attributes.get("http.response.status_code"),
        span.status,
        attributes.get("error.type"),
    )


def assert_route(span: ReceivedSpan) -> None:
    """The name is the method and the route, which is an attribute as well."""
    method, _, route = span.name.partition(" ")
    assert (route or None, method) == (
        span.attributes.get("http.route"),
        span.attributes["http.request.method"],
    )


# FastAPI ------------------------------------------------------------------------------------


def fastapi_app(**options: Any) -> FastAPI:
    """Routers in routers, a mounted application, and every kind of failure."""
    app = FastAPI(**options)
    shop = APIRouter(prefix="/v1/{tenant}")
    orders = APIRouter()
    sub = FastAPI()

    @orders.get("/orders/{order_id}")
    async def order(tenant: str, order_id: int) -> dict[str, str]:
        log.info("in a coroutine")
        return {"tenant": tenant}

    @app.get("/sync/{number}")
    def in_a_thread(number: int, background: BackgroundTasks) -> int:
        log.info("in a thread")
        background.add_task(log.info, "in the background")
        return number

    @app.get("/broken")
    def broken() -> None:
        raise LookupError("x")

    @app.get("/teapot")
    def teapot() -> None:
        raise HTTPException(418)

    @sub.get("/items/{item}")
    def item(item: str) -> str:
        return item

    shop.include_router(orders)
    app.include_router(shop, prefix="/api")
    app.mount("/sub/{shelf}", sub)
    return app


@pytest.mark.parametrize(
    "path, method, expected",
    [
        (
            "/api/v1/acme/orders/17",
            "GET",
            ("GET /api/v1/{tenant}/orders/{order_id}", 200, "unset", None),
        ),
        (
            "/api/v1/acme/orders/x",
            "GET",
            ("GET /api/v1/{tenant}/orders/{order_id}", 422, "unset", None),
        ),
        ("/sync/1", "GET", ("GET /sync/{number}", 200, "unset", None)),
        ("/sync/1", "PUT", ("PUT /sync/{number}", 405, "unset", None)),
        ("/sub/a1/items/x", "GET", ("GET /sub/{shelf}/items/{item}", 200, "unset", None)),
        ("/sub/a1/nothing", "GET", ("GET", 404, "unset", None)),
        ("/broken", "GET", ("GET /broken", 500, "error", "LookupError")),
        ("/teapot", "GET", ("GET /teapot", 418, "unset", None)),
        ("/docs", "GET", ("GET /docs", 200, "unset", None)),
        ("/wp-admin/17", "GET", ("GET", 404, "unset", None)),
    ],
)
def test_fastapi(path: str, method: str, expected: tuple[object, ...], spans: Spans) -> None:
    """The whole template, through included routers and mounts, and never a value of the path."""
    answer = get(AsgiTracing(fastapi_app()), path, method=method)
    (span,) = spans()
    assert expected == seen(span)
    assert_route(span)
    assert answer.headers["x-trace-id"] == span.trace_id
    assert (expected[3] is not None) == (answer.raised is not None)


def test_lines_of_fastapi_carry_the_ids(spans: Spans, lines: Lines) -> None:
    """In a coroutine, in a thread of the pool, and in a background task."""
    app = AsgiTracing(fastapi_app())
    ids = [get(app, path).headers["x-trace-id"] for path in ("/api/v1/a/orders/1", "/sync/1")]
    assert {"in a coroutine": ids[0], "in a thread": ids[1], "in the background": ids[1]} == {
        line["event"]: line["trace_id"] for line in lines()
    }


def test_fastapi_with_add_middleware(spans: Spans) -> None:
    """It works, but the answer to an unhandled exception is made outside of it."""
    app = fastapi_app(telemetry={"tracing": False})
    app.add_middleware(AsgiTracing)
    fine = get(app, "/sync/1", headers={"traceparent": TRACEPARENT})
    broken = get(app, "/broken")
    assert TRACE_ID == fine.headers["x-trace-id"]
    assert (500, False) == (broken.status, "x-trace-id" in broken.headers)
    assert [
        ("GET /sync/{number}", 200, "unset", None),
        ("GET /broken", None, "error", "LookupError"),
    ] == [seen(span) for span in spans()]


def test_fastapi_traces_by_itself_around_add_middleware(spans: Spans) -> None:
    """Its span is the SERVER span then, and ours one below it: still one trace."""
    app = fastapi_app()
    app.add_middleware(AsgiTracing)
    answer = get(app, "/sync/1")
    ours, theirs = (
        next(span for span in spans() if span.name == "GET /sync/{number}" and span.kind == kind)
        for kind in ("internal", "server")
    )
    assert (theirs.span_id, theirs.trace_id) == (ours.parent_id, ours.trace_id)
    assert {answer.headers["x-trace-id"]} == {span.trace_id for span in spans()}


# Starlette ----------------------------------------------------------------------------------


def starlette_app(tmp_path: Any = ".") -> Starlette:
    """Mounts with parameters, streams, background tasks and a websocket."""

    async def hello(request: Request) -> Response:
        with trace.get_tracer("test").start_as_current_span("inside"):
            return PlainTextResponse("hello")

    async def stream(request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            log.info("in a part")
            yield b"a"
            yield b"b"

        return StreamingResponse(parts(), background=BackgroundTask(log.info, "in the background"))

    async def busy(request: Request) -> Response:
        raise StarletteHTTPException(503, "busy")

    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.receive_text()

    return Starlette(
        routes=[
            Route("/hello/{name}", hello),
            Route("/stream", stream),
            Route("/busy", busy),
            WebSocketRoute("/talk/{room}", talk),
            Mount(
                "/t/{tenant}",
                routes=[
                    Route("/hello/{name}", hello),
                    Mount("/deep", routes=[Route("/{x:int}", hello)]),
                ],
            ),
            Mount("/static", StaticFiles(directory=tmp_path)),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=_pass_on)],
    )


async def _pass_on(request: Request, call_next: Callable[[Request], Any]) -> Any:
    return await call_next(request)


@pytest.mark.parametrize(
    "path, name",
    [
        ("/hello/ada", "GET /hello/{name}"),
        ("/t/acme/hello/ada", "GET /t/{tenant}/hello/{name}"),
        ("/t/acme/deep/17", "GET /t/{tenant}/deep/{x:int}"),
        ("/t/acme/none", "GET /t/{tenant}"),
        ("/static/x.css", "GET /static"),
        ("/none", "GET"),
    ],
)
def test_starlette_routes(path: str, name: str, spans: Spans) -> None:
    """Through mounts, whose values the scope has, but whose template it has not."""
    get(AsgiTracing(starlette_app()), path)
    (span,) = (span for span in spans() if span.kind == "server")
    assert name == span.name
    assert_route(span)


def test_starlette_under_a_root_path(spans: Spans) -> None:
    """Behind a proxy that strips a prefix: the route begins where the application does."""
    get(AsgiTracing(starlette_app()), "/prefix/t/acme/hello/ada", root_path="/prefix")
    (span,) = (span for span in spans() if span.kind == "server")
    assert "GET /t/{tenant}/hello/{name}" == span.name
    assert "/prefix/t/acme/hello/ada" == span.attributes["url.path"]


def test_starlette_flows(spans: Spans, lines: Lines) -> None:
    """A child span, a stream with a background task, and an error that is answered."""
    app = AsgiTracing(starlette_app())
    get(app, "/hello/ada")
    answer = get(app, "/stream")
    get(app, "/busy")
    found = {span.name: span for span in spans()}
    assert found["GET /hello/{name}"].span_id == found["inside"].parent_id
    assert "ab" == answer.text
    assert [answer.headers["x-trace-id"]] * 2 == [line["trace_id"] for line in lines()]
    assert ("GET /busy", 503, "error", "503") == seen(found["GET /busy"])


def test_starlette_websocket(spans: Spans) -> None:
    """The room is no part of the name; that the client leaves is no failure."""
    answer = get(
        AsgiTracing(starlette_app()),
        "/talk/r-17",
        type="websocket",
        scheme="ws",
        received=[
            {"type": "websocket.connect"},
            {"type": "websocket.receive", "text": "hi"},
            {"type": "websocket.disconnect", "code": 1000},
        ],
    )
    assert "hi" == answer.sent[-1]["text"]
    (span,) = spans()
    assert ("GET /talk/{room}", 101, "unset", None) == seen(span)
    assert "x-trace-id" in answer.headers


# Flask --------------------------------------------------------------------------------------


def flask_app(*, testing: bool = False) -> flask.Flask:
    """A blueprint, a stream and failures."""
    app = flask.Flask("shop")
    app.testing = testing
    shop = flask.Blueprint("shop", __name__, url_prefix="/shop")

    @shop.get("/orders/<int:order_id>")
    def order(order_id: int) -> str:
        log.info("in a view")
        return flask.request.headers["x-request-id"]

    @app.get("/broken")
    def broken() -> str:
        raise LookupError("x")

    @app.get("/stream")
    def stream() -> flask.Response:
        def parts() -> Iterator[bytes]:
            log.info("in a part")
            yield b"a"
            yield b"b"

        return flask.Response(flask.stream_with_context(parts()))

    app.register_blueprint(shop)
    app.wsgi_app = WsgiTracing(app.wsgi_app)  # type: ignore[method-assign]  # as Flask's guide says
    return app


def flask_get(path: str, *, testing: bool = False, **given: Any) -> Answer:
    """A request to the application above."""
    return wsgi_get(flask_app(testing=testing), path, **given)


@pytest.mark.parametrize(
    "path, expected",
    [
        ("/shop/orders/17", ("GET /shop/orders/<int:order_id>", 200, "unset", None)),
        ("/shop/orders/x", ("GET", 404, "unset", None)),
        ("/broken", ("GET /broken", 500, "error", "500")),
        ("/stream", ("GET /stream", 200, "unset", None)),
    ],
)
def test_flask(path: str, expected: tuple[object, ...], spans: Spans) -> None:
    """The rule names the span; Flask answers its exceptions itself and logs them."""
    answer = flask_get(path)
    (span,) = spans()
    assert expected == seen(span)
    assert_route(span)
    assert answer.headers["x-trace-id"] == span.trace_id


def test_flask_lets_exceptions_through_in_tests(spans: Spans) -> None:
    """Also then the span has its route, though Flask has forgotten the request."""
    answer = flask_get("/broken", testing=True)
    assert isinstance(answer.raised, LookupError)
    assert ("GET /broken", None, "error", "LookupError") == seen(spans()[0])


def test_flask_lines_carry_the_ids(spans: Spans, lines: Lines) -> None:
    """A view, a part of a stream, and Flask's own line about an exception."""
    logging.getLogger("shop").handlers.clear()
    answers = [flask_get(path) for path in ("/shop/orders/1", "/stream", "/broken")]
    assert answers[0].text == answers[0].headers["x-request-id"]
    assert [answer.headers["x-trace-id"] for answer in answers] == [
        line["trace_id"] for line in lines()
    ]


# Django -------------------------------------------------------------------------------------


def django_get(path: str, *, asgi: bool = False, **given: Any) -> Answer:
    """A request to the site, through either of its entries."""
    django_site.configure()
    if asgi:
        from django.core.asgi import get_asgi_application

        app: App = AsgiTracing(get_asgi_application())
        return get(app, path, **given)
    from django.core.wsgi import get_wsgi_application

    return wsgi_get(WsgiTracing(get_wsgi_application()), path, **given)


@pytest.mark.parametrize("asgi", [False, True], ids=["wsgi", "asgi"])
@pytest.mark.parametrize(
    "path, expected",
    [
        ("/shop/orders/17/", ("GET /shop/orders/<int:order_id>/", 200, "unset", None)),
        ("/old/17", ("GET /old/(?P<order_id>[0-9]+)$", 200, "unset", None)),
        ("/broken/", ("GET /broken/", 500, "error", "500")),
        ("/none/17", ("GET", 404, "unset", None)),
    ],
)
def test_django(path: str, asgi: bool, expected: tuple[object, ...], spans: Spans) -> None:
    """The URL pattern names the span; Django answers its exceptions itself."""
    answer = django_get(path, asgi=asgi, headers={"x-request-id": "r-1"})
    (span,) = spans()
    assert expected == seen(span)
    assert_route(span)
    assert ("r-1", span.trace_id) == (
        answer.headers["x-request-id"],
        answer.headers["x-trace-id"],
    )


@pytest.mark.parametrize("asgi", [False, True], ids=["wsgi", "asgi"])
def test_django_lines_carry_the_ids(asgi: bool, spans: Spans, lines: Lines) -> None:
    """A view, Django's own line about an exception."""
    answers = [django_get(path, asgi=asgi) for path in ("/shop/orders/1/", "/broken/")]
    by_event = {str(line["event"]).split(":")[0]: line["trace_id"] for line in lines()}
    assert answers[0].headers["x-trace-id"] == by_event["in a view"]
    assert answers[1].headers["x-trace-id"] == by_event["Internal Server Error"]


def test_a_stream_of_django(spans: Spans, lines: Lines) -> None:
    """The generator runs while the server sends."""
    answer = django_get("/stream/")
    assert "ab" == answer.text
    assert ["in a part"] == [line["event"] for line in lines()]
    assert answer.headers["x-trace-id"] == lines()[0]["trace_id"]


# Without any --------------------------------------------------------------------------------


def test_no_framework_is_imported() -> None:
    """Neither by the module nor by serving a request."""
    script = """
import sys, asyncio
from shared.telemetry.http import AsgiTracing, WsgiTracing
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body"})
async def send(message): pass
scope = {"type": "http", "path": "/", "method": "GET", "headers": []}
asyncio.run(AsgiTracing(app)(scope, None, send))
def wsgi(environ, start_response):
    start_response("200 OK", [])
    return []
list(WsgiTracing(wsgi)({"REQUEST_METHOD": "GET", "wsgi.url_scheme": "http"}, lambda *_: None))
names = {"fastapi", "starlette", "flask", "werkzeug", "django", "asgiref", "opentelemetry.sdk"}
print(sorted(names & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "[]" == done.stdout.strip()
