from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigurationError
from shared.telemetry.config import TracingConfig, tracing_config

HOME = Path("home")
HIGH = "f" * 32
LOW = "f" * 16 + "0" * 15 + "1"


def read(**environ: str) -> TracingConfig:
    """The configuration in an environment of these variables alone."""
    return tracing_config("inventory", home=HOME, environ=environ)


def test_without_any_variable_traces_are_files() -> None:
    """The embedded default needs no collector and keeps every trace."""
    config = read()
    assert ("file", HOME / "traces") == (config.otlp_protocol, config.traces_dir)
    assert ("always_on", 1.0) == (config.sampling_strategy, config.sampling_ratio)
    assert ("inventory", True) == (config.service_name, config.enabled)


@pytest.mark.parametrize(
    "environ, protocol, endpoint",
    [
        ({"OPENTELEMETRY_OTLP_ENDPOINT": "http://c:4318"}, "http", "http://c:4318/v1/traces"),
        ({"OPENTELEMETRY_OTLP_ENDPOINT": "c:4318/"}, "http", "http://c:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c/base"}, "http", "http://c/base/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/exact"}, "http", "http://c/exact"),
        ({"OPENTELEMETRY_OTLP_PROTOCOL": "http"}, "http", "http://localhost:4318/v1/traces"),
        ({"OPENTELEMETRY_OTLP_PROTOCOL": "grpc"}, "grpc", "http://localhost:4317"),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT": "https://c:1"},
            "grpc",
            "https://c:1",
        ),
        (
            {"OPENTELEMETRY_OTLP_PROTOCOL": "file", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"},
            "file",
            "",
        ),
    ],
)
def test_where_spans_go(environ: Mapping[str, str], protocol: str, endpoint: str) -> None:
    """Endpoint and protocol follow the specification; a base URL gets the path of traces."""
    config = read(**environ)
    assert (protocol, endpoint) == (config.otlp_protocol, config.otlp_endpoint)


@pytest.mark.parametrize(
    "standard, own, field, expected",
    [
        ("OTEL_SERVICE_NAME=a", "OPENTELEMETRY_SERVICE_NAME=b", "service_name", "a"),
        (
            "OTEL_RESOURCE_ATTRIBUTES=service.name=a",
            "OPENTELEMETRY_SERVICE_NAME=b",
            "service_name",
            "a",
        ),
        (
            "OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=prod",
            "OPENTELEMETRY_ENVIRONMENT=test",
            "environment",
            "prod",
        ),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT=http://a:1",
            "OPENTELEMETRY_OTLP_ENDPOINT=http://b:2",
            "otlp_endpoint",
            "http://a:1/v1/traces",
        ),
        (
            "OTEL_EXPORTER_OTLP_PROTOCOL=grpc",
            "OPENTELEMETRY_OTLP_PROTOCOL=http",
            "otlp_protocol",
            "grpc",
        ),
        (
            "OTEL_TRACES_SAMPLER=always_off",
            "OPENTELEMETRY_SAMPLING_STRATEGY=ratio",
            "sampling_strategy",
            "always_off",
        ),
        ("OTEL_BSP_MAX_QUEUE_SIZE=1000", "OPENTELEMETRY_QUEUE_SIZE=900", "queue_spans_max", 1000),
        (
            "OTEL_BSP_SCHEDULE_DELAY=50",
            "OPENTELEMETRY_EXPORT_INTERVAL=70",
            "export_interval",
            timedelta(milliseconds=50),
        ),
        ("OTEL_PROPAGATORS=b3", "OPENTELEMETRY_PROPAGATORS=b3multi", "propagators", ("b3",)),
        (
            "OTEL_EXPORTER_OTLP_HEADERS=key=a%20b",
            "OPENTELEMETRY_OTLP_HEADERS=key=c",
            "otlp_headers",
            (("key", "a b"),),
        ),
        (
            "OTEL_RESOURCE_ATTRIBUTES=team=a",
            "OPENTELEMETRY_RESOURCE_ATTRIBUTES=team=b",
            "resource_attributes",
            (("team", "a"),),
        ),
        (
            "OTEL_EXPORTER_OTLP_TIMEOUT=3",
            "OPENTELEMETRY_EXPORT_TIMEOUT=7000",
            "export_timeout",
            timedelta(seconds=3),
        ),
    ],
)
def test_the_standard_variable_wins(standard: str, own: str, field: str, expected: object) -> None:
    """Each own variable works alone, and gives way to OpenTelemetry's."""
    ours = dict([own.split("=", 1)])
    both = ours | dict([standard.split("=", 1)])
    assert expected == getattr(read(**both), field)
    assert expected != getattr(read(**ours), field)
    assert getattr(read(), field) != getattr(read(**ours), field)


def test_a_ratio_alone_chooses_its_strategy() -> None:
    """OPENTELEMETRY_SAMPLING_RATIO=0.25 keeps a quarter without another variable."""
    config = read(OPENTELEMETRY_SAMPLING_RATIO="0.25")
    assert ("ratio", 0.25) == (config.sampling_strategy, config.sampling_ratio)


def test_a_target_alone_chooses_its_strategy() -> None:
    """OPENTELEMETRY_SAMPLING_TARGET=50 keeps 50 traces a second; processes share it by user and target."""
    config = read(OPENTELEMETRY_SAMPLING_TARGET="50")
    assert ("adaptive", 50.0) == (config.sampling_strategy, config.sampling_target)
    assert config.sampling_file == read(OPENTELEMETRY_SAMPLING_TARGET="50").sampling_file
    assert config.sampling_file != read(OPENTELEMETRY_SAMPLING_TARGET="60").sampling_file
    own = read(OPENTELEMETRY_SAMPLING_STRATEGY="adaptive", OPENTELEMETRY_SAMPLING_STATE="/run/s")
    assert (100.0, Path("/run/s")) == (own.sampling_target, own.sampling_file)


def test_a_ratio_beside_a_target_chooses_its_strategy() -> None:
    """Without a strategy the simpler one counts."""
    config = read(OPENTELEMETRY_SAMPLING_TARGET="50", OPENTELEMETRY_SAMPLING_RATIO="0.5")
    assert "ratio" == config.sampling_strategy


def test_a_standard_ratio() -> None:
    """OTEL_TRACES_SAMPLER with its argument is understood."""
    config = read(OTEL_TRACES_SAMPLER="parentbased_traceidratio", OTEL_TRACES_SAMPLER_ARG="0.5")
    assert ("ratio", 0.5) == (config.sampling_strategy, config.sampling_ratio)


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OPENTELEMETRY_DISABLED": "true"},
    ],
)
def test_traces_can_be_switched_off(environ: Mapping[str, str]) -> None:
    """Both standard switches leave nothing to sample, whatever the caller decided."""
    config = read(**environ)
    assert not config.enabled
    assert not config.should_sample(LOW, parent_sampled=True)


@pytest.mark.parametrize(
    "variable, value, allowed",
    [
        ("OPENTELEMETRY_OTLP_PROTOCOL", "thrift", "http/protobuf, http, grpc, file"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "grpc"),
        ("OPENTELEMETRY_OTLP_ENDPOINT", "ftp://x", "http://localhost:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://host:port", "http://localhost:4318"),
        ("OPENTELEMETRY_SAMPLING_RATIO", "1.5", "a number from 0 to 1"),
        ("OPENTELEMETRY_SAMPLING_RATIO", "half", "a number from 0 to 1"),
        ("OPENTELEMETRY_SAMPLING_STRATEGY", "sometimes", "always_on, always_off, ratio, adaptive"),
        ("OPENTELEMETRY_SAMPLING_TARGET", "0", "a number from 1 to"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote", "parentbased_traceidratio"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "a number from 1"),
        ("OTEL_BSP_SCHEDULE_DELAY", "nan", "a number from 1"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name", "key=value"),
        ("OTEL_SDK_DISABLED", "maybe", "true, false"),
        ("OTEL_PROPAGATORS", "tracecontext,jaeger", "tracecontext, b3, b3multi, baggage"),
        ("OPENTELEMETRY_PROPAGATORS", "none,b3", "none, or any of tracecontext"),
        ("OPENTELEMETRY_BAGGAGE_BYTES_MAX", "9000", "a number from 0 to 8192"),
    ],
)
def test_a_wrong_value_is_named(variable: str, value: str, allowed: str) -> None:
    """The error says which variable, what it is, and what it may be."""
    with pytest.raises(ConfigurationError) as caught:
        read(**{variable: value})
    assert f"{variable}='{value}'" in str(caught.value)
    assert allowed in str(caught.value)


def test_a_batch_larger_than_the_queue_is_refused() -> None:
    """It could never fill."""
    with pytest.raises(ConfigurationError, match="OTEL_BSP_MAX_EXPORT_BATCH_SIZE='600'"):
        read(OTEL_BSP_MAX_QUEUE_SIZE="500", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="600")
    assert 500 == read(OTEL_BSP_MAX_QUEUE_SIZE="500").batch_spans_max


def test_an_empty_variable_counts_as_missing() -> None:
    """As the specification says, and as compose files need."""
    assert read() == read(OTEL_EXPORTER_OTLP_ENDPOINT="", OTEL_TRACES_SAMPLER=" ")


@pytest.mark.parametrize("strategy", ["always_on", "always_off", "ratio"])
@pytest.mark.parametrize("parent_sampled", [True, False])
def test_the_callers_decision_stands(strategy: str, parent_sampled: bool) -> None:
    """A trace is recorded whole or not at all."""
    config = read(OPENTELEMETRY_SAMPLING_STRATEGY=strategy, OPENTELEMETRY_SAMPLING_RATIO="0.5")
    assert parent_sampled == config.should_sample(HIGH, parent_sampled)
    assert parent_sampled == config.should_sample(LOW, parent_sampled)


def test_a_ratio_decides_by_the_trace_id() -> None:
    """The same trace is decided alike everywhere; 0 keeps nothing and 1 all."""
    half = read(OPENTELEMETRY_SAMPLING_RATIO="0.5")
    assert (True, False) == (half.should_sample(LOW), half.should_sample(HIGH))
    assert not read(OPENTELEMETRY_SAMPLING_RATIO="0").should_sample(LOW)
    assert read(
        OPENTELEMETRY_SAMPLING_STRATEGY="ratio", OPENTELEMETRY_SAMPLING_RATIO="1"
    ).should_sample(HIGH)


@given(
    trace_id=st.integers(1, 2**128 - 1),
    ratio=st.floats(0, 1, allow_nan=False).map(lambda value: round(value, 6)),
)
def test_a_ratio_decides_as_the_sdk_does(trace_id: int, ratio: float) -> None:
    """A worker's SDK, asked about a trace without a parent, agrees with the orchestrator."""
    from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

    config = read(
        OPENTELEMETRY_SAMPLING_STRATEGY="ratio", OPENTELEMETRY_SAMPLING_RATIO=f"{ratio:f}"
    )
    decision = TraceIdRatioBased(ratio).should_sample(None, trace_id, "any").decision
    assert (decision is not Decision.DROP) == config.should_sample(f"{trace_id:032x}")


def test_propagators() -> None:
    """Any combination, in its order; "none" reads and writes nothing."""
    config = read(
        OTEL_PROPAGATORS="B3, tracecontext,baggage,b3", OPENTELEMETRY_BAGGAGE_KEYS="tenant, plan"
    )
    assert ("b3", "tracecontext", "baggage") == config.propagation.formats
    assert ("tenant", "plan") == config.propagation.baggage_keys
    assert () == read(OTEL_PROPAGATORS="none").propagators
    assert ("tracecontext",) == read().propagators


def test_headers_of_the_exporter_are_not_in_an_error() -> None:
    """They are keys, most of the time."""
    with pytest.raises(ConfigurationError) as caught:
        read(OTEL_EXPORTER_OTLP_HEADERS="s3cret")
    assert "OTEL_EXPORTER_OTLP_HEADERS='…'" in str(caught.value)


@pytest.mark.parametrize(
    "changes, url",
    [
        ({}, ""),
        ({"otlp_protocol": "http"}, "http://localhost:4318/v1/traces"),
        ({"otlp_protocol": "grpc"}, "http://localhost:4317"),
        (
            {"otlp_protocol": "http", "otlp_endpoint": "https://c:4318"},
            "https://c:4318/v1/traces",
        ),
        ({"otlp_protocol": "http", "otlp_endpoint": "https://c/x"}, "https://c/x"),
        ({"otlp_protocol": "grpc", "otlp_endpoint": "https://c:1"}, "https://c:1"),
    ],
)
def test_where_spans_go_from_code(changes: Mapping[str, str], url: str) -> None:
    """A configuration that is written down needs no more than a name."""
    assert url == TracingConfig(service_name="orders", **changes).export_url  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"service_name": ""}, "service_name='' is not allowed; expected a name"),
        ({"otlp_protocol": "thrift"}, "otlp_protocol='thrift' is not allowed; expected one of"),
        ({"otlp_protocol": "http", "otlp_endpoint": "c:4318"}, "otlp_endpoint='c:4318' is not"),
        ({"otlp_endpoint": "http://c:4318"}, "set otlp_protocol to 'http' or 'grpc'"),
        ({"sampling_strategy": "some"}, "always_on, always_off, ratio, adaptive"),
        ({"sampling_ratio": 1.5}, "sampling_ratio=1.5 is not allowed; expected a number from 0"),
        ({"sampling_ratio": "half"}, "sampling_ratio='half'"),
        ({"sampling_ratio": True}, "sampling_ratio=True"),
        ({"sampling_target": 0.5}, "sampling_target=0.5 is not allowed; expected a number from 1"),
        ({"queue_spans_max": 0}, "queue_spans_max=0"),
        (
            {"queue_spans_max": 10},
            "batch_spans_max=512 is not allowed; expected a number from 1 to",
        ),
        ({"export_interval": timedelta(0)}, "export_interval=datetime.timedelta(0)"),
        ({"shutdown_timeout": 2}, "shutdown_timeout=2 is not allowed; expected a timedelta"),
        ({"propagators": ("w3c",)}, "propagators=('w3c',) is not allowed; expected any of"),
        ({"baggage_bytes_max": -1}, "baggage_bytes_max=-1"),
        ({"file_bytes_max": 0}, "file_bytes_max=0"),
    ],
)
def test_a_wrong_field_is_named_when_the_configuration_is_built(
    changes: Mapping[str, Any], message: str
) -> None:
    """From code, too, the error says which field, what it is, and what it may be."""
    with pytest.raises(ConfigurationError) as caught:
        TracingConfig(**({"service_name": "orders"} | dict(changes)))
    assert message in str(caught.value)
    assert str(caught.value).startswith("TracingConfig.")
