"""Where Prometheus fetches the metrics: one small HTTP server in the main process of a worker."""

import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from typing_extensions import override

from shared.clock import monotonic
from shared.errors import ConfigurationError

PATH: Final = "/metrics"
THREAD_NAME: Final = "metrics-server"
REQUEST_TIMEOUT: Final = timedelta(seconds=5)
"""How long a client may take to say what it wants."""

UPKEEP_EVERY: Final = timedelta(seconds=2)

_POLL_S: Final = 0.25

Render = Callable[[str], tuple[bytes, str]]


class MetricsServer:
    """Serves ``GET /metrics`` until it is closed.

    Args:
        host: Address to listen on.
        port: Port; 0 for a free one.
        render: The ``Accept`` header in, body and content type out.
        upkeep: Called every few seconds.

    Raises:
        ConfigurationError: The address cannot be had; says what to do.
    """

    def __init__(self, host: str, port: int, render: Render, upkeep: Callable[[], None]) -> None:
        try:
            self._server = _Server(host, port, render, upkeep)
        except (OSError, OverflowError) as error:
            raise ConfigurationError(
                f"The metrics cannot be served on {host}:{port}: {error}.",
                hint="Set SAGA_METRICS_PORT to a free port, another one for each worker of this "
                "host, or to 0, which takes a free one and writes it into the log.",
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name=THREAD_NAME, daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """Where the metrics are."""
        host, port = self._server.server_address[:2]
        shown = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"http://{shown}:{port}{PATH}"

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def forked(self) -> None:
        """Let go of the port in a forked child, which would hold it when its parent is gone."""
        self._server.socket.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Somebody else's process on the port is an error, ours from a moment ago is not.
    allow_reuse_address = True

    def __init__(self, host: str, port: int, render: Render, upkeep: Callable[[], None]) -> None:
        self.render = render
        self._upkeep = upkeep
        self._next = monotonic()
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    @override
    def server_bind(self) -> None:
        # Not that of HTTPServer, which asks the name service for its own name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    @override
    def service_actions(self) -> None:
        if monotonic() >= self._next:
            self._next = monotonic() + UPKEEP_EVERY.total_seconds()
            self._upkeep()

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; socketserver would print a traceback."""


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_TIMEOUT.total_seconds()
    server: _Server

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != PATH:
            self._answer(HTTPStatus.NOT_FOUND, b"Metrics are at /metrics.\n", "text/plain")
            return
        body, content_type = self.server.render(self.headers.get("Accept", ""))
        self._answer(HTTPStatus.OK, body, content_type)

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """A line for each scrape says nothing."""
