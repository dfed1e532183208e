"""Durations as people type them, in a command or in the address of a request."""

import re
from datetime import timedelta
from typing import Final

import msgspec

from shared.errors import InputError

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def given_duration(text: str, option: str) -> timedelta:
    """A duration as people type it: ``90s``, ``15m``, ``12h``, ``30d``, ``2w``, or ISO 8601.

    Args:
        text: What was typed.
        option: The option that it was given for, for the error.

    Raises:
        InputError: It is none, or it is negative.
    """
    match = re.fullmatch(r"(\d+)([smhdw])", text.strip().lower())
    try:
        if match:
            return timedelta(**{_UNITS[match[2]]: int(match[1])})
        found = msgspec.convert(text.strip().upper(), timedelta)
        if found >= timedelta(0):
            return found
    except (msgspec.ValidationError, OverflowError):
        pass
    raise InputError(
        f"{option} is {text!r}, which is no duration.",
        hint="Write 90s, 15m, 12h, 30d or 2w, or ISO 8601 such as PT12H.",
    )
