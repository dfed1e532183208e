"""A real Prometheus scrapes a real orchestrator and real workers, and its rules fire."""

import json
import urllib.parse
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.core.state import Status
from shared.embedded import free_port
from tests.deploy.tools import PROMETHEUS, RULES, program
from tests.faults.conftest import make_stack
from tests.faults.stack import MakeStack
from tests.metrics.read import Scrape, scrape
from tests.servers.process import kill_tree, spawn, wait_until_ready
from tests.telemetry.conftest import StartTracing, start_tracing
from tests.waiting import wait_until

__all__ = ["make_stack", "start_tracing"]

EVERY = "250ms"
SEEN_WITHIN_SECONDS = 40.0
STUCK = {"card": "4000000000000003", "region": "moon"}


class Prometheus:
    """A Prometheus of our own with the rules of `deploy/`, only faster.

    Args:
        folder: Its data and its configuration.
        targets: Addresses to scrape, by job.
    """

    def __init__(self, folder: Path, targets: dict[str, str]) -> None:
        folder.mkdir()
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        (folder / "rules.yml").write_text(yaml.safe_dump(_at_once(RULES)))
        given = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        config = {
            "global": dict.fromkeys(given["global"], EVERY),
            "rule_files": ["rules.yml"],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [target]}]}
                for job, target in targets.items()
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        log = folder / "log"
        self.process = spawn(
            [
                program("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--enable-feature=exemplar-storage",
            ],
            log=log,
        )
        wait_until_ready(self.process, self._ready, log=log)

    def query(self, expression: str) -> float:
        """The sum of what an expression gives; 0 for nothing."""
        found = self._api("query", query=f"sum({expression})")["result"]
        return float(found[0]["value"][1]) if found else 0.0

    def shows(self, expression: str, expected: float) -> bool:
        """Whether an expression has that value."""
        return self.query(expression) == expected

    def exemplars(self, expression: str) -> set[str]:
        """Trace ids of the exemplars of the last hour."""
        found = self._api("query_exemplars", query=expression, start="-1", end="9999999999")
        return {one["labels"]["trace_id"] for series in found for one in series["exemplars"]}

    def firing(self) -> dict[str, dict[str, str]]:
        """Labels of the alerts that fire, by name."""
        return {
            one["labels"]["alertname"]: one["labels"]
            for one in self._api("alerts")["alerts"]
            if one["state"] == "firing"
        }

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _api(self, what: str, **arguments: str) -> Any:
        query = urllib.parse.urlencode(arguments)
        with urllib.request.urlopen(f"{self._url}/api/v1/{what}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]


def _at_once(rules: dict[str, Any]) -> dict[str, Any]:
    """The same rules without their patience: made from the file, so that it is what is tested."""
    return {
        "groups": [
            {
                **group,
                "interval": EVERY,
                "rules": [{**rule, "for": "0s"} for rule in group["rules"]],
            }
            for group in rules["groups"]
        ]
    }


@pytest.fixture
def ports() -> dict[str, int]:
    """A port for each process that is scraped."""
    return {name: free_port() for name in ("orchestrator", "participants")}


def test_prometheus_reads_the_metrics_and_its_rules_fire(
    make_stack: MakeStack,
    start_tracing: StartTracing,
    ports: dict[str, int],
    tmp_path: Path,
) -> None:
    """Sagas of every kind are counted, a stuck one and a missing orchestrator are alerts."""
    program("prometheus")
    # A process that is killed leaves the folder of its children behind.
    stack = make_stack(OTEL_SDK_DISABLED="", OTEL_TRACES_EXPORTER="none", TMPDIR=str(tmp_path))
    for name, port in ports.items():
        getattr(stack, name)(SAGA_METRICS_PORT=str(port))
    start_tracing()
    done = stack.client.start("place-order", {"order_id": "o-1"}).row
    stuck = stack.client.start("place-order", {"order_id": "o-2", **STUCK}).row
    traces = {one.state.trace.trace_id for one in (done, stuck)}
    server = Prometheus(
        tmp_path / "prometheus",
        {f"saga-{name}": f"127.0.0.1:{port}" for name, port in ports.items()},
    )
    try:
        wait_until(lambda: "SagaStuck" in server.firing(), timeout=SEEN_WITHIN_SECONDS)
        assert {"saga_name": "place-order", "severity": "critical"}.items() <= server.firing()[
            "SagaStuck"
        ].items()
        ended = [stack.client.row(one.saga_id).state.status for one in (done, stuck)]
        assert [Status.COMPLETED, Status.STUCK] == ended
        assert not {"SagaNoOrchestrator", "SagaDependencyDown"} & server.firing().keys()
        for expression, expected in {
            "saga_started_total": 2,
            "saga_completed_total": 1,
            "saga_stuck_total": 1,
            'saga_step_attempts_total{saga_outcome="succeeded"}': 7,
            'saga_in_flight{saga_status="stuck"}': 1,
            "saga_outbox_size": 0,
            'saga_participant_duration_seconds_count{saga_task="payment.charge"}': 2,
            "saga_duration_seconds_count": 1,
            "saga_coordinator_up": 1,
        }.items():
            wait_until(partial(server.shows, expression, expected), what=expression)
        shown = scrape(f"http://127.0.0.1:{ports['orchestrator']}/metrics")
        assert_exemplars(server, shown, traces)

        kill_tree(stack.processes.pop("orchestrator"))
        wait_until(lambda: "SagaNoOrchestrator" in server.firing(), timeout=SEEN_WITHIN_SECONDS)
    finally:
        kill_tree(server.process)


def assert_exemplars(server: Prometheus, shown: Scrape, traces: set[str]) -> None:
    """What the endpoint shows as exemplars, Prometheus has kept: the traces of these sagas."""
    name = "saga_step_duration_seconds_bucket"
    assert {one.labels["trace_id"] for one in shown.exemplars(name)} == traces
    wait_until(lambda: server.exemplars(name) == traces, what="the exemplars")
