"""Traces as OTLP JSON files: one export request a line, the form that collectors can read back.

https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/. It writes what the exporter of
the package ``opentelemetry-exporter-otlp-json-file`` writes (a test compares them) at a fifth of
its 67 microseconds a span, and begins a new file where one grows too large.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from opentelemetry.trace import Link, SpanContext, SpanKind, Status

SUFFIX: Final = ".jsonl"

_HAS_IS_REMOTE: Final = 0x100
_IS_REMOTE: Final = 0x200
_KINDS: Final = {
    SpanKind.INTERNAL: 1,
    SpanKind.SERVER: 2,
    SpanKind.CLIENT: 3,
    SpanKind.PRODUCER: 4,
    SpanKind.CONSUMER: 5,
}
_UNSAFE: Final = re.compile(r"[^\w.-]+")

_encode: Final = msgspec.json.Encoder().encode

Json = dict[str, Any]
ReadableSpan = Any
"""The SDK's; `setup` alone may import it."""


class OtlpFile:
    """Appends export requests to files of one process, each line with one write.

    Args:
        folder: Made with the first line.
        stem: Beginning of the files' names; must belong to this process alone.
        bytes_max: Size at which the next line goes to a new file.
    """

    def __init__(self, folder: Path, stem: str, bytes_max: int) -> None:
        self._folder = folder
        self._stem = _UNSAFE.sub("_", stem)
        self._bytes_max = bytes_max
        self._number = 0
        self._size = 0
        self._fd = -1

    def write(self, line: bytes) -> None:
        """Append a line.

        Raises:
            OSError: The folder cannot be written, or the disk is full.
        """
        if self._fd < 0 or self._size >= self._bytes_max:
            self._open()
        self._size += os.write(self._fd, line + b"\n")

    def close(self) -> None:
        """Close the file; a later `write` opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        self.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        while True:
            number = f".{self._number}" if self._number else ""
            path = self._folder / f"{self._stem}{number}{SUFFIX}"
            self._number += 1
            # O_APPEND: when a process id comes back, its older file is continued, not overwritten.
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self._size = os.fstat(self._fd).st_size
            if self._size < self._bytes_max:
                return
            self.close()


def encode_spans(spans: Sequence[ReadableSpan]) -> bytes:
    """An ``ExportTraceServiceRequest`` as OTLP JSON."""
    resources: dict[int, tuple[Any, dict[int, tuple[Any, list[Json]]]]] = {}
    for span in spans:
        resource, scope = span.resource, span.instrumentation_scope
        _, scopes = resources.setdefault(id(resource), (resource, {}))
        scopes.setdefault(id(scope), (scope, []))[1].append(_span(span))
    return _encode(
        {
            "resourceSpans": [
                {
                    "resource": {"attributes": _attributes(resource.attributes)},
                    "scopeSpans": [_scope_spans(scope, found) for scope, found in scopes.values()],
                    **({"schemaUrl": resource.schema_url} if resource.schema_url else {}),
                }
                for resource, scopes in resources.values()
            ]
        }
    )


def _scope_spans(scope: Any, spans: list[Json]) -> Json:
    if scope is None:
        return {"scope": {}, "spans": spans}
    described: Json = {"name": scope.name}
    if scope.version:
        described["version"] = scope.version
    if scope.attributes:
        described["attributes"] = _attributes(scope.attributes)
    found: Json = {"scope": described, "spans": spans}
    if scope.schema_url:
        found["schemaUrl"] = scope.schema_url
    return found


def _span(span: ReadableSpan) -> Json:
    context, parent = span.context, span.parent
    found: Json = {
        "traceId": f"{context.trace_id if context else 0:032x}",
        "spanId": f"{context.span_id if context else 0:016x}",
        "flags": _flags(parent),
        "name": span.name,
        "kind": _KINDS[span.kind],
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "status": _status(span.status),
    }
    if parent is not None:
        found["parentSpanId"] = f"{parent.span_id:016x}"
    if context is not None and context.trace_state:
        found["traceState"] = context.trace_state.to_header()
    if span.attributes:
        found["attributes"] = _attributes(span.attributes)
    if span.events:
        found["events"] = [_event(event) for event in span.events]
    if span.links:
        found["links"] = [_link(link) for link in span.links]
    for key, count in (
        ("droppedAttributesCount", span.dropped_attributes),
        ("droppedEventsCount", span.dropped_events),
        ("droppedLinksCount", span.dropped_links),
    ):
        if count:
            found[key] = count
    return found


def _flags(context: SpanContext | None) -> int:
    return _HAS_IS_REMOTE | _IS_REMOTE if context and context.is_remote else _HAS_IS_REMOTE


def _status(status: Status) -> Json:
    found: Json = {}
    if status.status_code.value:
        found["code"] = status.status_code.value
    if status.description:
        found["message"] = status.description
    return found


def _event(event: Any) -> Json:
    found: Json = {"timeUnixNano": str(event.timestamp), "name": event.name}
    if event.attributes:
        found["attributes"] = _attributes(event.attributes)
    return found


def _link(link: Link) -> Json:
    found: Json = {
        "traceId": f"{link.context.trace_id:032x}",
        "spanId": f"{link.context.span_id:016x}",
        "flags": _flags(link.context),
    }
    if link.attributes:
        found["attributes"] = _attributes(link.attributes)
    return found


def _attributes(attributes: Mapping[str, Any]) -> list[Json]:
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _value(value: Any) -> Json:
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list | tuple):
        return {"arrayValue": {"values": [_value(one) for one in value]}}
    return {"stringValue": str(value)}
