"""Settings for every test: Hypothesis profiles and the servers' fixtures."""

import os

from hypothesis import HealthCheck, settings

from tests.servers.process import servers_required

pytest_plugins = ["tests.servers.fixtures"]

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
