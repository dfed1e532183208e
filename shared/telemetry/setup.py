"""The SDK side of traces: the only file that imports the OpenTelemetry SDK and its exporters.

Everything else uses the OpenTelemetry API, whose global provider is the `CurrentProvider` below. It
makes the SDK's provider, the exporter and their thread with the first span of a *process*, so that a
worker that forks has neither threads nor connections to inherit, and a child starts its own
without being told to.

Telemetry never harms work: nothing here raises after `start`, no call blocks without a limit, and
what is lost is counted.
"""

import atexit
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec
import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.util.types import Attributes, AttributeValue
from typing_extensions import override

from shared.settings import settings
from shared.telemetry import header_propagator, names, propagation, redaction
from shared.telemetry.config import TracingConfig, tracing_config
from shared.telemetry.health import ExportHealth
from shared.telemetry.otlp_file import OtlpFile, encode_spans
from shared.telemetry.outlet import Outlet, OutletStats
from shared.telemetry.provider import CurrentProvider
from shared.telemetry.redaction import redacted_fields, redacted_text
from shared.telemetry.sampling import Adaptive
from shared.telemetry.spans import SpanError, SpanRecord

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


class ExportedSpan(NamedTuple):
    """A span that was given to `emit` and has reached the receiver.

    A span that is exported again, since it goes on, differs in its `end`.
    """

    trace_id: str
    span_id: str
    name: str
    end: datetime


OnExported = Callable[[Sequence[ExportedSpan]], None]


def start(service: str, config: TracingConfig | None = None) -> None:
    """Get ready to record spans in this process and in its children; a second call does nothing.

    Args:
        service: ``service.name``, unless the environment has one.
        config: By default what the environment says.

    Raises:
        ConfigurationError: A variable has a value that is not allowed.
    """
    if _process.config is not None:
        return
    config = config or tracing_config(service, home=settings().home)
    _process.config = config
    if config.enabled and config.sampling_strategy == "adaptive":
        _process.adaptive = Adaptive(config.sampling_target, config.sampling_file)
    redaction.configure(config.redaction)
    propagation.configure(config.propagation)
    header_propagator.install(should_sample)
    if trace.get_tracer_provider() is not _provider:
        trace.set_tracer_provider(_provider)
        atexit.register(shutdown)


def should_sample(
    trace_id: str,
    parent_sampled: bool | None = None,  # noqa: FBT001 - see TracingConfig
    *,
    name: str = "",
) -> bool:
    """Decide once, at the start of a saga, whether its trace is exported; False before `start`.

    Args:
        trace_id: 32 hexadecimal digits.
        parent_sampled: What the caller decided; None when there is no caller.
        name: What the adaptive strategy is fair to: name of the saga's span.
    """
    config, adaptive = _process.config, _process.adaptive
    if config is None or not config.should_sample(trace_id, parent_sampled):
        return False
    if adaptive is None or parent_sampled is not None:
        return True
    return adaptive.decide(int(trace_id, 16), name)


def emit(records: Iterable[SpanRecord]) -> None:
    """Export finished spans with exactly the ids and times they have.

    Never blocks and never raises; a record that is not sampled is skipped.
    """
    pipeline = _process.pipeline()
    if pipeline is None:
        return
    for record in records:
        if record.sampled:
            pipeline.outlet.put(_Emitted(record, pipeline.resource))


def probe(config: TracingConfig, record: SpanRecord) -> str:
    """Export one span at once, apart from those of this process, as the configuration says.

    Blocks for the configuration's ``export_timeout`` at most.

    Returns:
        Why it was not accepted; empty when it was.
    """
    receiver = _Receiver(config)
    try:
        accepted = receiver.export([_Emitted(record, _resource(config))])
        return "" if accepted else receiver.reason or "it gave no reason"
    finally:
        receiver.close()


def on_exported(callback: OnExported) -> Callable[[], None]:
    """Be told which spans given to `emit` have reached the receiver.

    Args:
        callback: Gets the spans of one batch, in the exporter's thread; must be quick.

    Returns:
        A function that ends the subscription.
    """
    _process.callbacks = (*_process.callbacks, callback)

    def unsubscribe() -> None:
        _process.callbacks = tuple(one for one in _process.callbacks if one is not callback)

    return unsubscribe


def stats() -> OutletStats:
    """Spans of this process: exported, failed, dropped, waiting."""
    return _process.stats()


def flush(timeout: timedelta = timedelta(seconds=2)) -> bool:
    """Wait, never longer than the timeout, until the spans so far were handed over."""
    pipeline = _process.running
    return pipeline is None or pipeline.outlet.flush(timeout)


def shutdown(timeout: timedelta | None = None) -> bool:
    """Hand over the last spans, never longer than the timeout, and stop recording.

    Args:
        timeout: By default the configuration's.

    Returns:
        Whether all spans were handed over.
    """
    return _process.stop(timeout)


class _Pipeline:
    """The SDK's provider, the queue and the exporter of one process."""

    def __init__(self, config: TracingConfig, adaptive: Adaptive | None) -> None:
        self.resource = _resource(config)
        receiver = _Receiver(config)
        self.outlet = Outlet[ReadableSpan](
            export=receiver.export,
            close=receiver.close,
            queue_max=config.queue_spans_max,
            batch_max=config.batch_spans_max,
            interval=config.export_interval,
        )
        self.provider = TracerProvider(
            sampler=_sampler(config, adaptive), resource=self.resource, shutdown_on_exit=False
        )
        self.provider.add_span_processor(_ToOutlet(self.outlet))


class _Process:
    """The telemetry of this process; a fork keeps the configuration and drops the rest."""

    def __init__(self) -> None:
        self.config: TracingConfig | None = None
        self.adaptive: Adaptive | None = None
        self.callbacks: tuple[OnExported, ...] = ()
        self.running: _Pipeline | None = None
        self._ended = OutletStats()
        self._lock = threading.Lock()

    def pipeline(self) -> _Pipeline | None:
        """The pipeline, made with the first call; None when telemetry is off."""
        if self.running is not None:
            return self.running
        with self._lock:
            return self._make()

    def provider(self) -> TracerProvider | None:
        pipeline = self.pipeline()
        return None if pipeline is None else pipeline.provider

    def _make(self) -> _Pipeline | None:
        if self.running is None and self.config is not None and self.config.enabled:
            self.running = _Pipeline(self.config, self.adaptive)
        return self.running

    def stop(self, timeout: timedelta | None) -> bool:
        with self._lock:
            pipeline, config, adaptive = self.running, self.config, self.adaptive
            self.running = self.config = self.adaptive = None
        if adaptive is not None:
            adaptive.close()
        if pipeline is None or config is None:
            return True
        complete = pipeline.outlet.close(config.shutdown_timeout if timeout is None else timeout)
        ended = pipeline.outlet.stats()
        given_up = msgspec.structs.replace(ended, dropped=ended.dropped + ended.queued, queued=0)
        self._ended = _sum(self._ended, given_up)
        return complete

    def stats(self) -> OutletStats:
        running = self.running
        return _sum(self._ended, running.outlet.stats()) if running is not None else self._ended

    def forked(self) -> None:
        # The parent's thread does not exist here, and its lock may be held for ever.
        self.running = None
        self._ended = OutletStats()
        self._lock = threading.Lock()
        if self.adaptive is not None:
            self.adaptive.after_fork()


class _ToOutlet(SpanProcessor):
    """Hands the SDK's finished spans to the outlet."""

    def __init__(self, outlet: Outlet[ReadableSpan]) -> None:
        self._outlet = outlet

    @override
    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self._outlet.put(span)


class _Emitted(ReadableSpan):
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


class _Receiver:
    """The exporter, which never raises, and those who wait to hear from it."""

    def __init__(self, config: TracingConfig) -> None:
        where = config.export_url or str(config.traces_dir)
        self._health = ExportHealth(config.otlp_protocol, where)
        self._exporter = _exporter(config)

    def export(self, batch: list[ReadableSpan]) -> bool:
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
            if _process.callbacks:
                self._tell([span.key for span in batch if isinstance(span, _Emitted)])
        else:
            self._health.fails(len(batch))
        return exported

    @property
    def reason(self) -> str:
        """Why the last export failed."""
        return self._health.reason

    def close(self) -> None:
        with suppress_instrumentation():
            self._exporter.shutdown()
        self._health.close()

    @staticmethod
    def _tell(exported: Sequence[ExportedSpan]) -> None:
        for callback in _process.callbacks if exported else ():
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


def make_grpc_cooperate() -> None:
    """Under gevent, gRPC's waits would block every greenlet of the worker."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("socket"):
        from grpc.experimental.gevent import init_gevent

        init_gevent()


class _AdaptiveSampler(Sampler):
    """Adaptive sampling for spans that begin a trace, fair between their names."""

    def __init__(self, adaptive: Adaptive) -> None:
        self._adaptive = adaptive

    @override
    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: trace.SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[trace.Link] | None = None,
        trace_state: trace.TraceState | None = None,
    ) -> SamplingResult:
        keep = self._adaptive.decide(trace_id, name)
        decision = Decision.RECORD_AND_SAMPLE if keep else Decision.DROP
        return SamplingResult(decision, attributes if keep else None, trace_state)

    @override
    def get_description(self) -> str:
        return "Adaptive"


def _sampler(config: TracingConfig, adaptive: Adaptive | None) -> Sampler:
    if adaptive is not None:
        return ParentBased(_AdaptiveSampler(adaptive))
    match config.sampling_strategy:
        case "always_on" | "adaptive":
            return ParentBased(ALWAYS_ON)
        case "always_off":
            return ParentBased(ALWAYS_OFF)
        case "ratio":
            return ParentBased(TraceIdRatioBased(config.sampling_ratio))


def _resource(config: TracingConfig) -> Resource:
    hostname = socket.gethostname()
    attributes: dict[str, AttributeValue] = {
        **dict(config.resource_attributes),
        names.SERVICE_NAME: config.service_name,
        names.SERVICE_INSTANCE_ID: f"{os.getpid()}@{hostname}",
    }
    if config.service_version:
        attributes[names.SERVICE_VERSION] = config.service_version
    if config.environment:
        attributes[names.DEPLOYMENT_ENVIRONMENT] = config.environment
    return Resource.create(attributes)


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


def _sum(one: OutletStats, other: OutletStats) -> OutletStats:
    return OutletStats(
        exported=one.exported + other.exported,
        dropped=one.dropped + other.dropped,
        failed=one.failed + other.failed,
        queued=one.queued + other.queued,
    )


_process = _Process()
_provider = CurrentProvider(_process.provider)
os.register_at_fork(after_in_child=_process.forked)
