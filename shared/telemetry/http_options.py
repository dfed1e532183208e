"""What is recorded of an HTTP request: by default nothing that could be somebody's secret."""

import os
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from shared.errors import ConfigurationError
from shared.telemetry import names

NEVER_RECORDED: Final = frozenset(
    {"authorization", "cookie", "proxy-authorization", "set-cookie", "x-api-key", "x-csrftoken"}
)

FindRoute = Callable[[Mapping[str, Any]], str | None]

_KNOWN_METHODS_VARIABLE: Final = "OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS"
_REQUEST_HEADERS_VARIABLE: Final = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST"
_RESPONSE_HEADERS_VARIABLE: Final = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE"


class HttpOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is recorded of a request and of its answer.

    Attributes:
        request_headers: Names of the request headers that are recorded; none by default.
        response_headers: Names of the response headers that are recorded; none by default.
        query_parameters: Parameters whose values are recorded; of all others only the name is.
        untraced: Paths that get no span, for example of health checks.
        behind_proxy: Whether ``Forwarded`` and ``X-Forwarded-…`` tell who calls. Anybody can send
            them: switch it on only where a proxy of yours sets them for every request.
        known_methods: Methods that are recorded by name; all others are ``_OTHER``.
        route: Finds the path template of a request in the ASGI scope or the WSGI environ, for a
            framework other than FastAPI, Starlette, Flask and Django; None where it is unknown.

    Raises:
        ConfigurationError: A header that carries credentials is to be recorded.
    """

    request_headers: frozenset[str] = frozenset()
    response_headers: frozenset[str] = frozenset()
    query_parameters: frozenset[str] = frozenset()
    untraced: frozenset[str] = frozenset()
    behind_proxy: bool = False
    known_methods: frozenset[str] = names.HTTP_METHODS
    route: FindRoute | None = None

    def __post_init__(self) -> None:
        for field in ("request_headers", "response_headers"):
            lower = frozenset(map(str.lower, getattr(self, field)))
            secret = sorted(lower & NEVER_RECORDED)
            if secret:
                raise ConfigurationError(
                    f"{field} names {', '.join(secret)}, which carry credentials and are never "
                    "recorded.",
                    hint="Remove them.",
                )
            msgspec.structs.force_setattr(self, field, lower)


def http_options(environ: Mapping[str, str] = os.environ, **changes: Any) -> HttpOptions:
    """Read the options that OpenTelemetry has variables for; `changes` are fields that win.

    Args:
        environ: ``OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS`` takes the place of the known methods,
            ``OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST`` and ``…_RESPONSE`` name
            headers; each is separated by commas.
        changes: Fields of `HttpOptions`.

    Raises:
        ConfigurationError: As `HttpOptions`.
    """
    found: dict[str, Any] = {
        "known_methods": _listed(environ, _KNOWN_METHODS_VARIABLE) or names.HTTP_METHODS,
        "request_headers": _listed(environ, _REQUEST_HEADERS_VARIABLE),
        "response_headers": _listed(environ, _RESPONSE_HEADERS_VARIABLE),
    }
    return HttpOptions(**found | changes)


def _listed(environ: Mapping[str, str], variable: str) -> frozenset[str]:
    return frozenset(filter(None, map(str.strip, environ.get(variable, "").split(","))))
