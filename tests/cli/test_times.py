from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.cli.times import given_moment
from shared.durations import given_duration
from shared.errors import InputError

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("12H", timedelta(hours=12)),
        (" 30d ", timedelta(days=30)),
        ("2w", timedelta(weeks=2)),
        ("PT1H30M", timedelta(minutes=90)),
        ("pt5s", timedelta(seconds=5)),
    ],
)
def test_durations_are_read_as_people_type_them(text: str, expected: timedelta) -> None:
    """A number and a unit, or ISO 8601."""
    assert expected == given_duration(text, "--older-than")


@pytest.mark.parametrize("text", ["", "soon", "5", "5y", "-5m", "-PT5M", "999999999999w"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """With the option's name, and how to write one."""
    with pytest.raises(InputError, match=r"--older-than is .* no duration"):
        given_duration(text, "--older-than")


def test_a_moment_is_a_time_with_its_offset_or_a_wait() -> None:
    """Nobody has to know in which time zone the orchestrator runs."""
    eight = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
    assert eight == given_moment("2026-03-01T09:00:00+01:00", "--at", NOW)
    assert NOW + timedelta(hours=12) == given_moment("12h", "--at", NOW)
    with pytest.raises(InputError, match="without its offset"):
        given_moment("2026-03-01T09:00:00", "--at", NOW)
    for wrong in ("tomorrow", "999999999w"):
        with pytest.raises(InputError, match=r"--at is .* neither"):
            given_moment(wrong, "--at", NOW)
