import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from time import monotonic

import msgspec
import pytest
from opentelemetry import trace
from typing_extensions import override

from shared.telemetry import current, propagation, setup
from shared.telemetry.outlet import OutletStats
from shared.telemetry.redaction import Redaction
from shared.telemetry.spans import Attributes, ExportedSpan, SpanError
from tests.servers.otlp import OtlpReceiver, Protocol, ReceivedLink
from tests.servers.spantree import assert_one_tree
from tests.telemetry.conftest import StartTracing
from tests.telemetry.records import (
    OTHER_TRACE_ID,
    ROOT_ID,
    START,
    STEP_ID,
    TRACE_ID,
    record,
    rich_record,
)
from tests.waiting import wait_until

QUICK = timedelta(milliseconds=20)
Lines = Callable[[], list[dict[str, object]]]


def test_records_arrive_with_their_ids_and_times(
    otlp: OtlpReceiver, start_tracing: StartTracing
) -> None:
    """Nothing is changed on the way to a collector, over either protocol."""
    start_tracing(otlp)
    setup.emit([rich_record(), record()])
    assert setup.flush()
    step, root = otlp.spans()
    start_ns = int(START.timestamp()) * 1_000_000_000 + 123_457_000
    assert (TRACE_ID, ROOT_ID, "") == (root.trace_id, root.span_id, root.parent_id)
    assert (start_ns, start_ns + 2_000_001_000) == (root.start_ns, root.end_ns)
    assert ("internal", "unset", False) == (root.kind, root.status, root.parent_is_remote)
    assert (STEP_ID, ROOT_ID, "producer") == (step.span_id, step.parent_id, step.kind)
    assert ("error", "no money", ("exception",)) == (step.status, step.status_message, step.events)
    assert {
        "text": "é\n",
        "yes": True,
        "count": 3,
        "share": 0.5,
        "list": ["a", "b"],
        "error.type": "CardDeclined",
    } == step.attributes
    assert (
        ReceivedLink(trace_id=OTHER_TRACE_ID, span_id=ROOT_ID, attributes={"saga.step": "x"}),
    ) == step.links
    assert ("vendor=1,other=2", True) == (step.tracestate, step.parent_is_remote)
    assert root is assert_one_tree(otlp.spans(), TRACE_ID)


def test_the_resource_says_who_it_is(otlp_http: OtlpReceiver, start_tracing: StartTracing) -> None:
    """Service, version, environment and instance are on every span."""
    start_tracing(
        otlp_http,
        service_version="1.2.3",
        environment="staging",
        resource_attributes=(("team", "orders"),),
    )
    setup.emit([record()])
    assert setup.flush()
    resource = otlp_http.spans()[0].resource
    assert ("test-service", "1.2.3", "staging", "orders") == (
        resource["service.name"],
        resource["service.version"],
        resource["deployment.environment.name"],
        resource["team"],
    )
    assert str(resource["service.instance.id"]).startswith(f"{os.getpid()}@")


def test_by_default_spans_become_a_file_of_this_process(
    tmp_path: Path, start_tracing: StartTracing
) -> None:
    """Without a collector, traces are OTLP JSON under the home folder."""
    start_tracing()
    setup.emit([record()])
    assert setup.shutdown()
    file = tmp_path / "traces" / f"test-service-{os.getpid()}.jsonl"
    request = msgspec.json.decode(file.read_bytes())
    span = request["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert (TRACE_ID, ROOT_ID) == (span["traceId"], span["spanId"])


def test_spans_of_the_api_and_records_go_the_same_way(
    otlp_http: OtlpReceiver, start_tracing: StartTracing
) -> None:
    """Code that knows only the OpenTelemetry API is exported, too, also when it asked early."""
    tracer = trace.get_tracer("early")

    @tracer.start_as_current_span("decorated")
    def decorated() -> str:
        return trace.format_span_id(trace.get_current_span().get_span_context().span_id)

    start_tracing(otlp_http)
    span_id = decorated()
    with trace.get_tracer("late").start_as_current_span("late"):
        pass
    assert setup.flush()
    assert {"decorated", "late"} == {span.name for span in otlp_http.spans()}
    assert span_id in {span.span_id for span in otlp_http.spans()}


def test_an_early_tracer_survives_a_restart(
    otlp_http: OtlpReceiver, start_tracing: StartTracing
) -> None:
    """A tracer kept by a library records for whatever runs at the moment."""
    start_tracing(otlp_http)
    tracer = trace.get_tracer("kept")
    tracer.start_span("first").end()
    assert setup.shutdown()
    tracer.start_span("lost").end()
    start_tracing(otlp_http)
    tracer.start_span("second").end()
    assert setup.flush()
    assert ["first", "second"] == [span.name for span in otlp_http.spans()]


@pytest.mark.parametrize("strategy, expected", [("always_on", 1), ("always_off", 0)])
def test_the_strategy_decides_about_spans_without_a_parent(
    otlp_http: OtlpReceiver, start_tracing: StartTracing, strategy: str, expected: int
) -> None:
    """A worker's task that belongs to no saga follows the configuration."""
    start_tracing(otlp_http, sampling_strategy=strategy)
    trace.get_tracer("t").start_span("alone").end()
    assert setup.flush()
    assert expected == len(otlp_http.spans())


def test_what_is_not_sampled_is_not_exported(
    otlp_http: OtlpReceiver, start_tracing: StartTracing
) -> None:
    """Records say themselves whether they are sampled."""
    start_tracing(otlp_http)
    setup.emit([record(sampled=False, span_id=STEP_ID), record()])
    assert setup.flush()
    assert [ROOT_ID] == [span.span_id for span in otlp_http.spans()]


def test_switched_off_nothing_is_recorded(
    otlp_http: OtlpReceiver, start_tracing: StartTracing
) -> None:
    """With telemetry disabled, every call is a no-op."""
    start_tracing(otlp_http, enabled=False)
    setup.emit([record()])
    with trace.get_tracer("t").start_as_current_span("x") as span:
        assert not span.is_recording()
    assert setup.flush()
    assert setup.shutdown()
    assert 0 == otlp_http.requests


def test_before_a_start_nothing_happens() -> None:
    """A library that emits without a start harms nobody."""
    before = setup.stats()
    setup.emit([record()])
    assert not setup.should_sample(TRACE_ID)
    assert before == setup.stats()


def test_subscribers_hear_what_has_arrived(
    otlp: OtlpReceiver, start_tracing: StartTracing
) -> None:
    """Only given records, only after the receiver has them, and until they unsubscribe."""
    heard: list[ExportedSpan] = []
    unsubscribe = setup.on_exported(heard.extend)
    start_tracing(otlp)
    trace.get_tracer("t").start_span("of the sdk").end()
    setup.emit([record()])
    assert setup.flush()
    unsubscribe()
    setup.emit([record(span_id=STEP_ID)])
    assert setup.flush()
    assert [ExportedSpan(TRACE_ID, ROOT_ID, "saga place-order", record().end)] == heard


def test_a_subscriber_that_raises_stops_nothing(
    otlp_http: OtlpReceiver, start_tracing: StartTracing, lines: Lines
) -> None:
    """Its mistake is logged, and the next subscriber hears all the same."""

    def broken(_: object) -> None:
        raise ValueError("of the subscriber")

    heard: list[ExportedSpan] = []
    ends = [setup.on_exported(broken), setup.on_exported(heard.extend)]
    start_tracing(otlp_http)
    setup.emit([record()])
    assert setup.flush()
    for end in ends:
        end()
    assert 1 == len(heard)
    assert ["telemetry.on_exported_failed"] == [line["event"] for line in lines()]


def test_a_refusing_collector_is_reported_once(
    otlp_http: OtlpReceiver, start_tracing: StartTracing, lines: Lines
) -> None:
    """One line when it begins to fail and one when it works again, however many batches fail."""
    heard: list[ExportedSpan] = []
    end = setup.on_exported(heard.extend)
    failed_before = setup.stats().failed
    start_tracing(otlp_http, export_timeout=QUICK)
    with otlp_http.misbehaving("unavailable"):
        for _ in range(3):
            setup.emit([record()])
            assert setup.flush()
    assert ([], 3) == (heard, setup.stats().failed - failed_before)
    for _ in range(2):
        setup.emit([record()])
        assert setup.flush()
    end()
    failing, recovered = lines()
    assert "telemetry.export_failing" == failing["event"]
    assert f"{otlp_http.url}/v1/traces" == failing["endpoint"]
    assert "Failed to export" in str(failing["reason"])
    assert ("telemetry.export_recovered", 3) == (recovered["event"], recovered["spans_lost"])
    assert 2 == len(heard)


def test_a_collector_that_comes_back_gets_the_next_spans(
    otlp: OtlpReceiver, start_tracing: StartTracing
) -> None:
    """After an outage nothing has to be restarted."""
    start_tracing(otlp, export_timeout=timedelta(seconds=1))
    failed_before = setup.stats().failed
    setup.emit([record()])
    assert setup.flush()
    otlp.close()
    setup.emit([record()])
    assert setup.flush(timedelta(seconds=10))
    otlp.open()

    def arrives() -> bool:
        setup.emit([record(span_id=STEP_ID)])
        setup.flush()
        return any(span.span_id == STEP_ID for span in otlp.spans())

    wait_until(arrives, timeout=20)
    assert setup.stats().failed > failed_before


@pytest.mark.parametrize("fault", ["slow", "closed"])
def test_the_end_of_a_process_is_bounded(
    otlp: OtlpReceiver, start_tracing: StartTracing, fault: str
) -> None:
    """Whatever the collector does, flush and shutdown end in time (7 s once)."""
    start_tracing(otlp, export_timeout=timedelta(seconds=3))
    if fault == "closed":
        otlp.close()
    with otlp.misbehaving("slow"):
        setup.emit([record()])
        begin = monotonic()
        assert not setup.flush(timedelta(milliseconds=200))
        assert not setup.shutdown(timedelta(milliseconds=200))
        assert monotonic() - begin < 2.5


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(
    "answer", [b"\x00\xffgarbage\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab", b""]
)
def test_what_is_no_collector_costs_its_spans(
    answer: bytes, protocol: Protocol, start_tracing: StartTracing, lines: Lines
) -> None:
    """Something that talks garbage, and something that dies in the middle of its answer."""
    with talking(answer) as port:
        failed_before = setup.stats().failed
        start_tracing(
            otlp_protocol=protocol,
            otlp_endpoint=f"http://127.0.0.1:{port}/v1/traces",
            export_timeout=timedelta(milliseconds=300),
        )
        setup.emit([record()] * 2)
        assert setup.flush(timedelta(seconds=10))
        assert 2 == setup.stats().failed - failed_before
    assert ["telemetry.export_failing"] == [line["event"] for line in lines()]
    assert lines()[0]["reason"]


@contextmanager
def talking(answer: bytes) -> Iterator[int]:
    """A server that gives one answer to whatever it is asked, and hangs up; yields its port."""

    class Handler(BaseRequestHandler):
        @override
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(answer)

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield int(server.server_address[1])
        server.shutdown()
        thread.join()


def test_a_full_queue_drops_spans_and_counts_them(
    otlp_http: OtlpReceiver, start_tracing: StartTracing, lines: Lines
) -> None:
    """A slow collector costs spans, not time, and not a log line for each."""
    before = setup.stats()
    start_tracing(otlp_http, queue_spans_max=10, batch_spans_max=1)
    with otlp_http.misbehaving("slow"):
        setup.emit([record()])
        wait_until(lambda: otlp_http.requests)
        begin = monotonic()
        setup.emit([record()] * 50)
        assert monotonic() - begin < 5
    assert setup.shutdown(timedelta(seconds=10))
    after = setup.stats()
    assert OutletStats(exported=11, dropped=40) == OutletStats(
        exported=after.exported - before.exported,
        dropped=after.dropped - before.dropped,
        failed=after.failed - before.failed,
        queued=after.queued,
    )
    assert [] == lines()


def test_a_folder_that_cannot_be_written_harms_nobody(
    tmp_path: Path, start_tracing: StartTracing, lines: Lines
) -> None:
    """A full disk or a wrong owner is reported once, and work goes on."""
    (tmp_path / "traces").write_text("a file where the folder should be")
    start_tracing()
    for _ in range(2):
        setup.emit([record()])
        assert setup.flush()
    assert ["telemetry.export_failing"] == [line["event"] for line in lines()]


def test_a_second_start_changes_nothing(
    otlp_http: OtlpReceiver, start_tracing: StartTracing, tmp_path: Path
) -> None:
    """Whoever comes first decides, so that a worker and its code may both ask for traces."""
    start_tracing(otlp_http)
    start_tracing()
    setup.emit([record()])
    assert setup.flush()
    assert 1 == len(otlp_http.spans())
    assert not (tmp_path / "traces").exists()


def test_a_forked_child_exports_its_own_spans(
    otlp: OtlpReceiver, start_tracing: StartTracing
) -> None:
    """A child inherits the configuration, and neither the parent's spans nor its connections."""
    start_tracing(otlp)
    setup.emit([record()])
    assert setup.flush()  # the parent has a thread and a connection now
    setup.emit([record(span_id=STEP_ID)])  # and a span that waits
    child = os.fork()
    if not child:
        trace.get_tracer("t").start_span("of the child").end()
        os._exit(0 if setup.shutdown(timedelta(seconds=10)) else 1)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert setup.shutdown()
    names = sorted(span.name for span in otlp.spans())
    assert ["of the child", "saga place-order", "saga place-order"] == names
    instances = {span.name: span.resource["service.instance.id"] for span in otlp.spans()}
    assert instances["of the child"] != instances["saga place-order"]


def test_exporters_may_log_again_after_the_end(
    otlp_http: OtlpReceiver, start_tracing: StartTracing
) -> None:
    """The filter on their loggers goes with the exporter."""
    logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    start_tracing(otlp_http)
    setup.emit([record()])
    assert setup.flush()
    assert 1 == len(logger.filters)
    assert setup.shutdown()
    assert [] == logger.filters


def test_a_failure_that_is_a_value_marks_the_current_span(
    otlp_http: OtlpReceiver, start_tracing: StartTracing
) -> None:
    """No exception leaves the step, and its span is an error all the same."""
    start_tracing(otlp_http)
    with trace.get_tracer("t").start_as_current_span("step"):
        current.set_attributes({"saga.outcome": "rejected"})
        current.set_error(SpanError(type="OutOfStock", message="none left", traceback="T"))
    assert setup.flush()
    (span,) = otlp_http.spans()
    assert ("error", "none left", ("exception",)) == (
        span.status,
        span.status_message,
        span.events,
    )
    assert {"saga.outcome": "rejected", "error.type": "OutOfStock"} == span.attributes


def test_error_types_are_class_names() -> None:
    """Built-in classes stand alone, others with their module."""
    assert "ValueError" == current.error_type(ValueError("x"))
    assert "msgspec.DecodeError" == current.error_type(msgspec.DecodeError("x"))


def test_the_first_start_counts(otlp_http: OtlpReceiver, start_tracing: StartTracing) -> None:
    """A configuration from code, in the module of an app, is not replaced when its worker starts."""
    config = start_tracing(otlp_http, service_name="from-code", propagators=("b3",))
    setup.start("from-the-environment")
    assert config is setup._process.config
    assert ("b3",) == propagation.configured().formats
    setup.emit([record()])
    assert setup.flush()
    assert "from-code" == otlp_http.spans()[0].service


def test_secrets_stay_out_of_spans_of_any_making(
    otlp: OtlpReceiver, start_tracing: StartTracing
) -> None:
    """In names, attributes, events and the status; of the plain API and of records alike."""
    start_tracing(otlp, redaction=Redaction(keys=("iban",), pattern="CUST-[0-9]+"))
    attributes: Attributes = {
        "db.password": "hunter2",
        "iban": "hunter2",
        "note": "of CUST-1",
        "n": 1,
    }
    span = trace.get_tracer("any").start_span("login password=hunter2", attributes=attributes)
    span.add_event("sent", {"url": "https://me:hunter2@bank/?token=hunter2"})
    current.set_error(current.error_of(ValueError("secret: hunter2 of CUST-1")), span)
    span.end()
    error = SpanError(type="E", message="pwd=hunter2", traceback="token='hunter2' of CUST-1")
    setup.emit([record(error=error, attributes={"api_key": "hunter2"})])
    assert setup.flush()
    api, made = sorted(otlp.spans(), key=lambda one: one.name)
    assert "hunter2" not in repr(otlp.spans())
    assert "CUST-1" not in repr(otlp.spans())
    assert ("login password=[redacted]", "of [redacted]", 1) == (
        api.name,
        api.attributes["note"],
        api.attributes["n"],
    )
    assert ("sent", "exception") == api.events
    assert "pwd=[redacted]" == made.status_message
