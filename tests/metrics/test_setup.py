"""Switching metrics on and off in this process: the endpoint, and the export over OTLP."""

import http.client
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from typing_extensions import override

from shared.errors import ConfigurationError
from shared.settings import settings
from shared.telemetry.metrics import counter, gauge, histogram, setup, up_down_counter
from shared.telemetry.metrics.config import MetricsConfig
from shared.telemetry.metrics.periodic import THREAD_NAME
from shared.telemetry.metrics.registry import Registry
from tests.metrics.read import fetch, scrape
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"


@pytest.fixture(autouse=True)
def stopped(registry: Registry) -> Iterator[None]:
    """Switch everything off after the test, without a thread left."""
    registry.stop()
    yield
    setup.shutdown()
    left = [one.name for one in threading.enumerate() if one.name.startswith("metrics-")]
    wait_until(lambda: not [one for one in threading.enumerate() if one.name in left])


class Collector:
    """Receives metrics over OTLP, or answers otherwise."""

    def __init__(self, status: int = 200) -> None:
        requests: list[ExportMetricsServiceRequest] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    raise AssertionError("compressed")
                requests.append(ExportMetricsServiceRequest.FromString(body))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            @override
            def log_message(self, *_: object) -> None:
                pass

        self.requests = requests
        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def metrics(self) -> dict[str, Metric]:
        """The metrics of the last request by name."""
        (resource,) = self.requests[-1].resource_metrics
        return {one.name: one for scope in resource.scope_metrics for one in scope.metrics}

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector that takes everything."""
    made = Collector()
    yield made
    made.close()


def config(**changes: object) -> MetricsConfig:
    """A configuration."""
    return MetricsConfig(resource={"service.name": "inventory"}, **changes)  # type: ignore[arg-type]


def test_the_endpoint_serves_what_was_recorded() -> None:
    """With the content type that was asked for; any other path says where the metrics are."""
    url = setup.start(config(prometheus_port=0))
    assert url.startswith("http://127.0.0.1:")
    counter("test.served").add(2)
    histogram("test.served.seconds").record_in(TRACE_ID, SPAN_ID, 0.3)
    found = scrape(url)
    assert (2, 1) == (found.value("test_served_total"), found.value("saga_processes"))
    assert [{"trace_id": TRACE_ID, "span_id": SPAN_ID}] == [
        one.labels for one in found.exemplars("test_served_seconds_bucket")
    ]
    text, content_type = fetch(url, "*/*")
    assert ("test_served_total 2.0" in text, True) == (True, content_type.startswith("text/plain"))
    address = url.removeprefix("http://").removesuffix("/metrics")
    connection = http.client.HTTPConnection(address, timeout=5)
    connection.request("GET", "/")
    answer = connection.getresponse()
    assert (404, b"Metrics are at /metrics.\n") == (answer.status, answer.read())
    connection.close()


def test_a_second_start_changes_nothing_and_a_shutdown_frees_the_port() -> None:
    """One endpoint a process; afterwards the same port can be had again."""
    url = setup.start(config(prometheus_port=0))
    assert url == setup.start(config(prometheus_port=0))
    setup.shutdown()
    port = int(url.removesuffix("/metrics").rpartition(":")[2])
    assert url == setup.start(config(prometheus_port=port))


def test_a_client_that_says_nothing_does_not_keep_others_waiting() -> None:
    """Each request has a thread and a time limit."""
    url = setup.start(config(prometheus_port=0))
    port = int(url.removesuffix("/metrics").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)):
        begin = monotonic()
        assert scrape(url).value("saga_processes") == 1
        assert monotonic() - begin < 4


def test_a_host_that_is_not_ours_is_an_error() -> None:
    """Named, with what to do; nothing is left switched on."""
    with pytest.raises(ConfigurationError, match=r"cannot be served on 192\.0\.2\.1:0"):
        setup.start(config(prometheus_port=0, prometheus_host="192.0.2.1"))
    assert "" == setup.start(config())


def test_metrics_arrive_over_otlp(collector: Collector) -> None:
    """Every kind, with its labels and exemplars; the last ones at the end of the process."""
    setup.start(config(otlp_endpoint=collector.url, export_interval=timedelta(milliseconds=50)))
    counter("test.counter", unit="{thing}", description="Things.").add(2, {"region": "eu"})
    up_down_counter("test.updown").add(-3)
    gauge("test.gauge").set(1.5)
    times = histogram("test.times", bounds=(1, 2))
    times.record_in(TRACE_ID, SPAN_ID, 1.5)
    times.record(7)
    wait_until(lambda: len(collector.requests) >= 2)
    counter("test.counter").add(1, {"region": "eu"})
    setup.shutdown()

    (resource,) = collector.requests[-1].resource_metrics
    attributes = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert "inventory" == attributes["service.name"]
    assert attributes["service.instance.id"]
    found = collector.metrics()
    counted = found["test.counter"]
    assert ("Things.", "{thing}", True, 2) == (
        counted.description,
        counted.unit,
        counted.sum.is_monotonic,
        counted.sum.aggregation_temporality,
    )
    (point,) = counted.sum.data_points
    assert (3, "region", "eu") == (
        point.as_double or point.as_int,
        point.attributes[0].key,
        point.attributes[0].value.string_value,
    )
    assert point.start_time_unix_nano < point.time_unix_nano
    assert (False, -3) == (
        found["test.updown"].sum.is_monotonic,
        found["test.updown"].sum.data_points[0].as_int
        or found["test.updown"].sum.data_points[0].as_double,
    )
    assert 1.5 == found["test.gauge"].gauge.data_points[0].as_double
    (times_point,) = found["test.times"].histogram.data_points
    assert ([0, 1, 1], [1, 2], 2, 8.5) == (
        list(times_point.bucket_counts),
        list(times_point.explicit_bounds),
        times_point.count,
        times_point.sum,
    )
    assert (False, False) == (times_point.HasField("min"), times_point.HasField("max"))
    (exemplar,) = times_point.exemplars
    assert (TRACE_ID, SPAN_ID, 1.5) == (
        exemplar.trace_id.hex(),
        exemplar.span_id.hex(),
        exemplar.as_double,
    )


def test_a_collector_that_is_gone_costs_no_time() -> None:
    """The end of the process waits for it no longer than it was told."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/metrics"
        setup.start(
            config(
                otlp_endpoint=url,
                export_timeout=timedelta(seconds=3),
                shutdown_timeout=timedelta(milliseconds=200),
            )
        )
        counter("test.counter").add(1)
        begin = monotonic()
        setup.shutdown()
        assert monotonic() - begin < 2.5
    # The exporter's thread gives up by itself once the connection is reset.
    wait_until(lambda: THREAD_NAME not in {one.name for one in threading.enumerate()}, timeout=30)


def test_metrics_arrive_over_grpc() -> None:
    """The other protocol, with its headers."""
    requests: list[ExportMetricsServiceRequest] = []
    metadata: list[dict[str, Any]] = []

    class Service(MetricsServiceServicer):
        @override
        def Export(self, request: ExportMetricsServiceRequest, context: Any) -> Any:
            requests.append(request)
            metadata.append(dict(context.invocation_metadata()))
            return ExportMetricsServiceResponse()

    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    add_MetricsServiceServicer_to_server(Service(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    setup.start(
        config(
            otlp_endpoint=f"http://127.0.0.1:{port}",
            otlp_protocol="grpc",
            otlp_headers=(("x-key", "k"),),
        )
    )
    counter("test.counter").add(2)
    setup.shutdown()
    server.stop(None).wait()
    (request,) = requests
    names = [
        metric.name
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    ]
    assert "test.counter" in names
    assert "k" == metadata[0]["x-key"]


def test_a_process_that_is_no_worker_asks_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call; off where nothing is set."""
    settings.cache_clear()
    assert "" == setup.start_from_environment("web")
    monkeypatch.setenv("SAGA_METRICS_PORT", "0")
    settings.cache_clear()
    url = setup.start_from_environment("web")
    assert "web" == scrape(url).labels("target_info")[0]["service_name"]
    monkeypatch.undo()
    settings.cache_clear()


def test_a_child_that_was_spawned_writes_for_its_parent() -> None:
    """It inherits nothing but the environment, and must not open the port that its parent has."""
    url = setup.start(config(prometheus_port=0))
    port = url.removesuffix("/metrics").rpartition(":")[2]
    program = f"""
from shared.telemetry.metrics import counter, setup
from shared.telemetry.metrics.config import MetricsConfig
assert "" == setup.start(MetricsConfig(resource={{}}, prometheus_port={port}))
counter("test.spawned").add(3)
setup.shutdown()
"""
    environ = {**os.environ, "FORKED_BY_MULTIPROCESSING": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], env=environ, check=True, timeout=60)
    assert 3 == scrape(url).value("test_spawned_total")
