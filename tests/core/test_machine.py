"""The machine by example: one rule a test, the hard cases first."""

from datetime import timedelta

import pytest

from orchestrator.core.definition import TIMED_OUT, Input, Literal, Output
from orchestrator.core.events import SagaStuck, StepFailed, StepTimedOut
from orchestrator.core.machine import Cancel, Tick, decide
from orchestrator.core.state import CauseKind, Phase, Status, evolve, fold
from shared.backoff import Backoff, delay
from shared.errors import DefinitionError
from shared.messages import Failure
from tests.core.builders import (
    FAILURE,
    FOR_GOOD,
    NOTHING_TO_UNDO,
    SAGA_ID,
    START,
    T0,
    TRACE,
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
)

CANCEL = Cancel(reason="changed my mind", by="ada")
TWICE = Retry(attempts=2)
TIMEOUT = timedelta(seconds=30)
LONG = timedelta(minutes=10)

PIVOT = saga(
    step("reserve"),
    step("confirm", pivot=True, compensation=None, retry=Retry(attempts=3)),
    step("notify", compensation=None, retry=TWICE),
    deadline=timedelta(hours=1),
).definition


# The ordinary ways ----------------------------------------------------------------------------


def test_a_start_dispatches_the_first_step_with_the_input_as_payload() -> None:
    """One decision starts the saga, sends the first command and sets its timer."""
    run = Run(linear("a", "b"))
    (command,) = run.last.commands
    assert run.tags == ["saga_started", "step_dispatched"]
    assert command.id == f"{SAGA_ID}:a:action:1"
    assert (command.task, command.queue) == ("service.a", "service")
    assert command.payload == {"order_id": "o-1"}
    assert command.deadline_at == run.last.wake_at == T0 + TIMEOUT


def test_a_second_start_changes_nothing() -> None:
    """A start that is delivered twice is an empty decision."""
    run = Run(linear("a"))
    assert run.tell(START).events == ()


def test_steps_run_in_order_and_the_last_completes_the_saga() -> None:
    """Each success sends the next command; after the last there is nothing to wait for."""
    run = Run(linear("a", "b"))
    assert sent(run.tell(succeeded("a"))) == [("b", "action", 1)]
    assert sent(run.tell(succeeded("b"))) == []
    assert (run.known.status, run.last.wake_at) == (Status.COMPLETED, None)


def test_independent_steps_run_and_are_undone_in_parallel() -> None:
    """A diamond: both arms at once, and the same on the way back."""
    arms = [step(name, after=("a",)) for name in ("b", "c")]
    run = Run(saga(step("a"), *arms, step("d", after=("b", "c"))).definition)
    assert sent(run.tell(succeeded("a"))) == [("b", "action", 1), ("c", "action", 1)]
    assert sent(run.tell(succeeded("c"))) == []
    assert sent(run.tell(succeeded("b"))) == [("d", "action", 1)]
    undone = run.tell(rejected("d"))
    assert sent(undone) == [("b", "compensation", 1), ("c", "compensation", 1)]
    assert sent(run.tell(succeeded("b", direction="compensation"))) == []
    last = run.tell(succeeded("c", direction="compensation"))
    assert sent(last) == [("a", "compensation", 1)]


def test_a_rejected_step_is_not_undone_itself() -> None:
    """Nothing happened there: only what came before it is undone, in reverse."""
    run = Run(linear("a", "b", "c"), succeeded("a"), succeeded("b"))
    assert sent(run.tell(rejected("c"))) == [("b", "compensation", 1)]
    undone = run.tell(succeeded("b", direction="compensation"))
    assert sent(undone) == [("a", "compensation", 1)]
    run.tell(succeeded("a", direction="compensation"))
    assert run.known.status is Status.COMPENSATED
    assert run.known.cause is not None
    assert (run.known.cause.kind, run.known.cause.step) == (CauseKind.REJECTED, "c")


def test_a_failed_step_is_undone_itself() -> None:
    """Nobody knows what happened, so it is undone like a success."""
    run = Run(linear("a", retry=Retry(attempts=1)))
    assert sent(run.tell(failed("a"))) == [("a", "compensation", 1)]


def test_a_timed_out_step_is_undone_itself() -> None:
    """A time-out is not a refusal."""
    run = Run(linear("a", retry=Retry(attempts=1)))
    run.wait(TIMEOUT)
    assert sent(run.tell(Tick())) == [("a", "compensation", 1)]
    assert run.known.cause is not None
    assert run.known.cause.kind is CauseKind.TIMED_OUT


def test_a_compensation_gets_the_payload_of_the_action_and_its_undo_data() -> None:
    """By the name `undo`, beside the action's own arguments."""
    run = Run(linear("a", "b"), succeeded("a", output={"id": 7}))
    (command,) = run.tell(rejected("b")).commands
    assert command.task == "service.undo-a"
    assert command.payload == {"order_id": "o-1", "undo": {"id": 7}}


def test_a_step_with_nothing_to_undo_is_passed_over_on_the_way_back() -> None:
    """Whatever its outcome was."""
    quiet = step("b", compensation=NOTHING_TO_UNDO, retry=Retry(attempts=1))
    run = Run(saga(step("a"), quiet).definition, succeeded("a"))
    assert sent(run.tell(failed("b"))) == [("a", "compensation", 1)]


# Retries --------------------------------------------------------------------------------------


def test_a_failed_attempt_is_retried_after_its_wait() -> None:
    """Not before it, and with the number of the next attempt."""
    run = Run(linear("a"))
    decision = run.tell(failed("a"))
    wait = delay(Backoff(), 1, f"{SAGA_ID}:a:action")
    assert decision.wake_at == T0 + wait
    run.wait(wait - timedelta(microseconds=1))
    assert run.tell(Tick()).events == ()
    run.wait(timedelta(microseconds=1))
    assert sent(run.tell(Tick())) == [("a", "action", 2)]


@pytest.mark.parametrize("policy", [Retry(attempts=None), Retry(attempts=2)])
def test_a_failure_that_is_not_retryable_ends_the_step_at_once(policy: Retry) -> None:
    """Whatever the policy says."""
    run = Run(linear("a", retry=policy), failed("a", failure=FOR_GOOD))
    assert run.phase("a") == "undoing"


def test_a_kind_that_the_policy_names_is_never_retried() -> None:
    """`never_on` matches the kind of the failure."""
    run = Run(linear("a", retry=Retry(never_on=(FAILURE.kind,))), failed("a"))
    assert run.phase("a") == "undoing"


def test_a_policy_per_kind_decides_whether_and_when_another_attempt_follows() -> None:
    """The kind of the last failure counts; a time-out is a kind, too."""
    hourly = Backoff(wait_first=timedelta(hours=1), wait_max=timedelta(hours=1))
    patient = Retry(attempts=None, backoff=hourly)
    policy = Retry(attempts=2, by_kind={FAILURE.kind: patient, TIMED_OUT: Retry(attempts=1)})
    run = Run(linear("a", retry=policy))
    for attempt in (1, 2, 3):
        run.tell(failed("a", attempt))
        assert run.last.wake_at is not None
        assert run.last.wake_at > run.now + timedelta(minutes=30)
        run.wait(timedelta(hours=1))
        run.tell(Tick())
    other = Failure(kind="Other")
    assert sent(run.tell(failed("a", 4, failure=other))) == [("a", "compensation", 1)]

    timed_out = Run(linear("a", retry=policy))
    timed_out.wait(TIMEOUT)
    assert sent(timed_out.tell(Tick())) == [("a", "compensation", 1)]


def test_a_retry_without_end_goes_on() -> None:
    """The hundredth attempt follows the ninety-ninth."""
    run = Run(linear("a", retry=Retry.forever()))
    for attempt in range(1, 100):
        run.tell(failed("a", attempt))
        run.wait(LONG)
        run.tell(Tick())
    assert run.known.step("a").attempt == 100


# Late, doubled and reordered replies ----------------------------------------------------------


def test_late_success_of_an_older_attempt_counts() -> None:
    """Its effect is real, whichever attempt is in flight now."""
    run = Run(linear("a", "b"), failed("a"))
    run.wait(LONG)
    run.tell(Tick())
    assert sent(run.tell(succeeded("a", 1))) == [("b", "action", 1)]
    assert run.known.step("a").success == 1


def test_late_failure_of_an_older_attempt_does_not_count() -> None:
    """The attempt in flight decides."""
    run = Run(linear("a"), failed("a"))
    run.wait(LONG)
    run.tell(Tick())
    assert run.tell(failed("a", 1)).events == ()
    assert run.tell(rejected("a", 1)).events == ()


def test_a_success_while_the_next_attempt_is_awaited_counts() -> None:
    """The wait for the retry ends at once."""
    run = Run(linear("a", "b"))
    run.wait(TIMEOUT)
    run.tell(Tick())
    assert run.phase("a") == "retrying"
    assert sent(run.tell(succeeded("a"))) == [("b", "action", 1)]


def test_a_rejection_after_the_time_out_of_the_same_attempt_counts() -> None:
    """Nothing happened, for certain, and nothing is to be retried."""
    run = Run(linear("a"))
    run.wait(TIMEOUT)
    run.tell(Tick(), rejected("a"))
    assert run.known.status is Status.COMPENSATED


def test_a_rejection_after_an_attempt_of_unknown_outcome_is_undone() -> None:
    """`Nothing happened` is said of the second attempt; the first may have done it."""
    run = Run(linear("a", retry=TWICE))
    run.wait(TIMEOUT)
    run.tell(Tick())
    run.wait(LONG)
    run.tell(Tick())
    assert sent(run.tell(rejected("a", 2))) == [("a", "compensation", 1)]


def test_a_success_that_comes_while_the_step_is_undone_is_kept() -> None:
    """The history shows it, and the next attempt of the undo knows what there is to undo."""
    run = Run(linear("a", retry=Retry(attempts=1)), failed("a"))
    assert tags(run.tell(succeeded("a", output={"id": 7})).events) == ["step_succeeded"]
    assert run.phase("a") == "undoing"
    run.tell(failed("a", direction="compensation"))
    run.wait(LONG)
    (command,) = run.tell(Tick()).commands
    assert command.payload["undo"] == {"id": 7}


def test_a_duplicate_of_every_reply_changes_nothing() -> None:
    """Empty decisions, at every moment of a saga that is undone."""
    run = Run(linear("a", "b"))
    for reply in (
        succeeded("a"),
        rejected("b"),
        succeeded("a", direction="compensation"),
    ):
        run.tell(reply)
        assert run.tell(reply).events == ()


def test_nothing_follows_the_end() -> None:
    """No reply, tick or cancel moves a saga that has ended."""
    run = Run(linear("a"), succeeded("a"))
    run.wait(LONG)
    for message in (failed("a"), rejected("a"), succeeded("a"), Tick(), CANCEL):
        assert run.tell(message).events == ()


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (succeeded("x"), "has no step 'x'"),
        (succeeded("a", 2), "Attempt 2 of 'a' (action) was never sent; 1 were."),
        (succeeded("a", 0), "Attempt 0 of 'a' (action) was never sent"),
        (succeeded("b"), "Attempt 1 of 'b' (action) was never sent; 0 were."),
        (succeeded("a", 1, "compensation"), "Attempt 1 of 'a' (compensation) was never sent"),
    ],
)
def test_a_reply_that_was_never_asked_for_is_refused(reply: object, why: str) -> None:
    """It goes to the dead letters with the reason, and the saga stays as it is."""
    run = Run(linear("a", "b"))
    before = run.known
    decision = run.tell(reply)  # type: ignore[arg-type]  # parametrised
    assert why in decision.refused
    assert (decision.events, decision.state) == ((), before)


def test_a_message_for_a_saga_that_does_not_exist_is_refused() -> None:
    """A tick for it is nothing: the saga may have been removed since the timer was read."""
    definition = linear("a")
    assert decide(definition, None, succeeded("a"), T0).refused == "There is no such saga."
    assert decide(definition, None, CANCEL, T0).refused == "There is no such saga."
    tick = decide(definition, None, Tick(), T0)
    assert (tick.refused, tick.events, tick.state) == ("", (), None)


# Cancel and deadline --------------------------------------------------------------------------


def test_a_cancel_waits_for_the_step_in_flight() -> None:
    """It is a stored fact at once; compensation begins when the step has ended."""
    run = Run(linear("a", "b", "c"), succeeded("a"))
    assert tags(run.tell(CANCEL).events) == ["cancel_requested"]
    assert run.known.status is Status.RUNNING
    assert sent(run.tell(succeeded("b"))) == [("b", "compensation", 1)]


def test_a_cancel_keeps_its_reason() -> None:
    """The cause says who wanted it and why."""
    run = Run(linear("a"), CANCEL)
    assert run.known.cause is not None
    assert run.known.cause.failure is not None
    assert (run.known.cause.kind, run.known.cause.failure.message) == (
        CauseKind.CANCELLED,
        "changed my mind",
    )


def test_a_cancel_does_not_wait_for_a_retry() -> None:
    """Nothing is in flight: the step that waits for its next attempt is undone at once."""
    run = Run(linear("a"), failed("a"))
    assert sent(run.tell(CANCEL)) == [("a", "compensation", 1)]


def test_a_step_that_fails_after_a_cancel_is_not_retried() -> None:
    """Nothing new begins once a cause has come up."""
    run = Run(linear("a"), CANCEL)
    assert sent(run.tell(failed("a"))) == [("a", "compensation", 1)]


def test_a_second_cancel_changes_nothing() -> None:
    """Nor one that comes while the saga is undone."""
    run = Run(linear("a"), CANCEL)
    assert run.tell(CANCEL).events == ()
    run.tell(succeeded("a"))
    assert (run.tell(CANCEL).events, run.last.refused) == ((), "")


def test_a_cancel_after_the_pivot_is_refused() -> None:
    """The saga can only go forward then."""
    run = Run(PIVOT, succeeded("reserve"), succeeded("confirm"))
    expected = "The saga is past its pivot 'confirm': it can only go forward."
    assert run.tell(CANCEL).refused == expected


def test_a_cancel_of_an_ended_saga_is_refused() -> None:
    """With its status."""
    run = Run(linear("a"), succeeded("a"))
    assert run.tell(CANCEL).refused == "The saga is completed already."


def test_the_deadline_undoes_a_saga_that_has_not_passed_its_pivot() -> None:
    """It waits for the step in flight like a cancel."""
    run = Run(linear("a", deadline=timedelta(seconds=20)))
    assert run.last.wake_at == T0 + timedelta(seconds=20)
    run.wait(timedelta(seconds=20))
    assert tags(run.tell(Tick()).events) == ["deadline_exceeded"]
    assert run.last.wake_at == T0 + TIMEOUT
    assert sent(run.tell(succeeded("a"))) == [("a", "compensation", 1)]
    assert run.known.cause is not None
    assert run.known.cause.kind is CauseKind.DEADLINE


def test_the_deadline_means_nothing_after_the_pivot() -> None:
    """Neither does it wake the saga."""
    run = Run(PIVOT, succeeded("reserve"), succeeded("confirm"))
    run.wait(timedelta(seconds=29))
    assert run.last.wake_at == T0 + TIMEOUT
    run.wait(timedelta(days=1))
    assert "deadline_exceeded" not in tags(run.tell(Tick()).events)


def test_the_deadline_does_not_interrupt_compensation() -> None:
    """A saga that is undone is undone, however long it takes."""
    run = Run(linear("a", "b", deadline=timedelta(minutes=5)), succeeded("a"), rejected("b"))
    run.wait(LONG)
    assert tags(run.tell(Tick()).events) == ["step_timed_out"]


def test_no_retry_is_announced_when_the_deadline_has_passed_too() -> None:
    """One late tick finds both: the step that timed out is undone, and its history says so."""
    run = Run(linear("a", deadline=timedelta(minutes=1)))
    run.wait(LONG)
    exceeded, timed_out = run.tell(Tick()).events[:2]
    assert tags([exceeded]) == ["deadline_exceeded"]
    assert isinstance(timed_out, StepTimedOut)
    assert timed_out.retry_at is None


# The pivot ------------------------------------------------------------------------------------


def test_a_rejected_pivot_is_undone_up_to_there() -> None:
    """Nothing happened at the point of no return, so it was not passed."""
    run = Run(PIVOT, succeeded("reserve"))
    assert sent(run.tell(rejected("confirm"))) == [("reserve", "compensation", 1)]


def test_an_unknown_pivot_that_cannot_be_undone_is_tried_again_although_cancelled() -> None:
    """It may have happened: going back could leave a confirmed order without its goods."""
    run = Run(PIVOT, succeeded("reserve"), CANCEL)
    run.tell(failed("confirm"))
    assert run.phase("confirm") == "retrying"
    run.wait(timedelta(minutes=1))
    assert sent(run.tell(Tick())) == [("confirm", "action", 2)]


def test_an_unknown_pivot_stays_unknown_while_it_is_tried_again() -> None:
    """Neither a cancel nor the deadline comes through then: they would change nothing."""
    run = Run(PIVOT, succeeded("reserve"), failed("confirm"))
    run.wait(timedelta(minutes=1))
    run.tell(Tick())
    assert run.phase("confirm") == "running"
    assert "past its pivot" in run.tell(CANCEL).refused
    run.wait(timedelta(hours=2))
    assert tags(run.tell(Tick()).events) == ["step_timed_out"]


def test_a_late_tick_after_a_retry_of_the_pivot_sets_no_timer_in_the_past() -> None:
    """Found at random: the deadline had passed, and applied again as the pivot was retried."""
    run = Run(PIVOT, succeeded("reserve"), failed("confirm"))
    run.wait(timedelta(hours=2))
    run.tell(Tick())
    assert run.last.wake_at == run.now + TIMEOUT


def test_an_unknown_pivot_that_gives_up_leaves_the_saga_stuck() -> None:
    """It can go neither on nor back: an operator has to look."""
    run = Run(PIVOT, succeeded("reserve"))
    assert tags(run.tell(failed("confirm", failure=FOR_GOOD)).events) == [
        "step_failed",
        "saga_stuck",
    ]
    assert (run.known.status, run.last.wake_at) == (Status.STUCK, None)


def test_a_step_after_the_pivot_that_gives_up_leaves_the_saga_stuck() -> None:
    """Nothing is undone; a success that comes late frees it again."""
    run = Run(PIVOT, succeeded("reserve"), succeeded("confirm"))
    run.tell(failed("notify", failure=FOR_GOOD))
    assert run.events[-1] == SagaStuck(step="notify", direction="action")
    assert run.last.commands == ()
    run.tell(succeeded("notify"))
    assert run.known.status is Status.COMPLETED


def test_a_pivot_that_can_be_undone_is_undone_when_its_outcome_is_unknown() -> None:
    """It has a compensation, and what comes after it has not begun."""
    pivot = step("b", pivot=True, retry=Retry(attempts=1))
    run = Run(saga(step("a"), pivot).definition, succeeded("a"))
    assert sent(run.tell(failed("b"))) == [("b", "compensation", 1)]


# Compensation that goes wrong -----------------------------------------------------------------


def test_a_compensation_is_retried_by_its_own_policy_and_then_stuck() -> None:
    """Visible, not final, and with nothing left to wait for."""
    run = Run(linear("a", "b", compensation_retry=TWICE), succeeded("a"), rejected("b"))
    run.tell(failed("a", direction="compensation"))
    run.wait(LONG)
    run.tell(Tick())
    run.wait(TIMEOUT)
    assert tags(run.tell(Tick()).events) == ["step_timed_out", "saga_stuck"]
    assert (run.known.status, run.last.wake_at) == (Status.STUCK, None)


def test_a_compensation_that_is_refused_leaves_the_saga_stuck_at_once() -> None:
    """Asking again will not help."""
    run = Run(linear("a", "b"), succeeded("a"), rejected("b"))
    run.tell(rejected("a", direction="compensation"))
    assert (run.phase("a"), run.known.status) == ("undo_failed", Status.STUCK)


def test_a_late_success_of_a_compensation_frees_a_stuck_saga() -> None:
    """It was undone after all, and what came before it is undone too."""
    run = Run(
        linear("a", "b", "c", compensation_retry=Retry(attempts=1)),
        succeeded("a"),
        succeeded("b"),
        rejected("c"),
    )
    run.wait(TIMEOUT)
    run.tell(Tick())
    assert run.events[-1] == SagaStuck(step="b", direction="compensation")
    undone = run.tell(succeeded("b", direction="compensation"))
    assert sent(undone) == [("a", "compensation", 1)]
    assert run.known.status is Status.COMPENSATING


# Payloads -------------------------------------------------------------------------------------


def test_a_payload_is_made_of_references_and_literals() -> None:
    """Paths lead into the input and into the outputs of earlier steps."""
    payload = {
        "order": Input("order_id"),
        "card": Output("a", "card.last4"),
        "all": Output("a"),
        "kind": "express",
        "what": Literal("urgent"),
    }
    run = Run(saga(step("a"), step("b", payload=payload)).definition)
    (command,) = run.tell(succeeded("a", output={"card": {"last4": "0002"}})).commands
    assert command.payload == {
        "order": "o-1",
        "card": "0002",
        "all": {"card": {"last4": "0002"}},
        "kind": "express",
        "what": "urgent",
    }


def test_a_payload_that_cannot_be_resolved_rejects_the_step() -> None:
    """Nothing was sent, so nothing happened; what came before is undone."""
    run = Run(saga(step("a"), step("b", payload={"card": Output("a", "card")})).definition)
    run.tell(succeeded("a", output={}))
    assert run.phase("b") == "rejected"
    cause = run.known.cause
    assert cause is not None
    assert cause.failure is not None
    assert cause.failure.message == "payload of step 'b': the output of 'a' has no 'card'"
    assert sent(run.last) == [("a", "compensation", 1)]


# Traces and the fold --------------------------------------------------------------------------


def test_a_command_carries_the_stored_trace() -> None:
    """Never what happens to be current; each attempt has a span id of its own."""
    run = Run(linear("a"))
    (first,) = run.last.commands
    run.tell(failed("a"))
    run.wait(LONG)
    (second,) = run.tell(Tick()).commands
    version, trace_id, span, flags = first.traceparent.split("-")
    assert (version, trace_id, flags) == ("00", TRACE.trace_id, "01")
    assert len(span) == 16
    assert second.traceparent.split("-")[2] != span


def test_a_history_begins_with_its_start_and_has_only_one() -> None:
    """Anything else is not a history."""
    run = Run(linear("a"))
    start, dispatched = run.events
    with pytest.raises(ValueError, match="begins with saga_started"):
        evolve(None, dispatched)
    with pytest.raises(ValueError, match="starts twice"):
        evolve(run.known, start)
    assert fold([]) is None


def test_events_say_whether_another_attempt_follows() -> None:
    """Without `retry_at` it was the last one."""
    run = Run(linear("a", retry=TWICE), failed("a"))
    first = run.events[-1]
    run.wait(LONG)
    run.tell(Tick())
    run.wait(TIMEOUT)
    second = run.tell(Tick()).events[0]
    assert isinstance(first, StepFailed)
    assert isinstance(second, StepTimedOut)
    assert (first.retry_at is None, second.retry_at is None) == (False, True)
    assert run.phase("a") == Phase.UNDOING


def test_a_step_after_the_pivot_needs_a_retry() -> None:
    """Checked when the definition is built, since only forward recovery exists there."""
    with pytest.raises(DefinitionError, match="comes after the pivot and is never retried"):
        saga(step("a", pivot=True), step("b", retry=Retry(attempts=1)))
