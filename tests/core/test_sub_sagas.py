"""A step that is a saga is asked again until it has said how it ended: any message may be lost."""

from datetime import timedelta
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from orchestrator.core.definition import Retry, Step, SubSaga
from orchestrator.core.events import StepRecalled, SubSagaBegan, UndoRequested
from orchestrator.core.limits import Limits
from orchestrator.core.machine import Cancel, Decision, Tick, decide
from orchestrator.core.messages import Pause, Resume, RetryNow, Start, Undo
from orchestrator.core.state import fold
from shared.backoff import Backoff
from shared.ids import sub_saga_id
from shared.messages import Failure, Parent
from tests.core.builders import (
    SAGA_ID,
    START,
    Run,
    accepted,
    failed,
    rejected,
    saga,
    sent,
    step,
    succeeded,
    tags,
)

CHILD = sub_saga_id(SAGA_ID, "hotel", 1)
GONE = Failure(kind="SubSagaGone", message="not in the store", retryable=False)
DAY = timedelta(days=1)


def trip(**options: Any) -> Run:
    """A saga of a sub-saga and a step after it; the sub-saga has been started."""
    hotel = step("hotel", action=SubSaga("hotel"), compensation=None, **options)
    return Run(saga(hotel, step("mail")).definition)


def wake(run: Run) -> Decision:
    """Let the next timer fire."""
    assert run.last.wake_at is not None, "nothing will ever move it again"
    run.now = run.last.wake_at
    return run.tell(Tick())


def asked(decision: Decision) -> dict[str, Any]:
    """What the one command of a decision says."""
    (command,) = decision.commands
    assert command.queue == "saga.replies"
    payload: dict[str, Any] = command.payload
    return payload


# Every message may be lost --------------------------------------------------------------------


def test_a_saga_that_has_not_answered_is_started_again() -> None:
    """The same start: where the saga has ended it is answered, and where it never began it begins."""
    run = trip()
    first = asked(run.last)
    assert not run.last.beat
    again = wake(run)
    assert (again.events, again.beat) == ((), True)
    assert asked(again) == first
    assert (again.commands[0].task, asked(again)["saga_id"]) == ("saga.start", CHILD)


def test_a_saga_that_was_called_back_is_called_back_again() -> None:
    """Its end is awaited without a time-out, but not without end."""
    run = trip()
    first = asked(run.tell(Cancel(reason="rain")))
    assert run.tags[-1] == "step_recalled"
    again = wake(run)
    assert (again.events, asked(again)) == ((), first)
    assert (again.commands[0].task, first["attempt"]) == ("saga.undo", 0)


def test_a_saga_that_is_being_undone_is_asked_again() -> None:
    """By the attempt that is in flight."""
    run = trip()
    run.tell(succeeded("hotel"), rejected("mail"))
    first = asked(run.last)
    assert sent(run.last) == [("hotel", "compensation", 1)]
    again = wake(run)
    assert (again.events, asked(again)) == ((), first)
    assert sent(again) == [("hotel", "compensation", 1)]


def test_what_is_asked_again_has_an_id_of_its_own() -> None:
    """The first message keeps the time at which it was sent; the same decision, the same id."""
    run = trip()
    ids = [run.last.commands[0].id]
    ids += [wake(run).commands[0].id for _ in range(2)]
    assert ids == [f"{SAGA_ID}:hotel:action:1{end}" for end in ("", ":again:1", ":again:2")]


# How often ------------------------------------------------------------------------------------


def waits(run: Run, times: int) -> list[float]:
    """Seconds between one question and the next."""
    moments = [run.now]
    for _ in range(times):
        assert len(wake(run).commands) == 1
        moments.append(run.now)
    return [(after - before).total_seconds() for before, after in pairwise(moments)]


def test_it_is_asked_at_longer_and_longer_intervals() -> None:
    """From half a minute to ten minutes, less up to a quarter; without end."""
    longest = [30, 60, 120, 240, 480, 600, 600]
    for most, seconds in zip(longest, waits(trip(), 7), strict=True):
        assert most * 0.75 <= seconds <= most


def test_a_step_may_want_longer_intervals() -> None:
    """By the back-off of its retries."""
    backoff = Backoff(wait_first=timedelta(minutes=10), factor=10, wait_max=timedelta(minutes=20))
    run = trip(retry=Retry(attempts=2, backoff=backoff))
    for most, seconds in zip([600, 1200, 1200], waits(run, 3), strict=True):
        assert most * 0.75 <= seconds <= most


def test_an_undo_is_asked_by_the_back_off_of_undoing() -> None:
    """And begins anew, with the first wait."""
    backoff = Backoff(wait_first=timedelta(minutes=2), factor=1)
    run = trip(compensation_retry=Retry(backoff=backoff))
    waits(run, 5)
    run.tell(succeeded("hotel"), rejected("mail"))
    for seconds in waits(run, 3):
        assert 90 <= seconds <= 120


def test_an_undo_that_follows_at_once_begins_anew_as_well() -> None:
    """It is another question, although no time went by without one."""
    run = trip()
    waits(run, 5)
    run.tell(failed("hotel", failure=GONE))
    assert run.phase("hotel") == "undoing"
    assert waits(run, 1)[0] <= 30


def test_nothing_of_it_stands_in_the_history() -> None:
    """However long it takes; only the row remembers when it is asked again."""
    run = trip()
    before = run.events.copy()
    waits(run, 500)
    assert run.events == before
    assert fold(run.events) == msgspec.structs.replace(run.known, inquiries={})
    run.tell(succeeded("hotel"))
    assert run.known.inquiries == {}


def test_a_time_out_comes_in_time_all_the_same() -> None:
    """What is due first is done first."""
    run = trip(timeout=timedelta(seconds=100))
    assert [len(wake(run).events) for _ in range(2)] == [0, 0]
    wake(run)
    assert (run.now - run.known.inquiries["hotel"].at) < timedelta()
    assert isinstance(run.events[-1], StepRecalled)


def test_an_undo_has_no_time_out() -> None:
    """A sub-saga that is stuck is asked for ever: attempts that time out would fill the history."""
    run = trip(timeout=timedelta(seconds=100))
    run.tell(succeeded("hotel"), rejected("mail"))
    before = run.events.copy()
    waits(run, 20)
    assert (run.events, run.phase("hotel")) == (before, "undoing")
    run.tell(Pause(reason="wait"))
    assert run.last.wake_at is None


def test_a_saga_whose_history_is_full_asks_nothing() -> None:
    """It begins nothing; what is overdue is asked when an operator lets it go on."""
    hotel = step("hotel", action=SubSaga("hotel"), compensation=None, after=())
    run = Run(saga(hotel, step("a", after=()), step("b", after=("a",))).definition)
    full = decide(run.definition, run.known, succeeded("a"), run.now, limits=Limits(events_max=1))
    assert full.state is not None
    assert full.state.full
    assert full.wake_at == full.state.step("hotel").due_at
    late = decide(run.definition, full.state, Tick(), run.now + DAY)
    assert late.commands == ()
    cancelled = decide(run.definition, full.state, Cancel(reason="rain"), run.now)
    assert (tags(cancelled.events), cancelled.commands) == (["cancel_requested"], ())
    resumed = decide(run.definition, full.state, Resume(), run.now + DAY)
    assert [one.task for one in resumed.commands] == ["service.b", "saga.start"]


def test_a_paused_saga_asks_nothing() -> None:
    """What is overdue when it is resumed is asked at once."""
    run = trip()
    assert run.tell(Pause(reason="wait")).wake_at == run.known.step("hotel").due_at
    run.wait(DAY)
    assert run.tell(Tick()).commands == ()
    assert asked(run.tell(Resume(reason="go on")))["saga_id"] == CHILD


# What is known of it --------------------------------------------------------------------------


def test_a_saga_that_was_seen_is_not_started_anew_when_it_is_not_found() -> None:
    """It says that it goes on, once; from then on the questions say that it had begun."""
    run = trip()
    assert not asked(run.last).get("began")
    wake(run)
    run.tell(accepted("hotel"))
    assert run.tags[-1] == "sub_saga_began"
    assert asked(wake(run))["began"] is True
    assert run.tell(accepted("hotel")).events == ()
    assert asked(run.tell(Cancel(reason="rain")))["began"] is True
    assert asked(wake(run))["began"] is True


def test_only_the_sub_saga_of_the_attempt_in_flight_is_seen() -> None:
    """Not an older one, not one that is being undone, and not by the answer to an undo."""
    run = trip(retry=Retry(attempts=2))
    assert run.tell(accepted("hotel", 1, "compensation")).events == ()
    run.tell(failed("hotel"))
    assert run.tell(accepted("hotel", 1)).events == ()
    run.tell(RetryNow())
    assert run.tell(accepted("hotel", 1)).events == ()
    run.tell(failed("hotel", 2))
    assert (run.phase("hotel"), run.known.step("hotel").began) == ("undoing", False)
    assert run.tell(accepted("hotel", 2)).events == ()


def test_being_seen_changes_no_timer() -> None:
    """Neither the time-out nor the intervals of the questions begin anew."""
    run = trip(timeout=timedelta(hours=1))
    waits(run, 4)
    due_at, inquiry = run.known.step("hotel").due_at, run.known.inquiries["hotel"]
    run.tell(accepted("hotel"))
    assert isinstance(run.events[-1], SubSagaBegan)
    assert (run.known.step("hotel").due_at, run.known.inquiries["hotel"]) == (due_at, inquiry)


@pytest.mark.parametrize("called_back", [False, True])
def test_a_saga_that_is_gone_leaves_its_parent_stuck(*, called_back: bool) -> None:
    """Nobody knows what it had done: that is not taken for undone."""
    run = trip()
    if called_back:
        run.tell(Cancel(reason="rain"))
    wake(run)
    run.tell(accepted("hotel"))
    undo = run.tell(failed("hotel", failure=GONE))
    assert sent(undo) == [("hotel", "compensation", 1)]
    assert asked(undo)["began"] is True
    run.tell(failed("hotel", 1, "compensation", GONE))
    assert (run.known.status, run.tags[-1]) == ("stuck", "saga_stuck")
    assert run.known.step("hotel").failure == GONE


def test_another_attempt_is_another_saga() -> None:
    """Of which nothing is known yet."""
    run = trip(retry=Retry(attempts=2))
    wake(run)
    run.tell(accepted("hotel"), failed("hotel"))
    second = asked(wake(run))
    assert not run.known.step("hotel").began
    assert (second["saga_id"], second.get("began", False)) == (
        sub_saga_id(SAGA_ID, "hotel", 2),
        False,
    )
    assert not asked(wake(run)).get("began")


ABOVE = Parent(saga_id="above", step="hotel", attempt=1)


def below(*steps: Step) -> Run:
    """A sub-saga."""
    start: Start = msgspec.structs.replace(START, parent=ABOVE)
    return Run(saga(*steps).definition, start=start)


def test_a_call_back_that_comes_too_late_changes_nothing() -> None:
    """The saga has ended, or is past its pivot and will: that is told, and is the answer."""
    ended = below(step("room"))
    ended.tell(succeeded("room"))
    assert ended.tell(Undo()).events == ()
    assert ended.known.status == "completed"
    past = below(step("room", pivot=True, compensation=None), step("key"))
    past.tell(succeeded("room"))
    assert past.tell(Undo()).events == ()
    assert past.tell(succeeded("key")).state is not None
    assert past.known.status == "completed"


def test_an_undo_that_comes_before_the_start_is_written_down_with_its_reason() -> None:
    """The saga begins nothing, and the attempt of the undo is answered."""
    undo = Undo(attempt=2, reason="rain", parent=ABOVE)
    start: Start = msgspec.structs.replace(START, parent=ABOVE, undo=undo)
    run = Run(saga(step("room")).definition, start=start)
    assert run.events[1] == UndoRequested(attempt=2, reason="rain")
    assert (run.known.status, run.tags[-1]) == ("compensated", "saga_compensated")
    (told,) = run.last.commands
    assert (told.direction, told.attempt) == ("compensation", 2)
    nobody = decide(run.definition, None, undo, run.now)
    assert nobody == Decision(state=None)


def test_a_fork_of_the_parent_that_asks_is_answered_instead_of_it() -> None:
    """Only another saga stands in the history: for the parent itself nothing is written down."""
    fork = Parent(saga_id="fork", step="hotel", attempt=1)
    for asks, answered in ((ABOVE, "above"), (fork, "fork"), (None, "above")):
        run = below(step("room"))
        run.tell(succeeded("room"), Undo(attempt=1, parent=asks))
        assert getattr(run.events[-3], "parent", None) == (fork if asks is fork else None)
        run.tell(succeeded("room", direction="compensation"))
        (told,) = run.last.commands
        assert told.payload["saga_id"] == answered


def test_a_sub_saga_asks_nobody_and_its_end_is_asked_of_it() -> None:
    """One without steps that are sagas has no question in its row."""
    run = below(step("room"))
    assert run.known.inquiries == {}
    run.tell(succeeded("room"), Undo(attempt=1))
    assert run.known.inquiries == {}
