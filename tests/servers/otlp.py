"""Real OTLP receivers: HTTP and gRPC on free loopback ports, read with the official messages.

They can misbehave as collectors do: be slow, answer "unavailable", or be gone and come back on the
same port.
"""

import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import (
    LogsServiceServicer,
    add_LogsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import SeverityNumber
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from typing_extensions import override

Protocol = Literal["http", "grpc"]
Fault = Literal["none", "slow", "unavailable"]

SLOW_SECONDS_MAX = 60.0
"""A slow receiver answers when its fault ends or it closes, and at the latest after this."""

_LOOPBACK = "127.0.0.1"
_HAS_IS_REMOTE = 0x100
_IS_REMOTE = 0x200


@dataclass(frozen=True, kw_only=True)
class ReceivedLink:
    """A link of a span; ids in hexadecimal digits."""

    trace_id: str
    span_id: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReceivedSpan:
    """A span as it arrived; ids in hexadecimal digits, `parent_id` empty at a root."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]
    status: str
    status_message: str
    links: tuple[ReceivedLink, ...]
    events: tuple[str, ...]
    service: str
    resource: Mapping[str, Any]
    tracestate: str
    parent_is_remote: bool | None
    event_attributes: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReceivedLog:
    """A log record as it arrived; ids in hexadecimal digits, empty without a trace."""

    time_ns: int
    severity: str
    severity_text: str
    body: Any
    attributes: Mapping[str, Any]
    trace_id: str
    span_id: str
    resource: Mapping[str, Any]


class OtlpReceiver:
    """Collects spans; use it as a context manager.

    Args:
        protocol: What it speaks.
    """

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.requests = 0
        self._port = 0
        self._spans: list[ReceivedSpan] = []
        self._logs: list[ReceivedLog] = []
        self._changed = threading.Condition()
        self._fault: Fault = "none"
        self._fault_over = threading.Event()
        self._stop: Callable[[], None] | None = None

    @property
    def url(self) -> str:
        """What OTEL_EXPORTER_OTLP_ENDPOINT has to be."""
        return f"http://{_LOOPBACK}:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make a process export to this receiver."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": {"http": "http/protobuf", "grpc": "grpc"}[
                self.protocol
            ],
        }

    def spans(self, trace_id: str | None = None) -> list[ReceivedSpan]:
        """What has arrived, in the order of arrival; of one trace or of all."""
        with self._changed:
            return [span for span in self._spans if trace_id in {None, span.trace_id}]

    def clear(self) -> None:
        """Forget what has arrived."""
        with self._changed:
            self._spans.clear()

    def wait_for(
        self, predicate: Callable[[list[ReceivedSpan]], object], timeout: float = 60.0
    ) -> list[ReceivedSpan]:
        """Wait until the spans so far satisfy the predicate, and return them.

        Raises:
            AssertionError: They still do not after `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: predicate(self._spans), timeout):
                raise AssertionError(
                    f"waited {timeout:g} s; received {[span.name for span in self._spans]}"
                )
            return list(self._spans)

    @contextmanager
    def misbehaving(self, fault: Fault) -> Iterator[None]:
        """Answer late, or "unavailable", within the block; requests are counted all the same."""
        self._fault_over.clear()
        self._fault = fault
        try:
            yield
        finally:
            self._fault = "none"
            self._fault_over.set()

    def open(self) -> Self:
        """Listen; on the same port as before when it was closed."""
        start = {"http": self._open_http, "grpc": self._open_grpc}[self.protocol]
        self._stop = start()
        return self

    def close(self) -> None:
        """Stop listening; open connections are cut."""
        self._fault_over.set()
        if self._stop is not None:
            self._stop()
            self._stop = None

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def logs(self) -> list[ReceivedLog]:
        """The log records that have arrived, in the order of arrival."""
        with self._changed:
            return list(self._logs)

    def receive_logs(self, body: ExportLogsServiceRequest) -> bool:
        """Take a request with log records; False when it is to be refused."""
        with self._changed:
            self.requests += 1
        if self._fault == "slow":
            self._fault_over.wait(SLOW_SECONDS_MAX)
        if self._fault == "unavailable":
            return False
        with self._changed:
            self._logs.extend(_logs(body))
            self._changed.notify_all()
        return True

    def receive(self, body: ExportTraceServiceRequest) -> bool:
        """Take a request; False when it is to be refused."""
        with self._changed:
            self.requests += 1
        if self._fault == "slow":
            self._fault_over.wait(SLOW_SECONDS_MAX)
        if self._fault == "unavailable":
            return False
        with self._changed:
            self._spans.extend(_spans(body))
            self._changed.notify_all()
        return True

    def _open_http(self) -> Callable[[], None]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/logs":
                    took = receiver.receive_logs(ExportLogsServiceRequest.FromString(raw))
                    self._answer(200 if took else 503)
                elif self.path != "/v1/traces":
                    self._answer(404)
                elif receiver.receive(ExportTraceServiceRequest.FromString(raw)):
                    self._answer(200, ExportTraceServiceResponse().SerializeToString())
                else:
                    self._answer(503)

            def _answer(self, status: int, body: bytes = b"") -> None:
                try:
                    self.send_response(status)
                    self.send_header("content-type", "application/x-protobuf")
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:  # the client gave up while the receiver was slow
                    self.close_connection = True

            @override
            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = _Server((_LOOPBACK, self._port), Handler)
        self._port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()

        def stop() -> None:
            server.shutdown()
            server.server_close()
            server.cut_connections()
            thread.join()

        return stop

    def _open_grpc(self) -> Callable[[], None]:
        receiver = self

        class Servicer(TraceServiceServicer):
            @override
            def Export(
                self, request: ExportTraceServiceRequest, context: Any
            ) -> ExportTraceServiceResponse:
                if not receiver.receive(request):
                    context.abort(grpc.StatusCode.UNAVAILABLE, "as asked")
                return ExportTraceServiceResponse()

        class LogsServicer(LogsServiceServicer):
            @override
            def Export(
                self, request: ExportLogsServiceRequest, context: Any
            ) -> ExportLogsServiceResponse:
                if not receiver.receive_logs(request):
                    context.abort(grpc.StatusCode.UNAVAILABLE, "as asked")
                return ExportLogsServiceResponse()

        server = grpc.server(ThreadPoolExecutor(max_workers=4))
        add_LogsServiceServicer_to_server(LogsServicer(), server)  # type: ignore[no-untyped-call]
        add_TraceServiceServicer_to_server(Servicer(), server)  # type: ignore[no-untyped-call]
        self._port = server.add_insecure_port(f"{_LOOPBACK}:{self._port}")
        server.start()

        def stop() -> None:
            server.stop(grace=None).wait()

        return stop


@pytest.fixture
def otlp_http() -> Iterator[OtlpReceiver]:
    """A receiver for OTLP over HTTP."""
    with OtlpReceiver("http") as receiver:
        yield receiver


@pytest.fixture
def otlp_grpc() -> Iterator[OtlpReceiver]:
    """A receiver for OTLP over gRPC."""
    with OtlpReceiver("grpc") as receiver:
        yield receiver


@pytest.fixture(params=["http", "grpc"])
def otlp(request: pytest.FixtureRequest) -> Iterator[OtlpReceiver]:
    """A receiver for each protocol in turn."""
    with OtlpReceiver(request.param) as receiver:
        yield receiver


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *args: Any) -> None:
        self._open: set[Any] = set()
        super().__init__(*args)

    @override
    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    @override
    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was cut off

    def cut_connections(self) -> None:
        for request in tuple(self._open):
            with suppress(OSError):  # the client was faster
                # Both ways: its thread waits for the next request, and a close would not wake it.
                request.shutdown(socket.SHUT_RDWR)
            self.shutdown_request(request)


def _logs(body: ExportLogsServiceRequest) -> Iterator[ReceivedLog]:
    for resource_logs in body.resource_logs:
        resource = _attributes(resource_logs.resource.attributes)
        for scope_logs in resource_logs.scope_logs:
            for one in scope_logs.log_records:
                number = SeverityNumber.Name(one.severity_number)
                yield ReceivedLog(
                    time_ns=one.time_unix_nano,
                    severity=number.removeprefix("SEVERITY_NUMBER_").lower(),
                    severity_text=one.severity_text,
                    body=_value(one.body),
                    attributes=_attributes(one.attributes),
                    trace_id=one.trace_id.hex(),
                    span_id=one.span_id.hex(),
                    resource=resource,
                )


def _spans(body: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    for resource_spans in body.resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield _span(span, resource)


def _span(span: Span, resource: Mapping[str, Any]) -> ReceivedSpan:
    known = span.flags & _HAS_IS_REMOTE
    return ReceivedSpan(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        status=("unset", "ok", "error")[span.status.code],
        status_message=span.status.message,
        links=tuple(
            ReceivedLink(
                trace_id=link.trace_id.hex(),
                span_id=link.span_id.hex(),
                attributes=_attributes(link.attributes),
            )
            for link in span.links
        ),
        events=tuple(event.name for event in span.events),
        event_attributes=tuple(_attributes(event.attributes) for event in span.events),
        service=str(resource.get("service.name", "")),
        resource=resource,
        tracestate=span.trace_state,
        parent_is_remote=bool(span.flags & _IS_REMOTE) if known else None,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return getattr(value, kind)
