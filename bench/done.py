"""How the end of a run is told: the last step pushes to a Redis list, in all systems alike."""

from functools import cache

import redis

from bench import names


@cache
def _client(pid: int) -> "redis.Redis":
    return redis.Redis.from_url(names.broker(), socket_timeout=None)


def tell(pid: int, number: str) -> None:
    """Say that a run has reached its end; one client for each process."""
    _client(pid).rpush(names.DONE, number)


def wait(seconds: float) -> bool:
    """Wait for the end of one run."""
    return _client(0).blpop([names.DONE], timeout=seconds) is not None


def count() -> int:
    """How many ends nobody has waited for yet."""
    return int(str(_client(0).llen(names.DONE)))


def forget() -> None:
    """Empty the list."""
    _client(0).delete(names.DONE)
