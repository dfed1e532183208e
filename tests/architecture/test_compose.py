"""compose.yaml fits the code: it cannot be run where the tests run, so it is read."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from shared.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
PARTICIPANTS = {name: service for name, service in OURS.items() if "-Q" in service["command"]}
EXAMPLES = {
    path.stem
    for path in (ROOT / "workers" / "examples").glob("*.py")
    if not path.stem.startswith("_")
}


def test_every_example_participant_has_a_service_of_its_own() -> None:
    """One service per participant, consuming the queue that bears its name."""
    queues = {
        name: service["command"][service["command"].index("-Q") + 1]
        for name, service in PARTICIPANTS.items()
    }
    assert {name: name for name in PARTICIPANTS} == queues
    assert queues.keys() <= EXAMPLES


@pytest.mark.parametrize("name", sorted(PARTICIPANTS))
def test_a_participant_is_a_celery_worker_of_the_workers_package(name: str) -> None:
    """The command is the one that the README shows."""
    assert PARTICIPANTS[name]["command"][:4] == ["celery", "-A", "workers", "worker"]


def test_the_orchestrator_is_a_celery_worker() -> None:
    """The command is the one that the README shows."""
    assert OURS["orchestrator"]["command"][:4] == ["celery", "-A", "orchestrator", "worker"]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_has_a_health_check(name: str) -> None:
    """What runs for ever says whether it works; what ends says that it has no check."""
    check = SERVICES[name]["healthcheck"]
    runs_for_ever = SERVICES[name]["restart"] == "unless-stopped"
    assert runs_for_ever == ("test" in check)
    assert runs_for_ever or check["disable"] is True


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_dependencies_exist_and_can_be_waited_for(name: str) -> None:
    """A dependency that must be healthy has a check; one that must complete ends."""
    for other, wanted in SERVICES[name].get("depends_on", {}).items():
        ends = "test" not in SERVICES[other]["healthcheck"]
        expected = "service_completed_successfully" if ends else "service_healthy"
        assert expected == wanted["condition"], other


@pytest.mark.parametrize("name", sorted(OURS))
def test_the_environment_is_one_that_the_settings_know(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every SAGA_ variable is a setting, its value is allowed, and its host is a service."""
    environment = OURS[name]["environment"]
    ours = {key: value for key, value in environment.items() if key.startswith("SAGA_")}
    for key, value in ours.items():
        monkeypatch.setenv(key, value)
    settings = Settings()
    known = {f"SAGA_{field.upper()}" for field in Settings.model_fields}
    assert ours.keys() <= known
    assert {"SAGA_BROKER_URL", "SAGA_DATABASE_URL", "SAGA_LEDGER_URL"} <= ours.keys()
    assert ours["SAGA_BROKER_URL"] == settings.broker_url
    hosts = [ours["SAGA_BROKER_URL"], ours["SAGA_DATABASE_URL"], ours["SAGA_LEDGER_URL"]]
    hosts.append(environment["OTEL_EXPORTER_OTLP_ENDPOINT"])
    assert {urlsplit(url).hostname for url in hosts} <= SERVICES.keys()


def test_only_loopback_ports_are_published() -> None:
    """A trial on a laptop opens nothing to its network."""
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


# Metrics --------------------------------------------------------------------------------------

DEPLOY = ROOT / "deploy"
SCRAPES: list[dict[str, Any]] = yaml.safe_load(
    (DEPLOY / "prometheus" / "prometheus.yml").read_text()
)["scrape_configs"]


def test_prometheus_scrapes_every_process_of_ours_where_it_listens() -> None:
    """Each of our services that runs for ever, at the port that it is told to open."""
    found = {
        name: config["port"]
        for scrape in SCRAPES
        for config in scrape["dns_sd_configs"]
        for name in config["names"]
    }
    wanted = {
        name: int(service["environment"]["SAGA_METRICS_PORT"])
        for name, service in OURS.items()
        if service["command"][0] == "celery"
    }
    assert wanted == found
    assert all(scrape["job_name"].startswith("saga-") for scrape in SCRAPES)
    hosts = {service["environment"]["SAGA_METRICS_HOST"] for service in OURS.values()}
    assert {"0.0.0.0"} == hosts


def test_alerts_and_data_sources_lead_to_services() -> None:
    """At a port that the service publishes, too, so that people can look."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (manager,) = config["alerting"]["alertmanagers"]
    urls = [f"http://{one['targets'][0]}" for one in manager["static_configs"]]
    sources = DEPLOY / "grafana" / "provisioning" / "datasources" / "sagas.yml"
    urls += [one["url"] for one in yaml.safe_load(sources.read_text())["datasources"]]
    assert 3 == len(urls)
    for parts in map(urlsplit, urls):
        ports = SERVICES[str(parts.hostname)]["ports"]
        assert f"127.0.0.1:{parts.port}:{parts.port}" in ports


@pytest.mark.parametrize("name", ["prometheus", "alertmanager", "grafana"])
def test_what_is_mounted_exists(name: str) -> None:
    """A folder that is missing would be made, empty, by the container engine."""
    sources = [volume.split(":")[0] for volume in SERVICES[name]["volumes"]]
    ours = [source for source in sources if source.startswith("./")]
    assert ours
    assert all(any((ROOT / source).iterdir()) for source in ours)
    assert set(sources) - set(ours) <= COMPOSE["volumes"].keys()
