"""What a process has recorded, as a value: it is written down, read back, merged and exported."""

from collections.abc import Iterable
from typing import Literal

import msgspec

Kind = Literal["counter", "updown", "gauge", "histogram"]

Rule = Literal["sum", "max"]
"""How the gauges of several processes of one worker become one: added up, or the largest."""

Labels = tuple[tuple[str, str], ...]
"""Names and values, in order of name."""


class Exemplar(msgspec.Struct, frozen=True, array_like=True):
    """A value and the trace that it belongs to.

    Attributes:
        at: Seconds since 1970.
    """

    value: float
    trace_id: str
    span_id: str
    at: float


class Series(msgspec.Struct, frozen=True, array_like=True):
    """One set of labels.

    Attributes:
        value: The number; of a histogram the sum of its values.
        buckets: Of a histogram: how many values were in each bucket, the last without a bound.
        exemplars: Of a histogram: the newest of each bucket.
    """

    labels: Labels
    value: float
    buckets: list[int] = []
    exemplars: dict[int, Exemplar] = {}


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """A metric with all of its series; the fields are those of an instrument."""

    name: str
    kind: Kind
    unit: str = ""
    description: str = ""
    rule: Rule = "sum"
    bounds: list[float] = []
    series: list[Series] = []


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All metrics of a process.

    Attributes:
        started_at: Since when its counters count, in seconds since 1970.
    """

    started_at: float
    families: list[Family] = []


def lasting(snapshot: Snapshot) -> Snapshot:
    """What remains of a process that has ended: counts do, gauges do not."""
    families = [one for one in snapshot.families if one.kind in {"counter", "histogram"}]
    return msgspec.structs.replace(snapshot, families=families)


def merged(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Several processes as one.

    Counters, up-down counters and histograms are added up, gauges follow their rule, and of the
    exemplars of a bucket the newest stays. Where two processes disagree about what a metric is,
    the first one is right and the other is left out.
    """
    given = list(snapshots)
    families: dict[str, Family] = {}
    series: dict[str, dict[Labels, Series]] = {}
    for snapshot in given:
        for family in snapshot.families:
            first = families.setdefault(family.name, family)
            if (first.kind, first.bounds) != (family.kind, family.bounds):
                continue
            known = series.setdefault(family.name, {})
            for one in family.series:
                before = known.get(one.labels)
                known[one.labels] = one if before is None else _both(first, before, one)
    return Snapshot(
        started_at=min((one.started_at for one in given), default=0.0),
        families=[
            msgspec.structs.replace(
                family, series=[one for _, one in sorted(series[name].items())]
            )
            for name, family in sorted(families.items())
        ],
    )


def _both(family: Family, one: Series, other: Series) -> Series:
    if family.kind == "gauge" and family.rule == "max":
        return max(one, other, key=lambda series: series.value)
    exemplars = dict(one.exemplars)
    for bucket, exemplar in other.exemplars.items():
        known = exemplars.get(bucket)
        if known is None or known.at <= exemplar.at:
            exemplars[bucket] = exemplar
    return Series(
        labels=one.labels,
        value=one.value + other.value,
        buckets=[a + b for a, b in zip(one.buckets, other.buckets, strict=True)],
        exemplars=exemplars,
    )
