"""`saga serve`: the HTTP API."""

import ipaddress
import socket
from typing import Annotated, Final

import typer

from orchestrator.cli import output, session
from shared.errors import ConfigurationError

SERVICE: Final = "saga-http"

BACKLOG: Final = 2048
"""Connections that wait to be accepted, as uvicorn has it."""


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is a free one.")] = 8080,
) -> None:
    """Serve the HTTP API, which starts, shows and answers sagas.

    It needs the extra `web`. Requests carry SAGA_HTTP_TOKEN where it is set; without it the API
    listens on loopback only.
    """
    try:
        import uvicorn

        from orchestrator.web.api import make_api
    except ImportError as error:
        raise ConfigurationError(
            f"The HTTP API needs {error.name}, which is not installed.",
            hint="pip install 'celery-saga-orchestrator[web]'",
        ) from error
    configured = session.settings()
    token = configured.http_token
    if not token and not _is_loopback(host):
        raise ConfigurationError(
            f"The HTTP API would listen on {host} for everybody.",
            hint="Set SAGA_HTTP_TOKEN, or listen on 127.0.0.1.",
        )
    with _listening(host, port) as listening, session.acting(SERVICE) as client:
        largest = configured.payload_bytes_max
        if configured.claim_check_url:
            largest = max(largest, configured.claim_check_bytes_max)
        app = make_api(client, payload_bytes_max=largest, token=token)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                log_config=None,  # its lines go where ours go
                access_log=False,  # a request is a span
                lifespan="off",
            )
        )
        with server.capture_signals():
            shown = listening.getsockname()
            output.show([output.line(f"listening on http://{shown[0]}:{shown[1]}")])
            server.run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    """A socket that can be connected to, as soon as its address is printed.

    uvicorn would begin to listen a moment later, or end the process and say why in the log alone.
    """
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise ConfigurationError(
            f"The HTTP API cannot listen on {host}, port {port}: {error.strerror}.",
            hint="Give another --port, or --port 0 for a free one, or another --host.",
        ) from error
    return made


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
