"""The OpenTelemetry API's global meter provider: its instruments are those of a `Registry`."""

from collections.abc import Sequence
from typing import TypeVar

from opentelemetry import metrics as api
from opentelemetry.util.types import Attributes
from typing_extensions import override

from shared.telemetry.metrics.instruments import (
    COUNTS,
    SECONDS,
    Callback,
    Counter,
    Gauge,
    Histogram,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    UpDownCounter,
)
from shared.telemetry.metrics.registry import Kept, Registry

Observed = TypeVar("Observed", ObservableCounter, ObservableGauge, ObservableUpDownCounter)


class RegistryMeterProvider(api.MeterProvider):
    """Gives meters whose instruments are kept in a registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    @override
    def get_meter(
        self,
        name: str,
        version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> api.Meter:
        return _Meter(self._registry, name, version, schema_url)


class _Meter(api.Meter):
    """The scope is not kept: a metric has one name in all of a process."""

    def __init__(
        self, registry: Registry, name: str, version: str | None, schema_url: str | None
    ) -> None:
        super().__init__(name, version, schema_url)
        self._registry = registry

    @override
    def create_counter(self, name: str, unit: str = "", description: str = "") -> Counter:
        return self._kept(Counter(self._registry, name, unit=unit, description=description))

    @override
    def create_up_down_counter(
        self, name: str, unit: str = "", description: str = ""
    ) -> UpDownCounter:
        return self._kept(UpDownCounter(self._registry, name, unit=unit, description=description))

    @override
    def create_gauge(self, name: str, unit: str = "", description: str = "") -> Gauge:
        return self._kept(Gauge(self._registry, name, unit=unit, description=description))

    @override
    def create_histogram(
        self,
        name: str,
        unit: str = "",
        description: str = "",
        *,
        explicit_bucket_boundaries_advisory: Sequence[float] | None = None,
    ) -> Histogram:
        bounds = explicit_bucket_boundaries_advisory or (SECONDS if unit == "s" else COUNTS)
        made = Histogram(self._registry, name, unit=unit, description=description, bounds=bounds)
        return self._kept(made)

    @override
    def create_observable_counter(
        self,
        name: str,
        callbacks: Sequence[Callback] | None = None,
        unit: str = "",
        description: str = "",
    ) -> ObservableCounter:
        return self._observed(ObservableCounter, name, callbacks, unit, description)

    @override
    def create_observable_gauge(
        self,
        name: str,
        callbacks: Sequence[Callback] | None = None,
        unit: str = "",
        description: str = "",
    ) -> ObservableGauge:
        return self._observed(ObservableGauge, name, callbacks, unit, description)

    @override
    def create_observable_up_down_counter(
        self,
        name: str,
        callbacks: Sequence[Callback] | None = None,
        unit: str = "",
        description: str = "",
    ) -> ObservableUpDownCounter:
        return self._observed(ObservableUpDownCounter, name, callbacks, unit, description)

    def _observed(
        self,
        kind: type[Observed],
        name: str,
        callbacks: Sequence[Callback] | None,
        unit: str,
        description: str,
    ) -> Observed:
        kept = self._kept(kind(self._registry, name, unit=unit, description=description))
        kept.callbacks += callbacks or ()
        return kept

    def _kept(self, instrument: Kept) -> Kept:
        try:
            return self._registry.keep(instrument)
        except ValueError as error:
            # A library's mistake must not stop the application: this one records into nothing.
            self._registry.complain(instrument.name, str(error))
            return instrument
