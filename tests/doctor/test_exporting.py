"""The exporter is tried with a real span, against real receivers and real faults."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.doctor import exporting
from orchestrator.doctor.findings import Code, Severity
from shared.embedded import free_port
from shared.telemetry.config import TracingConfig, tracing_config
from shared.telemetry.log_config import log_export_config
from tests.doctor.conftest import bad
from tests.servers.otlp import OtlpReceiver

WRONG, ADVICE = Severity.WRONG, Severity.ADVICE


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "EXPORT_WITHIN", timedelta(seconds=0.5))


def config(receiver: OtlpReceiver, **changes: object) -> TracingConfig:
    """The configuration that exports there."""
    found = tracing_config("doctor", home=Path(), environ=receiver.environment)
    return msgspec.structs.replace(found, **changes)


def test_a_span_is_sent_and_its_trace_is_named(otlp: OtlpReceiver) -> None:
    """Over either protocol; one can look for it in the collector."""
    (found,) = exporting.check_exporter(config(otlp))
    (span,) = otlp.spans()
    assert (span.name, span.trace_id) == ("saga.doctor", found.details["trace_id"])
    assert found.severity is Severity.OK


def test_a_protocol_on_the_wrong_port_is_recognised(
    otlp_http: OtlpReceiver, otlp_grpc: OtlpReceiver
) -> None:
    """By what answers there, whatever its number is; it says what to set."""
    for receiver, protocol, instead in (
        (otlp_http, "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"),
        (otlp_grpc, "http", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"),
    ):
        found = list(exporting.check_exporter(config(receiver, otlp_protocol=protocol)))
        assert bad(found) == [(WRONG, Code.EXPORTER_PROTOCOL)]
        assert instead in found[0].advice
        assert f"speaks OTLP over {receiver.protocol}" in found[0].message


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_collector_that_is_down_is_named(protocol: str) -> None:
    """With its host and port."""
    port = free_port()
    down = TracingConfig(
        service_name="s",
        otlp_protocol=protocol,  # type: ignore[arg-type]  # one of the two
        otlp_endpoint=f"http://127.0.0.1:{port}",
    )
    found = list(exporting.check_exporter(down))
    assert bad(found) == [(WRONG, Code.EXPORTER_UNREACHABLE)]
    assert f"Nobody answers at 127.0.0.1:{port} (Connection refused)" in found[0].message


def test_a_collector_that_refuses_says_why(otlp_http: OtlpReceiver) -> None:
    """Its status is in the finding: not found here, and not available."""
    with otlp_http.misbehaving("unavailable"):
        found = list(exporting.check_exporter(config(otlp_http)))
    assert bad(found) == [(WRONG, Code.EXPORTER_REFUSES)]
    assert "503" in found[0].message
    elsewhere = config(otlp_http, otlp_endpoint=f"{otlp_http.url}/elsewhere")
    found = list(exporting.check_exporter(elsewhere))
    assert bad(found) == [(WRONG, Code.EXPORTER_REFUSES)]
    assert "404" in found[0].message


def test_the_collector_of_log_records_is_tried_too(
    otlp_http: OtlpReceiver, otlp_grpc: OtlpReceiver
) -> None:
    """Only where log records are exported at all."""

    def found(receiver: OtlpReceiver, **more: str) -> list[Any]:
        environ = {"OTEL_LOGS_EXPORTER": "otlp", **receiver.environment, **more}
        tracing = tracing_config("doctor", home=Path(), environ=environ)
        return bad(exporting.check_log_export(log_export_config(tracing, environ=environ)))

    assert found(otlp_http) == found(otlp_grpc) == []
    assert found(otlp_http, OTEL_LOGS_EXPORTER="none") == []
    assert found(otlp_http, OTEL_EXPORTER_OTLP_LOGS_PROTOCOL="grpc") == [
        (WRONG, Code.EXPORTER_PROTOCOL)
    ]
    nowhere = f"{otlp_http.url}/elsewhere"
    assert found(otlp_http, OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=nowhere) == [
        (WRONG, Code.EXPORTER_REFUSES)
    ]
    down = f"http://127.0.0.1:{free_port()}"
    assert found(otlp_http, OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=down) == [
        (WRONG, Code.EXPORTER_UNREACHABLE)
    ]


def test_a_slow_collector_is_advice(
    otlp_http: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes spans, later than is good."""
    monkeypatch.setattr(exporting, "SLOW_AFTER", timedelta(0))
    assert bad(exporting.check_exporter(config(otlp_http))) == [(ADVICE, Code.EXPORTER_SLOW)]


def test_files_are_tried_too(tmp_path: Path) -> None:
    """A folder that cannot be made."""
    good = TracingConfig(service_name="s", traces_dir=tmp_path / "traces")
    assert bad(exporting.check_exporter(good)) == []
    assert "saga.doctor" in next((tmp_path / "traces").iterdir()).read_text()
    (tmp_path / "file").touch()
    broken = TracingConfig(service_name="s", traces_dir=tmp_path / "file" / "traces")
    found = list(exporting.check_exporter(broken))
    assert bad(found) == [(WRONG, Code.EXPORTER_REFUSES)]
    assert "Not a directory" in found[0].message


@pytest.mark.parametrize(
    "changes, code",
    [
        ({"sampling_strategy": "always_off"}, Code.SAMPLER),
        ({"sampling_strategy": "ratio", "sampling_ratio": 0.0}, Code.SAMPLER),
        ({"queue_spans_max": 600}, Code.SPAN_QUEUE),
        ({"export_timeout": timedelta(minutes=2)}, Code.SPAN_QUEUE),
    ],
)
def test_settings_that_cost_spans_are_advice(changes: dict[str, object], code: Code) -> None:
    """They work as they say, and may not be what is meant."""
    odd = msgspec.structs.replace(TracingConfig(service_name="s"), **changes)
    assert bad(exporting.check_sampling(odd)) == [(ADVICE, code)]
    assert bad(exporting.check_sampling(TracingConfig(service_name="s"))) == []


def test_tracing_that_is_off_is_said() -> None:
    """And nothing else about it."""
    off = TracingConfig(service_name="s", enabled=False)
    assert bad(exporting.check_exporter(off)) == [(ADVICE, Code.TRACING_OFF)]
    assert list(exporting.check_sampling(off)) == []


def test_the_logs_tell_of_lost_spans() -> None:
    """A process that still fails, one that has recovered, and neither."""
    failing = {
        "event": "telemetry.export_failing",
        "service": "inventory",
        "pid": 7,
        "reason": "connection refused",
        "timestamp": "2026-01-01T12:00:00.000000Z",
    }
    recovered = {
        "event": "telemetry.export_recovered",
        "service": "inventory",
        "pid": 7,
        "spans_lost": 12,
    }
    (found,) = exporting.check_lost([recovered, failing])
    assert "Exports of inventory failed" in found.message
    assert "connection refused" in found.message
    assert bad([found]) == [(ADVICE, Code.EXPORTS_FAILED)]
    (found,) = exporting.check_lost([failing, recovered])
    assert "have recovered; lost: 12 spans" in found.message
    assert list(exporting.check_lost([])) == []
