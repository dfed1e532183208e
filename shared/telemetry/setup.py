"""The SDK side of traces: what begins and ends with a process.

The OpenTelemetry SDK is imported here, in `span_export`, and where log records and metrics are
exported. Everything else uses the OpenTelemetry API, whose global provider is the `CurrentProvider`
below. It makes the SDK's provider, the exporter and their thread with the first span of a *process*,
so that a worker that forks has neither threads nor connections to inherit, and a child starts its
own without being told to.

Telemetry never harms work: nothing here raises after `start`, no call blocks without a limit, and
what is lost is counted.
"""

import atexit
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.util.types import Attributes
from typing_extensions import override

from shared.settings import settings
from shared.telemetry import header_propagator, propagation, redaction
from shared.telemetry.config import TracingConfig, tracing_config
from shared.telemetry.exporting import resource_attributes
from shared.telemetry.outlet import Outlet, OutletStats
from shared.telemetry.provider import CurrentProvider
from shared.telemetry.sampling import Adaptive
from shared.telemetry.span_export import Emitted, OnExported, Receiver
from shared.telemetry.spans import SpanRecord


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
            pipeline.outlet.put(Emitted(record, pipeline.resource))


def probe(config: TracingConfig, record: SpanRecord) -> str:
    """Export one span at once, apart from those of this process, as the configuration says.

    Blocks for the configuration's ``export_timeout`` at most.

    Returns:
        Why it was not accepted; empty when it was.
    """
    receiver = Receiver(config)
    try:
        accepted = receiver.export([Emitted(record, _resource(config))])
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
        receiver = Receiver(config, lambda: _process.callbacks)
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
        self._ended += pipeline.outlet.stats().given_up()
        return complete

    def stats(self) -> OutletStats:
        running = self.running
        return self._ended if running is None else self._ended + running.outlet.stats()

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
    return Resource.create(resource_attributes(config))


_process = _Process()
_provider = CurrentProvider(_process.provider)
os.register_at_fork(after_in_child=_process.forked)
