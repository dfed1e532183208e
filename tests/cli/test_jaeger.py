"""`saga trace` from Jaeger: a real HTTP server that serves the JSON of Jaeger's documented API."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from orchestrator.cli.entry import run
from orchestrator.jaeger import read_jaeger
from shared.embedded import free_port
from shared.errors import ConfigurationError, UnavailableError
from shared.settings import settings

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
UNKNOWN = {
    "data": None,
    "total": 0,
    "limit": 0,
    "offset": 0,
    "errors": [{"code": 404, "msg": "trace not found"}],
}


def _tag(key: str, value: Any) -> dict[str, Any]:
    kind = {bool: "bool", int: "int64", float: "float64", str: "string"}[type(value)]
    return {"key": key, "type": kind, "value": value}


def _span(span_id: str, name: str, *, parent: str = "", **more: Any) -> dict[str, Any]:
    references = [{"refType": "CHILD_OF", "traceID": TRACE_ID, "spanID": parent}] if parent else []
    return {
        "traceID": TRACE_ID.lstrip("0"),  # as versions before 1.20 write it
        "spanID": span_id,
        "flags": 1,
        "operationName": name,
        "references": references,
        "startTime": 1_782_000_000_000_000,
        "duration": 2_500,
        "tags": [],
        "logs": [],
        "processID": "p1",
        "warnings": None,
        **more,
    }


FOUND = {
    "data": [
        {
            "traceID": TRACE_ID,
            "spans": [
                _span("b7ad6b7169203331", "saga place-order"),
                _span(
                    "1",
                    "process inventory",
                    parent="b7ad6b7169203331",
                    processID="p2",
                    startTime=1_782_000_000_000_500,
                    duration=1_000,
                    tags=[
                        _tag("span.kind", "consumer"),
                        _tag("saga.attempt", 2),
                        _tag("error", True),
                        _tag("error.type", "OutOfStock"),
                        _tag("otel.status_description", "there are five"),
                    ],
                ),
                _span(
                    "2",
                    "compensate reserve-inventory",
                    parent="b7ad6b7169203331",
                    startTime=1_782_000_000_002_000,
                    duration=100,
                    references=[
                        {
                            "refType": "CHILD_OF",
                            "traceID": TRACE_ID,
                            "spanID": "b7ad6b7169203331",
                        },
                        {"refType": "FOLLOWS_FROM", "traceID": TRACE_ID, "spanID": "1"},
                    ],
                ),
            ],
            "processes": {
                "p1": {"serviceName": "orchestrator", "tags": [_tag("host.name", "h")]},
                "p2": {"serviceName": "inventory", "tags": []},
            },
            "warnings": None,
        }
    ],
    "total": 0,
    "limit": 0,
    "offset": 0,
    "errors": None,
}


class JaegerServer:
    """Serves one trace below a base path, and remembers what was asked."""

    def __init__(self) -> None:
        self.answer: tuple[int, Any] | None = None
        self.asked: list[tuple[str, str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append((self.path, self.headers.get("authorization", "")))
                known = self.path == f"/jaeger/api/traces/{TRACE_ID}"
                status, body = server.answer or ((200, FOUND) if known else (404, UNKNOWN))
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            @override
            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.host = f"127.0.0.1:{self._http.server_address[1]}"
        self.url = f"http://{self.host}/jaeger"

    def close(self) -> None:
        """Stop."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def jaeger() -> Iterator[JaegerServer]:
    """A server with the API of Jaeger's query service."""
    server = JaegerServer()
    yield server
    server.close()


@pytest.fixture
def home(jaeger: JaegerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home without a store, with that Jaeger."""
    monkeypatch.setenv("SAGA_HOME", str(tmp_path))
    monkeypatch.setenv("SAGA_JAEGER_URL", jaeger.url)
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


def test_spans_come_back_as_they_were_exported(jaeger: JaegerServer) -> None:
    """Parents, services, kinds, times, errors and links."""
    root, process, undo = read_jaeger(jaeger.url, TRACE_ID)
    assert (root.name, root.parent_span_id, root.service) == (
        "saga place-order",
        None,
        "orchestrator",
    )
    assert (process.trace_id, process.span_id) == (TRACE_ID, "0000000000000001")
    assert (process.parent_span_id, process.service, process.kind) == (
        root.span_id,
        "inventory",
        "consumer",
    )
    assert process.start_ns - root.start_ns == 500_000
    assert process.end_ns - process.start_ns == 1_000_000
    assert process.error == "OutOfStock: there are five"
    assert process.attributes["saga.attempt"] == 2
    assert undo.links == (process.span_id,)
    assert root.error is None


def test_the_trace_is_drawn_from_jaeger(
    home: Path, jaeger: JaegerServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """`saga trace TRACE_ID` needs neither files nor a store then."""
    assert run(["trace", TRACE_ID]) == 0
    out, err = capsys.readouterr()
    assert "3 spans of inventory, orchestrator" in out
    assert "└─ compensate reserve-inventory" in out
    assert "OutOfStock: there are five" in out
    assert f"Only what Jaeger at {jaeger.url} has" in err


def test_a_trace_that_jaeger_does_not_know_is_an_error(
    home: Path, jaeger: JaegerServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says where it looked."""
    assert run(["trace", "f" * 32]) == 2
    err = capsys.readouterr().err
    assert f"No span of the trace {'f' * 32} was found." in err
    assert f"Looked in Jaeger at {jaeger.url}" in err


@pytest.mark.parametrize(
    "answer, expected, said",
    [
        ((503, b"no storage\n"), UnavailableError, "answers 503 Service Unavailable: no storage"),
        ((200, b"<html>"), ConfigurationError, "what answers there .200. is not Jaeger"),
        ((404, b"404 page not found"), ConfigurationError, "what answers there .404. is not"),
        ((401, b""), UnavailableError, "answers 401 Unauthorized: nothing"),
    ],
)
def test_what_does_not_answer_as_jaeger_is_named(
    jaeger: JaegerServer, answer: tuple[int, bytes], expected: type[Exception], said: str
) -> None:
    """A proxy, an error, the port of something else."""
    jaeger.answer = answer
    with pytest.raises(expected, match=said):
        read_jaeger(jaeger.url, TRACE_ID)


def test_a_jaeger_that_is_away_is_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is shown as if it were all."""
    monkeypatch.setenv("SAGA_JAEGER_URL", f"http://127.0.0.1:{free_port()}")
    settings.cache_clear()
    assert run(["trace", TRACE_ID]) == 1
    out, err = capsys.readouterr()
    assert "cannot be reached" in err
    assert "Check SAGA_JAEGER_URL" in err
    assert out == ""


def test_a_password_is_sent_and_not_shown(jaeger: JaegerServer) -> None:
    """In the URL, as for a proxy in front of Jaeger."""
    url = f"http://me:s%40cret@{jaeger.host}/jaeger/"
    assert len(read_jaeger(url, TRACE_ID)) == 3
    assert jaeger.asked == [(f"/jaeger/api/traces/{TRACE_ID}", "Basic bWU6c0BjcmV0")]
    jaeger.answer = (500, b"")
    with pytest.raises(UnavailableError) as raised:
        read_jaeger(url, TRACE_ID)
    assert "cret" not in str(raised.value)


@pytest.mark.parametrize("url", ["jaeger:16686", "ftp://x", "http://", "http://x:port"])
def test_what_is_no_url_is_refused(url: str) -> None:
    """With an example."""
    with pytest.raises(ConfigurationError, match="SAGA_JAEGER_URL is no URL"):
        read_jaeger(url, TRACE_ID)
