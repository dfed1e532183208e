"""Sagas as text: what people read must say what happened."""

from datetime import timedelta

import pytest

from orchestrator.cli import render
from orchestrator.cli.events import event_line
from orchestrator.cli.logline import log_line
from orchestrator.cli.output import Piece, Table, as_text, line, one_line
from orchestrator.cli.times import away, duration, moment
from orchestrator.core.definition import Saga, Sleep, Step, SubSaga, WaitFor
from orchestrator.ports import DeadLetter
from shared.messages import HeartbeatRequest
from tests.cli import stories
from tests.cli.stories import T0, Story
from tests.core.builders import Order
from tests.guide.shop import Shop
from workers.sdk import Later


def _shown(story: Story) -> str:
    return as_text(render.saga_blocks(story.view, story.now))


def _rows(text: str, word: str) -> list[list[str]]:
    return [row.split() for row in text.splitlines() if word in row]


def test_a_completed_saga_shows_its_steps_and_its_time_line() -> None:
    """Ids, key, every step, and every event with offset and duration."""
    story = stories.completed()
    shown = _shown(story)
    assert f"trip v3  {story.saga_id}  completed in 20 ms" in shown
    assert story.view.trace_id in shown
    assert ["key", "o-1"] in _rows(shown, "key")
    assert ["flight", "succeeded", "1", "flights"] in _rows(shown, "flights")
    assert ["+10", "ms", "succeeded", "flight", "1", "10", "ms", "by", "flight@host"] in _rows(
        shown, "flight@host"
    )
    assert "+20 ms  completed" in shown
    assert "error" not in shown
    assert "next" not in shown


def test_a_compensated_saga_says_why_and_what_was_undone() -> None:
    """The reason is one line however the participant worded it."""
    shown = _shown(stories.compensated())
    assert "compensated in 30 ms" in shown
    assert "error    hotel rejected: FullyBooked: no room left" in shown
    assert ["flight", "undone", "1", "1", "flights"] in _rows(shown, "undone")
    assert "undo sent" in shown


def test_a_retrying_saga_says_what_comes_next() -> None:
    """The next attempt, with the time until then."""
    shown = _shown(stories.retrying())
    assert "running for 20 ms" in shown
    assert "next     next attempt of hotel" in shown
    assert "(in " in shown
    assert "again at" in shown
    assert "deadline" in shown


def test_a_stuck_saga_is_not_said_to_be_running() -> None:
    """It stands out, with the step that an operator has to look at."""
    shown = _shown(stories.stuck())
    assert "stuck in 30 ms" in shown
    assert ["flight", "undo", "failed"] in [row[:3] for row in _rows(shown, "undo failed")]


WAITING = Saga(
    name="waiting",
    version=1,
    input=Order,
    steps=(
        Step("film", "film.render", "film.drop", completes_within=timedelta(hours=1), after=()),
        Step("gift", "gifts.wrap", "gifts.unwrap", after=()),
        Step("ok", WaitFor("manager", approval=True), timeout=timedelta(days=2), after=()),
        Step("rest", Sleep(timedelta(hours=1)), after=()),
        Step("below", SubSaga("trip"), payload={"order_id": "o-2"}, after=()),
    ),
)


def test_what_a_step_waits_for_and_how_far_it_is_is_shown() -> None:
    """A signal, a time, a token, another saga; progress, and what an operator has said."""
    shop = Shop(WAITING, stories.TRIP, tasks={"film.render": lambda **_: Later()})
    saga_id = shop.start("waiting", order_id="o-1")
    below = shop.step(saga_id, "below").sub_saga

    def shown(which: str = saga_id) -> str:
        return as_text(render.saga_blocks(shop.view(which), shop.now + timedelta(seconds=2)))

    assert "accepted, goes on elsewhere" in shown()
    beat = {"step": "film", "direction": "action", "attempt": 1, "progress": {"percent": 30}}
    shop.send(HeartbeatRequest(saga_id=saga_id, **beat))  # type: ignore[arg-type]
    assert '{"percent": 30}, 2.00 s ago' in shown()
    assert "waits for signal manager" in shown()
    assert f"sleeps until {moment(shop.now + timedelta(hours=1), shop.now)}" in shown()
    assert f"saga {below}" in shown()
    assert f"part of  {saga_id}, step below" in shown(below)
    assert "paused" not in shown()
    shop.client.pause(saga_id, reason="a strike", by="ada")
    assert "paused   by ada: a strike" in shown()
    shop.client.resume(saga_id, reason="over", by="ada")
    shop.wait(timedelta(seconds=30))
    shop.client.skip(saga_id, "gift", reason="done", by="ada")
    assert "by hand" in shown()


def test_a_list_shows_ids_that_can_be_copied() -> None:
    """No id is shortened."""
    story = stories.completed()
    found = story.client.list()
    shown = as_text([render.sagas_table(found, T0 + timedelta(days=3))])
    assert story.saga_id in shown
    assert "completed" in shown
    assert "2026-01-01" in shown


def test_a_definition_shows_every_step_and_its_undoing() -> None:
    """Actions, compensations, queues, limits, and the fields of the input."""
    definition = stories.completed().client.definitions()[0]
    shown = as_text(render.definition_blocks(definition))
    assert "trip v3  deadline 1 h 0 min" in shown
    assert "input  [order_id]" in shown
    assert ["hotel", "hotels.book", "hotels.cancel", "hotels", "30.00", "s", "2"] in (
        _rows(shown, "hotels")
    )


def test_dead_letters_cannot_write_to_the_terminal() -> None:
    """A body from outside loses its control codes and its length."""
    letter = DeadLetter(reason="bad\x1b[2J", task="t", saga_id=None, body="x" * 999, at=T0)
    shown = as_text([render.dead_letters_table([letter], T0)])
    assert "\x1b" not in shown
    assert r"bad\x1b[2J" in shown
    assert len(shown.splitlines()[1]) < 200


def test_an_event_of_a_saga_is_one_line_without_noise() -> None:
    """Time, end of the id, name, step and what happened; no other line is an event."""
    found = event_line(
        stories.fields(
            event="step.failed",
            saga_id="0199c8a0-0000-7000-8000-0000aabbccdd",
            saga_name="trip",
            saga_step="hotel",
            saga_direction="compensation",
            saga_attempt=2,
            kind="OSError",
            error="no\nroute",
        )
    )
    assert found is not None
    text = as_text([found])
    assert "…aabbccdd  trip  hotel" in text
    assert "undo failed, attempt 2  OSError: no route" in text
    assert event_line(stories.fields(logger="celery.worker", saga_id="x")) is None
    assert event_line(stories.fields()) is None


def test_trouble_outside_of_sagas_is_shown_too() -> None:
    """A broker that is away is worth a line in `saga dev`."""
    found = event_line(stories.fields(level="error", event="dependency.unavailable", reason="r"))
    assert found is not None
    assert "dependency.unavailable" in as_text([found])


def test_a_log_line_shows_its_own_fields_and_leaves_out_those_of_every_line() -> None:
    """What is the same on all lines of a saga is not repeated; zero is a value."""
    text = as_text(
        [
            log_line(
                stories.fields(
                    saga_id="SAGA", trace_id="TRACE", saga_step="hotel", saga_attempt=2, size=0
                )
            )
        ]
    )
    assert "hotel #2" in text
    assert "size=0" in text
    assert "SAGA" not in text
    assert "TRACE" not in text


def test_a_log_line_with_nested_fields_is_shown() -> None:
    """Values that are lists or objects do not break the line."""
    assert "tags=['a']" in as_text([log_line(stories.fields(tags=["a"], more={"b": 1}))])


@pytest.mark.parametrize(
    "milliseconds,words",
    [
        (0, "0 ms"),
        (0.4, "0.4 ms"),
        (7, "7 ms"),
        (999.4, "999 ms"),
        (1_250, "1.25 s"),
        (61_000, "1 min 1 s"),
        (7_500_000, "2 h 5 min"),
        (273_600_000, "3 d 4 h"),
    ],
)
def test_durations_have_a_unit_that_fits(milliseconds: float, words: str) -> None:
    """Two figures at most."""
    assert words == duration(milliseconds)


def test_moments_have_a_date_unless_they_are_today() -> None:
    """A time of another day would be taken for today's."""
    assert len("12:00:00") == len(moment(T0, T0))
    assert "2025-12-31" in moment(T0 - timedelta(days=1), T0)
    assert away(T0 + timedelta(seconds=4), T0) == "in 4.00 s"
    assert away(T0 - timedelta(seconds=4), T0) == "4.00 s ago"


def test_columns_are_aligned_in_plain_text() -> None:
    """Without a terminal a table is aligned text without lines and colours."""
    rows = [(Piece("a", "red"), Piece("1")), (Piece("long"), Piece("100"))]
    shown = as_text([line(Piece("head", "bold")), Table(("NAME", "N"), rows, frozenset({"N"}))])
    assert shown.splitlines() == ["head", "NAME    N", "a       1", "long  100"]


def test_text_from_outside_is_made_one_harmless_line() -> None:
    """Line breaks become spaces, control codes become visible."""
    assert one_line("a\nb\tc\x07") == r"a b c\x07"
