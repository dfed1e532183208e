"""ASGI middleware: https://asgi.readthedocs.io/en/latest/specs/www.html."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from shared import names as wire
from shared.telemetry import names
from shared.telemetry.http_exchange import Exchange
from shared.telemetry.http_options import HttpOptions, http_options
from shared.telemetry.http_request import Address, Request
from shared.telemetry.http_routes import asgi_route, django_route

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

_SEEN: Final = "saga.http"
"""Key in the scope of a request that has its span already."""

_FASTAPI_OWN: Final = "fastapi.telemetry"
"""FastAPI traces a request by itself, in a trace of its own when the caller has none. With this key
in the scope it leaves that to others."""

_TRACED: Final = {"http", "websocket"}
_SWITCHING_PROTOCOLS: Final = 101
_DISCONNECTS: Final = {"ClientDisconnect", "ClientDisconnected", "WebSocketDisconnect"}
"""What Starlette and uvicorn raise when nobody listens any more."""

_FORBIDDEN: Final = 403
_NORMAL_CLOSURE: Final = 1000
_ABNORMAL_CLOSURE: Final = 1006
_INTERNAL_ERROR: Final = 1011


class AsgiTracing:
    """Makes one SERVER span of each request and each websocket of an ASGI application.

    Wrap the application from outside. As a middleware of Starlette's own (``add_middleware``) it
    works as well, but the answer to an unhandled exception is then made outside of it, and has no
    ``x-trace-id``; and FastAPI's own span, with everything it can show, stands around it.

    Args:
        app: Any ASGI 3 application.
        options: By default what the environment says.

    Raises:
        ConfigurationError: As `http_options`.
    """

    def __init__(self, app: App, options: HttpOptions | None = None) -> None:
        self._app = app
        self._options = options or http_options()
        self._ask_django = django_route(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection; what is neither a request nor a websocket is passed on."""
        if (
            scope["type"] not in _TRACED
            or _SEEN in scope
            or scope["path"] in self._options.untraced
        ):
            await self._app(scope, receive, send)
            return
        exchange = Exchange(_request(scope), self._options)
        # The application sees the same id that is answered and logged, never a hostile one.
        inner = {
            _FASTAPI_OWN: None,
            **scope,
            _SEEN: True,
            "headers": _with(scope["headers"], {wire.HTTP_REQUEST_ID: exchange.request_id}),
        }
        exchange.find_route = lambda: self._route(inner, scope)
        flow = _Flow(exchange, receive, send)
        with exchange.active():
            try:
                await self._app(inner, flow.receive, flow.send)
            except BaseException as error:
                if not flow.is_farewell(error):
                    exchange.failed(error, client_gone=flow.client_gone and _says_gone(error))
                raise
            finally:
                exchange.end(flow.wrong())

    def _route(self, scope: Scope, original: Scope) -> str | None:
        if self._options.route is not None:
            return self._options.route(scope)
        root_path = original.get("root_path", "")
        if self._ask_django is not None:
            return self._ask_django(scope["path"].removeprefix(root_path))
        return asgi_route(scope, original.get("app") or self._app, root_path)


class _Flow:
    """Watches the messages of one connection go by."""

    def __init__(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        self._exchange = exchange
        self._receive = receive
        self._send = send
        self._started = False
        self._complete = False
        self._trailers = False
        self._is_open = False
        self.client_gone = False

    def is_farewell(self, error: BaseException) -> bool:
        """Whether an exception only says that the other side has closed an open websocket."""
        return self._is_open and self.client_gone and _says_gone(error)

    def wrong(self) -> str:
        """``error.type`` of what is not whole when the application returns."""
        if self._complete or self._is_open:
            return ""
        return names.CLIENT_DISCONNECTED if self.client_gone else names.RESPONSE_INCOMPLETE

    async def receive(self) -> Message:
        message = await self._receive()
        match message["type"]:
            case "http.disconnect" if not self._complete:
                self.client_gone = True
            case "websocket.disconnect":
                # The server sends it as the answer to our own close, too.
                if not self._complete:
                    self._closed(message.get("code") or _ABNORMAL_CLOSURE)
                    self.client_gone = True
            case _:
                pass
        return message

    async def send(self, message: Message) -> None:
        match message["type"]:
            case "http.response.start" | "websocket.http.response.start":
                self._trailers = bool(message.get("trailers"))
                message = self._begin(message, message["status"])
            case "websocket.accept":
                self._is_open = True
                message = self._begin(message, _SWITCHING_PROTOCOLS)
            case "websocket.close" if not self._started:
                self._begin(message, _FORBIDDEN)
                self._complete = True
            case "websocket.close":
                self._closed(message.get("code", _NORMAL_CLOSURE))
            case _:
                pass
        try:
            await self._send(message)
        except OSError:
            self.client_gone = True
            raise
        if self._is_last(message):
            self._complete = True
            self._exchange.complete()

    def _is_last(self, message: Message) -> bool:
        match message["type"]:
            case "http.response.body" | "websocket.http.response.body":
                return not message.get("more_body") and not self._trailers
            case "http.response.trailers":
                return not message.get("more_trailers")
            case "http.response.pathsend":
                return not self._trailers
            case _:
                return False

    def _begin(self, message: Message, status: int) -> Message:
        self._started = True
        headers = message.get("headers", ())
        self._exchange.answered(status, _decoded(headers))
        return {**message, "headers": _with(headers, self._exchange.answer_headers)}

    def _closed(self, code: int) -> None:
        self._complete = self._started
        self._exchange.closed(code)
        if code == _INTERNAL_ERROR:
            self._exchange.end(str(code))


def _says_gone(error: BaseException) -> bool:
    return (
        isinstance(error, OSError | asyncio.CancelledError) or type(error).__name__ in _DISCONNECTS
    )


def _request(scope: Scope) -> Request:
    kind = scope["type"]
    return Request(
        method=scope.get("method", "GET"),  # the handshake of a websocket
        path=scope["path"],
        query=scope.get("query_string", b"").decode("latin-1"),
        scheme=scope.get("scheme") or ("http" if kind == "http" else "ws"),
        protocol=kind,
        version=scope.get("http_version", "") if kind == "http" else "",
        headers=_decoded(scope["headers"]),
        server=_address(scope.get("server")),
        peer=_address(scope.get("client")),
    )


def _address(value: Any) -> Address | None:
    return (str(value[0]), value[1]) if value else None


def _decoded(headers: Headers) -> dict[str, str]:
    found: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        found[name] = f"{found[name]},{value}" if name in found else value
    return found


def _with(headers: Headers, ours: MutableMapping[str, str]) -> list[tuple[bytes, bytes]]:
    """The headers, with ours in the place of others of the same name."""
    names_of_ours = {name.encode() for name in ours}
    return [
        *(pair for pair in headers if pair[0].lower() not in names_of_ours),
        *((name.encode(), value.encode()) for name, value in ours.items()),
    ]
