from pathlib import Path

import pytest

from shared.errors import ConfigurationError
from shared.settings import Settings
from shared.telemetry.config import tracing_config
from shared.telemetry.metrics.config import MetricsConfig, metrics_config


def config(port: int | None = None, **environ: str) -> MetricsConfig:
    """What these variables mean."""
    return config_of(environ, port)


def config_of(environ: dict[str, str], port: int | None = None) -> MetricsConfig:
    """What these variables mean."""
    tracing = tracing_config("inventory", home=Path(), environ=environ)
    return metrics_config(tracing, Settings(metrics_port=port), environ=environ)


def test_metrics_are_off_by_default() -> None:
    """Nobody asked for a port."""
    assert not config().on
    assert not config(OTEL_EXPORTER_OTLP_ENDPOINT="http://c:4318").on


def test_a_port_switches_prometheus_on() -> None:
    """On the loopback interface alone."""
    found = config(9100)
    assert (True, 9100, "127.0.0.1", "") == (
        found.on,
        found.prometheus_port,
        found.prometheus_host,
        found.otlp_endpoint,
    )


@pytest.mark.parametrize(
    "port, environ, expected",
    [
        (None, {"OTEL_METRICS_EXPORTER": "prometheus"}, 9464),
        (9100, {"OTEL_METRICS_EXPORTER": "prometheus"}, 9100),
        (None, {"OPENTELEMETRY_METRICS_EXPORTER": "prometheus"}, 9464),
        (9100, {"OTEL_METRICS_EXPORTER": "Prometheus,otlp"}, 9100),
        (9100, {"OTEL_METRICS_EXPORTER": "none"}, None),
        (9100, {"OTEL_SDK_DISABLED": "true"}, None),
        (
            9100,
            {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": "9200"},
            9200,
        ),
        (
            None,
            {"OTEL_METRICS_EXPORTER": "none", "OPENTELEMETRY_METRICS_EXPORTER": "prometheus"},
            None,
        ),
    ],
)
def test_opentelemetrys_variables_win(
    port: int | None, environ: dict[str, str], expected: int | None
) -> None:
    """The standard ones over OPENTELEMETRY_ ones, and both over the setting."""
    assert expected == config_of(environ, port).prometheus_port


@pytest.mark.parametrize(
    "environ, protocol, endpoint",
    [
        ({}, "http", "http://localhost:4318/v1/metrics"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1/"}, "http", "http://c:1/v1/metrics"),
        ({"OPENTELEMETRY_OTLP_ENDPOINT": "http://c:1"}, "http", "http://c:1/v1/metrics"),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:1/x"}, "http", "http://c:1/x"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "grpc", "http://localhost:4317"),
        ({"OPENTELEMETRY_OTLP_PROTOCOL": "file"}, "http", "http://localhost:4318/v1/metrics"),
        (
            {
                "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            },
            "http",
            "http://localhost:4318/v1/metrics",
        ),
    ],
)
def test_the_collector_is_that_of_the_traces_unless_it_has_its_own(
    environ: dict[str, str], protocol: str, endpoint: str
) -> None:
    """The standard variables, and their OPENTELEMETRY_ siblings."""
    found = config_of({"OTEL_METRICS_EXPORTER": "otlp", **environ})
    assert (protocol, endpoint, None) == (
        found.otlp_protocol,
        found.otlp_endpoint,
        found.prometheus_port,
    )


@pytest.mark.parametrize(
    "environ, message",
    [
        (
            {"OTEL_METRICS_EXPORTER": "statsd"},
            "OTEL_METRICS_EXPORTER='statsd' is not allowed; expected one or more of none, otlp,",
        ),
        (
            {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": "70000"},
            "OTEL_EXPORTER_PROMETHEUS_PORT='70000' is not allowed; expected a number from 0 to 65535",
        ),
        (
            {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "udp"},
            "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL='udp' is not allowed",
        ),
        (
            {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_METRIC_EXPORT_INTERVAL": "often"},
            "OTEL_METRIC_EXPORT_INTERVAL='often' is not allowed",
        ),
    ],
)
def test_a_wrong_value_is_named(environ: dict[str, str], message: str) -> None:
    """Variable, value, and what is allowed."""
    with pytest.raises(ConfigurationError) as raised:
        config_of(environ)
    assert message in raised.value.message


def test_the_service_is_that_of_the_traces() -> None:
    """Name, version and environment, and nothing that is empty."""
    found = config(
        9100,
        OTEL_SERVICE_NAME="orders",
        OTEL_RESOURCE_ATTRIBUTES="team=blue,deployment.environment.name=test",
    ).resource
    assert {"service.name": "orders", "deployment.environment.name": "test", "team": "blue"} == {
        key: value for key, value in found.items() if key != "service.version"
    }
