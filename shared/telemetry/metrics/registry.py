"""The instruments of this process, and what they have recorded.

They take the place of the SDK's aggregation. The SDK's takes about 10 µs for a measurement, on a
path where a whole step costs a few hundred; it knows one process, while a prefork worker is many;
and it forgets its exemplars with each reading. Ours takes about 1 µs, gives a `Snapshot` that can
be written down, read back and merged, and is exported over OTLP by the SDK's own exporter.

    measurement  →  Instrument  →  Registry.snapshot()  →  merged over processes  →  OpenMetrics
                                                       →  each for itself         →  OTLP
"""

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import structlog

from shared import names as wire
from shared.clock import unix_time
from shared.telemetry import names
from shared.telemetry.metrics.cardinality import VALUES_MAX, Cardinality
from shared.telemetry.metrics.snapshot import Family, Kind, Labels, Rule, Series, Snapshot

FORBIDDEN: Final = frozenset(
    {
        *(
            names.SAGA_ID,
            wire.SAGA_ID,
            names.MESSAGING_MESSAGE_ID,
            names.MESSAGING_CONVERSATION_ID,
        ),
        *(names.LOG_TRACE_ID, names.LOG_SPAN_ID, names.LOG_TASK_ID),
    }
)
"""Labels that would make a series for each saga; they are left out, and the log says so."""

Attributes = Mapping[str, Any]

_log = structlog.stdlib.get_logger(__name__)


class Registry:
    """Keeps instruments, those of imported modules too, from before anything is switched on.

    Off until `start`: until then a measurement costs a look at one flag.
    """

    def __init__(self) -> None:
        self.on = False
        self.lock = threading.Lock()
        self.started_at = unix_time()
        self.cardinality = Cardinality()
        self._instruments: dict[str, Instrument] = {}
        self._complained: set[str] = set()

    def start(self, label_values_max: int = VALUES_MAX) -> None:
        """Record from now on; at most that many values of a label of a metric are kept apart."""
        self.forget()
        self.cardinality = Cardinality(label_values_max)
        self.on = True

    def stop(self) -> None:
        """Record no more, and forget what was recorded."""
        self.on = False
        self.forget()

    def forget(self) -> None:
        """Begin at zero. In a forked child: what it inherited is its parent's, a held lock too."""
        self.lock = threading.Lock()
        self.started_at = unix_time()
        self.cardinality = Cardinality(self.cardinality.values_max)
        for instrument in self.instruments():
            instrument.forget()

    def keep(self, instrument: "Kept") -> "Kept":
        """Keep an instrument, or give the one that has its name already.

        Raises:
            ValueError: That one is of another kind.
        """
        known = self._instruments.setdefault(instrument.name, instrument)
        if not isinstance(known, type(instrument)):
            raise ValueError(  # noqa: TRY004 - the name is what is wrong
                f"The metric {known.name!r} exists already, as a {type(known).__name__}; "
                f"a {type(instrument).__name__} needs another name."
            )
        return known

    def known(self, kind: "type[Kept]", name: str) -> "Kept | None":
        """The instrument of that kind and name, if there is one."""
        found = self._instruments.get(name)
        return found if type(found) is kind else None

    def instruments(self) -> "list[Instrument]":
        """All of them, by name."""
        return [instrument for _, instrument in sorted(self._instruments.items())]

    def snapshot(self) -> Snapshot:
        """What was recorded so far, and what there is to observe now."""
        families = []
        for instrument in self.instruments():
            try:
                series = instrument.series()
            except Exception as error:  # noqa: BLE001 - one callback must not hide all other metrics
                self.complain(instrument.name, f"its callback failed: {error!r}")
                continue
            if series:
                families.append(instrument.family(series))
        return Snapshot(started_at=self.started_at, families=families)

    def complain(self, metric: str, problem: str) -> None:
        """Say once for each metric what is wrong with it."""
        if metric not in self._complained:
            self._complained.add(metric)
            _log.warning("metrics.problem", metric=metric, problem=problem)


class Instrument:
    """What all kinds have in common.

    Args:
        registry: Where it is kept.
        name: As OpenTelemetry names it, for example ``orders.created``.
        unit: UCUM: ``s``, ``By``, ``{order}``.
        description: One sentence.
        labels: The labels that it is recorded with, for the documentation.
        rule: How the gauges of several processes of one worker become one.
    """

    kind: Kind

    def __init__(
        self,
        registry: Registry,
        name: str,
        *,
        unit: str = "",
        description: str = "",
        labels: Sequence[str] = (),
        rule: Rule = "sum",
    ) -> None:
        self.registry = registry
        self.name = name
        self.unit = unit
        self.description = description
        self.labels = tuple(labels)
        self.rule: Rule = rule
        self.bounds: tuple[float, ...] = ()
        self._found: dict[tuple[tuple[str, Any], ...], Labels] = {}

    def series(self) -> list[Series]:
        """What there is, for each set of labels."""
        raise NotImplementedError

    def forget(self) -> None:
        """Begin at zero."""
        self._found = {}

    def family(self, series: list[Series]) -> Family:
        """The metric, with these series."""
        return Family(
            name=self.name,
            kind=self.kind,
            unit=self.unit,
            description=self.description,
            rule=self.rule,
            bounds=list(self.bounds),
            series=series,
        )

    def labels_of(self, attributes: Attributes | None) -> Labels:
        """The labels of a measurement: text, in order, their number bounded.

        The registry's lock must be held.
        """
        if not attributes:
            return ()
        try:
            given = tuple(attributes.items())
            found = self._found.get(given)
        except TypeError:  # a list, which the API allows and a dictionary does not
            given = tuple((key, str(value)) for key, value in attributes.items())
            found = None
        return found or self._bounded(given)

    def _bounded(self, given: tuple[tuple[str, Any], ...]) -> Labels:
        refused = sorted(key for key, _ in given if key in FORBIDDEN)
        if refused:
            self.registry.complain(self.name, f"{', '.join(refused)} cannot be a label")
        wanted = {key: _text(value) for key, value in given if key not in FORBIDDEN}
        found = self.registry.cardinality.bounded(self.name, wanted)
        if not refused and found == tuple(sorted(wanted.items())):
            # Their number is bounded; that of everything that anybody gives is not.
            self._found[given] = found
        return found


Kept = TypeVar("Kept", bound=Instrument)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


REGISTRY: Final = Registry()
"""The one of this process; a forked child begins anew."""

os.register_at_fork(after_in_child=REGISTRY.forget)
