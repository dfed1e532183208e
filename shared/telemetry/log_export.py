"""Log records to an OTLP collector, beside files and standard output.

As with spans: the exporter and its thread begin with the first line of a process, so that a worker
that forks has none to inherit; no call blocks without a limit; what is lost is counted, and said
once. The OpenTelemetry SDK is imported here because the log exporters take its records.
"""

import atexit
import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Final, NamedTuple

import msgspec
from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.util.types import AnyValue
from typing_extensions import override

from shared.clock import monotonic
from shared.telemetry import logs, names
from shared.telemetry.current import text_of
from shared.telemetry.exporting import make_grpc_cooperate, resource_attributes
from shared.telemetry.health import ExportHealth
from shared.telemetry.log_config import LogExportConfig
from shared.telemetry.log_line import Line
from shared.telemetry.outlet import Outlet, OutletStats

_SEVERITIES: Final = (
    (logging.CRITICAL, SeverityNumber.FATAL),
    (logging.ERROR, SeverityNumber.ERROR),
    (logging.WARNING, SeverityNumber.WARN),
    (logging.INFO, SeverityNumber.INFO),
    (logging.DEBUG, SeverityNumber.DEBUG),
)
_LEFT_OUT: Final = frozenset(
    {
        # In the record itself, or in the resource.
        *(names.LOG_TIMESTAMP, names.LOG_LEVEL, names.LOG_EVENT, names.LOG_SERVICE),
        *(names.LOG_TRACE_ID, names.LOG_SPAN_ID, names.LOG_HOSTNAME, names.LOG_PID),
    }
)
_RENAMED: Final[Mapping[str, str]] = {
    **names.SAGA_ATTRIBUTES,
    names.LOG_EXCEPTION: names.EXCEPTION_STACKTRACE,
}
_INT64: Final = range(-(2**63), 2**63)
_SCOPE: Final = InstrumentationScope(names.INSTRUMENTATION_SCOPE)

_exporting: ContextVar[bool] = ContextVar("saga_log_exporting", default=False)
_encode: Final = msgspec.json.Encoder(enc_hook=text_of).encode


class _Line(NamedTuple):
    """A line as it waits: what it says is turned into a record by the exporter's thread."""

    created_s: float
    level: int
    fields: Mapping[str, Any]


def start(config: LogExportConfig) -> None:
    """Export the lines of this process and its children from now on; to be called after `logs.configure`.

    A second call changes where they go.
    """
    shutdown(timedelta(0))
    _process.config = config
    handler = _OtlpHandler(logs.line(config.tracing.service_name))
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _OtlpHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    atexit.register(shutdown)


def shutdown(timeout: timedelta | None = None) -> bool:
    """Hand over the last records, never longer than the timeout, and export no more.

    Args:
        timeout: By default the configuration's for spans.

    Returns:
        Whether all were handed over.
    """
    return _process.stop(timeout)


def shutdown_during(meanwhile: Callable[[], object]) -> None:
    """As `shutdown`, while something else takes of the same time: the thread exports already."""
    running, config = _process.running, _process.config
    started_at = monotonic()
    if running is not None:
        running.flush(timedelta(0))
    meanwhile()
    if config is not None:
        left = config.tracing.shutdown_timeout.total_seconds() - (monotonic() - started_at)
        shutdown(timedelta(seconds=max(0.0, left)))


def stats() -> OutletStats:
    """Log records of this process: exported, failed, dropped, waiting."""
    return _process.stats()


class _Process:
    """The export of this process; a fork keeps the configuration and drops the rest."""

    def __init__(self) -> None:
        self.config: LogExportConfig | None = None
        self.running: Outlet[_Line] | None = None
        self._ended = OutletStats()
        self._lock = threading.Lock()

    def put(self, line: _Line) -> None:
        outlet = self.running
        if outlet is None:
            with self._lock:
                outlet = self._made()
        if outlet is not None:
            outlet.put(line)

    def _made(self) -> Outlet[_Line] | None:
        if self.running is None and self.config is not None:
            receiver = _Receiver(self.config)
            self.running = Outlet[_Line](
                export=receiver.export,
                close=receiver.close,
                queue_max=self.config.queue_max,
                batch_max=self.config.batch_max,
                interval=self.config.interval,
            )
        return self.running

    def stop(self, timeout: timedelta | None) -> bool:
        with self._lock:
            outlet, config = self.running, self.config
            self.running = self.config = None
        if outlet is None or config is None:
            return True
        limit = config.tracing.shutdown_timeout if timeout is None else timeout
        complete = outlet.close(limit)
        self._ended += outlet.stats().given_up()
        return complete

    def stats(self) -> OutletStats:
        running = self.running
        return self._ended if running is None else self._ended + running.stats()

    def forked(self) -> None:
        # The parent's thread does not exist here, and its lock may be held for ever.
        self.running = None
        self._ended = OutletStats()
        self._lock = threading.Lock()


class _OtlpHandler(logging.Handler):
    """Hands each line to the exporter's thread."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._fields = line.explained

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if _exporting.get():
            return  # the exporter's own lines would feed it for ever
        try:
            _process.put(_Line(record.created, record.levelno, self._fields(record)))
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001 - as in the standard handlers: a line never stops work
            self.handleError(record)


class _Receiver:
    """The exporter, which never raises."""

    def __init__(self, config: LogExportConfig) -> None:
        self._health = ExportHealth(config.protocol, config.url, signal="log_records")
        self._resource = Resource.create(resource_attributes(config.tracing))
        self._exporter = _exporter(config)

    def export(self, batch: list[_Line]) -> bool:
        _exporting.set(True)  # for good: this is the exporter's own thread
        try:
            with suppress_instrumentation():
                records = [_record(line, self._resource) for line in batch]
                exported = self._exporter.export(records) is LogRecordExportResult.SUCCESS
        except Exception as error:  # noqa: BLE001 - whatever an exporter does, work goes on
            self._health.complain(f"{type(error).__name__}: {error}")
            exported = False
        if exported:
            self._health.works()
        else:
            self._health.fails(len(batch))
        return exported

    def close(self) -> None:
        with suppress_instrumentation():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # of the SDK
        self._health.close()


def _exporter(config: LogExportConfig) -> LogRecordExporter:
    timeout = config.tracing.export_timeout.total_seconds()
    headers = dict(config.tracing.otlp_headers) or None
    # Each exporter is imported only where it is used: gRPC is megabytes of memory.
    if config.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import (
            OTLPLogExporter as GrpcExporter,
        )

        make_grpc_cooperate()
        return GrpcExporter(endpoint=config.url, headers=headers, timeout=timeout)
    from opentelemetry.exporter.otlp.proto.http._log_exporter import (
        OTLPLogExporter as HttpExporter,
    )

    return HttpExporter(endpoint=config.url, headers=headers, timeout=timeout)


def _record(line: _Line, resource: Resource) -> ReadableLogRecord:
    fields = line.fields
    at = int(line.created_s * 1_000_000) * 1000
    attributes: dict[str, AnyValue] = {
        _RENAMED.get(key, key): _value(value)
        for key, value in fields.items()
        if key not in _LEFT_OUT and value is not None
    }
    severity = next((one for level, one in _SEVERITIES if line.level >= level), None)
    return ReadableLogRecord(
        LogRecord(
            timestamp=at,
            observed_timestamp=at,
            context=_context(fields),
            severity_text=logging.getLevelName(line.level),
            severity_number=severity or SeverityNumber.TRACE,
            body=_value(fields.get(names.LOG_EVENT, "")),
            attributes=attributes,
        ),
        resource,
        _SCOPE,
    )


def _context(fields: Mapping[str, Any]) -> Context:
    try:
        ids = (int(fields[names.LOG_TRACE_ID], 16), int(fields[names.LOG_SPAN_ID], 16))
    except (KeyError, TypeError, ValueError):  # no trace, or somebody's own field of that name
        return Context()
    parent = trace.SpanContext(*ids, is_remote=True)
    return trace.set_span_in_context(trace.NonRecordingSpan(parent), Context())


def _value(value: object) -> AnyValue:
    """What OTLP can carry as it is, or else its JSON; one bad value would cost a whole batch."""
    if isinstance(value, bool | float) or (isinstance(value, int) and value in _INT64):
        return value
    if not isinstance(value, str):
        try:
            value = _encode(value).decode()
        except (TypeError, ValueError, OverflowError, RuntimeError):  # it changes meanwhile, too
            value = text_of(value)
    return value.encode("utf-8", "replace").decode()  # lone surrogates


_process = _Process()
os.register_at_fork(after_in_child=_process.forked)
