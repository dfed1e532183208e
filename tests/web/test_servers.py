"""The main flows through real servers and real sockets, to a real collector."""

import http.client
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from wsgiref.types import WSGIApplication

import flask
import pytest
from fastapi import FastAPI, WebSocket
from starlette.responses import StreamingResponse
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from shared.telemetry.http import AsgiTracing, WsgiTracing
from tests.servers.otlp import ReceivedSpan
from tests.waiting import wait_until
from tests.web import django_site
from tests.web.calls import SPAN_ID, TRACE_ID, TRACEPARENT
from tests.web.conftest import Lines, Spans
from tests.web.serving import LOOPBACK, uvicorn_serving, werkzeug_serving, wsgiref_serving

Serving = Callable[[WSGIApplication], AbstractContextManager[int]]


class Client:
    """One connection that is kept alive."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection(LOOPBACK, port, timeout=10)

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
        """Status, body and trace id of the answer."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request(method, path, headers=sent)
        answer = self._connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers["x-trace-id"]

    def close(self) -> None:
        self._connection.close()


def go_away(port: int, path: str) -> None:
    """Read the first part of an answer, and cut the connection."""
    with socket.create_connection((LOOPBACK, port), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\n\r\n".encode())
        received = b""
        while b"first" not in received:
            received += connection.recv(4096)
        # So that the server's next write fails at once instead of filling a buffer.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def by_name(spans: list[ReceivedSpan]) -> dict[str, ReceivedSpan]:
    """The server spans; each name once."""
    found = {span.name: span for span in spans if span.kind == "server"}
    assert len(found) == sum(span.kind == "server" for span in spans)
    return found


def shop(events: list[str]) -> FastAPI:
    """What the tests of uvicorn ask for."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        events.append("start")
        yield
        events.append("end")

    app = FastAPI(lifespan=lifespan)

    @app.get("/orders/{order_id}")
    def order(order_id: int) -> int:
        return order_id

    @app.get("/broken")
    def broken() -> None:
        raise LookupError("x")

    @app.get("/endless")
    def endless() -> StreamingResponse:
        def parts() -> Iterator[bytes]:
            yield b"first"
            while True:
                yield b"more" * 1000

        return StreamingResponse(parts())

    @app.websocket("/talk/{room}")
    async def talk(websocket: WebSocket, room: str) -> None:
        if room == "closed":
            await websocket.close()
            return
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.receive_text()

    return app


def test_uvicorn(spans: Spans, lines: Lines) -> None:
    """Requests on one connection, an exception, a client that goes away, websockets, start and end."""
    events: list[str] = []
    with uvicorn_serving(AsgiTracing(shop(events))) as port:
        assert ["start"] == events
        client = Client(port)
        assert (200, "17", TRACE_ID) == client.get("/orders/17?sku=1", traceparent=TRACEPARENT)
        broken = client.get("/broken", x_request_id="r-1")
        client.close()
        go_away(port, "/endless")
        url = f"ws://{LOOPBACK}:{port}/talk"
        with connect(f"{url}/r-17", proxy=None) as websocket:
            websocket.send("hi")
            assert "hi" == websocket.recv()
            assert websocket.response is not None
            talked = websocket.response.headers["x-trace-id"]
        with pytest.raises(InvalidStatus) as refused:
            connect(f"{url}/closed", proxy=None)
        wait_until(lambda: len([one for one in spans() if one.kind == "server"]) == 5)
    assert ["start", "end"] == events

    closed = next(one for one in spans() if one.attributes["http.response.status_code"] == 403)
    found = by_name(
        [one for one in spans() if one is not closed and one.span_id != closed.span_id]
    )
    assert {"GET /orders/{order_id}", "GET /broken", "GET /endless", "GET /talk/{room}"} == set(
        found
    )
    order = found["GET /orders/{order_id}"]
    assert (TRACE_ID, SPAN_ID, True) == (order.trace_id, order.parent_id, order.parent_is_remote)
    expected = {
        "http.response.status_code": 200,
        "url.path": "/orders/17",
        "url.query": "sku=REDACTED",
        "server.address": LOOPBACK,
        "server.port": port,
        "client.address": LOOPBACK,
        "network.protocol.version": "1.1",
    }
    assert expected.items() <= order.attributes.items()
    failed = found["GET /broken"]
    assert (500, failed.trace_id) == (broken[0], broken[2])
    assert ("error", "LookupError", ("exception",)) == (
        failed.status,
        failed.attributes["error.type"],
        failed.events,
    )
    assert "client_disconnected" == found["GET /endless"].attributes["error.type"]
    assert ("unset", talked, 1000) == (
        found["GET /talk/{room}"].status,
        found["GET /talk/{room}"].trace_id,
        found["GET /talk/{room}"].attributes["websocket.close_code"],
    )
    assert ("unset", 403) == (closed.status, refused.value.response.status_code)
    # The server's own line about a request stands in the request's trace.
    access = [line for line in lines() if line["logger"] == "uvicorn.access"]
    assert {order.trace_id, failed.trace_id} <= {line.get("trace_id") for line in access}


def flask_shop() -> flask.Flask:
    """What the tests of the WSGI servers ask for."""
    app = flask.Flask("shop")

    @app.get("/orders/<int:order_id>")
    def order(order_id: int) -> str:
        return str(order_id)

    @app.get("/broken")
    def broken() -> str:
        raise LookupError("x")

    @app.get("/endless")
    def endless() -> flask.Response:
        def parts() -> Iterator[bytes]:
            yield b"first"
            while True:
                yield b"more" * 1000

        return flask.Response(parts())

    app.wsgi_app = WsgiTracing(app.wsgi_app)  # type: ignore[method-assign]  # as Flask's guide says
    return app


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("serving", [werkzeug_serving, wsgiref_serving])
def test_flask_on_real_servers(serving: Serving, spans: Spans) -> None:
    """A request, an exception, HEAD, and a client that goes away."""
    with serving(flask_shop()) as port:
        client = Client(port)
        assert (200, "17", TRACE_ID) == client.get("/orders/17", traceparent=TRACEPARENT)
        client.close()
        for path, method, status in (("/broken", "GET", 500), ("/orders/18", "HEAD", 200)):
            client = Client(port)
            assert status == client.get(path, method)[0]
            client.close()
        go_away(port, "/endless")
        wait_until(lambda: len(spans()) == 4)
    found = by_name(spans())
    assert (TRACE_ID, SPAN_ID) == (
        found["GET /orders/<int:order_id>"].trace_id,
        found["GET /orders/<int:order_id>"].parent_id,
    )
    assert {
        "GET /orders/<int:order_id>": None,
        "HEAD /orders/<int:order_id>": None,
        "GET /broken": "500",
        "GET /endless": "client_disconnected",
    } == {name: span.attributes.get("error.type") for name, span in found.items()}


def test_django_on_real_servers(spans: Spans) -> None:
    """Through wsgi.py and through asgi.py."""
    django_site.configure()
    from django.core.asgi import get_asgi_application
    from django.core.wsgi import get_wsgi_application

    with (
        wsgiref_serving(WsgiTracing(get_wsgi_application())) as one,
        uvicorn_serving(AsgiTracing(get_asgi_application())) as other,
    ):
        for port in (one, other):
            client = Client(port)
            status, text, _ = client.get("/shop/orders/17/", x_request_id="r-1")
            assert (200, "r-1") == (status, text)
            client.close()
    assert ["GET /shop/orders/<int:order_id>/"] * 2 == [span.name for span in spans()]


def test_requests_do_not_mix(spans: Spans) -> None:
    """Many at once, on threads and on a loop: each line of work in its own trace."""
    wanted = {f"{number:032x}" for number in range(1, 21)}
    answered: list[str] = []

    def ask(port: int, trace_id: str) -> None:
        client = Client(port)
        answered.append(client.get("/orders/1", traceparent=f"00-{trace_id}-{SPAN_ID}-01")[2])
        client.close()

    servers = (uvicorn_serving(AsgiTracing(shop([]))), werkzeug_serving(flask_shop()))
    for server in servers:
        answered.clear()
        with server as port:
            threads = [threading.Thread(target=ask, args=(port, one)) for one in wanted]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert sorted(wanted) == sorted(answered)
    assert wanted == {span.trace_id for span in spans()}
