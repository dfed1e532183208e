"""Keeps the number of series of a metric bounded, whatever values its labels are given."""

from collections.abc import Mapping
from typing import Final

from shared.telemetry.metrics.snapshot import Labels

OTHER: Final = "other"
"""What a label says of all the values that are not kept apart."""

VALUES_MAX: Final = 100
SERIES_MAX: Final = 2000
VALUE_CHARS_MAX: Final = 128


class Cardinality:
    """Which label values of which metric are kept apart. Not for several threads at once.

    Args:
        values_max: Most values of one label of one metric; further ones are `OTHER`.
        series_max: Most sets of labels of one metric; further ones are `OTHER` in every label.
    """

    def __init__(self, values_max: int = VALUES_MAX, series_max: int = SERIES_MAX) -> None:
        self.values_max = values_max
        self.series_max = series_max
        self._values: dict[tuple[str, str], set[str]] = {}
        self._series: dict[str, set[Labels]] = {}

    def bounded(self, metric: str, labels: Mapping[str, str]) -> Labels:
        """The labels in order, with `OTHER` in place of values that are one too many."""
        found: Labels = tuple(
            (key, self._value(metric, key, value)) for key, value in sorted(labels.items())
        )
        known = self._series.setdefault(metric, set())
        if found in known:
            return found
        if len(known) >= self.series_max:
            return tuple((key, OTHER) for key, _ in found)
        known.add(found)
        return found

    def _value(self, metric: str, key: str, value: str) -> str:
        known = self._values.setdefault((metric, key), set())
        value = value[:VALUE_CHARS_MAX]
        if value != OTHER and value not in known:
            if len(known) >= self.values_max:
                return OTHER
            known.add(value)
        return value
