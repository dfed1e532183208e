"""What operators may do to a saga, one rule a test."""

from datetime import timedelta

import msgspec
import pytest

from orchestrator.core.definition import Item, Output, Sleep, Step, WaitFor
from orchestrator.core.events import CompensationRequested, SagaPaused, StepSkipped
from orchestrator.core.messages import (
    Cancel,
    CompensateNow,
    Operator,
    Pause,
    Resolve,
    Resume,
    RetryNow,
    Signal,
    Skip,
    Tick,
)
from orchestrator.core.references import eq
from orchestrator.core.state import CauseKind, Status
from tests.core.builders import (
    FOR_GOOD,
    NOTHING_TO_UNDO,
    START,
    T0,
    Retry,
    Run,
    failed,
    linear,
    rejected,
    saga,
    sent,
    step,
    succeeded,
    tags,
    wait,
)

LONG = timedelta(minutes=10)
TIMEOUT = timedelta(seconds=30)
PIVOT = saga(
    step("reserve"),
    step("confirm", pivot=True, compensation=None),
    step("notify", compensation=None, retry=Retry(attempts=2)),
    deadline=timedelta(hours=1),
).definition
PAUSE, RESUME = Pause(reason="why not", by="ada"), Resume(reason="go on", by="ada")


def beyond_pivot() -> Run:
    """A saga whose last step gave up."""
    run = Run(PIVOT, succeeded("reserve"), succeeded("confirm"))
    run.tell(failed("notify", failure=FOR_GOOD))
    assert run.known.status is Status.STUCK
    return run


# Pause and resume -----------------------------------------------------------------------------


def test_a_paused_saga_begins_nothing_and_records_what_arrives() -> None:
    """The reply of the step in flight is a fact; the next step waits for the resume."""
    run = Run(linear("a", "b"), PAUSE)
    assert tags(run.tell(succeeded("a")).events) == ["step_succeeded"]
    assert run.last.commands == ()
    assert (run.known.paused, run.known.status) == (True, Status.RUNNING)
    assert sent(run.tell(RESUME)) == [("b", "action", 1)]


def test_a_saga_whose_name_is_paused_starts_paused() -> None:
    """It begins when it is resumed, and its history says who had paused it."""
    run = Run(linear("a"), start=msgspec.structs.replace(START, pause=PAUSE))
    assert run.events[1:] == [SagaPaused(reason="why not", by="ada")]
    assert sent(run.tell(RESUME)) == [("a", "action", 1)]


def test_a_paused_saga_does_not_turn_back() -> None:
    """Compensation begins when it is resumed."""
    run = Run(linear("a", "b"), succeeded("a"), PAUSE)
    assert sent(run.tell(rejected("b"))) == []
    assert sent(run.tell(RESUME)) == [("a", "compensation", 1)]


def test_a_paused_saga_does_not_wake_for_a_retry() -> None:
    """It wakes for what is in flight, and for nothing that it may not do."""
    run = Run(linear("a"), PAUSE)
    assert run.last.wake_at == T0 + TIMEOUT
    run.tell(failed("a"))
    assert run.last.wake_at is None
    run.wait(LONG)
    assert run.tell(Tick()).events == ()
    assert sent(run.tell(RESUME)) == [("a", "action", 2)]
    back = Run(linear("a", "b"), succeeded("a"), rejected("b"), PAUSE)
    assert back.tell(failed("a", direction="compensation")).wake_at is None
    assert back.phase("a") == "undo_retrying"


def test_a_paused_saga_says_that_it_is_stuck() -> None:
    """Nobody should have to resume it to learn that."""
    run = Run(linear("a", "b"), succeeded("a"), rejected("b"), PAUSE)
    run.tell(failed("a", direction="compensation", failure=FOR_GOOD))
    assert run.known.status is Status.STUCK


def test_a_second_pause_changes_nothing_and_a_resume_needs_a_pause() -> None:
    """The first reason stays in the history."""
    run = Run(linear("a"), PAUSE)
    assert (run.tell(PAUSE).events, run.last.refused) == ((), "")
    run.tell(RESUME)
    assert run.tell(RESUME).refused == "The saga is not paused."


# Retry ----------------------------------------------------------------------------------------


def test_a_retry_cuts_the_wait_short() -> None:
    """The attempt that was due later goes out now."""
    run = Run(linear("a"), failed("a"))
    assert sent(run.tell(RetryNow(by="ada"))) == [("a", "action", 2)]


def test_a_retry_gives_one_more_attempt_to_a_step_that_gave_up() -> None:
    """Where it fails again, the saga is stuck again."""
    run = beyond_pivot()
    assert sent(run.tell(RetryNow(step="notify", by="ada"))) == [("notify", "action", 2)]
    assert run.phase("notify") == "running"
    run.tell(failed("notify", 2))
    assert run.phase("notify") == "failed"
    run.tell(RetryNow(by="ada"), succeeded("notify", 3))
    assert run.known.status is Status.COMPLETED


def test_an_edited_payload_is_used_from_then_on() -> None:
    """Instead of what the definition makes, and by every later attempt."""
    run = beyond_pivot()
    (first,) = run.tell(RetryNow(step="notify", payload={"to": "ada"})).commands
    run.tell(failed("notify", 2))
    (second,) = run.tell(RetryNow()).commands
    assert first.payload == second.payload == {"to": "ada"}


@pytest.mark.parametrize(
    "behind",
    [
        step("c", payload={"x": Output("p", "missing")}),
        step("c", payload={"x": Item()}, each=Output("p", "missing")),
        step("c", when=eq(Output("p", "missing"), 1)),
        wait("c", Sleep(until=Output("p", "missing"))),
    ],
    ids=["payload", "each", "when", "until"],
)
def test_a_retry_of_what_could_not_begin_tries_to_begin_it(behind: Step) -> None:
    """Its references lead to nothing still: it is refused again, for the same reason."""
    run = Run(saga(step("p", pivot=True), behind).definition, succeeded("p", output={}))
    failure = run.known.step("c").failure
    decision = run.tell(RetryNow(step="c", by="ada"))
    assert tags(decision.events) == ["retry_requested", "step_rejected", "saga_stuck"]
    assert run.known.step("c").failure == failure
    run.tell(Skip(step="c", by="ada"))
    assert run.known.status is Status.COMPLETED


def test_what_could_not_begin_begins_with_a_payload_of_the_operator() -> None:
    """As its first attempt."""
    behind = step("c", payload={"x": Output("p", "missing")})
    run = Run(saga(step("p", pivot=True), behind).definition, succeeded("p", output={}))
    (command,) = run.tell(RetryNow(step="c", payload={"x": 1}, by="ada")).commands
    assert (command.attempt, command.payload) == (1, {"x": 1})


def test_a_retry_of_a_compensation_that_gave_up() -> None:
    """It goes on with the way back."""
    run = Run(linear("a", "b"), succeeded("a"), rejected("b"))
    run.tell(rejected("a", direction="compensation"))
    assert sent(run.tell(RetryNow(by="ada"))) == [("a", "compensation", 2)]
    assert run.known.status is Status.COMPENSATING


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (RetryNow(), "No step waits for its next attempt or has given up for good."),
        (RetryNow(step="a"), "Step 'a' is running: only one that waits for its next attempt"),
        (RetryNow(step="x"), "has no step 'x'"),
        (RetryNow(payload={}), "An edited payload needs the name of its step."),
        (Skip(step="x"), "has no step 'x'"),
        (Skip(step="a"), "Step 'a' is running and cannot be skipped."),
        (Resolve(), "The saga is running: only a stuck one can be resolved by hand."),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(message: Operator, why: str) -> None:
    """And changes nothing."""
    run = Run(linear("a", "b"))
    decision = run.tell(message)
    assert why in decision.refused
    assert decision.events == ()


def test_a_step_that_is_about_to_be_undone_is_neither_tried_again_nor_skipped() -> None:
    """The cause has come up, and only the step in flight is waited for."""
    arms = [step("a", after=()), step("b", after=())]
    run = Run(saga(*arms).definition, failed("a"), Cancel())
    assert run.phase("a") == "retrying"
    assert "can be tried again" in run.tell(RetryNow(step="a")).refused
    assert "cannot be skipped" in run.tell(Skip(step="a")).refused


def test_nothing_can_be_asked_of_a_saga_that_has_ended() -> None:
    """Whatever it is."""
    run = Run(linear("a"), succeeded("a"))
    for message in (PAUSE, RESUME, RetryNow(), Skip(step="a"), Resolve(), CompensateNow()):
        assert run.tell(message).refused == "The saga is completed already."


# Skip -----------------------------------------------------------------------------------------


def test_a_skipped_step_counts_as_done_with_the_given_output() -> None:
    """Later steps see the output, and the saga completes."""
    run = Run(linear("a", "b"), Skip(step="b", output={"id": 1}, reason="known", by="ada"))
    run.tell(succeeded("a"))
    assert run.known.status is Status.COMPLETED
    assert run.known.step("b").output == {"id": 1}


def test_a_skipped_step_that_had_been_sent_is_undone_on_the_way_back() -> None:
    """Nobody knows what its first attempt did."""
    run = Run(linear("a", "b"), failed("a"), Skip(step="a"))
    assert run.phase("a") == "skipped"
    assert sent(run.tell(rejected("b"))) == [("a", "compensation", 1)]


def test_an_output_that_an_operator_gave_stays_although_the_step_succeeds_late() -> None:
    """Later steps have begun with it, and are undone with what they were called with."""
    mapped = step("b", payload={"x": Output("a", "id")})
    run = Run(saga(step("a"), mapped, step("c")).definition, failed("a"))
    (action,) = run.tell(Skip(step="a", output={"id": 1}, by="ada")).commands
    run.tell(succeeded("a", output={"key": 7}), succeeded("b"))
    (undo,) = run.tell(rejected("c")).commands
    assert undo.payload == {**action.payload, "undo": None}
    (undo,) = run.tell(succeeded("b", direction="compensation")).commands
    assert undo.payload["undo"] == {"key": 7}


def test_a_step_that_was_skipped_before_its_turn_is_not_undone() -> None:
    """It never happened."""
    run = Run(linear("a", "b", "c"), Skip(step="b"), succeeded("a"))
    assert sent(run.tell(rejected("c"))) == [("a", "compensation", 1)]


def test_a_compensation_that_gave_up_is_skipped() -> None:
    """Somebody undid it by hand; what came before it is undone."""
    run = Run(linear("a", "b", "c"), succeeded("a"), succeeded("b"), rejected("c"))
    run.tell(rejected("b", direction="compensation"))
    assert sent(run.tell(Skip(step="b", by="ada"))) == [("a", "compensation", 1)]
    assert run.known.step("b").by_hand


def test_only_an_undo_that_does_not_get_on_is_skipped() -> None:
    """Not one in flight, and not the step that was never done or has been undone."""
    run = Run(linear("a", "b", "c", "d"), succeeded("a"), succeeded("b"), succeeded("c"))
    run.tell(rejected("d"), succeeded("c", direction="compensation"))
    for name, phase in (("a", "succeeded"), ("b", "undoing"), ("c", "undone"), ("d", "rejected")):
        refused = run.tell(Skip(step=name)).refused
        assert refused == f"Step {name!r} is {phase} and cannot be skipped."


def test_a_wait_that_is_over_is_not_skipped() -> None:
    """Its output stands."""
    run = Run(saga(wait("w", WaitFor("ok")), step("a")).definition, Signal(name="ok", data=1))
    assert "cannot be skipped" in run.tell(Skip(step="w", output=2)).refused
    assert run.known.step("w").output == 1


def test_the_pivot_is_not_skipped_before_its_turn() -> None:
    """Only where it may have happened."""
    run = Run(PIVOT)
    assert "cannot be skipped" in run.tell(Skip(step="confirm")).refused
    run.tell(succeeded("reserve"), failed("confirm"))
    assert sent(run.tell(Skip(step="confirm"))) == [("notify", "action", 1)]
    assert "past its pivot" in run.tell(Cancel()).refused


# Resolve and compensate -----------------------------------------------------------------------


def test_a_step_that_had_given_up_and_succeeds_late_frees_the_saga() -> None:
    """Nobody has to decide any more, and nothing is left of its failure."""
    last = step("last", compensation=None)
    behind = saga(step("p", pivot=True), step("notify", compensation=None), last).definition
    run = Run(behind, succeeded("p"), failed("notify", failure=FOR_GOOD))
    assert run.known.status is Status.STUCK
    assert sent(run.tell(succeeded("notify"))) == [("last", "action", 1)]
    assert (run.known.status, run.known.step("notify").failure) == (Status.RUNNING, None)


def test_a_stuck_saga_is_resolved_by_hand() -> None:
    """It ends there, and nothing that comes late changes it."""
    run = beyond_pivot()
    run.tell(Resolve(reason="called the customer", by="ada"))
    assert (run.known.status, run.last.wake_at) == (Status.RESOLVED, None)
    assert run.tell(succeeded("notify")).events == ()


def test_a_saga_is_not_resolved_while_a_step_is_in_flight() -> None:
    """Its outcome would be lost."""
    arms = [step(name, after=("p",), retry=Retry(attempts=2)) for name in ("a", "b")]
    run = Run(saga(step("p", pivot=True, compensation=NOTHING_TO_UNDO), *arms).definition)
    run.tell(succeeded("p"), failed("a", failure=FOR_GOOD))
    assert "Step 'b' is still in flight" in run.tell(Resolve()).refused


def test_compensate_gives_up_where_nobody_knows_whether_the_pivot_happened() -> None:
    """A cancel is refused there; the operator vouches that it did not happen."""
    run = Run(PIVOT, succeeded("reserve"), failed("confirm", failure=FOR_GOOD))
    assert "past its pivot" in run.tell(Cancel()).refused
    assert sent(run.tell(CompensateNow(reason="no order there", by="ada"))) == [
        ("reserve", "compensation", 1)
    ]
    assert run.known.status == "compensating"
    run.tell(succeeded("reserve", direction="compensation"))
    assert run.known.status == "compensated"


def test_compensate_waits_for_the_outcome_of_a_pivot_in_flight() -> None:
    """Its second attempt may tell."""
    run = Run(PIVOT, succeeded("reserve"), failed("confirm"), RetryNow())
    assert "wait for its outcome" in run.tell(CompensateNow()).refused


def test_compensate_is_a_cancel_before_the_pivot_and_refused_after_it() -> None:
    """On the way back there is nothing to give up."""
    run = Run(PIVOT, CompensateNow(reason="wrong order", by="ada"))
    assert run.known.cause is not None
    assert run.known.cause.kind is CauseKind.CANCELLED
    run.tell(rejected("reserve"))
    assert run.known.status is Status.COMPENSATED
    assert "past its pivot" in beyond_pivot().tell(CompensateNow()).refused
    back = Run(linear("a", "b"), succeeded("a"), rejected("b"))
    assert back.tell(CompensateNow()).refused == "The saga is being undone already."


def test_a_vouched_pivot_that_happened_after_all_leaves_the_saga_stuck() -> None:
    """The operator was wrong, and the history says so."""
    run = Run(PIVOT, succeeded("reserve"), failed("confirm"), CompensateNow(by="ada"))
    assert tags(run.tell(succeeded("confirm")).events) == ["step_succeeded", "saga_stuck"]
    # It is on its way back all the same: a cancel says nothing new, another attempt makes no sense.
    assert (run.tell(Cancel()).refused, run.last.events) == ("", ())
    assert "can be tried again" in run.tell(RetryNow(step="confirm")).refused
    run.tell(Skip(step="confirm", output="cancelled by phone", by="ada"))
    assert run.events[-1] == StepSkipped(step="confirm", direction="compensation", by="ada")
    run.tell(succeeded("reserve", direction="compensation"))
    assert run.known.status is Status.COMPENSATED


def test_a_pivot_is_vouched_for_whatever_its_last_attempt_was() -> None:
    """Nothing of it is believed to stand any more, and what comes before it is undone."""
    run = Run(PIVOT, succeeded("reserve"), failed("confirm"), RetryNow())
    run.tell(failed("confirm", 2, failure=FOR_GOOD))
    assert sent(run.tell(CompensateNow(by="ada"))) == [("reserve", "compensation", 1)]


def test_nobody_vouches_for_a_pivot_that_can_be_undone() -> None:
    """It may have happened, and so it is undone like any other step."""
    pivot = saga(step("a"), step("p", pivot=True, retry=Retry(attempts=2)), step("b")).definition
    run = Run(pivot, succeeded("a"), failed("p"))
    assert sent(run.tell(CompensateNow(by="ada"))) == [("p", "compensation", 1)]
    assert CompensationRequested(by="ada") in run.events
