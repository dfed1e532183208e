"""Fixtures of the HTTP tests: traces to a real receiver, log lines to a file."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from shared.telemetry import setup
from tests.servers.otlp import OtlpReceiver, ReceivedSpan
from tests.telemetry.conftest import StartTracing, lines, otlp_http, start_tracing

__all__ = ["lines", "otlp_http", "start_tracing"]

Lines = Callable[[], list[dict[str, object]]]
Spans = Callable[[], list[ReceivedSpan]]


@pytest.fixture
def spans(otlp_http: OtlpReceiver, start_tracing: StartTracing) -> Spans:
    """Traces are on; call it for the spans that a collector has received so far.

    The collector comes first, so that it is still there when the last spans are handed over.
    """
    start_tracing(otlp_http)

    def received() -> list[ReceivedSpan]:
        assert setup.flush(timedelta(seconds=5))
        return otlp_http.spans()

    return received


@pytest.fixture(autouse=True)
def lines_in_a_file(lines: Lines) -> None:
    """Nothing is written to the terminal: a traceback for people takes seconds to make."""
