"""What sagas tell each other may be lost: the parent asks again, and all ends as it would have."""

from collections.abc import Callable
from datetime import timedelta

import msgspec
import pytest

from orchestrator.core.definition import NOTHING_TO_UNDO, Saga, Step
from shared.messages import Command
from tests.engine.trips import HOTEL, Story, refusing, trip

DAY = timedelta(days=1)


def message(task: str, direction: str = "action") -> Callable[[Command], bool]:
    """The messages between sagas of one kind."""

    def is_one(command: Command) -> bool:
        return command.queue == "saga.replies" and (command.task, command.direction) == (
            task,
            direction,
        )

    return is_one


START = message("saga.start")
ANSWER = message("saga.reply")
UNDO = message("saga.undo", "compensation")
UNDONE = message("saga.reply", "compensation")
RECALL = message("saga.undo")


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("lost", [START, ANSWER], ids=["start", "answer"])
def test_a_sub_saga_completes_whatever_is_lost(
    lost: Callable[[Command], bool], times: int
) -> None:
    """It happens once, and its parent hears of it."""
    story = Story()
    story.shop.lose(lost, times)
    above, below = story.start()
    assert story.shop.status(above) == "running"
    story.shop.wait(DAY)
    assert story.statuses(above, below) == ["completed", "completed"]
    assert story.mails == ["hotel.room-1"]
    assert story.shop.calls.count("hotel.room") == 1
    assert story.shop.client.dead_letters() == []


def test_a_rejection_that_is_lost_is_told_again() -> None:
    """And what came before it is undone."""
    story = Story(hotel_meals=refusing("NoKitchen"))
    story.shop.lose(ANSWER)
    above, below = story.start()
    assert story.statuses(above, below) == ["running", "compensated"]
    story.shop.wait(DAY)
    assert story.statuses(above, below) == ["compensated", "compensated"]
    assert story.error(above) == ("hotel", "NoKitchen")


@pytest.mark.parametrize("lost", [UNDO, UNDONE], ids=["undo", "answer"])
def test_a_sub_saga_is_undone_whatever_is_lost(lost: Callable[[Command], bool]) -> None:
    """And its parent hears of it, without another attempt."""
    story = Story(mail_send=refusing("NoAddress"))
    story.shop.lose(lost, 2)
    above, below = story.start()
    assert story.shop.status(above) == "compensating"
    story.shop.wait(DAY)
    assert story.statuses(above, below) == ["compensated", "compensated"]
    assert story.stands == set()
    assert story.shop.step(above, "hotel").undo_attempts == 1


@pytest.mark.parametrize(
    "lost", [[RECALL], [START, RECALL], [ANSWER]], ids=["call back", "start, too", "answer"]
)
def test_a_sub_saga_is_called_back_whatever_is_lost(
    lost: list[Callable[[Command], bool]],
) -> None:
    """Where not even the start arrived it is there all the same, and never begins."""
    waits = msgspec.structs.replace(
        HOTEL, steps=(HOTEL.steps[0], Step("key", "no.answer", NOTHING_TO_UNDO))
    )
    story = Story(trip(), waits)
    story.shop.lose(lambda command: any(kind(command) for kind in lost), len(lost))
    above, below = story.start()
    story.shop.client.cancel(above, reason="rain", by="ada")
    story.shop.wait(DAY)
    assert story.statuses(above, below) == ["compensated", "compensated"]
    assert story.stands == set()


def test_a_sub_saga_that_takes_long_is_asked_without_end_and_without_events() -> None:
    """A question every few minutes would fill the history; here is one event, that it is alive."""
    key = Step("key", "no.answer", NOTHING_TO_UNDO, timeout=100 * DAY)
    patient = msgspec.structs.replace(trip(), deadline=None)
    story = Story(patient, msgspec.structs.replace(HOTEL, steps=(HOTEL.steps[0], key)))
    above, _ = story.start()
    started = story.shop.client.row(above)
    story.shop.wait(DAY)
    row, view = story.shop.client.row(above), story.shop.view(above)
    assert [one.event for one in view.timeline][-2:] == ["step_dispatched", "sub_saga_began"]
    assert row.state.inquiries["hotel"].times > 100
    assert row.updated_at < started.updated_at + timedelta(minutes=1)
    assert view.next_timer is not None
    assert view.next_timer.what == "hotel asks its saga again"


def test_a_newer_version_that_refuses_the_input_does_not_reject_what_runs() -> None:
    """Whoever asks again asks the saga that is there."""

    class Other(msgspec.Struct):
        stars: int

    story = Story()
    story.shop.lose(ANSWER)
    above, below = story.start()
    later = Saga(name="hotel", version=2, input=Other, steps=HOTEL.steps)
    story.shop.engine.catalog._sagas["hotel"] = later
    story.shop.wait(DAY)
    assert story.statuses(above, below) == ["completed", "completed"]


def test_a_sub_saga_that_vanishes_while_it_runs_leaves_its_parent_stuck() -> None:
    """With the reason; it is not started once more, and not taken for undone."""
    waits = msgspec.structs.replace(
        HOTEL, steps=(HOTEL.steps[0], Step("key", "no.answer", NOTHING_TO_UNDO, timeout=DAY))
    )
    story = Story(trip(), waits)
    above, below = story.start()
    story.shop.wait(timedelta(minutes=5))
    story.shop.store._sagas.pop(below)
    story.shop.wait(DAY)
    assert story.shop.status(above) == "stuck"
    assert story.shop.step(above, "hotel").error.startswith("SubSagaGone: The sub-saga")
    assert story.shop.calls.count("hotel.room") == 1
    story.shop.client.resolve(above, reason="called the hotel", by="ada")


def test_a_refusal_to_be_undone_that_is_lost_is_told_again() -> None:
    """A sub-saga past its pivot leaves its parent stuck, with the reason."""
    story = Story(trip(), HOTEL, mail_send=refusing("NoAddress"))
    pivoted = Step("pay", "hotel.room", pivot=True)
    later = msgspec.structs.replace(HOTEL, version=2, steps=(*HOTEL.steps, pivoted))
    story.shop.engine.catalog._sagas["hotel"] = later
    story.shop.lose(UNDONE)
    above, below = story.start()
    assert story.statuses(above, below) == ["compensating", "completed"]
    story.shop.wait(DAY)
    assert story.statuses(above, below) == ["stuck", "completed"]
    assert "past its pivot 'pay'" in story.shop.step(above, "hotel").error


def test_a_paused_parent_is_answered_after_it_was_resumed() -> None:
    """It asks nothing while it is paused."""
    story = Story()
    story.shop.lose(ANSWER)
    above, _ = story.start()
    story.shop.client.pause(above, reason="wait", by="ada")
    story.shop.wait(timedelta(minutes=30))
    assert story.shop.status(above) == "running"
    story.shop.client.resume(above, reason="go on", by="ada")
    story.shop.wait(timedelta(seconds=1))
    assert story.shop.status(above) == "completed"
