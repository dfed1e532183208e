"""Sagas that are steps of other sagas, over one engine: every way in which the two can end."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from orchestrator.catalog import Catalog
from orchestrator.core.definition import (
    NOTHING_TO_UNDO,
    Input,
    Limit,
    Output,
    Retry,
    Saga,
    Step,
    SubSaga,
)
from orchestrator.core.events import Recorded
from orchestrator.core.references import gt
from orchestrator.ports import Delivery, SagaRow
from orchestrator.projection import project
from shared.errors import DefinitionError
from shared.ids import sub_saga_id
from shared.messages import Command, StartRequest, UndoRequest
from shared.telemetry.spans import SpanRecord
from tests.engine.trips import HOTEL, Stay, Story, failing, refusing, trip
from tests.guide.shop import Shop, Task
from workers.sdk import Fail, Reject


class Level(msgspec.Struct, frozen=True):
    """How many sagas of its own name are still below one."""

    left: int


# How they end ---------------------------------------------------------------------------------


def test_a_sub_saga_that_completes_is_a_step_that_succeeded() -> None:
    """Its outputs, by step, are the output of the step."""
    story = Story()
    above, below = story.start()
    assert story.statuses(above, below) == ["completed", "completed"]
    assert story.mails == ["hotel.room-1"]
    view = story.shop.view(below)
    assert view.parent is not None
    assert (view.parent.saga_id, view.parent.step) == (above, "hotel")
    assert story.shop.step(above, "hotel").sub_saga == below


def test_a_sub_saga_that_is_rejected_rejects_its_step() -> None:
    """It has undone itself; what came before it is undone above."""
    story = Story(hotel_meals=refusing("NoKitchen"))
    above, below = story.start()
    assert story.statuses(above, below) == ["compensated", "compensated"]
    assert story.error(above) == ("hotel", "NoKitchen")
    assert story.stands == set()


def test_a_sub_saga_that_fails_is_tried_again_by_the_policy_of_its_step() -> None:
    """As a new saga each time; by default it is not."""
    failures = iter([True, False])

    def meals(**_: Any) -> None:
        if next(failures):
            raise Fail("Burnt")

    story = Story(trip(retry=Retry(attempts=2)), HOTEL, hotel_meals=meals)
    above, below = story.start()
    story.shop.wait(timedelta(minutes=1))
    second = sub_saga_id(above, "hotel", 2)
    assert story.statuses(above, below, second) == ["completed", "compensated", "completed"]
    once = Story(hotel_meals=failing("Burnt"))
    above, below = once.start()
    assert once.statuses(above, below) == ["compensated", "compensated"]
    assert once.stands == set()


def test_undoing_the_step_undoes_the_sub_saga_that_had_completed() -> None:
    """Its own history goes on."""
    story = Story(mail_send=refusing("NoAddress"))
    above, below = story.start()
    assert story.statuses(above, below) == ["compensated", "compensated"]
    assert story.stands == set()
    events = [one.event for one in story.shop.view(below).timeline]
    assert events.index("saga_completed") < events.index("undo_requested")
    assert events[-1] == "saga_compensated"


def test_nothing_is_undone_below_where_the_definition_says_so() -> None:
    """`NOTHING_TO_UNDO` leaves the sub-saga as it is."""
    quiet = trip(compensation=NOTHING_TO_UNDO)
    story = Story(quiet, HOTEL, mail_send=refusing("NoAddress"))
    above, below = story.start()
    assert story.statuses(above, below) == ["compensated", "completed"]


# Cancel, deadline, time-out -------------------------------------------------------------------


@pytest.mark.parametrize(
    "end",
    [
        lambda story, above: story.shop.client.cancel(above, reason="rain", by="ada"),
        lambda story, above: story.shop.wait(timedelta(hours=1)),
    ],
    ids=["cancel", "deadline"],
)
def test_a_cancel_and_a_deadline_go_down(end: Callable[[Story, str], object]) -> None:
    """The sub-saga that waits for an answer is called back, and both are undone."""
    slow = msgspec.structs.replace(
        HOTEL,
        steps=(
            HOTEL.steps[0],
            Step("meals", "no.answer", "hotel.no-meals", timeout=timedelta(hours=2)),
        ),
    )
    story = Story(trip(), slow)
    above, below = story.start()
    assert story.statuses(above, below) == ["running", "running"]
    end(story, above)
    story.shop.settle()
    assert story.statuses(above, below) == ["running", "running"]
    story.shop.wait(timedelta(hours=10))
    assert story.statuses(above, below) == ["compensated", "compensated"]
    assert story.stands == set()


def test_a_paused_saga_calls_nothing_back_until_it_is_resumed() -> None:
    """The undo of its sub-saga would be something new."""
    waits = msgspec.structs.replace(
        HOTEL, steps=(HOTEL.steps[0], Step("key", "no.answer", NOTHING_TO_UNDO))
    )
    story = Story(trip(), waits)
    above, below = story.start()
    story.shop.client.pause(above, reason="wait", by="ada")
    story.shop.client.cancel(above, reason="rain", by="ada")
    story.shop.settle()
    assert "undo_requested" not in [one.event for one in story.shop.view(below).timeline]
    story.shop.client.resume(above, reason="go on", by="ada")
    story.shop.settle()
    assert story.shop.view(below).timeline[-1].event == "undo_requested"


def test_a_sub_saga_that_takes_too_long_is_called_back() -> None:
    """The time-out of the step is a cancel of the sub-saga; nothing is guessed."""
    waits = msgspec.structs.replace(
        HOTEL, steps=(HOTEL.steps[0], Step("key", "no.answer", NOTHING_TO_UNDO))
    )
    story = Story(trip(timeout=timedelta(seconds=10)), waits)
    above, below = story.start()
    story.shop.wait(timedelta(minutes=10))
    assert story.statuses(above, below) == ["compensated", "compensated"]
    assert story.error(above)[0] == "hotel"


# Messages that overtake each other ------------------------------------------------------------


def test_an_undo_that_overtakes_the_start_prevents_it() -> None:
    """The sub-saga is there, undone, and the start that comes late starts nothing."""
    story = Story()
    above = story.shop.client.start("trip", {}).row.saga_id
    story.shop.settle()
    parent = story.shop.view(sub_saga_id(above, "hotel", 1)).parent
    late = sub_saga_id(above, "hotel", 7)
    start = StartRequest(name="hotel", input={"hotel": "Ritz"}, saga_id=late, parent=parent)
    story.shop.calls.clear()
    story.shop.send(UndoRequest(saga_id=late, start=start, attempt=1))
    story.shop.send(start)
    assert (story.shop.status(late), story.shop.calls) == ("compensated", [])


def test_every_message_between_sagas_may_come_twice() -> None:
    """Starts, answers and undos: the second one changes nothing."""
    story = Story(mail_send=refusing("NoAddress"))
    story.shop.every_message_twice()
    above, below = story.start()
    assert story.statuses(above, below) == ["compensated", "compensated"]
    assert story.shop.calls.count("hotel.room") == 1
    assert story.shop.client.dead_letters() == []


# What cannot be -------------------------------------------------------------------------------


PIVOTED = msgspec.structs.replace(
    HOTEL, steps=(*HOTEL.steps, Step("pay", "hotel.room", pivot=True))
)


def test_a_sub_saga_past_its_pivot_cannot_be_undone_and_the_parent_is_stuck() -> None:
    """With the reason; the catalog refuses it, but a later version may bring the pivot in."""
    story = Story(trip(), HOTEL, mail_send=refusing("NoAddress"))
    later = msgspec.structs.replace(PIVOTED, version=2)
    story.shop.engine.catalog._sagas["hotel"] = later
    above, below = story.start()
    assert story.statuses(above, below) == ["stuck", "completed"]
    hotel = story.shop.step(above, "hotel")
    assert hotel.error.startswith("SubSagaPastPivot: The sub-saga")
    assert "past its pivot 'pay'" in hotel.error


def test_a_pivot_below_is_refused_where_the_step_may_have_to_be_undone() -> None:
    """When the definitions are put together."""
    with pytest.raises(DefinitionError, match="the saga 'hotel' has a pivot, 'pay'"):
        Catalog([trip(), PIVOTED])
    Catalog([trip(compensation=NOTHING_TO_UNDO), PIVOTED])


def test_a_sub_saga_that_does_not_exist_is_refused() -> None:
    """With the nearest names."""
    with pytest.raises(
        DefinitionError, match=r"there is no saga named 'hotle'.*Did you mean hotel"
    ):
        Catalog([trip(action=SubSaga("hotle")), HOTEL])


def test_a_sub_saga_with_the_wrong_input_rejects_its_step() -> None:
    """It never begins, and what came before is undone."""
    story = Story(trip(payload={"hotle": Input("hotel")}), HOTEL)
    saga_id = story.shop.start("trip")
    assert story.shop.status(saga_id) == "compensated"
    assert story.error(saga_id) == ("hotel", "SubSagaRefused")


def test_a_saga_that_starts_itself_ends() -> None:
    """At the greatest depth; all of them are undone."""
    endless = Saga(
        name="endless",
        version=1,
        input=Stay,
        steps=(Step("again", SubSaga("endless")),),
    )
    shop = Shop(endless, tasks={})
    saga_id = shop.start("endless", hotel="Ritz")
    assert shop.status(saga_id) == "compensated"
    assert len(shop.client.list(limit=100)) == 9


def test_a_saga_below_one_of_its_own_name_goes_in_with_that_ones_place() -> None:
    """One place for the name, and one for the step: all of them go through, the others wait."""
    one = Limit(in_flight=1)
    nested = Saga(
        name="nested",
        version=1,
        input=Level,
        limit=one,
        steps=(
            Step("work", "nested.work", NOTHING_TO_UNDO, limit=one),
            Step("between", SubSaga("between"), when=gt(Input("left"), 0), limit=one),
        ),
    )
    between = Saga(
        name="between",
        version=1,
        input=Level,
        steps=(
            Step("less", "nested.less", NOTHING_TO_UNDO),
            Step("again", SubSaga("nested"), payload={"left": Output("less", "left")}),
        ),
    )
    calls: list[int] = []

    def work(left: int) -> None:
        calls.append(left)

    tasks = {"nested.work": work, "nested.less": lambda left: {"left": left - 1}}
    shop = Shop(nested, between, tasks=tasks)
    first = shop.client.start("nested", {"left": 2}).row.saga_id
    second = shop.client.start("nested", {"left": 1}).row.saga_id
    shop.settle()
    assert (shop.status(first), calls[:3]) == ("completed", [2, 1, 0])
    shop.wait(timedelta(seconds=1))
    assert (shop.status(second), calls[3:]) == ("completed", [1, 0])
    assert (
        shop.store.crowds([("nested", ""), ("nested", "between")], 5)["nested", ""].in_flight == 0
    )


def test_sagas_that_could_wait_for_each_other_for_ever_are_refused() -> None:
    """Each is a sub-saga of the other one, and all places of both could be held so."""

    def half(name: str, other: str, limit: Limit | None) -> Saga:
        steps = (Step("other", SubSaga(other)),)
        return Saga(name=name, version=1, input=Stay, limit=limit, steps=steps)

    one = Limit(in_flight=1)
    with pytest.raises(DefinitionError, match="'left' and 'right' are sub-sagas of each other"):
        Catalog([half("left", "right", one), half("right", "left", one)])
    Catalog([half("left", "right", one), half("right", "left", Limit(rate="1/s"))])


def test_a_sub_saga_that_was_removed_leaves_its_parent_stuck() -> None:
    """Nobody knows what it had done: that is not taken for undone."""
    removed: list[str] = []

    def lose(**_: Any) -> None:
        story.shop.store._sagas.pop(removed[0])
        raise Reject("NoAddress")

    story = Story(mail_send=lose)
    above = story.shop.client.start("trip", {}).row.saga_id
    removed.append(sub_saga_id(above, "hotel", 1))
    story.shop.settle()
    assert story.shop.status(above) == "stuck"
    assert story.shop.step(above, "hotel").error.startswith("SubSagaGone: The sub-saga")


# Traces ---------------------------------------------------------------------------------------


def spans(story: Story, saga_id: str) -> list[SpanRecord]:
    """The spans of a saga."""
    definition, row, history = story.shop.client.story(saga_id)
    return project(definition, row.state, history, system="memory", sent={})


@pytest.mark.parametrize("mail", [None, refusing("NoAddress")], ids=["completed", "undone"])
def test_nested_sagas_are_one_tree(mail: Task | None) -> None:
    """The root below is a child of the message that started it."""
    story = Story(**({"mail_send": mail} if mail else {}))
    above, below = story.start()
    both = [*spans(story, above), *spans(story, below)]
    by_id = {one.span_id: one for one in both}
    assert len({one.trace_id for one in both}) == 1
    orphans = [one for one in both if one.parent_span_id not in by_id]
    # The root's parent is nobody; steps that were exported when the sub-saga completed are left out.
    assert [one.name for one in orphans] == ["saga trip"]
    (root,) = [one for one in both if one.name == "saga hotel"]
    assert by_id[root.parent_span_id or ""].name == "send saga.replies"


def test_what_happens_before_the_export_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another orchestrator undoes the sub-saga as soon as its answer is sent: each exports its own."""
    story = Story()
    above = story.shop.client.start("trip", {}).row.saga_id
    below = sub_saga_id(above, "hotel", 1)
    exported: list[tuple[int, int]] = []

    def ended(_: Any, row: SagaRow, history: Sequence[Recorded], **_options: Any) -> None:
        if row.saga_id == below:
            exported.append((row.sequence, len(history)))

    tracing = story.shop.engine._tracing
    monkeypatch.setattr(tracing, "ended", ended)
    monkeypatch.setattr(tracing, "is_milestone", lambda state, _: state.status.final)
    publish = story.shop._transport.publish

    def overtaken(commands: Sequence[Command]) -> None:
        publish(commands)
        if any(one.id == f"{below}:parent:action:1" for one in commands):
            start = StartRequest(
                name="hotel", input={}, saga_id=below, parent=story.shop.view(below).parent
            )
            undo = UndoRequest(saga_id=below, start=start, attempt=1)
            story.shop.engine.handle([Delivery(message=undo, task="saga.undo", body="")])

    monkeypatch.setattr(story.shop._transport, "publish", overtaken)
    story.shop.settle()
    assert len(exported) > 1
    assert all(sequence == known for sequence, known in exported)


def test_a_trace_of_its_own_is_linked_both_ways() -> None:
    """From the step to the saga, and from the saga to the message that started it."""
    story = Story(trip(action=SubSaga("hotel", trace="linked")), HOTEL)
    above, below = story.start()
    (step,) = [one for one in spans(story, above) if one.name == "step hotel"]
    (root,) = [one for one in spans(story, below) if one.name == "saga hotel"]
    assert step.trace_id != root.trace_id
    (down,), (up,) = step.links, root.links
    assert (down.trace_id, down.span_id) == (root.trace_id, root.span_id)
    sent = {one.span_id: one.name for one in spans(story, above)}
    assert (up.trace_id, sent[up.span_id]) == (step.trace_id, "send saga.replies")
    assert step.attributes["saga.child.id"] == below
    assert root.attributes["saga.parent.id"] == above
