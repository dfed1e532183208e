"""Limits that sagas share, whatever crashes: a few seeds in every run of the tests."""

from collections import Counter

from tests.simulation.limited import simulate_limited

SEEDS = range(12)


def test_limits_hold_and_all_sagas_end_whatever_crashes() -> None:
    """Also where the process dies that was about to let the next one in."""
    features: Counter[str] = Counter()
    for seed in SEEDS:
        run = simulate_limited(seed)
        assert not run.problems, (seed, run.problems[:3])
        features.update(run.features)
    assert features["room_awaited"] > 100
