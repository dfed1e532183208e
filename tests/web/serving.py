"""Real servers on loopback: uvicorn for ASGI, werkzeug and wsgiref for WSGI, each in a thread."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import WSGIApplication

import uvicorn
import werkzeug.serving
from typing_extensions import override

from tests.waiting import wait_until

LOOPBACK = "127.0.0.1"


@contextmanager
def uvicorn_serving(app: Any) -> Iterator[int]:
    """Serve an ASGI application; the port."""
    with socket.create_server((LOOPBACK, 0)) as listening:
        config = uvicorn.Config(app, log_config=None, ws="websockets-sansio")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            wait_until(lambda: server.started, what="uvicorn")
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def werkzeug_serving(app: WSGIApplication) -> Iterator[int]:
    """Serve a WSGI application as Flask's own server does; the port."""
    server = werkzeug.serving.make_server(LOOPBACK, 0, app, threaded=True)
    with _in_a_thread(server):
        yield server.server_port


@contextmanager
def wsgiref_serving(app: WSGIApplication) -> Iterator[int]:
    """Serve a WSGI application by the standard library's reference server; the port."""
    with make_server(LOOPBACK, 0, app, handler_class=_Silent) as server, _in_a_thread(server):
        yield server.server_port


class _Silent(WSGIRequestHandler):
    @override
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def _in_a_thread(server: Any) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
