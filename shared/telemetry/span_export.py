"""Finished spans on their way to where they are kept: into the SDK's form, without secrets, exported.

Its own file beside `setup`, so that what begins and ends with a process can be read apart from what
becomes of a span.
"""

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from typing_extensions import override

from shared.telemetry import names
from shared.telemetry.config import TracingConfig
from shared.telemetry.exporting import make_grpc_cooperate
from shared.telemetry.health import ExportHealth
from shared.telemetry.otlp_file import OtlpFile, encode_spans
from shared.telemetry.redaction import redacted_fields, redacted_text
from shared.telemetry.spans import ExportedSpan, SpanError, SpanRecord

OnExported = Callable[[Sequence[ExportedSpan]], None]

_log = structlog.stdlib.get_logger(__name__)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_SAMPLED: Final = trace.TraceFlags(trace.TraceFlags.SAMPLED)
_KINDS: Final = {
    "internal": trace.SpanKind.INTERNAL,
    "producer": trace.SpanKind.PRODUCER,
    "consumer": trace.SpanKind.CONSUMER,
}
_OK: Final = trace.Status(trace.StatusCode.UNSET)
_SCOPE: Final = InstrumentationScope(names.INSTRUMENTATION_SCOPE)


class Emitted(ReadableSpan):
    """A span that was given as a record."""

    def __init__(self, record: SpanRecord, resource: Resource) -> None:
        trace_id = int(record.trace_id, 16)
        state = trace.TraceState.from_header([record.tracestate]) if record.tracestate else None
        end = _nanoseconds(record.end)
        attributes = record.attributes
        events: tuple[Event, ...] = ()
        status = _OK
        if record.error is not None:
            status = trace.Status(trace.StatusCode.ERROR, record.error.message or None)
            attributes = {**attributes, names.ERROR_TYPE: record.error.type}
            if record.error.traceback:
                events = (_exception_event(record.error, end),)
        super().__init__(
            record.name,
            context=trace.SpanContext(
                trace_id,
                int(record.span_id, 16),
                False,
                _SAMPLED,
                state,
            ),
            parent=None
            if record.parent_span_id is None
            else trace.SpanContext(
                trace_id, int(record.parent_span_id, 16), record.parent_is_remote, _SAMPLED, state
            ),
            resource=resource,
            attributes=attributes,
            events=events,
            links=[
                trace.Link(
                    trace.SpanContext(
                        int(link.trace_id, 16),
                        int(link.span_id, 16),
                        True,
                        _SAMPLED,
                    ),
                    link.attributes,
                )
                for link in record.links
            ],
            kind=_KINDS[record.kind],
            status=status,
            start_time=_nanoseconds(record.start),
            end_time=end,
            instrumentation_scope=_SCOPE,
        )
        self.key = ExportedSpan(record.trace_id, record.span_id, record.name, record.end)


class Receiver:
    """The exporter, which never raises, and those who wait to hear from it.

    Args:
        config: Where spans go.
        subscribers: Those who are told which emitted spans have arrived, in this thread.
    """

    def __init__(
        self,
        config: TracingConfig,
        subscribers: Callable[[], Sequence[OnExported]] = tuple,
    ) -> None:
        self._subscribers = subscribers
        where = config.export_url or str(config.traces_dir)
        self._health = ExportHealth(config.otlp_protocol, where)
        self._exporter = _exporter(config)

    def export(self, batch: list[ReadableSpan]) -> bool:
        """Hand a batch over; says whether it was accepted."""
        try:
            for span in batch:
                _redact(span)
            with suppress_instrumentation():
                exported = self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception as error:  # noqa: BLE001 - whatever an exporter does, work goes on
            self._health.complain(f"{type(error).__name__}: {error}")
            exported = False
        if exported:
            self._health.works()
            if callbacks := self._subscribers():
                _tell(callbacks, [span.key for span in batch if isinstance(span, Emitted)])
        else:
            self._health.fails(len(batch))
        return exported

    @property
    def reason(self) -> str:
        """Why the last export failed."""
        return self._health.reason

    def close(self) -> None:
        """Give connections and files back."""
        with suppress_instrumentation():
            self._exporter.shutdown()
        self._health.close()


def _tell(callbacks: Sequence[OnExported], exported: Sequence[ExportedSpan]) -> None:
    for callback in callbacks if exported else ():
        try:
            callback(exported)
        except Exception:  # noqa: BLE001 - a subscriber's mistake must not stop the export
            _log.exception("telemetry.on_exported_failed")


def _redact(span: ReadableSpan) -> None:
    """Take secrets out of a span that has ended, in the exporter's thread.

    In place: it belongs to nobody else any more, and a copy would cost more than the search.
    """
    attributes: Any = span._attributes or {}  # noqa: SLF001 - the SDK has no other way
    # The SDK's mapping takes a lock for each item; the dictionary in it is nobody's any more.
    attributes = getattr(attributes, "_dict", attributes)
    shown = redacted_fields(attributes)
    if shown is not attributes:
        span._attributes = shown  # noqa: SLF001
    if span.events:
        span._events = tuple(map(_redacted_event, span.events))  # noqa: SLF001
    description = span.status.description
    if description:
        hidden = redacted_text(description)
        if hidden != description:
            span._status = trace.Status(span.status.status_code, hidden)  # noqa: SLF001
    span._name = redacted_text(span.name)  # noqa: SLF001


def _redacted_event(event: Event) -> Event:
    attributes = event.attributes or {}
    shown = redacted_fields(attributes)
    return event if shown is attributes else Event(event.name, shown, event.timestamp)


class _FileExporter(SpanExporter):
    """OTLP JSON files, one for each process."""

    def __init__(self, config: TracingConfig) -> None:
        stem = f"{config.service_name}-{os.getpid()}"
        self._file = OtlpFile(config.traces_dir, stem, config.file_bytes_max)

    @override
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._file.write(encode_spans(spans))
        return SpanExportResult.SUCCESS

    @override
    def shutdown(self) -> None:
        self._file.close()


def _exporter(config: TracingConfig) -> SpanExporter:
    timeout = config.export_timeout.total_seconds()
    headers = dict(config.otlp_headers) or None
    # Each exporter is imported only where it is used: gRPC is megabytes of memory.
    if config.otlp_protocol == "grpc":
        make_grpc_cooperate()
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
            OTLPSpanExporter as GrpcExporter,
        )

        return GrpcExporter(endpoint=config.export_url, headers=headers, timeout=timeout)
    if config.otlp_protocol == "http":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
            OTLPSpanExporter as HttpExporter,
        )

        return HttpExporter(endpoint=config.export_url, headers=headers, timeout=timeout)
    return _FileExporter(config)


def _exception_event(error: SpanError, at: int) -> Event:
    return Event(
        names.EXCEPTION_EVENT,
        {
            names.EXCEPTION_TYPE: error.type,
            names.EXCEPTION_MESSAGE: error.message,
            names.EXCEPTION_STACKTRACE: error.traceback,
        },
        at,
    )


def _nanoseconds(moment: datetime) -> int:
    # In integers: a float of seconds has no room for the microseconds of this century.
    return (moment - _EPOCH) // _MICROSECOND * 1000
