"""Spans back out of Jaeger, through the JSON that its own pages read: ``GET /api/traces/{id}``.

https://www.jaegertracing.io/docs/1.76/architecture/apis/#http-json-internal. Jaeger calls it
internal; versions 1 and 2 answer alike.
"""

import base64
import http.client
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from orchestrator.trace_files import Span, distinct
from shared.errors import ConfigurationError, UnavailableError

TIMEOUT_SECONDS: Final = 10
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024

_CHILD_OF: Final = "CHILD_OF"
_NS_PER_US: Final = 1000
_TRACE_DIGITS: Final = 32
_SPAN_DIGITS: Final = 16
_FAILED: Final = {True, "true"}


class _Tag(msgspec.Struct, frozen=True):
    key: str
    value: Any = None


class _Reference(msgspec.Struct, frozen=True, rename={"ref_type": "refType", "span_id": "spanID"}):
    ref_type: str = ""
    span_id: str = ""


class _JaegerSpan(
    msgspec.Struct,
    frozen=True,
    rename={
        "trace_id": "traceID",
        "span_id": "spanID",
        "name": "operationName",
        "start_us": "startTime",
        "duration_us": "duration",
        "process_id": "processID",
    },
):
    trace_id: str
    span_id: str
    name: str
    start_us: int
    duration_us: int
    process_id: str = ""
    references: tuple[_Reference, ...] | None = ()
    tags: tuple[_Tag, ...] | None = ()


class _Process(msgspec.Struct, frozen=True, rename={"service": "serviceName"}):
    service: str = ""


class _Trace(msgspec.Struct, frozen=True):
    spans: tuple[_JaegerSpan, ...] | None = ()
    processes: dict[str, _Process] | None = None


class _Answer(msgspec.Struct, frozen=True):
    data: tuple[_Trace, ...] | None = None


_decode: Final = msgspec.json.Decoder(_Answer).decode


def read_jaeger(url: str, trace_id: str) -> list[Span]:
    """All spans that Jaeger has of a trace, each once, in order of their starts.

    Args:
        url: Of Jaeger's query service, with the base path if it has one.
        trace_id: 32 lower-case hexadecimal digits.

    Returns:
        Empty when it does not know the trace.

    Raises:
        ConfigurationError: The URL is none, or what answers there is not Jaeger.
        UnavailableError: It cannot be reached, or answers with an error.
    """
    status, body = _get(url, f"/api/traces/{trace_id}")
    # A Jaeger that does not know a trace says so in its own words; 404 alone may be anybody's.
    if status in {200, 404}:
        try:
            found = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"SAGA_JAEGER_URL={shown_url(url)}: what answers there ({status}) is not Jaeger's query API.",
                hint="It is the address of Jaeger's pages, http://localhost:16686 by default, not "
                "that of its collector.",
            ) from error
        return distinct(
            _span(span, trace.processes or {})
            for trace in found.data or ()
            for span in trace.spans or ()
        )
    raise UnavailableError(
        f"Jaeger at {shown_url(url)} answers {status} {http.client.responses.get(status, '')}".rstrip()
        + f": {_start_of(body)}.",
        hint="See its log; without SAGA_JAEGER_URL the trace is read from files and the store.",
    )


def shown_url(url: str) -> str:
    """The URL without user and password, for people.

    Raises:
        ConfigurationError: It is none.
    """
    parts = _parts(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def _parts(url: str) -> SplitResult:
    with suppress(ValueError):
        parts = urlsplit(url)
        _ = parts.port  # raises for a port that is not a number
        if parts.scheme in {"http", "https"} and parts.hostname:
            return parts
    raise ConfigurationError(
        "SAGA_JAEGER_URL is no URL.", hint="Write http://localhost:16686, with your host."
    )


def _get(url: str, path: str) -> tuple[int, bytes]:
    parts = _parts(url)
    host = parts.hostname or ""
    connection = (
        http.client.HTTPSConnection(
            host, parts.port, timeout=TIMEOUT_SECONDS, context=ssl.create_default_context()
        )
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, parts.port, timeout=TIMEOUT_SECONDS)
    )
    headers = {"Accept": "application/json"}
    if parts.username is not None:
        given = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(given.encode()).decode()
    try:
        connection.request("GET", parts.path.rstrip("/") + path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(ANSWER_BYTES_MAX)
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(
            f"Jaeger at {shown_url(url)} cannot be reached: {str(error) or type(error).__name__}.",
            hint="Check SAGA_JAEGER_URL; without it the trace is read from files and the store.",
        ) from error
    finally:
        connection.close()


def _span(span: _JaegerSpan, processes: dict[str, _Process]) -> Span:
    tags = {tag.key: tag.value for tag in span.tags or ()}
    references = span.references or ()
    parents = [one for one in references if one.ref_type == _CHILD_OF]
    start_ns = span.start_us * _NS_PER_US
    return Span(
        # Old versions write ids without leading zeros.
        trace_id=span.trace_id.zfill(_TRACE_DIGITS),
        span_id=span.span_id.zfill(_SPAN_DIGITS),
        parent_span_id=parents[0].span_id.zfill(_SPAN_DIGITS) if parents else None,
        name=span.name,
        service=processes.get(span.process_id, _Process()).service,
        kind=str(tags.get("span.kind", "internal")),
        start_ns=start_ns,
        end_ns=start_ns + span.duration_us * _NS_PER_US,
        error=_error(tags),
        attributes=tags,
        links=_links(references, parents[:1]),
    )


def _links(references: Sequence[_Reference], parents: Sequence[_Reference]) -> tuple[str, ...]:
    return tuple(one.span_id.zfill(_SPAN_DIGITS) for one in references if one not in parents)


def _error(tags: dict[str, Any]) -> str | None:
    if tags.get("error") not in _FAILED and tags.get("otel.status_code") != "ERROR":
        return None
    said = (tags.get("error.type"), tags.get("otel.status_description"))
    return ": ".join(str(one) for one in said if one)


def _start_of(body: bytes) -> str:
    return " ".join(body[:200].decode(errors="replace").split()) or "nothing"
