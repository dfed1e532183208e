"""Where metrics go: read from the environment once, then a value."""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Final, Literal

import msgspec

from shared.errors import ConfigurationError
from shared.settings import Settings
from shared.telemetry import names
from shared.telemetry.config import TracingConfig
from shared.telemetry.environment import Environment
from shared.telemetry.metrics.cardinality import VALUES_MAX

MetricsProtocol = Literal["http", "grpc"]

PROMETHEUS_PORT: Final = 9464
"""OpenTelemetry's default, where ``OTEL_METRICS_EXPORTER=prometheus`` names none."""

_METRICS_PATH: Final = "/v1/metrics"
_EXPORTERS: Final = frozenset({"otlp", "prometheus", "none"})
_EXPORTER_VARIABLES: Final = ("OTEL_METRICS_EXPORTER", "OPENTELEMETRY_METRICS_EXPORTER")
_PROTOCOL_VARIABLES: Final = (
    "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OPENTELEMETRY_OTLP_PROTOCOL",
)
_PROTOCOLS: Final[Mapping[str, MetricsProtocol]] = {
    "http/protobuf": "http",
    "http": "http",
    "grpc": "grpc",
}
_ENDPOINTS: Final[Mapping[MetricsProtocol, str]] = {
    "http": "http://localhost:4318",
    "grpc": "http://localhost:4317",
}


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set about metrics.

    Attributes:
        resource: Attributes of the service.
        prometheus_port: Port for Prometheus, 0 for a free one; None for no endpoint.
        prometheus_host: Address that it listens on.
        otlp_endpoint: URL of the collector, for ``http`` with its path; empty for no export.
        otlp_protocol: ``http`` or ``grpc``.
        otlp_headers: Sent with each export: those of the traces.
        export_interval: How often metrics are sent to the collector.
        export_timeout: After which one export is given up.
        shutdown_timeout: Longest that the end of a process waits for its last export.
        label_values_max: Most values of one label of one metric that are kept apart; the others
            become ``other``.
    """

    resource: dict[str, str]
    prometheus_port: int | None = None
    prometheus_host: str = "127.0.0.1"
    otlp_endpoint: str = ""
    otlp_protocol: MetricsProtocol = "http"
    otlp_headers: tuple[tuple[str, str], ...] = ()
    export_interval: timedelta = timedelta(seconds=60)
    export_timeout: timedelta = timedelta(seconds=10)
    shutdown_timeout: timedelta = timedelta(seconds=2)
    label_values_max: int = VALUES_MAX

    @property
    def on(self) -> bool:
        """Whether anything is recorded."""
        return self.prometheus_port is not None or bool(self.otlp_endpoint)


def metrics_config(
    tracing: TracingConfig, settings: Settings, *, environ: Mapping[str, str] = os.environ
) -> MetricsConfig:
    """Read the configuration: metrics are off unless a port or an exporter is set.

    Args:
        tracing: What is known about the service already.
        settings: ``SAGA_METRICS_PORT`` and ``SAGA_METRICS_HOST``.
        environ: Variables of OpenTelemetry, which win.

    Raises:
        ConfigurationError: A variable has a value that is not allowed.
    """
    env = Environment(environ)
    defaults = MetricsConfig(resource=_resource(tracing))
    wanted = _exporters(env)
    if env.flag("OTEL_SDK_DISABLED") or "none" in wanted:
        return defaults
    protocol, endpoint = _collector(env) if "otlp" in wanted else ("http", "")
    return msgspec.structs.replace(
        defaults,
        prometheus_port=_port(env, settings, wanted),
        prometheus_host=env.text("OTEL_EXPORTER_PROMETHEUS_HOST") or settings.metrics_host,
        otlp_endpoint=endpoint,
        otlp_protocol=protocol,
        otlp_headers=tracing.otlp_headers,
        export_interval=env.milliseconds(
            ("OTEL_METRIC_EXPORT_INTERVAL", "OPENTELEMETRY_METRICS_EXPORT_INTERVAL"),
            defaults.export_interval,
        ),
        export_timeout=env.milliseconds(
            ("OTEL_METRIC_EXPORT_TIMEOUT", "OPENTELEMETRY_METRICS_EXPORT_TIMEOUT"),
            defaults.export_timeout,
        ),
        shutdown_timeout=tracing.shutdown_timeout,
        label_values_max=settings.metrics_label_values_max,
    )


def _exporters(env: Environment) -> frozenset[str]:
    variable = next(filter(env.text, _EXPORTER_VARIABLES), "")
    wanted = frozenset(filter(None, map(str.strip, env.text(variable).lower().split(","))))
    if not wanted <= _EXPORTERS:
        raise ConfigurationError(
            f"{variable}={env.text(variable)!r} is not allowed; "
            f"expected one or more of {', '.join(sorted(_EXPORTERS))}, with commas between."
        )
    return wanted


def _port(env: Environment, settings: Settings, wanted: frozenset[str]) -> int | None:
    variables = ("OTEL_EXPORTER_PROMETHEUS_PORT",)
    standard = env.number(variables, PROMETHEUS_PORT, low=0, high=65535)
    if "prometheus" in wanted and (settings.metrics_port is None or env.text(*variables)):
        return int(standard)
    return settings.metrics_port


def _collector(env: Environment) -> tuple[MetricsProtocol, str]:
    exact = env.url("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
    base = env.url("OTEL_EXPORTER_OTLP_ENDPOINT") or env.url("OPENTELEMETRY_OTLP_ENDPOINT")
    http: MetricsProtocol = "http"
    # Traces know a protocol `file` too; metrics then go to the collector by http.
    protocol = env.first_choice(_PROTOCOL_VARIABLES, {**_PROTOCOLS, "file": http}, default=http)
    if protocol == "grpc" or exact:
        return protocol, exact or base or _ENDPOINTS[protocol]
    base = (base or _ENDPOINTS[protocol]).rstrip("/")
    return protocol, base if base.endswith(_METRICS_PATH) else base + _METRICS_PATH


def _resource(tracing: TracingConfig) -> dict[str, str]:
    found = {
        **dict(tracing.resource_attributes),
        names.SERVICE_NAME: tracing.service_name,
        names.SERVICE_VERSION: tracing.service_version,
        names.DEPLOYMENT_ENVIRONMENT: tracing.environment,
    }
    return {key: value for key, value in found.items() if value}
