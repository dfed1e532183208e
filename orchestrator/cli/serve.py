"""`saga serve`: the HTTP API."""

import ipaddress
from typing import Annotated, Final

import typer

from orchestrator.cli import output, session
from shared.errors import ConfigurationError

SERVICE: Final = "saga-http"


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
    with session.acting(SERVICE) as client:
        app = make_api(client, payload_bytes_max=configured.payload_bytes_max, token=token)
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
            socket = server.config.bind_socket()
            shown = socket.getsockname()
            output.show([output.line(f"listening on http://{shown[0]}:{shown[1]}")])
            server.run(sockets=[socket])


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
