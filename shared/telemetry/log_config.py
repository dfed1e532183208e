"""Whether and where log records are exported to; files and standard output do not depend on it."""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Final, Literal

import msgspec

from shared.telemetry.config import TracingConfig
from shared.telemetry.environment import Environment

LogProtocol = Literal["http", "grpc"]

_PATH: Final = "/v1/logs"
_TRACES_PATH: Final = "/v1/traces"
_DEFAULT_ENDPOINTS: Final[Mapping[LogProtocol, str]] = {
    "http": "http://localhost:4318",
    "grpc": "http://localhost:4317",
}
_PROTOCOLS: Final[Mapping[str, LogProtocol]] = {
    "http/protobuf": "http",
    "http": "http",
    "grpc": "grpc",
}


class LogExportConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set about the export of log records.

    Attributes:
        tracing: The resource and the headers are those of traces.
        protocol: OTLP over ``http`` or ``grpc``.
        url: Of the collector, for ``http`` with its path.
        queue_max: Most records that wait for the exporter; more are dropped.
        batch_max: Most records in one export.
        interval: Longest that a record waits for its batch to fill.
    """

    tracing: TracingConfig
    protocol: LogProtocol = "http"
    url: str = _DEFAULT_ENDPOINTS["http"] + _PATH
    queue_max: int = 8192
    batch_max: int = 512
    interval: timedelta = timedelta(seconds=1)


def log_export_config(
    tracing: TracingConfig, *, environ: Mapping[str, str] = os.environ
) -> LogExportConfig | None:
    """Read the configuration.

    Args:
        tracing: That of traces.
        environ: Variables.

    Returns:
        None unless ``OTEL_LOGS_EXPORTER=otlp``.

    Raises:
        ConfigurationError: A variable has a value that is not allowed.
    """
    env = Environment(environ)
    own = env.choice("OPENTELEMETRY_LOGS_EXPORTER", {"otlp": True, "none": False}, default=False)
    wanted = env.choice("OTEL_LOGS_EXPORTER", {"otlp": True, "none": False}, default=own)
    if not wanted or env.flag("OTEL_SDK_DISABLED"):
        return None
    protocol = _protocol(env)
    defaults = LogExportConfig(tracing=tracing)
    queue_max = env.number(("OTEL_BLRP_MAX_QUEUE_SIZE",), defaults.queue_max, low=1)
    return LogExportConfig(
        tracing=tracing,
        protocol=protocol,
        url=_url(env, protocol),
        queue_max=int(queue_max),
        batch_max=int(
            env.number(
                ("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE",),
                min(defaults.batch_max, queue_max),
                low=1,
                high=queue_max,
            )
        ),
        interval=env.milliseconds(("OTEL_BLRP_SCHEDULE_DELAY",), defaults.interval),
    )


def _protocol(env: Environment) -> LogProtocol:
    default: LogProtocol = "http"
    exact = env.choice("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", _PROTOCOLS, default=default)
    if env.text("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL"):
        return exact
    # ``file`` is for traces alone: log lines are in files anyway.
    return env.first_choice(
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "OPENTELEMETRY_OTLP_PROTOCOL"),
        {**_PROTOCOLS, "file": default},
        default=default,
    )


def _url(env: Environment, protocol: LogProtocol) -> str:
    exact = env.url("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT")
    if exact:
        return exact
    base = env.url("OTEL_EXPORTER_OTLP_ENDPOINT") or env.url("OPENTELEMETRY_OTLP_ENDPOINT")
    base = (base or _DEFAULT_ENDPOINTS[protocol]).rstrip("/").removesuffix(_TRACES_PATH)
    return base if protocol == "grpc" else base + _PATH
