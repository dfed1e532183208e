"""Calls an application in this process, as a server would, and remembers what it answered."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from wsgiref.types import WSGIApplication
from wsgiref.util import setup_testing_defaults

from shared.telemetry.http_asgi import App, Message

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"

Write = Callable[[bytes], object]
Headers = Mapping[str, str] | Iterable[tuple[str, str]]


@dataclass
class Answer:
    """What came back."""

    status: int = 0
    pairs: list[tuple[str, str]] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)
    sent: list[Message] = field(default_factory=list)
    raised: BaseException | None = None

    @property
    def headers(self) -> dict[str, str]:
        """By lower-case name; each must have been sent once."""
        assert len(self.pairs) == len(dict(self.pairs)), self.pairs
        return dict(self.pairs)

    @property
    def text(self) -> str:
        return b"".join(self.parts).decode()


def get(app: App, path: str = "/", **given: Any) -> Answer:
    """A request to an ASGI application; exceptions are kept in the answer."""
    return asyncio.run(request(app, path, **given))


async def request(
    app: App,
    path: str,
    *,
    method: str = "GET",
    headers: Headers = (),
    query: str = "",
    received: Iterable[Message] = ({"type": "http.request", "body": b"", "more_body": False},),
    on_sent: Callable[[Message], None] = lambda _: None,
    **scope: Any,
) -> Answer:
    """A request inside a running loop.

    Args:
        app: The application.
        path: Of the request.
        method: Likewise.
        headers: Likewise.
        query: Likewise.
        received: What the server has for the application, in this order; nothing comes after it.
        on_sent: Called with each message of the application before it counts as sent.
        scope: More of the scope, or other values.
    """
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    answer = Answer()
    waiting = iter(received)
    full: MutableMapping[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in pairs],
        "client": ("192.0.2.7", 5123),
        "server": ("127.0.0.1", 8000),
        **scope,
    }

    async def receive() -> Message:
        for message in waiting:
            return message
        await asyncio.Event().wait()  # for ever: the task is cancelled with the application
        raise AssertionError

    async def send(message: Message) -> None:
        on_sent(message)
        answer.sent.append(message)
        answer.status = message.get("status", answer.status)
        answer.pairs.extend(
            (name.decode().lower(), value.decode()) for name, value in message.get("headers", ())
        )
        if message.get("body"):
            answer.parts.append(message["body"])

    try:
        await app(full, receive, send)
    except BaseException as error:  # noqa: BLE001 - the test looks at it
        answer.raised = error
    return answer


def wsgi_get(
    app: WSGIApplication,
    path: str = "/",
    *,
    method: str = "GET",
    headers: Mapping[str, str] = {},
    query: str = "",
    parts_max: int | None = None,
    **environ: Any,
) -> Answer:
    """A request to a WSGI application; exceptions are kept in the answer.

    Args:
        app: The application.
        path: Of the request.
        method: Likewise.
        headers: Likewise.
        query: Likewise.
        parts_max: The client goes away after so many parts of the body.
        environ: More of the environ, or other values.
    """
    full: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "REMOTE_ADDR": "192.0.2.7",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "shop.example:8443",
        **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()},
        **environ,
    }
    setup_testing_defaults(full)
    answer = Answer()

    def start_response(status: str, found: list[tuple[str, str]], exc_info: Any = None) -> Write:
        answer.status = int(status.partition(" ")[0])
        answer.pairs = [(name.lower(), value) for name, value in found]
        return lambda _: None

    body: Iterable[bytes] = ()
    try:
        body = app(full, start_response)
        for number, part in enumerate(body):
            if number == parts_max:
                break
            answer.parts.append(part)
    except BaseException as error:  # noqa: BLE001 - the test looks at it
        answer.raised = error
    finally:
        close = getattr(body, "close", None)
        if close is not None:
            try:
                close()
            except BaseException as error:  # noqa: BLE001 - likewise
                answer.raised = error
    return answer
