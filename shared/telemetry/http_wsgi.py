"""WSGI middleware: PEP 3333."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import override

from shared import names as wire
from shared.telemetry import names
from shared.telemetry.http_exchange import Exchange
from shared.telemetry.http_options import HttpOptions, http_options
from shared.telemetry.http_request import Request
from shared.telemetry.http_routes import django_route, flask_route, wsgi_route

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
Pairs = list[tuple[str, str]]

_SEEN: Final = "saga.http"
_NO_BODY: Final = {204, 304}


class WsgiTracing:
    """Makes one SERVER span of each request of a WSGI application.

    Args:
        app: Any WSGI application.
        options: By default what the environment says.

    Raises:
        ConfigurationError: As `http_options`.
    """

    def __init__(self, app: "WSGIApplication", options: HttpOptions | None = None) -> None:
        self._app = app
        self._options = options or http_options()
        self._ask_django = django_route(app)
        self._ask_flask = flask_route(app)

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Serve a request; the span ends with the body."""
        if _SEEN in environ or environ.get("PATH_INFO", "") in self._options.untraced:
            return self._app(environ, start_response)
        exchange = Exchange(_request(environ), self._options)
        # In place: Flask leaves its request here, and PEP 3333 allows it. The application sees
        # the same id that is answered and logged, never a hostile one.
        environ[_SEEN] = True
        environ[_key(wire.HTTP_REQUEST_ID)] = exchange.request_id
        exchange.find_route = lambda: self._route(environ)
        answer = _Answer(exchange, environ, start_response)
        with exchange.active():
            try:
                body = self._app(environ, answer.start)
            except BaseException as error:
                exchange.failed(error)
                exchange.end()
                raise
        kind = _SizedBody if hasattr(body, "__len__") else _Body
        return kind(body, exchange, answer)

    def _route(self, environ: Mapping[str, Any]) -> str | None:
        if self._options.route is not None:
            return self._options.route(environ)
        if self._ask_django is not None:
            return self._ask_django(_text(environ.get("PATH_INFO", "")))
        found = wsgi_route(environ)
        if found is None and self._ask_flask is not None:
            return self._ask_flask(environ)
        return found


class _Answer:
    """What the application says about its answer, before the body."""

    def __init__(
        self,
        exchange: Exchange,
        environ: "WSGIEnvironment",
        start_response: "StartResponse",
    ) -> None:
        self._exchange = exchange
        self._environ = environ
        self._start_response = start_response
        self.started = False
        self.bytes_due: int | None = None

    def start(
        self, status: str, headers: Pairs, exc_info: ExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        """``start_response``; a second call, with an exception, takes the first one's place."""
        self.started = True
        if exc_info and exc_info[1] is not None:
            self._exchange.failed(exc_info[1])
        found = _joined(headers)
        code = int(status.partition(" ")[0])
        self._exchange.answered(code, found)
        length = found.get("content-length", "")
        if self._environ.get("REQUEST_METHOD") == "HEAD" or code in _NO_BODY:
            self.bytes_due = 0
        elif length.isdecimal():
            self.bytes_due = int(length)
        ours = self._exchange.answer_headers
        theirs = [pair for pair in headers if pair[0].lower() not in ours]
        return self._start_response(status, [*theirs, *ours.items()], exc_info)


class _Body(Iterator[bytes]):
    """The body; the request is current while a part of it is made."""

    def __init__(self, body: Iterable[bytes], exchange: Exchange, answer: _Answer) -> None:
        self._body = body
        self._parts: Iterator[bytes] | None = None
        self._exchange = exchange
        self._answer = answer
        self._bytes_sent = 0

    @override
    def __next__(self) -> bytes:
        with self._exchange.active():
            try:
                if self._parts is None:
                    self._parts = iter(self._body)
                part = next(self._parts)
            except StopIteration:
                self._exchange.end("" if self._answer.started else names.RESPONSE_INCOMPLETE)
                raise
            except BaseException as error:
                self._exchange.failed(error)
                self._exchange.end()
                raise
        self._bytes_sent += len(part)
        return part

    def close(self) -> None:
        """Called by the server in any case: also when the client went away in the middle."""
        due = self._answer.bytes_due
        whole = due is not None and self._bytes_sent >= due
        self._exchange.end("" if whole else names.CLIENT_DISCONNECTED)
        close = getattr(self._body, "close", None)
        if close is None:
            return
        with self._exchange.active():
            try:
                close()
            except BaseException as error:
                self._exchange.failed(error)
                raise


class _SizedBody(_Body):
    """A body whose number of parts is known: servers take the length of the only one from it."""

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]  # chosen for bodies that have one


def _request(environ: "WSGIEnvironment") -> Request:
    port = str(environ.get("SERVER_PORT", ""))
    peer_port = str(environ.get("REMOTE_PORT", ""))
    return Request(
        method=environ["REQUEST_METHOD"],
        path=_text(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")),
        query=environ.get("QUERY_STRING", ""),
        scheme=environ["wsgi.url_scheme"],
        version=environ.get("SERVER_PROTOCOL", "").removeprefix("HTTP/"),
        headers={
            key.removeprefix("HTTP_").replace("_", "-").lower(): value
            for key, value in environ.items()
            if key.startswith("HTTP_") or (key in {"CONTENT_TYPE", "CONTENT_LENGTH"} and value)
        },
        server=(environ.get("SERVER_NAME", ""), int(port) if port.isdecimal() else None),
        peer=(environ["REMOTE_ADDR"], int(peer_port) if peer_port.isdecimal() else None)
        if environ.get("REMOTE_ADDR")
        else None,
    )


def _key(header: str) -> str:
    return f"HTTP_{header.upper().replace('-', '_')}"


def _text(value: str) -> str:
    """WSGI's bytes in the guise of latin-1, as the UTF-8 that they are."""
    return value.encode("latin-1", "replace").decode("utf-8", "replace")


def _joined(headers: Pairs) -> dict[str, str]:
    found: dict[str, str] = {}
    for raw_name, value in headers:
        name = raw_name.lower()
        found[name] = f"{found[name]},{value}" if name in found else value
    return found
