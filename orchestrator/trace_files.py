"""Spans back out of OTLP JSON files: one export request a line, as processes wrote them.

https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/. A line that a crash cut short is
passed over, and a span that was exported twice counts once.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from shared.telemetry import names

SUFFIX: Final = ".jsonl"

_KINDS: Final = {1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}
_STATUS_ERROR: Final = 2


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A span, wherever it came from.

    Attributes:
        parent_span_id: None for the root of a trace.
        service: ``service.name`` of the process.
        kind: ``internal``, ``server``, ``client``, ``producer`` or ``consumer``.
        start_ns: Nanoseconds since 1970.
        end_ns: Nanoseconds since 1970.
        error: What went wrong; None for a span without an error.
        links: Ids of the spans it refers to.
        projected: Made from the store's history, not exported by a process.
        open: Still going on; `end_ns` is the moment of looking.
    """

    trace_id: str
    span_id: str
    parent_span_id: str | None = None
    name: str
    service: str
    kind: str = "internal"
    start_ns: int
    end_ns: int
    error: str | None = None
    attributes: dict[str, Any] = {}
    links: tuple[str, ...] = ()
    projected: bool = False
    open: bool = False


class _Otlp(msgspec.Struct, frozen=True, rename="camel"):
    pass


class _Value(_Otlp, frozen=True, rename="camel"):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: int | str | None = None
    double_value: float | None = None
    array_value: dict[str, Any] | None = None


class _Attribute(_Otlp, frozen=True, rename="camel"):
    key: str
    value: _Value = _Value()


class _Status(_Otlp, frozen=True, rename="camel"):
    code: int = 0
    message: str = ""


class _Link(_Otlp, frozen=True, rename="camel"):
    span_id: str = ""


class _Span(_Otlp, frozen=True, rename="camel"):
    trace_id: str
    span_id: str
    name: str
    # The format says strings; some exporters write numbers.
    start_time_unix_nano: int | str
    end_time_unix_nano: int | str
    parent_span_id: str = ""
    kind: int = 1
    status: _Status = _Status()
    attributes: tuple[_Attribute, ...] = ()
    links: tuple[_Link, ...] = ()


class _ScopeSpans(_Otlp, frozen=True, rename="camel"):
    spans: tuple[_Span, ...] = ()


class _Resource(_Otlp, frozen=True, rename="camel"):
    attributes: tuple[_Attribute, ...] = ()


class _ResourceSpans(_Otlp, frozen=True, rename="camel"):
    resource: _Resource = _Resource()
    scope_spans: tuple[_ScopeSpans, ...] = ()


class _Request(_Otlp, frozen=True, rename="camel"):
    resource_spans: tuple[_ResourceSpans, ...] = ()


_decoder: Final = msgspec.json.Decoder(_Request)


def trace_files(folder: Path) -> list[Path]:
    """The files of a folder, in order of their names; none where it does not exist."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def read_trace(folder: Path, trace_id: str) -> list[Span]:
    """All spans of a trace in the files of a folder.

    Args:
        folder: Need not exist.
        trace_id: 32 lower-case hexadecimal digits.

    Returns:
        Each span once, in order of their starts. Of two exports of a span the one that ends later
        counts: the root of a saga that got stuck is exported then, and again at its end.
    """
    return distinct(
        span
        for file in trace_files(folder)
        for line in _lines_with(file, trace_id.encode())
        for span in _spans(line)
        if span.trace_id == trace_id
    )


def distinct(spans: Iterable[Span]) -> list[Span]:
    """Each span once: the one that ends last. In order of their starts."""
    found: dict[str, Span] = {}
    for span in spans:
        other = found.get(span.span_id)
        if other is None or other.end_ns < span.end_ns:
            found[span.span_id] = span
    return sorted(found.values(), key=lambda span: (span.start_ns, -span.end_ns))


def _lines_with(file: Path, needle: bytes) -> Iterator[bytes]:
    # Decoding costs a hundred times what looking does.
    with file.open("rb") as lines:
        for line in lines:
            if needle in line:
                yield line


def _spans(line: bytes) -> Iterator[Span]:
    try:
        request = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    for resource_spans in request.resource_spans:
        service = str(_plain(resource_spans.resource.attributes).get(names.SERVICE_NAME, ""))
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield _span(span, service)


def _span(span: _Span, service: str) -> Span:
    attributes = _plain(span.attributes)
    failed = span.status.code == _STATUS_ERROR
    return Span(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id or None,
        name=span.name,
        service=service,
        kind=_KINDS.get(span.kind, "internal"),
        start_ns=int(span.start_time_unix_nano),
        end_ns=int(span.end_time_unix_nano),
        error=_error(attributes.get(names.ERROR_TYPE), span.status.message) if failed else None,
        attributes=attributes,
        links=tuple(link.span_id for link in span.links),
    )


def _error(kind: Any, message: str) -> str:
    return ": ".join(part for part in (str(kind or ""), message) if part)


def _plain(attributes: Sequence[_Attribute]) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: _Value) -> Any:
    if value.int_value is not None:
        return int(value.int_value)
    if value.array_value is not None:
        values = msgspec.convert(value.array_value.get("values", []), list[_Value])
        return [_value(one) for one in values]
    simple = (value.string_value, value.bool_value, value.double_value)
    return next((one for one in simple if one is not None), None)
