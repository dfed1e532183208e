"""Own metrics in one line, on whatever this process exports.

    counter("orders.created").add(1, {"region": "eu"})
    histogram("basket.size", unit="{item}", bounds=COUNTS).record(3)
    gauge("printer.paper").set(17, {"printer": "hall"})
    observe("cache.entries", lambda: len(cache))

The same instrument comes back for the same name, so there is no need to keep it; in a loop do. A
measurement costs about a microsecond, and nothing when metrics are off. Metrics of the plain
OpenTelemetry API (``opentelemetry.metrics.get_meter(...)``) are exported in the same way.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from opentelemetry.metrics import CallbackOptions, Observation

from shared.telemetry.metrics.instruments import (
    BYTES,
    COUNTS,
    SECONDS,
    Counter,
    Gauge,
    Histogram,
    ObservableCounter,
    ObservableGauge,
    UpDownCounter,
)
from shared.telemetry.metrics.registry import REGISTRY
from shared.telemetry.metrics.snapshot import Rule

__all__ = [
    "BYTES",
    "COUNTS",
    "SECONDS",
    "Observation",
    "counter",
    "gauge",
    "histogram",
    "observe",
    "up_down_counter",
]

Look = Callable[[], float | Iterable[Observation]]


def counter(
    name: str, *, unit: str = "", description: str = "", labels: Sequence[str] = ()
) -> Counter:
    """A number that only grows; Prometheus sees it with the suffix ``_total``.

    Args:
        name: With dots, for example ``orders.created``.
        unit: UCUM: ``s``, ``By``, or in words ``{order}``.
        description: One sentence.
        labels: The labels that it is recorded with, for the documentation.

    Raises:
        ValueError: A metric of another kind has the name.
    """
    about = {"unit": unit, "description": description, "labels": labels}
    return REGISTRY.known(Counter, name) or REGISTRY.keep(Counter(REGISTRY, name, **about))


def up_down_counter(
    name: str, *, unit: str = "", description: str = "", labels: Sequence[str] = ()
) -> UpDownCounter:
    """A number that grows and shrinks; over the processes of a worker it is added up."""
    known = REGISTRY.known(UpDownCounter, name)
    about = {"unit": unit, "description": description, "labels": labels}
    return known or REGISTRY.keep(UpDownCounter(REGISTRY, name, **about))


def histogram(
    name: str,
    *,
    unit: str = "s",
    description: str = "",
    labels: Sequence[str] = (),
    bounds: Sequence[float] = SECONDS,
) -> Histogram:
    """How values are distributed; a measurement inside a sampled span is an exemplar of it.

    Args:
        name: As for `counter`.
        unit: By default seconds.
        description: One sentence.
        labels: As for `counter`.
        bounds: Upper bounds of the buckets, the first call decides.
    """
    known = REGISTRY.known(Histogram, name)
    about = {"unit": unit, "description": description, "labels": labels}
    return known or REGISTRY.keep(Histogram(REGISTRY, name, bounds=bounds, **about))


def gauge(
    name: str,
    *,
    unit: str = "",
    description: str = "",
    labels: Sequence[str] = (),
    rule: Rule = "sum",
) -> Gauge:
    """The last value that was set.

    Args:
        name: As for `counter`.
        unit: As for `counter`.
        description: One sentence.
        labels: As for `counter`.
        rule: How the values of a worker's processes become one.
    """
    known = REGISTRY.known(Gauge, name)
    about: dict[str, Any] = {"unit": unit, "description": description, "labels": labels}
    return known or REGISTRY.keep(Gauge(REGISTRY, name, rule=rule, **about))


def observe(
    name: str,
    look: Look,
    *,
    unit: str = "",
    description: str = "",
    labels: Sequence[str] = (),
    rule: Rule = "sum",
    counts: bool = False,
) -> Callable[[], None]:
    """A value that is looked up whenever somebody asks.

    Args:
        name: As for `counter`.
        look: Gives a number, or an `Observation` for each set of labels; must be quick.
        unit: As for `counter`.
        description: One sentence.
        labels: As for `counter`.
        rule: How the values of a worker's processes become one.
        counts: The value only grows: a counter that is kept elsewhere.

    Returns:
        A function that ends it.
    """
    about: dict[str, Any] = {"unit": unit, "description": description, "labels": labels}
    kind = ObservableCounter if counts else ObservableGauge
    instrument = REGISTRY.keep(kind(REGISTRY, name, rule=rule, **about))

    def callback(_: CallbackOptions) -> Iterable[Observation]:
        found = look()
        return [Observation(found)] if isinstance(found, int | float) else found

    instrument.callbacks.append(callback)

    def end() -> None:
        if callback in instrument.callbacks:
            instrument.callbacks.remove(callback)

    return end
