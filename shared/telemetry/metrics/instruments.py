"""Counters, gauges and histograms: those of the OpenTelemetry API, recorded in a `Registry`."""

from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Final

from opentelemetry import metrics as api
from opentelemetry import trace
from opentelemetry.context import Context
from typing_extensions import override

from shared.clock import unix_time
from shared.telemetry.metrics.registry import Attributes, Instrument, Registry
from shared.telemetry.metrics.snapshot import Exemplar, Kind, Labels, Series

SECONDS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0),
)
"""Upper bounds of the buckets of a duration: milliseconds to hours."""

COUNTS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
"""The same for a number of things."""

BYTES: Final = tuple(float(2**power) for power in range(12, 29, 2))
"""The same for sizes: 4 KiB to 256 MiB."""

Callback = (
    Callable[[api.CallbackOptions], Iterable[api.Observation]]
    | Generator[Iterable[api.Observation], api.CallbackOptions, None]
)

_OPTIONS: Final = api.CallbackOptions()


class _Number(Instrument):
    """One number for each set of labels."""

    def __init__(self, registry: Registry, name: str, **about: Any) -> None:
        super().__init__(registry, name, **about)
        self._values: dict[Labels, float] = {}

    def _add(self, amount: float, attributes: Attributes | None) -> None:
        registry = self.registry
        if not registry.on:
            return
        with registry.lock:
            labels = self.labels_of(attributes)
            self._values[labels] = self._values.get(labels, 0) + amount

    @override
    def series(self) -> list[Series]:
        with self.registry.lock:
            return [Series(labels, value) for labels, value in self._values.items()]

    @override
    def forget(self) -> None:
        super().forget()
        self._values = {}


class Counter(_Number, api.Counter):
    """Only grows."""

    kind: Kind = "counter"

    @override
    def add(
        self,
        amount: float = 1,
        attributes: Attributes | None = None,
        context: Context | None = None,
    ) -> None:
        if amount < 0:
            self.registry.complain(self.name, "a counter only grows; use an up-down counter")
            return
        self._add(amount, attributes)


class UpDownCounter(_Number, api.UpDownCounter):
    """Grows and shrinks."""

    kind: Kind = "updown"

    @override
    def add(
        self,
        amount: float,
        attributes: Attributes | None = None,
        context: Context | None = None,
    ) -> None:
        self._add(amount, attributes)


class Gauge(_Number, api._Gauge):  # noqa: SLF001 - the API's only name for it
    """The last value."""

    kind: Kind = "gauge"

    @override
    def set(
        self,
        amount: float,
        attributes: Attributes | None = None,
        context: Context | None = None,
    ) -> None:
        registry = self.registry
        if registry.on:
            with registry.lock:
                self._values[self.labels_of(attributes)] = amount


class _Buckets:
    """What a histogram knows of one set of labels."""

    __slots__ = ("counts", "exemplars", "total")

    def __init__(self, count: int) -> None:
        self.counts = [0] * count
        self.total = 0.0
        self.exemplars: dict[int, Exemplar] = {}


class Histogram(Instrument, api.Histogram):
    """How values are distributed, with the newest trace of each bucket as its exemplar."""

    kind: Kind = "histogram"

    def __init__(
        self, registry: Registry, name: str, *, bounds: Sequence[float] = SECONDS, **about: Any
    ) -> None:
        super().__init__(registry, name, **about)
        self.bounds = tuple(sorted(map(float, bounds)))
        self._series: dict[Labels, _Buckets] = {}

    @override
    def record(
        self,
        amount: float,
        attributes: Attributes | None = None,
        context: Context | None = None,
    ) -> None:
        if not self.registry.on:
            return
        span = trace.get_current_span(context).get_span_context()
        if span.is_valid and span.trace_flags.sampled:
            self.record_in(
                trace.format_trace_id(span.trace_id),
                trace.format_span_id(span.span_id),
                amount,
                attributes,
            )
        else:
            self.record_in("", "", amount, attributes)

    def record_in(
        self, trace_id: str, span_id: str, amount: float, attributes: Attributes | None = None
    ) -> None:
        """Record for a span that need not be the current one.

        Args:
            trace_id: 32 hexadecimal digits; empty where there is no trace to look at.
            span_id: 16 hexadecimal digits.
            amount: The value.
            attributes: Its labels.
        """
        registry = self.registry
        if not registry.on:
            return
        bucket = bisect_left(self.bounds, amount)
        with registry.lock:
            labels = self.labels_of(attributes)
            series = self._series.get(labels)
            if series is None:
                series = self._series[labels] = _Buckets(len(self.bounds) + 1)
            series.counts[bucket] += 1
            series.total += amount
            if trace_id:
                series.exemplars[bucket] = Exemplar(amount, trace_id, span_id, unix_time())

    @override
    def series(self) -> list[Series]:
        with self.registry.lock:
            return [
                Series(labels, one.total, list(one.counts), dict(one.exemplars))
                for labels, one in self._series.items()
            ]

    @override
    def forget(self) -> None:
        super().forget()
        self._series = {}


class _Observed(Instrument):
    """Asked when somebody wants to know."""

    def __init__(
        self, registry: Registry, name: str, *, callbacks: Iterable[Callback] = (), **about: Any
    ) -> None:
        super().__init__(registry, name, **about)
        self.callbacks = list(callbacks)

    @override
    def series(self) -> list[Series]:
        found: dict[Labels, float] = {}
        for callback in self.callbacks:
            seen = callback(_OPTIONS) if callable(callback) else next(callback)
            for one in seen:
                with self.registry.lock:
                    labels = self.labels_of(one.attributes)
                known = found.get(labels)
                if known is None:
                    found[labels] = one.value
                elif self.rule == "max":
                    found[labels] = max(known, one.value)
                else:
                    found[labels] = known + one.value
        return [Series(labels, value) for labels, value in found.items()]


class ObservableCounter(_Observed, api.ObservableCounter):
    """A number that grows elsewhere."""

    kind: Kind = "counter"


class ObservableUpDownCounter(_Observed, api.ObservableUpDownCounter):
    """A number that grows and shrinks elsewhere."""

    kind: Kind = "updown"


class ObservableGauge(_Observed, api.ObservableGauge):
    """A value that is looked up."""

    kind: Kind = "gauge"
