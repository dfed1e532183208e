"""The attributes of a request: pure functions of what the server was told.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server-span. All of them are known
when the span is made, so that a sampler sees them.
"""

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, unquote_plus

import msgspec

from shared.telemetry import names
from shared.telemetry.http_options import HttpOptions
from shared.telemetry.spans import AttributeValue

REDACTED: Final = "REDACTED"
"""What stands in the place of a value, as the conventions ask."""

ATTRIBUTE_CHARS_MAX: Final = 1024
QUERY_PARAMETERS_MAX: Final = 32

_HOST: Final = re.compile(
    r"(?P<address>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.-]{1,253})(:(?P<port>[0-9]{1,5}))?"
)
_FORWARDED: Final = re.compile(r'(?:^|[;,])\s*(for|host|proto)=("[^"]*"|[^;,\s]*)', re.IGNORECASE)
_SCHEMES: Final = frozenset({"http", "https", "ws", "wss"})
_PORTS_MAX: Final = 0xFFFF
_PATH_SAFE: Final = "/:@!$&'()*+,;=~-._"

Address = tuple[str, int | None]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request, the same for ASGI and WSGI.

    Attributes:
        method: As it was sent.
        path: Decoded, with the root that the application is mounted at.
        query: Undecoded, without the question mark.
        scheme: ``http``, ``https``, ``ws`` or ``wss``.
        protocol: ``http`` or ``websocket``.
        version: Of HTTP, for example ``1.1``; empty where it is unknown.
        headers: By lower-case name; what was sent several times is joined by commas.
        server: Host and port that the server listens at.
        peer: Address and port of the connection's other end; the port is None for a Unix socket.
    """

    method: str
    path: str
    query: str
    scheme: str
    version: str
    headers: Mapping[str, str]
    protocol: str = "http"
    server: Address | None = None
    peer: Address | None = None


def method_of(request: Request, options: HttpOptions) -> str:
    """``http.request.method``: of low cardinality, whatever is sent."""
    return request.method if request.method in options.known_methods else names.METHOD_OTHER


def request_attributes(request: Request, options: HttpOptions) -> dict[str, AttributeValue]:
    """Everything about a request that is recorded."""
    method = method_of(request, options)
    forwarded = _forwarded(request.headers) if options.behind_proxy else {}
    scheme = forwarded.get("proto", request.scheme)
    found: dict[str, AttributeValue] = {
        names.HTTP_REQUEST_METHOD: method,
        names.URL_PATH: _short(quote(request.path, safe=_PATH_SAFE)),
        names.URL_SCHEME: scheme if scheme in _SCHEMES else request.scheme,
    }
    if method == names.METHOD_OTHER:
        found[names.HTTP_REQUEST_METHOD_ORIGINAL] = request.method[:32]
    if request.query:
        found[names.URL_QUERY] = redacted_query(request.query, options.query_parameters)
    if request.version:
        found[names.NETWORK_PROTOCOL_VERSION] = request.version
    if request.protocol != "http":
        found[names.NETWORK_PROTOCOL_NAME] = request.protocol
    agent = request.headers.get("user-agent")
    if agent:
        found[names.USER_AGENT_ORIGINAL] = _short(agent)
    host = forwarded.get("host") or request.headers.get("host", "")
    server = _address(host) or request.server
    _put_address(found, server, names.SERVER_ADDRESS, names.SERVER_PORT)
    _put_address(found, request.peer, names.NETWORK_PEER_ADDRESS, names.NETWORK_PEER_PORT)
    client = _address(forwarded.get("for", "")) or request.peer
    if client is not None:
        found[names.CLIENT_ADDRESS] = client[0]
    return found | recorded_headers(
        request.headers, options.request_headers, names.HTTP_REQUEST_HEADER
    )


def recorded_headers(
    headers: Mapping[str, str], allowed: frozenset[str], prefix: str
) -> dict[str, AttributeValue]:
    """The headers that may be recorded, as attributes."""
    return {prefix + name: [_short(headers[name])] for name in allowed if name in headers}


def redacted_query(query: str, allowed: frozenset[str]) -> str:
    """A query string that shows which parameters were sent, and the values of those allowed.

    Args:
        query: As it was sent.
        allowed: Names, decoded.

    Returns:
        At most `QUERY_PARAMETERS_MAX` parameters; a part without a name is redacted whole.
    """
    parts = query.split("&", QUERY_PARAMETERS_MAX)
    shown = [_redacted(part, allowed) for part in parts[:QUERY_PARAMETERS_MAX]]
    return _short("&".join([*shown, "…"] if len(parts) > QUERY_PARAMETERS_MAX else shown))


def _redacted(part: str, allowed: frozenset[str]) -> str:
    name, equals, _ = part.partition("=")
    if not equals:
        return REDACTED if part else ""
    return part if unquote_plus(name) in allowed else f"{name}={REDACTED}"


def _forwarded(headers: Mapping[str, str]) -> dict[str, str]:
    """Who called the first proxy: ``for``, ``host`` and ``proto``, as far as they are told."""
    standard = headers.get("forwarded", "").partition(",")[0]
    found = {
        match[1].lower(): match[2].strip('"')
        for match in _FORWARDED.finditer(standard[:ATTRIBUTE_CHARS_MAX])
    }
    for key in ("for", "host", "proto"):
        value = headers.get(f"x-forwarded-{key}", "").partition(",")[0].strip()
        if value and key not in found:
            # A bare IPv6 address has no port behind it.
            found[key] = f"[{value}]" if key == "for" and value.count(":") > 1 else value
    return found


def _address(value: str) -> Address | None:
    match = _HOST.fullmatch(value)
    if match is None:
        return None
    port = int(match["port"]) if match["port"] else None
    if port is not None and port > _PORTS_MAX:
        return None
    return match["address"].strip("[]"), port


def _put_address(
    found: dict[str, AttributeValue], address: Address | None, host_key: str, port_key: str
) -> None:
    if address is not None and address[0]:
        found[host_key] = address[0]
        if address[1] is not None:
            found[port_key] = address[1]


def _short(value: str) -> str:
    return value if len(value) <= ATTRIBUTE_CHARS_MAX else value[: ATTRIBUTE_CHARS_MAX - 1] + "…"
