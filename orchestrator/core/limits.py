"""Limits that decide something: passed in, since the core reads no settings."""

import msgspec

EVENTS_MAX_DEFAULT = 10_000
IN_FLIGHT_MAX_DEFAULT = 100


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much one saga may do.

    Attributes:
        events_max: Events in its history; one that has so many begins nothing more and is stuck.
        in_flight_max: Attempts in flight at a time; what is ready waits until one has ended.
    """

    events_max: int = EVENTS_MAX_DEFAULT
    in_flight_max: int = IN_FLIGHT_MAX_DEFAULT
