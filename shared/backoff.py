"""Exponential back-off whose jitter is a hash: a replayed history makes the same decision."""

import hashlib
from datetime import timedelta

import msgspec

_JITTER_SHARE = 0.25


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """First wait, factor and ceiling."""

    wait_first: timedelta = timedelta(seconds=1)
    factor: float = 2.0
    wait_max: timedelta = timedelta(seconds=60)


def delay(policy: Backoff, attempt: int, key: str) -> timedelta:
    """Wait before the next attempt.

    Exponential back-off with deterministic jitter: the same key and attempt always wait the same
    time.

    Args:
        policy: First wait, factor and ceiling.
        attempt: The attempt that just failed, from 1.
        key: Idempotency key of the step; spreads waits between sagas.

    Returns:
        At least zero, at most ``policy.wait_max``. Up to a quarter is taken off at random.
    """
    digest = hashlib.blake2b(f"{key}:{attempt}".encode(), digest_size=8).digest()
    off = _JITTER_SHARE * int.from_bytes(digest) / 2**64
    # The exponent is bounded: an attempt in the thousands would overflow the float.
    grown = policy.wait_first.total_seconds() * policy.factor ** min(attempt - 1, 64)
    return timedelta(seconds=min(grown, policy.wait_max.total_seconds()) * (1 - off))
