import re
from collections.abc import Callable, Collection
from datetime import timedelta

import pytest

from orchestrator.catalog import Catalog
from orchestrator.client import Client
from orchestrator.core.definition import Saga, Sleep, Step, WaitFor
from orchestrator.engine import Engine
from orchestrator.explain import explain
from orchestrator.store.memory import MemoryStore
from orchestrator.tracing import SagaTracing
from orchestrator.transport.memory import MemoryTransport
from shared.names import ORCHESTRATOR_QUEUE
from tests.cli import stories
from tests.cli.stories import T0, Story
from tests.core.builders import Order

HOUR = timedelta(hours=1)

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


def unheard() -> Story:
    """No worker knows the task of its second step."""
    story = Story()
    story.succeeds("flight")
    story.is_unheard("hotel")
    return story


def unheard_and_cancelled() -> Story:
    """It will turn back as soon as it is resumed."""
    story = unheard()
    story.client.pause(story.saga_id, reason="maintenance", by="eve")
    story.client.cancel(story.saga_id, reason="no longer")
    return story


def unheard_undo() -> Story:
    """No worker knows the task that undoes its first step."""
    story = Story()
    story.succeeds("flight")
    story.rejects("hotel")
    story.is_unheard("flight", "compensation")
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
            unheard,
            (
                r"^It is stuck: .* No worker of the queue 'hotels' knows the task 'hotels.book' of "
                r"step 'hotel' \(attempt 1\): deploy one that does, then `saga retry [-0-9a-f]+`; or "
                r"give it up with `saga compensate [-0-9a-f]+`\.$"
            ),
        ),
        (
            unheard_and_cancelled,
            r"^It was paused .* It turns back, because it was cancelled \(no longer\), as soon as",
        ),
        (
            unheard_undo,
            (
                r"No worker of the queue 'flights' knows the task 'flights.cancel' that undoes step "
                r"'flight' .* then `saga retry [-0-9a-f]+`; or `saga skip` it, or `saga resolve`, "
                r"when it has been put right by hand\.$"
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


def waiting(*steps: Step) -> Engine:
    """An engine that knows a saga of these steps."""
    made = Saga(name="slow", version=1, input=Order, steps=steps)
    return Engine(
        store=MemoryStore(),
        transport=MemoryTransport(),
        catalog=Catalog([made]),
        tracing=SagaTracing(system="redis", clock=lambda: T0),
        clock=lambda: T0,
    )


@pytest.mark.parametrize(
    "step, words",
    [
        (
            Step("ok", WaitFor("manager", approval=True), timeout=HOUR),
            r"^Step 'ok' waits until .* approve: `saga approve \S+ manager`, with --reject for no\.$",
        ),
        (
            Step("paid", WaitFor("money"), timeout=HOUR),
            r"^Step 'paid' waits until .* for the signal 'money': `saga signal \S+ money`\.$",
        ),
        (Step("rest", Sleep(lasts=HOUR)), r"^Step 'rest' sleeps until \d\d:\d\d:\d\d\.$"),
    ],
)
def test_what_is_no_reply_is_explained_too(step: Step, words: str) -> None:
    """With the command that answers, and without asking for a worker that nobody needs."""
    client = Client(waiting(step))
    saga_id = client.start("slow", {"order_id": "o-1"}).row.saga_id
    definition, row, history = client.story(saga_id)
    text = explain(definition, row, history, T0, consumed={ORCHESTRATOR_QUEUE})
    assert re.search(words, text), text


def test_a_start_in_the_future_is_explained() -> None:
    """It waits for its time, and for nothing else."""
    client = Client(waiting(Step("a", "a.b", "a.c")))
    started = client.start("slow", {"order_id": "o-1"}, not_before=T0 + HOUR)
    definition, row, history = client.story(started.row.saga_id)
    text = explain(definition, row, history, T0, consumed={ORCHESTRATOR_QUEUE})
    assert re.fullmatch(r"Its first step begins at \d\d:\d\d:\d\d\.", text)
    # Between that moment and the next look of an orchestrator at the timers.
    text = explain(definition, row, history, T0 + HOUR, consumed={ORCHESTRATOR_QUEUE})
    assert text == "Nothing holds it up: an orchestrator moves it on in a moment."
