"""The dashboard asks for what is exported, in queries that Prometheus understands."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.metrics import StoreGauges
from shared.clock import utc_now
from shared.telemetry.metrics import catalog
from shared.telemetry.metrics.openmetrics import label_name, prometheus_name
from shared.telemetry.metrics.registry import REGISTRY, Registry
from tests.deploy.tools import ALERTS, ROOT, program, run
from tests.metrics.conftest import registry

__all__ = ["registry"]

GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "sagas.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

SCRAPED = {"job", "instance", "le", "alertname", "alertstate"}
"""Labels that Prometheus adds."""

_METRIC = re.compile(r"\bsaga_[a-z_]+\b")
_SELECTED = re.compile(r"\b([a-z_]+)\s*(?:=~|!=|!~|=)")
_GROUPED = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")


@pytest.fixture
def exported(registry: Registry) -> dict[str, set[str]]:
    """Every name that a query may ask for, with its labels."""
    assert catalog.STARTED in REGISTRY.instruments()
    StoreGauges(utc_now).close()
    found: dict[str, set[str]] = {}
    for one in REGISTRY.instruments():
        name = prometheus_name(one.name, one.unit, one.kind)
        endings = ("_bucket", "_count", "_sum") if one.kind == "histogram" else ("",)
        for ending in endings:
            found[f"{name}{ending}"] = set(map(label_name, one.labels)) | SCRAPED
    return found


def queries() -> Iterator[tuple[str, str]]:
    """Every query of the dashboard and of the alerts, with where it stands."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for name, alert in ALERTS.items():
        yield name, alert["expr"]


def test_every_query_asks_for_what_is_exported(exported: dict[str, set[str]]) -> None:
    """Names and labels, of the dashboard and of the alerts."""
    for where, expression in queries():
        asked = set(_METRIC.findall(_without_labels(expression)))
        assert asked or where == "SagaTargetDown", where
        assert asked <= exported.keys(), (where, asked - exported.keys())
        known = set.union(SCRAPED, *(exported[name] for name in asked))
        labels = set(_SELECTED.findall(" ".join(re.findall(r"\{[^}]*\}", expression))))
        for group in _GROUPED.findall(expression):
            labels |= set(filter(None, map(str.strip, group.split(","))))
        assert labels <= known, (where, labels - known)


def _without_labels(expression: str) -> str:
    return _GROUPED.sub("", re.sub(r"\{[^}]*\}", "", expression))


def test_every_legend_names_labels_that_the_query_keeps() -> None:
    """A label that is summed away would be an empty word."""
    for panel in PANELS:
        for target in panel["targets"]:
            kept = " ".join(_GROUPED.findall(target["expr"]))
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert label in kept or "(" not in target["expr"], (panel["title"], label)


def test_what_the_store_holds_is_never_added_up_over_orchestrators() -> None:
    """Two orchestrators on one store show the same rows twice."""
    shared = ("saga_in_flight", "saga_outbox_", "saga_timers_", "saga_dead_letters")
    for where, expression in queries():
        if any(name in expression for name in shared) and where != "SagaOrchestratorHangs":
            found = re.findall(
                r"(\w+)(?: by \([^)]*\))? ?\((?:saga_(?:in_flight|outbox|timers|dead_letters))",
                expression,
            )
            assert set(found) == {"max"}, (where, found)


def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    """With Grafana's own variables filled in, by Prometheus's own parser."""
    rules = [
        {
            "record": f"dashboard:query_{number}",
            "expr": expression.replace("$__rate_interval", "1m").replace("$saga", ".*"),
        }
        for number, (_, expression) in enumerate(queries())
    ]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run(program("promtool", "prometheus"), "check", "rules", file)


def test_panels_have_places_of_their_own() -> None:
    """Unique ids and titles, no two panels at one place."""
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    places = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places))
    assert all(x < 24 for x, _ in places)


def test_the_data_sources_of_the_panels_are_provisioned() -> None:
    """By the same ids; and an exemplar leads to one of them."""
    sources = yaml.safe_load((GRAFANA / "provisioning/datasources/sagas.yml").read_text())
    uids = {one["uid"] for one in sources["datasources"]}
    used = {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]}
    links = sources["datasources"][0]["jsonData"]["exemplarTraceIdDestinations"]
    assert used | {one["datasourceUid"] for one in links} <= uids
    assert ["trace_id"] == [one["name"] for one in links]
    panels = [panel["title"] for panel in PANELS if panel["targets"][0].get("exemplar")]
    assert {"Saga duration", "Step duration", "Queue wait"} <= set(panels)
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/sagas.yml").read_text())
    assert "/var/lib/grafana/dashboards" == provider["providers"][0]["options"]["path"]


def test_the_runbook_names_panels_that_exist() -> None:
    """Where it sends people, there is something to see."""
    titles = {panel["title"] for panel in PANELS}
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    named = set(re.findall(r'"([A-Z][a-z ]+)"', runbook))
    assert named
    assert named <= titles
