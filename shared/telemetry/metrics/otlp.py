"""Metrics over OTLP, by the SDK's exporters; a process that exports none imports none of them.

The aggregation is ours (see `registry`), so a snapshot is turned into what the exporters take. Each
process exports for itself, as a service instance of its own.
"""

import logging
from typing import Final

import structlog
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.metrics import Exemplar as SdkExemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from shared.clock import unix_time
from shared.telemetry import names
from shared.telemetry.exporting import instance_id, make_grpc_cooperate
from shared.telemetry.metrics.config import MetricsConfig
from shared.telemetry.metrics.registry import Registry
from shared.telemetry.metrics.snapshot import Exemplar, Family, Snapshot

_LOGGER: Final = "opentelemetry.exporter.otlp.proto.http.metric_exporter"
_CUMULATIVE: Final = AggregationTemporality.CUMULATIVE
_log = structlog.stdlib.get_logger(__name__)


class OtlpMetrics:
    """Sends the metrics of this process to a collector.

    Args:
        config: Where.
        registry: What.
    """

    def __init__(self, config: MetricsConfig, registry: Registry) -> None:
        self._config = config
        self._registry = registry
        self._failing = False
        self._resource = Resource.create(
            {**config.resource, names.SERVICE_INSTANCE_ID: instance_id()}
        )
        self._exporter: MetricExporter | None = None

    def export(self) -> None:
        """Send what there is now; what goes wrong is said once, and nothing is raised."""
        try:
            with suppress_instrumentation():
                if self._exporter is None:
                    self._exporter = _exporter(self._config)
                data = metrics_data(self._registry.snapshot(), self._resource, unix_time())
                timeout_ms = self._config.export_timeout.total_seconds() * 1000
                sent = self._exporter.export(data, timeout_millis=timeout_ms)
            self._note(sent is MetricExportResult.SUCCESS, "the collector did not take them")
        except Exception as error:  # noqa: BLE001 - whatever an exporter does, work goes on
            self._note(False, f"{type(error).__name__}: {error}")

    def _note(self, exported: bool, reason: str) -> None:  # noqa: FBT001 - what came of it
        if exported and self._failing:
            _log.warning("metrics.export_recovered", endpoint=self._config.otlp_endpoint)
        elif not (exported or self._failing):
            _log.warning(
                "metrics.export_failing", endpoint=self._config.otlp_endpoint, reason=reason
            )
        self._failing = not exported


def metrics_data(snapshot: Snapshot, resource: Resource, now: float) -> MetricsData:
    """A snapshot as the SDK's exporters take it."""
    start, end = _nanoseconds(snapshot.started_at), _nanoseconds(now)
    metrics = [_metric(family, start, end) for family in snapshot.families]
    scope = ScopeMetrics(InstrumentationScope(names.INSTRUMENTATION_SCOPE), metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _metric(family: Family, start: int, end: int) -> Metric:
    data: Sum | Gauge | Histogram
    match family.kind:
        case "counter" | "updown":
            data = Sum(_numbers(family, start, end), _CUMULATIVE, family.kind == "counter")
        case "gauge":
            data = Gauge(_numbers(family, start, end))
        case "histogram":
            data = Histogram(_distributions(family, start, end), _CUMULATIVE)
    return Metric(family.name, family.description, family.unit, data)


def _numbers(family: Family, start: int, end: int) -> list[NumberDataPoint]:
    return [NumberDataPoint(dict(one.labels), start, end, one.value) for one in family.series]


def _distributions(family: Family, start: int, end: int) -> list[HistogramDataPoint]:
    return [
        HistogramDataPoint(
            attributes=dict(one.labels),
            start_time_unix_nano=start,
            time_unix_nano=end,
            count=sum(one.buckets),
            sum=one.value,
            bucket_counts=one.buckets,
            explicit_bounds=family.bounds,
            # Not kept, and optional in the protocol, if not in the class.
            min=None,  # type: ignore[arg-type]
            max=None,  # type: ignore[arg-type]
            exemplars=[_exemplar(exemplar) for exemplar in one.exemplars.values()],
        )
        for one in family.series
    ]


def _exemplar(one: Exemplar) -> SdkExemplar:
    return SdkExemplar(
        {}, one.value, _nanoseconds(one.at), int(one.span_id, 16), int(one.trace_id, 16)
    )


def _exporter(config: MetricsConfig) -> MetricExporter:
    # One line for each attempt and each retry; ours says it once.
    logging.getLogger(_LOGGER).setLevel(logging.CRITICAL)
    headers = dict(config.otlp_headers) or None
    timeout = config.export_timeout.total_seconds()
    # Each is imported only where it is used: gRPC is megabytes of memory.
    if config.otlp_protocol == "grpc":
        make_grpc_cooperate()
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (
            OTLPMetricExporter as GrpcExporter,
        )

        return GrpcExporter(endpoint=config.otlp_endpoint, timeout=timeout, headers=headers)
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import (
        OTLPMetricExporter as HttpExporter,
    )

    return HttpExporter(endpoint=config.otlp_endpoint, timeout=timeout, headers=headers)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1_000_000) * 1000
