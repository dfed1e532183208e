"""Limits that decide something: passed in, since the core reads no settings and no store."""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

import msgspec
from typing_extensions import override

EVENTS_MAX_DEFAULT = 10_000
IN_FLIGHT_MAX_DEFAULT = 100
RATE_MAX: Final = 100_000
"""Most starts in the time that a rate names."""

_RATE: Final = re.compile(r"([1-9][0-9]*)/([smh])")
_PER: Final = {"s": timedelta(seconds=1), "m": timedelta(minutes=1), "h": timedelta(hours=1)}
_PIECES: Final = 20
"""Into so many pieces a rate divides its time: so much of it may come at once."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much one saga may do.

    Attributes:
        events_max: Events in its history; one that has so many begins nothing more and is stuck.
        in_flight_max: Attempts in flight at a time; what is ready waits until one has ended.
        room: How many more attempts of a step may begin now, by its name, because of what other
            sagas do; the empty name is for the saga, which may begin at all. What is not mentioned
            has room.
    """

    events_max: int = EVENTS_MAX_DEFAULT
    in_flight_max: int = IN_FLIGHT_MAX_DEFAULT
    room: Mapping[str, int] = {}


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How large a definition may be; each is a setting, ``SAGA_<NAME>``.

    Attributes:
        steps_max: Steps of a definition.
        branches_max: Steps that begin together: at the start, or after one step.
        items_max: Longest list that a step may run over, `Step.items_max`.
    """

    steps_max: int = 100
    branches_max: int = 50
    items_max: int = 1_000


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """How much all sagas of a name may do together: as a whole, or in one of their steps.

    Attributes:
        in_flight: Most at a time; None means any number. A saga is in flight from its first attempt
            to its end, a step while an attempt of it, or of its undo, is awaited.
        rate: Most that begin in a time, as ``10/s``, ``600/m`` or ``5000/h``; empty means any
            number. Whenever one looks, no more have begun in the second, minute or hour before.
            They are spread: a twentieth may begin at once, and at most 95 of 100 are reached.
    """

    in_flight: int | None = None
    rate: str = ""

    @override
    def __str__(self) -> str:
        """In words, for people."""
        said = [] if self.in_flight is None else [f"{self.in_flight} in flight"]
        return ", ".join([*said, *([self.rate] if self.rate else [])]) or "no limit"


def limit_problems(limit: Limit) -> list[str]:
    """Every mistake in a limit, in words that name the field."""
    found = []
    if limit.in_flight is not None and limit.in_flight < 1:
        found.append(f"in_flight is {limit.in_flight}; it must be 1 or more, or None")
    if limit.rate:
        known = _RATE.fullmatch(limit.rate)
        if known is None:
            found.append(f"rate is {limit.rate!r}; write it as 10/s, 600/m or 5000/h")
        elif int(known[1]) > RATE_MAX:
            found.append(f"rate is {limit.rate!r}; at most {RATE_MAX} are allowed")
    return found


# A rate as a leaky bucket (the "generic cell rate algorithm"): all that is kept is the time at
# which the bucket is empty. Each start adds `every` to it, and a start is allowed while it is at
# most `slack` ahead. So in a window as long as the rate's time, from one start on, n starts need
# (n - 1) * every < time + slack, which with the values of `_pace` is n <= starts: never one more,
# wherever the window begins, and although a tick may come late by up to `slack`.


def starts_open(limit: Limit, free_at: datetime | None, now: datetime) -> int | None:
    """How many may begin now; None for any number."""
    if not limit.rate:
        return None
    every, slack = _pace(limit.rate)
    ahead = max(free_at or now, now) - now
    return 0 if ahead > slack else (slack - ahead) // every + 1


def free_after(limit: Limit, free_at: datetime | None, now: datetime, starts: int) -> datetime:
    """When the bucket will be empty, after so many starts now."""
    every, _ = _pace(limit.rate)
    return max(free_at or now, now) + every * starts


def opens_at(limit: Limit, free_at: datetime) -> datetime:
    """When the next one may begin."""
    return free_at - _pace(limit.rate)[1]


def _pace(rate: str) -> tuple[timedelta, timedelta]:
    starts, _, unit = rate.partition("/")
    per = _PER[unit]
    slack = per / _PIECES
    # Rounded up: a microsecond too little would add up to one start too many.
    return -(-(per + slack) // (timedelta(microseconds=1) * int(starts))) * _MICROSECOND, slack


_MICROSECOND: Final = timedelta(microseconds=1)
