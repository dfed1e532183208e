"""The one place that reads the clock. Everything else has a `Clock` passed in."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
Sleep = Callable[[float], None]


def utc_now() -> datetime:
    """Now, aware, in UTC, to the microsecond."""
    return datetime.now(UTC)


def unix_time() -> float:
    """Seconds since 1970, for formats that want a number."""
    return time.time()


def monotonic() -> float:
    """Seconds since an arbitrary moment; only differences mean anything."""
    return time.monotonic()


def pause(seconds: float) -> None:
    """Block this thread for that many seconds."""
    time.sleep(seconds)
