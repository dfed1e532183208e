"""docs/metrics.md lists exactly the metrics that there are."""

from pathlib import Path

import pytest

from orchestrator.metrics import StoreGauges
from shared.clock import utc_now
from shared.telemetry import http_exchange, names
from shared.telemetry.metrics import catalog
from shared.telemetry.metrics.openmetrics import label_name, prometheus_name
from shared.telemetry.metrics.registry import REGISTRY, Instrument, Registry

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
HEADER = "| metric | type | unit | labels | meaning |"


@pytest.fixture
def ours(registry: Registry) -> list[Instrument]:
    """Every metric of the product, those of an orchestrator's store included."""
    assert catalog.STARTED.name in named_metrics()
    assert http_exchange._duration.name in named_metrics()
    StoreGauges(utc_now).close()
    found = [one for one in REGISTRY.instruments() if one.name in named_metrics()]
    assert named_metrics() == {one.name for one in found}
    return found


def named_metrics() -> set[str]:
    """The names in the vocabulary."""
    return {value for key, value in vars(names).items() if key.startswith("METRIC_")}


def line(instrument: Instrument) -> str:
    """Its line of the table."""
    name = prometheus_name(instrument.name, instrument.unit, instrument.kind)
    kind = "gauge" if instrument.kind == "updown" else instrument.kind
    labels = ", ".join(f"`{label_name(label)}`" for label in instrument.labels)
    unit = instrument.unit.strip("{}") or "–"
    return f"| `{name}` | {kind} | {unit} | {labels or '–'} | {instrument.description} |"


def test_the_document_lists_every_metric(ours: list[Instrument]) -> None:
    """Name, type, unit, labels and meaning; nothing is missing and nothing is made up."""
    written = [
        one
        for one in DOCUMENT.read_text().splitlines()
        if one.startswith(("| `saga_", "| `http_"))
    ]
    assert sorted(map(line, ours)) == sorted(written)
    assert HEADER in DOCUMENT.read_text()


def test_every_metric_says_what_it_is(ours: list[Instrument]) -> None:
    """One sentence; and no label is an id."""
    for one in ours:
        assert one.description.endswith("."), one.name
        assert not {"saga.id", "trace_id", "task_id"} & set(one.labels)
