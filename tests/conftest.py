"""Settings for every test: Hypothesis profiles and the servers' fixtures."""

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.order import turn_of
from tests.servers.process import servers_required

pytest_plugins = ["tests.alone", "tests.servers.fixtures"]

# Machines stall now and then: a slow example is no finding, pytest-timeout catches a hang.
settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile(
    "ci",
    max_examples=500,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "soak", max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if servers_required() else "dev")
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest in front; within and behind them the order stays random."""
    items.sort(key=lambda item: turn_of(item.path))
