"""Whether traces arrive: a real span to the exporter that is configured, and why it fails.

What listens at the endpoint is found out by talking to it. A gRPC server begins with an HTTP/2
SETTINGS frame, and an HTTP server answers a request with a status line: so a protocol on the wrong
port is told from a collector that is down.
"""

import http.client
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec

from orchestrator.doctor.findings import Code, Finding, advise, good, wrong
from shared.clock import monotonic, utc_now
from shared.ids import new_span_id, new_trace_id
from shared.telemetry import names, setup
from shared.telemetry.config import TracingConfig
from shared.telemetry.log_config import LogExportConfig
from shared.telemetry.spans import SpanRecord

OtlpProtocol = Literal["http", "grpc"]
Speaks = Literal["http", "grpc", "tls", "nothing", "unknown"]

CHECK: Final = "exporter"
LOGS: Final = "log export"
EXPORT_WITHIN: Final = timedelta(seconds=3)
SLOW_AFTER: Final = timedelta(seconds=1)
LONG_EXPORT: Final = timedelta(seconds=30)

_CONNECT_SECONDS: Final = 2.0
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_HTTP2_SETTINGS: Final = 4
_FRAME_HEADER_BYTES: Final = 9
_REQUEST: Final = b"GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n"
_OTHER: Final[Mapping[OtlpProtocol, tuple[OtlpProtocol, str]]] = {
    "http": ("grpc", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc, or the port of OTLP over HTTP (4318)"),
    "grpc": (
        "http",
        "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, or the port of OTLP over gRPC (4317)",
    ),
}


class Endpoint(NamedTuple):
    """Where a URL leads.

    Attributes:
        speaks: What answers there; ``nothing`` when nobody listens.
        problem: Why nothing could be seen.
    """

    host: str
    port: int
    speaks: Speaks
    problem: str = ""


def check_exporter(config: TracingConfig) -> Iterator[Finding]:
    """Send a span as every process would, and see it accepted."""
    if not config.enabled:
        yield advise(
            CHECK,
            Code.TRACING_OFF,
            "Traces are switched off.",
            "Unset OTEL_SDK_DISABLED and OTEL_TRACES_EXPORTER to have them.",
        )
        return
    where = config.export_url or str(config.traces_dir)
    begin, now = monotonic(), utc_now()
    span = SpanRecord(
        name=names.DOCTOR_SPAN, trace_id=new_trace_id(), span_id=new_span_id(), start=now, end=now
    )
    reason = setup.probe(msgspec.structs.replace(config, export_timeout=EXPORT_WITHIN), span)
    took = timedelta(seconds=monotonic() - begin)
    if reason:
        yield _why(config, where, reason)
        return
    yield good(
        CHECK,
        f"A span was accepted by {where} ({config.otlp_protocol}) after {_ms(took)} ms; "
        f"its trace is {span.trace_id}.",
        endpoint=where,
        protocol=config.otlp_protocol,
        trace_id=span.trace_id,
        took_ms=_ms(took),
    )
    if took > SLOW_AFTER:
        yield advise(
            CHECK,
            Code.EXPORTER_SLOW,
            f"The export of one span took {_ms(took)} ms.",
            "Run a collector near the workers (on the same machine) that sends on; work never "
            "waits for the export, but a full queue drops spans.",
        )


def check_log_export(config: LogExportConfig | None) -> Iterator[Finding]:
    """Whether the collector of log records answers, in the protocol that is configured."""
    if config is None:
        return
    found = endpoint_of(config.url)
    headers = dict(config.tracing.otlp_headers)
    status = _status(config.url, headers) if found.speaks == config.protocol == "http" else ""
    if found.speaks == config.protocol and status[:1] in {"", "2"}:
        yield good(LOGS, f"Log records go to {config.url} ({config.protocol}), which answers.")
    elif found.speaks == "tls":
        yield good(LOGS, f"Log records go to {config.url}, which accepts connections.")
    else:
        reason = f"it answers {status}" if status else ""
        yield _failed(LOGS, "log records", found, config.url, config.protocol, reason)


def check_sampling(config: TracingConfig) -> Iterator[Finding]:
    """Which traces there will be, and whether the queue can hold their spans."""
    if not config.enabled:
        return
    strategy, ratio = config.sampling_strategy, config.sampling_ratio
    if strategy == "always_off" or (strategy == "ratio" and ratio == 0):
        yield advise(
            "sampler",
            Code.SAMPLER,
            f"The sampler {strategy} keeps no trace of a saga that succeeds.",
            "Set OPENTELEMETRY_SAMPLING_STRATEGY to always_on, ratio or another one. Sagas that fail "
            "are exported all the same.",
        )
    else:
        share = f" of {ratio:g}" if strategy == "ratio" else ""
        yield good("sampler", f"The sampler is {strategy}{share}.", strategy=strategy, ratio=ratio)
    queue, batch = config.queue_spans_max, config.batch_spans_max
    if queue < 4 * batch or config.export_timeout > LONG_EXPORT:
        yield advise(
            "sampler",
            Code.SPAN_QUEUE,
            f"The queue holds {queue} spans, batches of {batch}, and an export may take "
            f"{config.export_timeout.total_seconds():g} s: a slow export soon drops spans.",
            "Let the queue hold several batches: OTEL_BSP_MAX_QUEUE_SIZE (8192), "
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE (512), OPENTELEMETRY_EXPORT_TIMEOUT (10000 ms).",
        )
    else:
        yield good("sampler", f"The queue holds {queue} spans, in batches of {batch}.")


def check_lost(lines: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    """What the logs of the last day say about exports that failed.

    Args:
        lines: Fields of the lines ``telemetry.export_failing`` and ``…_recovered``, in order.
    """
    failing: dict[tuple[str, str], Mapping[str, Any]] = {}
    lost: dict[str, int] = {}
    for fields in lines:
        process = (str(fields.get("service")), str(fields.get("pid")))
        if str(fields.get("event", "")).endswith("_failing"):
            failing[process] = fields
        else:
            failing.pop(process, None)
            for signal in ("spans", "log_records"):
                lost[signal] = lost.get(signal, 0) + int(fields.get(f"{signal}_lost") or 0)
    counts = ", ".join(f"{count} {signal}" for signal, count in lost.items() if count)
    if failing:
        services = ", ".join(sorted({service for service, _ in failing}))
        last = list(failing.values())[-1]
        yield advise(
            CHECK,
            Code.EXPORTS_FAILED,
            f"Exports of {services} failed in the last day, the last at {last.get('timestamp')}"
            f": {last.get('reason') or 'no reason given'}.",
            "Mend the exporter; the processes recover by themselves. The metric "
            "saga_spans_total counts what each has lost.",
            lost=lost,
        )
    elif counts:
        yield advise(
            CHECK,
            Code.EXPORTS_FAILED,
            f"Exports failed for a while in the last day and have recovered; lost: {counts}.",
            "Look why the collector was away.",
            lost=lost,
        )


def endpoint_of(url: str) -> Endpoint:
    """Find out what answers at a URL."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or _DEFAULT_PORTS[parts.scheme]
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_SECONDS) as connection:
            if parts.scheme == "https":
                return Endpoint(host, port, "tls")
            connection.settimeout(_CONNECT_SECONDS)
            connection.sendall(_REQUEST % host.encode())
            answer = b""
            with suppress(OSError):
                while len(answer) < _FRAME_HEADER_BYTES and (part := connection.recv(64)):
                    answer += part
    except OSError as error:
        return Endpoint(host, port, "nothing", error.strerror or str(error))
    if answer.startswith(b"HTTP/1."):
        return Endpoint(host, port, "http")
    is_frame = len(answer) >= _FRAME_HEADER_BYTES and answer[3] == _HTTP2_SETTINGS
    return Endpoint(host, port, "grpc" if is_frame and not answer[0] else "unknown")


def _why(config: TracingConfig, where: str, reason: str) -> Finding:
    said = f": {reason.rstrip('.')}." if reason else "."
    if config.otlp_protocol == "file":
        return wrong(
            CHECK,
            Code.EXPORTER_REFUSES,
            f"A span could not be written to {where}{said}",
            "Make the folder writable, or set SAGA_HOME to one that is.",
        )
    found = endpoint_of(config.export_url)
    if found.speaks == "http" == config.otlp_protocol:
        # The exporter tries again until its time is up, and says only that then.
        reason = f"it answers {_status(config.export_url, dict(config.otlp_headers))}"
    return _failed(CHECK, "spans", found, where, config.otlp_protocol, reason)


def _failed(
    check: str, what: str, found: Endpoint, where: str, protocol: OtlpProtocol, reason: str
) -> Finding:
    details: dict[str, Any] = {
        "endpoint": where,
        "protocol": protocol,
        "speaks": found.speaks,
        "reason": reason,
    }
    if found.speaks == "nothing":
        return wrong(
            check,
            Code.EXPORTER_UNREACHABLE,
            f"Nobody answers at {found.host}:{found.port} ({found.problem}): no {what} arrive at "
            f"{where}.",
            "Start the collector, or set OTEL_EXPORTER_OTLP_ENDPOINT to where it is; without it, "
            "traces go to files.",
            **details,
        )
    other, instead = _OTHER[protocol]
    if found.speaks == other:
        return wrong(
            check,
            Code.EXPORTER_PROTOCOL,
            f"{found.host}:{found.port} speaks OTLP over {other}, and {what} are sent over "
            f"{protocol}.",
            f"Set {instead}.",
            **details,
        )
    return wrong(
        check,
        Code.EXPORTER_REFUSES,
        f"{where} did not accept {what}{f': {reason}' if reason else ''}".rstrip(".") + ".",
        "See the collector's log. 401 or 403: set OTEL_EXPORTER_OTLP_HEADERS. 404: the path is "
        "/v1/traces (/v1/logs for log records) for OTLP over HTTP. A time-out: it is too slow, or "
        "something else listens.",
        **details,
    )


def _status(url: str, headers: Mapping[str, str]) -> str:
    """What the collector answers to an export of nothing."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port, timeout=_CONNECT_SECONDS
    )
    try:
        given = {"Content-Type": "application/x-protobuf", **headers}
        connection.request("POST", parts.path or "/", b"", given)
        answer = connection.getresponse()
        return f"{answer.status} {answer.reason}".rstrip()
    except (OSError, http.client.HTTPException) as error:
        return f"with {str(error) or type(error).__name__}"
    finally:
        connection.close()


def _ms(duration: timedelta) -> int:
    return round(duration / timedelta(milliseconds=1))
