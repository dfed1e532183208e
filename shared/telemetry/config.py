"""How traces are sampled and exported: read from the environment once, then a value.

Each field has an ``OPENTELEMETRY_...`` variable; the standard ``OTEL_...`` variables win where both
are set. A wrong value is a `ConfigurationError` that names the variable, the value and what is
allowed.
"""

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal, TypeVar, get_args
from urllib.parse import unquote, urlsplit

import msgspec

from shared.errors import ConfigurationError
from shared.telemetry import names

Protocol = Literal["http", "grpc", "file"]
Strategy = Literal["always_on", "always_off", "ratio"]

DISTRIBUTION: Final = "celery-saga-orchestrator"
TRACES_FOLDER: Final = "traces"
_TRACES_PATH: Final = "/v1/traces"
_DEFAULT_ENDPOINTS: Final[Mapping[Protocol, str]] = {
    "http": "http://localhost:4318",
    "grpc": "http://localhost:4317",
}
_PROTOCOLS: Final[Mapping[str, Protocol]] = {
    "http/protobuf": "http",
    "http": "http",
    "grpc": "grpc",
    "file": "file",
}
_SAMPLERS: Final[Mapping[str, Strategy]] = {
    "always_on": "always_on",
    "always_off": "always_off",
    "traceidratio": "ratio",
    "parentbased_always_on": "always_on",
    "parentbased_always_off": "always_off",
    "parentbased_traceidratio": "ratio",
}
_LOW_64_BITS: Final = 16
"""Hexadecimal digits of the half of a trace id that decides a ratio."""

T = TypeVar("T")


class TracingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set about traces.

    Attributes:
        service_name: ``service.name`` of the resource.
        service_version: ``service.version`` of the resource.
        environment: ``deployment.environment.name`` of the resource; empty for none.
        resource_attributes: More attributes of the resource.
        enabled: Whether spans are recorded at all.
        otlp_protocol: ``http``, ``grpc``, or ``file`` for OTLP JSON files in `traces_dir`.
        otlp_endpoint: URL of the collector, for ``http`` with its path; unused for ``file``.
        traces_dir: Folder of the OTLP JSON files.
        sampling_strategy: What happens to a saga whose caller has no trace.
        sampling_ratio: Share of traces, 0.0 to 1.0, that the strategy ``ratio`` keeps.
        queue_spans_max: Most finished spans that wait for the exporter; more are dropped.
        batch_spans_max: Most spans in one export.
        export_interval: Longest that a finished span waits for its batch to fill.
        export_timeout: After which one export is given up.
        shutdown_timeout: Longest that the end of a process waits for its last spans.
        file_bytes_max: Size at which a trace file is put aside for a new one.
    """

    service_name: str
    traces_dir: Path
    service_version: str = ""
    environment: str = ""
    resource_attributes: tuple[tuple[str, str], ...] = ()
    enabled: bool = True
    otlp_protocol: Protocol = "file"
    otlp_endpoint: str = ""
    sampling_strategy: Strategy = "always_on"
    sampling_ratio: float = 1.0
    queue_spans_max: int = 8192
    batch_spans_max: int = 512
    export_interval: timedelta = timedelta(seconds=1)
    export_timeout: timedelta = timedelta(seconds=10)
    shutdown_timeout: timedelta = timedelta(seconds=2)
    file_bytes_max: int = 64 * 1024 * 1024

    def should_sample(self, trace_id: str, parent_sampled: bool | None = None) -> bool:  # noqa: FBT001 - as positional as in the SDK's samplers
        """Decide once, at the start of a saga, whether its trace is exported.

        The same rule as the SDK's ``TraceIdRatioBased``, so that every process that has to decide
        about a trace decides alike: the lower 64 bits of the id against the ratio.

        Args:
            trace_id: 32 hexadecimal digits.
            parent_sampled: What the caller decided; None when there is no caller.
        """
        if not self.enabled:
            return False
        if parent_sampled is not None:
            return parent_sampled
        if self.sampling_strategy == "ratio":
            return int(trace_id[-_LOW_64_BITS:], 16) < round(self.sampling_ratio * 2**64)
        return self.sampling_strategy == "always_on"


def tracing_config(
    service: str, *, home: Path, environ: Mapping[str, str] = os.environ
) -> TracingConfig:
    """Read the configuration.

    Args:
        service: ``service.name``, unless the environment has one.
        home: Folder of the embedded defaults; without any endpoint, traces are files in it.
        environ: Variables.

    Raises:
        ConfigurationError: A variable has a value that is not allowed.
    """
    env = _Environment(environ)
    resource = env.pairs("OTEL_RESOURCE_ATTRIBUTES")
    defaults = TracingConfig(service_name=service, traces_dir=home / TRACES_FOLDER)
    protocol, endpoint = _exporter(env)
    strategy, ratio = _sampling(env)
    queue_spans_max = env.number(
        ("OTEL_BSP_MAX_QUEUE_SIZE", "OPENTELEMETRY_QUEUE_SIZE"), defaults.queue_spans_max, low=1
    )
    return msgspec.structs.replace(
        defaults,
        service_name=env.text("OTEL_SERVICE_NAME")
        or resource.pop(names.SERVICE_NAME, "")
        or env.text("OPENTELEMETRY_SERVICE_NAME")
        or service,
        service_version=resource.pop(names.SERVICE_VERSION, "")
        or env.text("OPENTELEMETRY_SERVICE_VERSION")
        or _own_version(),
        environment=resource.pop(names.DEPLOYMENT_ENVIRONMENT, "")
        or env.text("OPENTELEMETRY_ENVIRONMENT"),
        resource_attributes=tuple(resource.items()),
        enabled=not env.flag("OTEL_SDK_DISABLED")
        and env.choice("OTEL_TRACES_EXPORTER", {"otlp": True, "none": False}, default=True),
        otlp_protocol=protocol,
        otlp_endpoint=endpoint,
        sampling_strategy=strategy,
        sampling_ratio=ratio,
        queue_spans_max=int(queue_spans_max),
        batch_spans_max=int(
            env.number(
                ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OPENTELEMETRY_BATCH_SIZE"),
                min(defaults.batch_spans_max, queue_spans_max),
                low=1,
                high=queue_spans_max,
            )
        ),
        export_interval=env.milliseconds(
            ("OTEL_BSP_SCHEDULE_DELAY", "OPENTELEMETRY_EXPORT_INTERVAL"), defaults.export_interval
        ),
        export_timeout=_export_timeout(env, defaults.export_timeout),
        shutdown_timeout=env.milliseconds(
            ("OPENTELEMETRY_SHUTDOWN_TIMEOUT",), defaults.shutdown_timeout
        ),
    )


def _exporter(env: "_Environment") -> tuple[Protocol, str]:
    exact = env.url("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    base = env.url("OTEL_EXPORTER_OTLP_ENDPOINT") or env.url("OPENTELEMETRY_OTLP_ENDPOINT")
    file: Protocol = "file"
    http: Protocol = "http"
    protocol = env.first_choice(
        (
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "OPENTELEMETRY_OTLP_PROTOCOL",
        ),
        _PROTOCOLS,
        default=http if exact or base else file,
    )
    if protocol == "file":
        return protocol, ""
    if protocol == "grpc":
        return protocol, exact or base or _DEFAULT_ENDPOINTS[protocol]
    if exact:
        return protocol, exact
    base = (base or _DEFAULT_ENDPOINTS[protocol]).rstrip("/")
    return protocol, base if base.endswith(_TRACES_PATH) else base + _TRACES_PATH


def _sampling(env: "_Environment") -> tuple[Strategy, float]:
    own: dict[str, Strategy] = {name: name for name in get_args(Strategy)}
    ratio = env.number(("OPENTELEMETRY_SAMPLING_RATIO",), 1.0, low=0, high=1)
    default: Strategy = "ratio" if env.text("OPENTELEMETRY_SAMPLING_RATIO") else "always_on"
    strategy = env.choice("OPENTELEMETRY_SAMPLING_STRATEGY", own, default=default)
    if env.text("OTEL_TRACES_SAMPLER"):
        strategy = env.choice("OTEL_TRACES_SAMPLER", _SAMPLERS, default=strategy)
        if strategy == "ratio":
            ratio = env.number(("OTEL_TRACES_SAMPLER_ARG",), ratio, low=0, high=1)
    return strategy, ratio


def _export_timeout(env: "_Environment", default: timedelta) -> timedelta:
    # Seconds, as the Python SDK reads these variables; the specification says milliseconds.
    seconds = env.number(
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"), 0, low=0
    )
    if seconds:
        return timedelta(seconds=seconds)
    return env.milliseconds(("OPENTELEMETRY_EXPORT_TIMEOUT",), default)


@cache
def _own_version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return ""


class _Environment:
    """Typed look-ups; an empty variable counts as one that is not set, as OpenTelemetry says."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, variable: str) -> str:
        return self._environ.get(variable, "").strip()

    def flag(self, variable: str) -> bool:
        return self.choice(variable, {"true": True, "false": False}, default=False)

    def choice(self, variable: str, allowed: Mapping[str, T], *, default: T) -> T:
        value = self.text(variable)
        if not value:
            return default
        if value.lower() not in allowed:
            raise _wrong(variable, value, f"one of {', '.join(allowed)}")
        return allowed[value.lower()]

    def first_choice(
        self, variables: tuple[str, ...], allowed: Mapping[str, T], *, default: T
    ) -> T:
        variable = next(filter(self.text, variables), "")
        return self.choice(variable, allowed, default=default) if variable else default

    def number(
        self,
        variables: tuple[str, ...],
        default: float,
        *,
        low: float,
        high: float = float("inf"),
    ) -> float:
        variable = next(filter(self.text, variables), "")
        if not variable:
            return default
        try:
            value = float(self.text(variable))
        except ValueError:
            value = float("nan")
        if not low <= value <= high:  # also false for what is not a number
            limit = f"a number from {low:g}" + (f" to {high:g}" if high < float("inf") else "")
            raise _wrong(variable, self.text(variable), limit)
        return value

    def milliseconds(self, variables: tuple[str, ...], default: timedelta) -> timedelta:
        value = self.number(variables, default / timedelta(milliseconds=1), low=1, high=3_600_000)
        return timedelta(milliseconds=value)

    def url(self, variable: str) -> str:
        value = self.text(variable)
        if not value:
            return ""
        candidate = value if "://" in value else f"http://{value}"
        if not _is_url(candidate):
            raise _wrong(variable, value, "a URL such as http://localhost:4318")
        return candidate

    def pairs(self, variable: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for part in filter(None, map(str.strip, self.text(variable).split(","))):
            key, equals, value = part.partition("=")
            if not equals or not re.fullmatch(r"[^\s=]+", key.strip()):
                raise _wrong(variable, self.text(variable), "key=value,key=value")
            found[key.strip()] = unquote(value.strip())
        return found


def _is_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        _ = parts.port  # raises for a port that is not a number
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)


def _wrong(variable: str, value: str, allowed: str) -> ConfigurationError:
    return ConfigurationError(f"{variable}={value!r} is not allowed; expected {allowed}.")
