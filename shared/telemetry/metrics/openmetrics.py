"""A snapshot as Prometheus reads it: OpenMetrics with exemplars, or the older text without.

Names follow OpenTelemetry's rules for Prometheus: dots become underscores, the unit is spelled out
at the end, and a counter ends in ``_total``: ``saga.step.duration`` in ``s`` is
``saga_step_duration_seconds``.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    Exemplar,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from typing_extensions import override

from shared.telemetry import names
from shared.telemetry.metrics.snapshot import Exemplar as Known
from shared.telemetry.metrics.snapshot import Family, Snapshot

_UNITS: Final = {
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "min": "minutes",
    "h": "hours",
    "d": "days",
    "By": "bytes",
    "KiBy": "kibibytes",
    "MiBy": "mebibytes",
    "%": "percent",
    "Cel": "celsius",
}
_FORBIDDEN: Final = re.compile(r"[^a-zA-Z0-9:]+")
_FORBIDDEN_IN_LABELS: Final = re.compile(r"[^a-zA-Z0-9]+")


def render(snapshot: Snapshot, resource: Mapping[str, str], accept: str) -> tuple[bytes, str]:
    """The text of a snapshot.

    Args:
        snapshot: What to show.
        resource: Attributes of the service, shown as ``target_info``.
        accept: The ``Accept`` header of the request: only OpenMetrics has exemplars.

    Returns:
        Body and content type.
    """
    encode, content_type = choose_encoder(accept)
    return encode(_Snapshot(snapshot, resource)), content_type


def prometheus_name(name: str, unit: str, kind: str) -> str:
    """The name of a metric as queries use it; of a histogram without ``_bucket`` and the like."""
    name, unit = _base_name(name, unit)
    full = name if not unit or name.endswith(f"_{unit}") else f"{name}_{unit}"
    return f"{full}_total" if kind == "counter" else full


def label_name(key: str) -> str:
    """The name of a label as queries use it."""
    found = _FORBIDDEN_IN_LABELS.sub("_", key)
    return f"_{found}" if found[:1].isdigit() else found


class _Snapshot(Collector):
    """What prometheus_client's encoders ask for."""

    def __init__(self, snapshot: Snapshot, resource: Mapping[str, str]) -> None:
        self._snapshot = snapshot
        self._resource = resource

    @override
    def collect(self) -> Iterator[Metric]:
        info = InfoMetricFamily("target", "The service that these metrics are from.")
        info.add_metric([], {label_name(key): value for key, value in self._resource.items()})
        yield info
        seen: set[str] = set()
        for family in self._snapshot.families:
            metric = _metric(family)
            # Two names that differ in dots alone would make the whole text unreadable.
            if metric.name not in seen:
                seen.add(metric.name)
                yield metric


def _metric(family: Family) -> Metric:
    name, unit = _base_name(family.name, family.unit)
    keys = sorted({label_name(key) for one in family.series for key, _ in one.labels})
    made: CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
    match family.kind:
        case "counter":
            name = name.removesuffix("_total")
            made = CounterMetricFamily(name, family.description, labels=keys, unit=unit)
        case "updown" | "gauge":
            made = GaugeMetricFamily(name, family.description, labels=keys, unit=unit)
        case "histogram":
            made = HistogramMetricFamily(name, family.description, labels=keys, unit=unit)
    for one in family.series:
        given = {label_name(key): value for key, value in one.labels}
        values = [given.get(key, "") for key in keys]
        if isinstance(made, HistogramMetricFamily):
            made.add_metric(values, list(_buckets(family, one.buckets, one.exemplars)), one.value)
        else:
            made.add_metric(values, one.value)
    return made


def _buckets(
    family: Family, counts: Iterable[int], exemplars: Mapping[int, Known]
) -> Iterator[tuple[str, float] | tuple[str, float, Exemplar]]:
    bounds = [*map(floatToGoString, family.bounds), "+Inf"]
    for number, (bound, count) in enumerate(zip(bounds, accumulate(counts), strict=True)):
        found = exemplars.get(number)
        if found is None:
            yield bound, count
        else:
            labels = {names.LOG_TRACE_ID: found.trace_id, names.LOG_SPAN_ID: found.span_id}
            yield bound, count, Exemplar(labels, found.value, found.at)


def _base_name(name: str, unit: str) -> tuple[str, str]:
    base = _FORBIDDEN.sub("_", name).strip("_")
    if base[:1].isdigit():
        base = f"_{base}"
    return base, _UNITS.get(unit, "")
