import pytest

from orchestrator.ports import Delivery
from shared.codec import task_body
from shared.errors import InputError, NotAllowed, UnknownSaga
from shared.messages import CancelRequest, Inbound, Reply, StartRequest, Succeeded, Undecodable
from tests.cli.stories import Story


def refused(story: Story, message: Inbound, task: str, body: bytes) -> int:
    """Let a message become a dead letter; returns its number."""
    story.engine.handle([Delivery(message=message, task=task, body=body.decode())])
    return story.client.dead_letters()[0].dead_letter_id


def test_what_was_wrong_may_have_been_mended() -> None:
    """A cancel of a saga that did not exist yet is acted on, and is gone."""
    story, twin = Story(), Story()
    cancel = CancelRequest(saga_id=story.saga_id, reason="late", by="me")
    number = refused(twin, cancel, "saga.cancel", task_body(cancel))
    with pytest.raises(NotAllowed, match=f"There is no saga '{story.saga_id}'"):
        twin.client.requeue(number)
    (letter,) = twin.client.dead_letters()
    twin.engine.store.commit((), dead_letters=())
    story.engine.store.commit((), dead_letters=[letter])
    story.client.requeue(1)
    assert story.client.dead_letters() == []
    assert story.view.timeline[-1].event == "cancel_requested"


def test_a_start_that_failed_is_started() -> None:
    """Once, however often it is tried: its id comes from the number of the letter."""
    story = Story()
    wrong = StartRequest(name="journey", input={"order_id": "o-2"})
    number = refused(story, wrong, "saga.start", task_body(wrong))
    with pytest.raises(UnknownSaga, match="journey"):
        story.client.requeue(number)
    right = StartRequest(name="trip", input={"order_id": "o-2"})
    body = task_body(right).decode()
    (letter,) = story.client.dead_letters()
    story.client.drop_dead_letters([number])
    mended = type(letter)(reason="", task="saga.start", saga_id=None, body=body, at=story.now)
    for _ in range(2):
        story.engine.store.commit((), dead_letters=[mended])
        number = story.client.dead_letters()[0].dead_letter_id
        story.client.requeue(number)
    assert len(story.client.list()) == 3  # two letters, and the one that the story began with


def test_what_cannot_be_read_stays() -> None:
    """And says why."""
    story = Story()
    garbage = Undecodable(reason="no JSON", task="saga.reply", body="{")
    number = refused(story, garbage, "saga.reply", b"{")
    with pytest.raises(NotAllowed, match="still cannot be read"):
        story.client.requeue(number)
    assert len(story.client.dead_letters()) == 1


def test_a_reply_that_was_never_asked_for_stays() -> None:
    """The saga is there, the attempt is not."""
    story = Story()
    reply = Reply(
        saga_id=story.saga_id, step="hotel", direction="action", attempt=7, outcome=Succeeded()
    )
    number = refused(story, reply, "saga.reply", task_body(reply))
    with pytest.raises(NotAllowed, match="Attempt 7 of 'hotel'"):
        story.client.requeue(number)
    assert len(story.client.dead_letters()) == 1


def test_an_unknown_number_is_refused() -> None:
    """With the command that lists them."""
    with pytest.raises(InputError, match="no dead letter 7"):
        Story().client.requeue(7)
