import re
from collections.abc import Callable, Collection
from datetime import timedelta

import pytest

from orchestrator.explain import explain
from shared.names import ORCHESTRATOR_QUEUE
from tests.cli import stories
from tests.cli.stories import Story

ALL = frozenset({ORCHESTRATOR_QUEUE, "flights", "hotels"})


def said(story: Story, consumed: Collection[str] | None = ALL) -> str:
    """What `saga explain` says of a saga."""
    definition, row, history = story.client.story(story.saga_id)
    return explain(definition, row, history, story.now, consumed=consumed)


def fresh() -> Story:
    """Its first step is in flight, for three seconds."""
    story = Story()
    story.now += timedelta(seconds=3)
    return story


def cancelled() -> Story:
    """It is to be undone as soon as its step has ended."""
    story = Story()
    story.client.cancel(story.saga_id, reason="changed my mind")
    return story


def paused() -> Story:
    """Nothing new begins."""
    story = stories.retrying()
    story.client.pause(story.saga_id, reason="maintenance", by="eve")
    return story


@pytest.mark.parametrize(
    "tell, words",
    [
        (
            fresh,
            (
                r"^It waits for the reply to attempt 1 of step 'flight' on the queue 'flights', "
                r"sent 3 seconds ago, until \d\d:\d\d:\d\d\.$"
            ),
        ),
        (
            stories.retrying,
            r"^It waits until \d\d:\d\d:\d\d for attempt 2 of step 'hotel' after OSError: x\.$",
        ),
        (stories.completed, r"^It has ended: it is completed since \d\d:\d\d:\d\d\.$"),
        (
            stories.compensated,
            (
                r"is compensated since .* It turned back because step 'hotel' was rejected "
                r"\(FullyBooked: no room\nleft\)\.$"
            ),
        ),
        (
            stories.stuck,
            (
                r"^It is stuck: .* Undoing step 'flight' gave up after OSError: x \(attempt 1\)\. "
                r"Look at it, then `saga retry`, `saga skip` or `saga resolve`\.$"
            ),
        ),
        (
            cancelled,
            (
                r"^It turns back, because it was cancelled \(changed my mind\), as soon as .* ended\. "
                r"It waits for the reply to attempt 1 of step 'flight'"
            ),
        ),
        (
            paused,
            (
                r"^It was paused by eve at \d\d:\d\d:\d\d \(maintenance\): nothing new begins until "
                r"`saga resume`\. It waits until"
            ),
        ),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_the_reason_is_said_in_words(tell: Callable[[], Story], words: str) -> None:
    """What it waits for, since when and until when, and who has to act."""
    assert re.search(words, said(tell()))


def test_a_missing_worker_is_named() -> None:
    """With the command that starts one; not where the workers could not be asked."""
    story = fresh()
    without = said(story, {ORCHESTRATOR_QUEUE, "hotels"})
    assert "No worker that answers listens on the queue 'flights'" in without
    assert "-Q flights" in without
    assert "No worker" not in said(story, None)


def test_a_missing_orchestrator_is_named() -> None:
    """Where the workers were asked, by its queue; else by a timer that nobody has looked at."""
    story = fresh()
    assert "No orchestrator answers" in said(story, {"flights"})
    story.now += timedelta(minutes=5)
    assert "A timer is 4 minutes late" in said(story)
