"""Times and durations as people read them."""

from datetime import datetime, timedelta


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
