"""How traces are sampled, propagated and exported: from code or from the environment, a value.

Each field has an ``OPENTELEMETRY_...`` variable; the standard ``OTEL_...`` variables win where both
are set. A wrong value is a `ConfigurationError` that names the variable or the field, the value and
what is allowed.
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Final, Literal, get_args
from urllib.parse import urlsplit

import msgspec

from shared.errors import ConfigurationError
from shared.telemetry import names
from shared.telemetry.environment import Environment, is_url
from shared.telemetry.propagation import BAGGAGE_BYTES_MAX_DEFAULT, Format, Propagation
from shared.telemetry.redaction import Redaction, redaction_from

Protocol = Literal["http", "grpc", "file"]
Strategy = Literal["always_on", "always_off", "ratio", "adaptive"]

SAMPLING_TARGET_MAX: Final = 1_000_000
DISTRIBUTION: Final = "celery-saga-orchestrator"
TRACES_FOLDER: Final = "traces"
BAGGAGE_BYTES_LIMIT: Final = 8192
"""What W3C asks everybody to take; longer headers may be cut on the way."""

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

_FORMATS: Final = get_args(Format)
_HOUR: Final = timedelta(hours=1)


class TracingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set about traces.

    Attributes:
        service_name: ``service.name`` of the resource.
        service_version: ``service.version`` of the resource.
        environment: ``deployment.environment.name`` of the resource; empty for none.
        resource_attributes: More attributes of the resource.
        enabled: Whether spans are recorded at all.
        otlp_protocol: ``http``, ``grpc``, or ``file`` for OTLP JSON files in `traces_dir`.
        otlp_endpoint: URL of the collector; empty for ``http://localhost:4318`` (``http``) or
            ``http://localhost:4317`` (``grpc``). With ``http`` a URL without a path gets
            ``/v1/traces``.
        otlp_headers: Sent with each export, for example an API key.
        traces_dir: Folder of the OTLP JSON files.
        sampling_strategy: What happens to a trace that begins here.
        sampling_ratio: Share of traces, 0.0 to 1.0, that the strategy ``ratio`` keeps.
        sampling_target: Traces a second that the strategy ``adaptive`` keeps at most, on this
            host, shared fairly between the names of sagas and of root spans.
        sampling_state: File in which the processes of this host count for ``adaptive``; by
            default in the folder for temporary files, one for each user and target.
        queue_spans_max: Most finished spans that wait for the exporter; more are dropped.
        batch_spans_max: Most spans in one export.
        export_interval: Longest that a finished span waits for its batch to fill.
        export_timeout: After which one export is given up.
        shutdown_timeout: Longest that the end of a process waits for its last spans.
        file_bytes_max: Size at which a trace file is put aside for a new one.
        propagators: Headers that are read and written, in the order in which they are looked for.
        baggage_keys: Keys of baggage that may pass, in and out, when `propagators` has
            ``baggage``; ``*`` for all.
        baggage_bytes_max: Most that a ``baggage`` header may have with what passes.
        redaction: What is kept out of spans and logs beside what always is.

    Raises:
        ConfigurationError: A field has a value that is not allowed; names it.
    """

    service_name: str
    traces_dir: Path = Path(".saga") / TRACES_FOLDER
    service_version: str = ""
    environment: str = ""
    resource_attributes: tuple[tuple[str, str], ...] = ()
    enabled: bool = True
    otlp_protocol: Protocol = "file"
    otlp_endpoint: str = ""
    otlp_headers: tuple[tuple[str, str], ...] = ()
    sampling_strategy: Strategy = "always_on"
    sampling_ratio: float = 1.0
    sampling_target: float = 100.0
    sampling_state: Path | None = None
    queue_spans_max: int = 8192
    batch_spans_max: int = 512
    export_interval: timedelta = timedelta(seconds=1)
    export_timeout: timedelta = timedelta(seconds=10)
    shutdown_timeout: timedelta = timedelta(seconds=2)
    file_bytes_max: int = 64 * 1024 * 1024
    propagators: tuple[Format, ...] = ("tracecontext",)
    baggage_keys: tuple[str, ...] = ()
    baggage_bytes_max: int = BAGGAGE_BYTES_MAX_DEFAULT
    redaction: Redaction = Redaction()

    def __post_init__(self) -> None:
        self._check("service_name", bool(self.service_name), "a name")
        self._check_choice("otlp_protocol", get_args(Protocol))
        self._check_choice("sampling_strategy", get_args(Strategy))
        endpoint = self.otlp_endpoint
        self._check(
            "otlp_endpoint",
            not endpoint or is_url(endpoint),
            "a URL such as http://localhost:4318, or nothing",
        )
        self._check(
            "otlp_endpoint",
            not endpoint or self.otlp_protocol != "file",
            "nothing with otlp_protocol='file'; set otlp_protocol to 'http' or 'grpc'",
        )
        self._check_number("sampling_ratio", 0, 1)
        self._check_number("sampling_target", 1, SAMPLING_TARGET_MAX)
        self._check_number("queue_spans_max", 1, 10_000_000)
        self._check_number("batch_spans_max", 1, self.queue_spans_max)
        self._check_number("file_bytes_max", 1, 2**50)
        self._check_number("baggage_bytes_max", 0, BAGGAGE_BYTES_LIMIT)
        for field in ("export_interval", "export_timeout", "shutdown_timeout"):
            value = getattr(self, field)
            good = isinstance(value, timedelta) and timedelta(0) < value <= _HOUR
            self._check(field, good, "a timedelta above zero, up to an hour")
        unknown = [one for one in self.propagators if one not in _FORMATS]
        self._check("propagators", not unknown, f"any of {', '.join(_FORMATS)}")

    def _check_choice(self, field: str, allowed: tuple[str, ...]) -> None:
        self._check(field, getattr(self, field) in allowed, f"one of {', '.join(allowed)}")

    def _check_number(self, field: str, low: float, high: float) -> None:
        value = getattr(self, field)
        good = isinstance(value, int | float) and not isinstance(value, bool)
        self._check(field, good and low <= value <= high, f"a number from {low:g} to {high:g}")

    def _check(self, field: str, good: bool, allowed: str) -> None:  # noqa: FBT001 - an assertion
        if not good:
            value: Any = getattr(self, field)
            raise ConfigurationError(
                f"TracingConfig.{field}={value!r} is not allowed; expected {allowed}."
            )

    @property
    def export_url(self) -> str:
        """Where spans are sent to; empty for ``file``."""
        if self.otlp_protocol == "file":
            return ""
        url = self.otlp_endpoint or _DEFAULT_ENDPOINTS[self.otlp_protocol]
        if self.otlp_protocol == "http" and not urlsplit(url).path:
            return url + _TRACES_PATH
        return url

    @property
    def propagation(self) -> Propagation:
        """What is read from headers and written into them."""
        return Propagation(
            formats=self.propagators,
            baggage_keys=self.baggage_keys,
            baggage_bytes_max=self.baggage_bytes_max,
        )

    def should_sample(self, trace_id: str, parent_sampled: bool | None = None) -> bool:  # noqa: FBT001 - as positional as in the SDK's samplers
        """Decide whether a trace is exported, by what the configuration says and nothing else.

        The same rule as the SDK's ``TraceIdRatioBased``, so that every process that has to decide
        about a trace decides alike: the lower 64 bits of the id against the ratio.

        Args:
            trace_id: 32 hexadecimal digits.
            parent_sampled: What the caller decided; None when there is no caller.

        Returns:
            True with ``adaptive``, about which `setup.should_sample` decides.
        """
        if not self.enabled:
            return False
        if parent_sampled is not None:
            return parent_sampled
        if self.sampling_strategy == "ratio":
            return int(trace_id[-_LOW_64_BITS:], 16) < round(self.sampling_ratio * 2**64)
        return self.sampling_strategy != "always_off"

    @property
    def sampling_file(self) -> Path:
        """Where the processes of this host count for ``adaptive``."""
        name = f"saga-sampling-{os.geteuid()}-{self.sampling_target:g}"
        return self.sampling_state or Path(gettempdir()) / name


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
    env = Environment(environ)
    resource = {
        **env.pairs("OPENTELEMETRY_RESOURCE_ATTRIBUTES"),
        **env.pairs("OTEL_RESOURCE_ATTRIBUTES"),
    }
    defaults = TracingConfig(service_name=service, traces_dir=home / TRACES_FOLDER)
    protocol, endpoint = _exporter(env)
    strategy, ratio = _sampling(env)
    state = env.text("OPENTELEMETRY_SAMPLING_STATE")
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
        enabled=not (env.flag("OTEL_SDK_DISABLED") or env.flag("OPENTELEMETRY_DISABLED"))
        and env.choice("OTEL_TRACES_EXPORTER", {"otlp": True, "none": False}, default=True),
        otlp_protocol=protocol,
        otlp_endpoint=endpoint,
        sampling_strategy=strategy,
        sampling_ratio=ratio,
        sampling_target=env.number(
            ("OPENTELEMETRY_SAMPLING_TARGET",),
            defaults.sampling_target,
            low=1,
            high=SAMPLING_TARGET_MAX,
        ),
        sampling_state=Path(state) if state else None,
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
        otlp_headers=_headers(env),
        propagators=_propagators(env),
        redaction=redaction_from(env),
        baggage_keys=env.words("OPENTELEMETRY_BAGGAGE_KEYS"),
        baggage_bytes_max=int(
            env.number(
                ("OPENTELEMETRY_BAGGAGE_BYTES_MAX",),
                defaults.baggage_bytes_max,
                low=0,
                high=BAGGAGE_BYTES_LIMIT,
            )
        ),
    )


def _exporter(env: Environment) -> tuple[Protocol, str]:
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
        # To the letter: the path of traces is only added to a base.
        return protocol, exact if urlsplit(exact).path else f"{exact}/"
    base = (base or _DEFAULT_ENDPOINTS[protocol]).rstrip("/")
    return protocol, base if base.endswith(_TRACES_PATH) else base + _TRACES_PATH


def _sampling(env: Environment) -> tuple[Strategy, float]:
    own: dict[str, Strategy] = {name: name for name in get_args(Strategy)}
    ratio = env.number(("OPENTELEMETRY_SAMPLING_RATIO",), 1.0, low=0, high=1)
    default: Strategy = "always_on"
    if env.text("OPENTELEMETRY_SAMPLING_RATIO"):
        default = "ratio"
    elif env.text("OPENTELEMETRY_SAMPLING_TARGET"):
        default = "adaptive"
    strategy = env.choice("OPENTELEMETRY_SAMPLING_STRATEGY", own, default=default)
    if env.text("OTEL_TRACES_SAMPLER"):
        strategy = env.choice("OTEL_TRACES_SAMPLER", _SAMPLERS, default=strategy)
        if strategy == "ratio":
            ratio = env.number(("OTEL_TRACES_SAMPLER_ARG",), ratio, low=0, high=1)
    return strategy, ratio


def _headers(env: Environment) -> tuple[tuple[str, str], ...]:
    standard = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
    variable = next(filter(env.text, (*standard, "OPENTELEMETRY_OTLP_HEADERS")), "")
    return tuple(env.pairs(variable, secret=True).items()) if variable else ()


def _propagators(env: Environment) -> tuple[Format, ...]:
    variables = ("OTEL_PROPAGATORS", "OPENTELEMETRY_PROPAGATORS")
    known: dict[str, Format] = {name: name for name in _FORMATS}
    words = [word.lower() for word in env.words(*variables)]
    if words == ["none"]:
        return ()
    if not words:
        return ("tracecontext",)
    if not all(word in known for word in words):
        raise env.refuse(variables, f"none, or any of {', '.join(_FORMATS)}, separated by commas")
    return tuple(dict.fromkeys(known[word] for word in words))


def _export_timeout(env: Environment, default: timedelta) -> timedelta:
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
