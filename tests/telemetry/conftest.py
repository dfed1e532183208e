"""Fixtures for the tests of telemetry."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from shared.telemetry import logs, setup
from shared.telemetry.config import TracingConfig, tracing_config
from shared.telemetry.outlet import THREAD_NAME
from tests.servers.otlp import OtlpReceiver, otlp, otlp_grpc, otlp_http
from tests.waiting import wait_until

__all__ = ["otlp", "otlp_grpc", "otlp_http"]

StartTracing = Callable[..., TracingConfig]


@pytest.fixture
def start_tracing(tmp_path: Path) -> Iterator[StartTracing]:
    """Start traces in this process, to a receiver or to files, and stop them after the test."""

    def start(receiver: OtlpReceiver | None = None, **changes: object) -> TracingConfig:
        environ = {} if receiver is None else receiver.environment
        config = msgspec.structs.replace(
            tracing_config("test-service", home=tmp_path, environ=environ), **changes
        )
        setup.start("test-service", config)
        return config

    assert setup._process.config is None, "another test left traces on"
    yield start
    setup.shutdown(timedelta(seconds=5))
    wait_until(lambda: not outlet_threads(), what="the exporter's thread to end")


def outlet_threads() -> list[str]:
    """Threads of exporters that run in this process."""
    return [one.name for one in threading.enumerate() if one.name == THREAD_NAME]


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Callable[[], list[dict[str, object]]]]:
    """Send the logs of this process to a file; call it for the lines so far."""
    logs.configure("test-service", level="INFO", log_dir=tmp_path)
    path = tmp_path / "test-service.jsonl"

    def read() -> list[dict[str, object]]:
        return [
            msgspec.json.decode(line, type=dict[str, object])
            for line in path.read_bytes().splitlines()
        ]

    yield read
    logs._tasks.clear()
