"""Times and durations as people read them."""

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Annotated

import msgspec

from shared.durations import given_duration
from shared.errors import InputError


def duration(milliseconds: float) -> str:
    """``3 ms``, ``1.25 s``, ``4 min 10 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if milliseconds < 1000:
        return f"{milliseconds:.1f} ms" if 0 < milliseconds < 1 else f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    for unit, name, small_unit, small_name in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // small_unit} {small_name}"
    return f"{whole} s"


def moment(at: datetime, now: datetime) -> str:
    """Local time, with the date unless it is today."""
    local = at.astimezone()
    today = local.date() == now.astimezone().date()
    return f"{local:%H:%M:%S}" if today else f"{local:%Y-%m-%d %H:%M:%S}"


def away(at: datetime, now: datetime) -> str:
    """``in 4 s`` or ``4 s ago``."""
    distance = (at - now) / timedelta(milliseconds=1)
    return f"in {duration(distance)}" if distance >= 0 else f"{duration(-distance)} ago"


def since_when(text: str, option: str, now: datetime) -> datetime:
    """A moment as people type it: so long before now, or a time as ISO 8601 has it.

    A time without a zone is local.

    Args:
        text: What was typed.
        option: The option that it was given for, for the error.
        now: Now.

    Raises:
        InputError: It is neither a duration nor a time.
    """
    with suppress(ValueError):
        return datetime.fromisoformat(text.strip()).astimezone()
    with suppress(InputError, OverflowError):
        return now - given_duration(text, option)
    raise InputError(
        f"{option} is {text!r}, which is neither a duration nor a time.",
        hint="Write 30s, 10m, 2h, 1d, or 2026-01-31T12:00:00Z.",
    )


def given_moment(text: str, option: str, now: datetime) -> datetime:
    """A moment as people type it: ISO 8601 with an offset, or how long from now.

    Args:
        text: What was typed.
        option: The option that it was given for, for the error.
        now: The time; aware.

    Raises:
        InputError: It is neither; a time without an offset means something else elsewhere.
    """
    try:
        found: datetime | None = msgspec.convert(
            text.strip(), Annotated[datetime, msgspec.Meta(tz=True)]
        )
    except msgspec.ValidationError:
        found = None
    if found is not None:
        return found
    with suppress(ValueError):
        datetime.fromisoformat(text.strip())
        raise InputError(
            f"{option} is {text!r}, a time without its offset from UTC.",
            hint="Write 2026-03-01T09:00:00+01:00, or …Z for UTC.",
        )
    try:
        return now + given_duration(text, option)
    except (InputError, OverflowError) as error:
        raise InputError(
            f"{option} is {text!r}, which is neither a time nor a duration.",
            hint="Write 2026-03-01T09:00:00+01:00, or 15m, 12h, 30d from now.",
        ) from error
