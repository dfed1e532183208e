from datetime import timedelta
from typing import Any

import pytest

from orchestrator import search
from orchestrator.core.state import Status
from orchestrator.search import Filter
from shared.errors import InputError
from tests.cli.stories import Story

HOUR = timedelta(hours=1)


@pytest.fixture
def story() -> Story:
    """A saga whose step ``hotel`` waits for its second attempt."""
    story = Story(key="k-1")
    story.succeeds("flight")
    story.fails("hotel")
    return story


def test_a_filter_without_criteria_is_empty() -> None:
    """A command that acts on many must not take it for one."""
    assert Filter().is_empty
    assert not Filter(retrying=True).is_empty
    assert Filter(name="trip", statuses=(Status.STUCK,)).looked_up
    assert not Filter(name="trip", step="hotel").looked_up


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(),
        Filter(statuses=(Status.RUNNING,), name="trip", key="k-1"),
        Filter(step="hotel"),
        Filter(retrying=True),
        Filter(step="hotel", retrying=True),
        Filter(error="OSError"),
        Filter(step="hotel", error="OSError", attempts=1),
    ],
)
def test_a_saga_that_waits_for_an_attempt_is_found(story: Story, wanted: Filter) -> None:
    """By where it is and why."""
    assert [row.saga_id for row in story.client.find(wanted)] == [story.saga_id]


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(statuses=(Status.STUCK,)),
        Filter(name="other"),
        Filter(step="flight"),
        Filter(step="unknown"),
        Filter(step="flight", retrying=True),
        Filter(error="CardDeclined"),
        Filter(attempts=2),
        Filter(paused=True),
    ],
)
def test_what_does_not_fit_is_not_found(story: Story, wanted: Filter) -> None:
    """A step that is done does not hold a saga up."""
    assert list(story.client.find(wanted)) == []


def test_a_filter_may_ask_for_what_has_not_moved(story: Story) -> None:
    """By the last change, not by the start."""
    assert list(story.client.find(Filter(unchanged_since=story.now))) == []
    assert len(story.client.find(Filter(unchanged_since=story.now + HOUR))) == 1


def test_a_paused_saga_is_found(story: Story) -> None:
    """Whatever its status."""
    story.client.pause(story.saga_id, reason="look")
    assert len(story.client.find(Filter(paused=True))) == 1


def test_all_pages_are_searched(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many do not fit before the one that does; up to the limit."""
    monkeypatch.setattr(search, "PAGE_SAGAS", 2)
    for number in range(5):
        story.now += timedelta(seconds=1)
        story.client.start("trip", {"order_id": f"o-{number}"})
    assert [row.saga_id for row in story.client.find(Filter(retrying=True))] == [story.saga_id]
    assert 3 == len(story.client.find(Filter(name="trip", attempts=1), limit=3))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("wanted", [Filter(name="trip"), Filter(name="trip", attempts=1)])
def test_a_list_goes_on_where_it_has_ended(
    story: Story, wanted: Filter, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each saga once, newest first, whatever the sizes of the pages; nothing after the last."""
    monkeypatch.setattr(search, "PAGE_SAGAS", 3)
    for number in range(6):
        story.now += timedelta(seconds=number % 2)  # some start in the same moment
        story.client.start("trip", {"order_id": f"o-{number}"})
    every = [one.saga_id for one in story.client.list()]
    found, older, pages = [], None, 0
    while pages == 0 or older:
        page = story.client.summaries(wanted, size, older=older, looked_at_max=2)
        assert len(page.sagas) <= size
        found += [one.saga_id for one in page.sagas]
        older, pages = page.older, pages + 1
    assert (every, True) == (found, len(every) == 7)


def test_few_are_looked_at_for_a_page(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have fewer than wanted then, and says that there are more."""
    monkeypatch.setattr(search, "PAGE_SAGAS", 2)
    for _ in range(4):
        story.now += timedelta(seconds=1)
        story.client.start("trip", {"order_id": "o"})
    first = story.client.summaries(Filter(retrying=True), looked_at_max=2)
    assert ([], True) == (first.sagas, first.older is not None)
    second = story.client.summaries(Filter(retrying=True), looked_at_max=4, older=first.older)
    assert ([story.saga_id], None) == ([one.saga_id for one in second.sagas], second.older)


@pytest.mark.parametrize(
    "beside",
    [{"step": "a"}, {"error": "E"}, {"attempts": 1}, {"retrying": True}, {"paused": True}],
)
def test_what_cannot_be_read_is_not_found_by_what_it_does(beside: dict[str, Any]) -> None:
    """Refused, and said what can be asked."""
    with pytest.raises(InputError, match=f"{next(iter(beside))} does not go with unreadable"):
        Filter(unreadable=True, **beside)
