"""Log records to a real OTLP receiver: what arrives, and that it never harms work."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
import structlog

from shared.errors import ConfigurationError
from shared.telemetry import log_export, logs
from shared.telemetry.config import tracing_config
from shared.telemetry.log_config import LogExportConfig, log_export_config
from shared.telemetry.outlet import OutletStats
from tests.servers.otlp import OtlpReceiver, ReceivedLog
from tests.telemetry.records import ROOT_ID, TRACE_ID
from tests.waiting import wait_until

Lines = Callable[[], list[dict[str, object]]]
StartExport = Callable[..., LogExportConfig]

HEADERS = {
    "saga_id": "0199-1",
    "saga_step": "charge-payment",
    "saga_attempt": 2,
    "traceparent": f"00-{TRACE_ID}-{ROOT_ID}-03",
}
QUICK = timedelta(milliseconds=20)

log = structlog.stdlib.get_logger("tests.export")


def read(environ: dict[str, str]) -> LogExportConfig | None:
    """The configuration that some variables make."""
    tracing = tracing_config("svc", home=Path("h"), environ=environ)
    return log_export_config(tracing, environ=environ)


@pytest.fixture
def start_export(lines: Lines) -> Iterator[StartExport]:
    """Export the lines of this process, which go to a file as well, until the test ends."""

    def start(receiver: OtlpReceiver, **changes: object) -> LogExportConfig:
        config = read({"OTEL_LOGS_EXPORTER": "otlp", **receiver.environment})
        assert config is not None
        config = msgspec.structs.replace(config, **{"interval": QUICK, **changes})
        logs.export(config)
        return config

    before = log_export.stats()
    yield start
    log_export.shutdown(timedelta(seconds=5))
    log_export._process._ended = OutletStats()
    logs._exporter = None
    assert before == OutletStats()


def arrived(receiver: OtlpReceiver, count: int) -> list[ReceivedLog]:
    """Wait for that many records."""
    wait_until(lambda: len(receiver.logs()) >= count)
    assert len(receiver.logs()) == count
    return receiver.logs()


def test_a_line_arrives_whole_over_either_protocol(
    otlp: OtlpReceiver, start_export: StartExport, lines: Lines
) -> None:
    """Text, level, time, context and fields, with the ids of trace and span, as in the file."""
    start_export(otlp)
    with logs.saga_context(HEADERS):
        log.warning("stock.low", left=2, ratio=0.5, last=True, nothing=None, path=Path("/x"))
    logging.getLogger("a.library").info("took %d of %s", 3, "five")
    ours, library = arrived(otlp, 2)
    (line, _) = lines()
    assert ("stock.low", "warn", "WARNING", TRACE_ID, ROOT_ID) == (
        ours.body,
        ours.severity,
        ours.severity_text,
        ours.trace_id,
        ours.span_id,
    )
    assert {
        "logger": "tests.export",
        "process": "MainProcess",
        "saga.id": "0199-1",
        "saga.step": "charge-payment",
        "saga.attempt": 2,
        "left": 2,
        "ratio": 0.5,
        "last": True,
        "path": '"/x"',
    } == dict(ours.attributes)
    assert "svc" == ours.resource["service.name"]
    assert str(os.getpid()) in str(ours.resource["service.instance.id"])
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ours.time_ns // 10**9))
    assert str(line["timestamp"]).startswith(stamp)
    assert ("took 3 of five", "info", "") == (library.body, library.severity, library.trace_id)


def test_an_exception_has_its_type_and_its_stack(
    otlp_http: OtlpReceiver, start_export: StartExport
) -> None:
    """Under the names of the conventions."""
    start_export(otlp_http)
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("failed")
    (record,) = arrived(otlp_http, 1)
    assert "ValueError" == record.attributes["exception.type"]
    assert str(record.attributes["exception.stacktrace"]).endswith("ValueError: why")


def test_no_value_costs_another_line(otlp_http: OtlpReceiver, start_export: StartExport) -> None:
    """Numbers that OTLP has no room for, lone surrogates, odd keys, ids that are none."""
    start_export(otlp_http)
    log.info("big", number=2**70, text="\udc80", odd={1: {2, 3}}, trace_id="mine", span_id=7)
    log.info("good")
    big, good = arrived(otlp_http, 2)
    assert (str(2**70), "?", "") == (
        big.attributes["number"],
        big.attributes["text"],
        big.trace_id,
    )
    assert "good" == good.body


def test_secrets_stay_here(otlp_http: OtlpReceiver, start_export: StartExport) -> None:
    """In fields, texts and tracebacks, as in the files."""
    start_export(otlp_http)
    try:
        raise ValueError("password=hunter2-in-error")
    except ValueError:
        log.exception("mail to jane.doe@example.com", password="hunter2-in-field")
    (record,) = arrived(otlp_http, 1)
    assert "hunter2" not in repr(record)
    assert "jane.doe" not in repr(record)


def test_a_forked_child_exports_by_itself(
    otlp_http: OtlpReceiver, start_export: StartExport
) -> None:
    """As the children of a prefork pool; each has its own queue and counters."""
    start_export(otlp_http)
    log.info("parent")
    arrived(otlp_http, 1)
    child = os.fork()
    if not child:
        log.info("child")
        ended = log_export.shutdown(timedelta(seconds=5)) and log_export.stats().exported == 1
        os._exit(0 if ended else 1)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    _, record = arrived(otlp_http, 2)
    assert ("child", True) == (
        record.body,
        str(child) in str(record.resource["service.instance.id"]),
    )


def test_lines_never_wait_for_a_collector_and_what_is_lost_is_counted(
    otlp_http: OtlpReceiver, start_export: StartExport, lines: Lines
) -> None:
    """It hangs: the queue fills up, the rest is dropped, and the end has a limit."""
    start_export(otlp_http, queue_max=50, batch_max=10)
    with otlp_http.misbehaving("slow"):
        begin = time.monotonic()
        for number in range(500):
            log.info("line", number=number)
        wait_until(lambda: otlp_http.requests == 1)
        assert time.monotonic() - begin < 5
        stats = log_export.stats()
        assert 500 == stats.queued + stats.dropped
        assert 440 <= stats.dropped <= 450
        logs.end_export()
        assert time.monotonic() - begin < 8
    assert 500 == log_export.stats().dropped
    assert 500 == len(lines())


def test_a_collector_that_refuses_is_said_once_and_feeds_nothing(
    otlp_http: OtlpReceiver, start_export: StartExport, lines: Lines
) -> None:
    """The exporter's own lines do not become records, not even at level DEBUG."""
    config = start_export(otlp_http)
    tracing = msgspec.structs.replace(config.tracing, export_timeout=timedelta(milliseconds=100))
    start_export(otlp_http, tracing=tracing)
    logging.getLogger().setLevel("DEBUG")
    with otlp_http.misbehaving("unavailable"):
        for number in range(3):
            log.info("lost", number=number)
            wait_until(lambda count=number + 1: log_export.stats().failed == count)  # type: ignore[misc]  # bound now
    log.info("found")
    (record,) = arrived(otlp_http, 1)
    assert "found" == record.body
    wait_until(lambda: "telemetry.export_recovered" in [line["event"] for line in lines()])
    events = [line["event"] for line in lines()]
    assert 1 == events.count("telemetry.export_failing")
    assert 1 == events.count("telemetry.export_recovered")
    recovered = lines()[events.index("telemetry.export_recovered")]
    assert ("log_records", 3) == (recovered["signal"], recovered["log_records_lost"])
    wait_until(lambda: log_export.stats().queued == 0)
    assert OutletStats(exported=1, failed=3) == logs.export_stats()


@pytest.mark.parametrize(
    "environ, protocol, url",
    [
        ({}, "http", "http://localhost:4318/v1/logs"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1/"}, "http", "http://c:1/v1/logs"),
        ({"OPENTELEMETRY_OTLP_ENDPOINT": "c:1/v1/traces"}, "http", "http://c:1/v1/logs"),
        ({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://c:1/x"}, "http", "http://c:1/x"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "grpc", "http://localhost:4317"),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http"},
            "http",
            "http://localhost:4318/v1/logs",
        ),
        ({"OPENTELEMETRY_OTLP_PROTOCOL": "file"}, "http", "http://localhost:4318/v1/logs"),
    ],
)
def test_the_environment_says_where(environ: dict[str, str], protocol: str, url: str) -> None:
    """As for traces, with the variables for logs in front."""
    config = read({"OTEL_LOGS_EXPORTER": "otlp", **environ})
    assert config is not None
    assert (protocol, url) == (config.protocol, config.url)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_LOGS_EXPORTER": "none", "OPENTELEMETRY_LOGS_EXPORTER": "otlp"},
        {"OTEL_LOGS_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"},
    ],
)
def test_it_is_an_option(environ: dict[str, str]) -> None:
    """Nothing is exported unless it is asked for."""
    assert read(environ) is None


def test_a_wrong_value_is_named() -> None:
    """With what is allowed."""
    with pytest.raises(ConfigurationError, match=r"OTEL_LOGS_EXPORTER='console'.*otlp, none"):
        read({"OTEL_LOGS_EXPORTER": "console"})
