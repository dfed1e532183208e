"""Fixtures for the tests of metrics."""

from collections.abc import Iterator

import pytest

from shared.telemetry.metrics.registry import REGISTRY, Registry


@pytest.fixture
def registry() -> Iterator[Registry]:
    """The registry of this process, switched on, without what the test adds to it."""
    assert not REGISTRY.on, "another test left metrics on"
    before = dict(REGISTRY._instruments)
    REGISTRY.start()
    yield REGISTRY
    REGISTRY.stop()
    REGISTRY._instruments = before
    REGISTRY._complained = set()
