"""A stack on real servers for each test."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults.stack import MakeStack, Stack
from tests.servers.otlp import otlp, otlp_grpc, otlp_http

__all__ = ["otlp", "otlp_grpc", "otlp_http"]


@pytest.fixture
def make_stack(tmp_path: Path, redis_url: str) -> Iterator[MakeStack]:
    """Make a stack on an empty Redis; its processes are killed after the test."""
    with ExitStack() as exits:

        def make(database_url: str = "", **env: Any) -> Stack:
            return exits.enter_context(Stack(tmp_path, redis_url, database_url, env))

        yield make
