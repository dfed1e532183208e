"""Waits between attempts."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.checks import DURATION_MAX, FACTOR_MAX
from shared.backoff import Backoff, delay

waits = st.timedeltas(timedelta(0), DURATION_MAX)
policies = st.builds(Backoff, wait_first=waits, factor=st.floats(1, FACTOR_MAX), wait_max=waits)
attempts = st.integers(1, 10**6)


@given(policies, attempts, st.text())
def test_a_wait_is_at_least_zero_and_at_most_the_ceiling(
    policy: Backoff, attempt: int, key: str
) -> None:
    """For every policy that a definition may have, in the millionth attempt too."""
    assert timedelta(0) <= delay(policy, attempt, key) <= policy.wait_max


@given(policies, attempts, st.text())
def test_the_same_key_and_attempt_always_wait_the_same(
    policy: Backoff, attempt: int, key: str
) -> None:
    """A replayed history makes the same decision."""
    assert delay(policy, attempt, key) == delay(policy, attempt, key)


@given(attempts, st.text())
def test_at_most_a_quarter_is_taken_off(attempt: int, key: str) -> None:
    """The jitter only shortens a wait."""
    policy = Backoff(wait_first=timedelta(seconds=8), factor=1.0)
    assert timedelta(seconds=6) <= delay(policy, attempt, key) <= timedelta(seconds=8)


def test_waits_grow_by_the_factor_up_to_the_ceiling() -> None:
    """1, 2, 4, 8, 16, 32, 60, 60 seconds, less the jitter."""
    policy = Backoff()
    ceilings = [min(2**exponent, 60) for exponent in range(8)]
    for attempt, ceiling in enumerate(ceilings, start=1):
        wait = delay(policy, attempt, "key").total_seconds()
        assert ceiling * 0.75 <= wait <= ceiling


def test_sagas_that_fail_together_do_not_retry_together() -> None:
    """The key spreads them over the whole range of the jitter."""
    found = [delay(Backoff(), 1, f"saga-{number}").total_seconds() for number in range(200)]
    assert len(set(found)) == 200
    assert min(found) < 0.8
    assert max(found) > 0.95


def test_a_known_wait_never_changes() -> None:
    """The golden histories hold such waits: another hash would break every replay."""
    assert delay(Backoff(), 1, "saga:step:action") == timedelta(microseconds=876_371)
