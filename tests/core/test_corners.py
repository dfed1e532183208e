"""Corners of the rules that no other test looks into: each was found by changing the core."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from orchestrator.core.definition import (
    Definition,
    Input,
    Item,
    Output,
    Retry,
    Step,
    SubSaga,
    WaitFor,
)
from orchestrator.core.events import ForkedFrom
from orchestrator.core.limits import Limits
from orchestrator.core.machine import decide
from orchestrator.core.messages import (
    Cancel,
    CompensateNow,
    Heartbeat,
    Pause,
    Resolve,
    RetryNow,
    Signal,
    Skip,
    Tick,
)
from orchestrator.core.references import Exists, Not, eq, exists
from orchestrator.core.state import Phase, Status
from orchestrator.core.timers import wake_at
from shared.messages import Failure, Parent, Rejected, Reply
from tests.core.builders import (
    FAILURE,
    FOR_GOOD,
    NOTHING_TO_UNDO,
    SAGA_ID,
    START,
    START_TWO,
    T0,
    Orders,
    Run,
    accepted,
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

MINUTE = timedelta(minutes=1)
TWICE = Retry(attempts=2)


def beside(*names: str, **options: Any) -> Definition:
    """Steps that run at once."""
    return saga(*(step(name, after=(), **options) for name in names)).definition


# Attempts ---------------------------------------------------------------------------------------


def test_only_the_attempt_in_flight_is_accepted_and_only_once() -> None:
    """Not one that has failed, not an older one, not a second time."""
    run = Run(linear("a"), failed("a"))
    assert run.tell(accepted("a")).events == ()
    run.tell(RetryNow())
    assert run.tell(accepted("a", 1)).events == ()
    assert tags(run.tell(accepted("a", 2)).events) == ["step_accepted"]
    assert run.known.step("a").accepted
    assert run.tell(accepted("a", 2)).events == ()


def test_only_the_timer_ends_an_attempt_that_is_overdue() -> None:
    """Whatever else arrives first: no other attempt begins beside it."""
    run = Run(beside("a", "b", "c", retry=TWICE))
    run.wait(MINUTE)
    assert run.tell(succeeded("b")).commands == ()
    assert tags(run.tell(Tick()).events) == ["step_timed_out", "step_timed_out"]


def test_a_sign_of_life_counts_in_its_own_direction_and_for_its_own_attempt() -> None:
    """An undo in flight lives on by those of the undo alone, a second attempt by its own."""
    run = Run(linear("a", "b"), succeeded("a"), rejected("b"))
    assert run.phase("a") == "undoing"
    assert not run.tell(Heartbeat(step="a", direction="action", attempt=1)).beat
    assert run.tell(Heartbeat(step="a", direction="compensation", attempt=1)).beat
    again = Run(linear("a"), failed("a"), RetryNow())
    assert not again.tell(Heartbeat(step="a", direction="action", attempt=1)).beat
    assert again.tell(Heartbeat(step="a", direction="action", attempt=2)).beat


def test_a_compensation_that_is_refused_is_not_tried_again() -> None:
    """Whatever the failure says of itself: it cannot be refused, and asking again does not help."""
    run = Run(linear("a", "b", compensation_retry=TWICE), succeeded("a"), rejected("b"))
    refused = Rejected(failure=FAILURE)
    reply = Reply(saga_id=SAGA_ID, step="a", direction="compensation", attempt=1, outcome=refused)
    run.tell(reply)
    assert run.phase("a") == "undo_failed"
    assert run.known.status is Status.STUCK


def test_an_undo_may_be_completed_from_elsewhere() -> None:
    """It is accepted like an action, in its own time."""
    run = Run(linear("a", "b", completes_within=MINUTE), succeeded("a"), rejected("b"))
    run.wait(timedelta(seconds=10))
    decision = run.tell(accepted("a", direction="compensation"))
    assert (tags(decision.events), decision.wake_at) == (["step_accepted"], run.now + MINUTE)
    assert tags(run.tell(succeeded("a", direction="compensation")).events)[0] == "step_succeeded"


def test_a_failure_counts_for_the_attempt_of_the_undo_in_flight_alone() -> None:
    """One of an older attempt comes too late."""
    run = Run(linear("a", "b", compensation_retry=TWICE), succeeded("a"), rejected("b"))
    run.tell(failed("a", direction="compensation"), RetryNow())
    assert sent(run.last) == [("a", "compensation", 2)]
    assert run.tell(failed("a", 1, "compensation")).events == ()
    assert run.phase("a") == "undoing"


def test_what_a_compensation_returns_is_in_the_history() -> None:
    """For whoever reads it."""
    run = Run(linear("a", "b"), succeeded("a"), rejected("b"))
    (event, _) = run.tell(succeeded("a", direction="compensation", output={"back": 7})).events
    assert getattr(event, "output", None) == {"back": 7}


@pytest.mark.parametrize(
    "retry",
    [
        Retry(attempts=3, never_on=(FAILURE.kind,), by_kind={FAILURE.kind: Retry(attempts=5)}),
        Retry(attempts=3, by_kind={FAILURE.kind: Retry(attempts=5, never_on=(FAILURE.kind,))}),
    ],
    ids=["the step's", "the kind's"],
)
def test_never_on_wins_over_the_policy_of_the_kind(retry: Retry) -> None:
    """Wherever it stands."""
    run = Run(linear("a", retry=retry), failed("a"))
    assert (run.phase("a"), run.tags[2]) == ("undoing", "step_failed")


@pytest.mark.parametrize(
    "failure, phase",
    [(FAILURE, "undo_retrying"), (FOR_GOOD, "undo_failed")],
    ids=["waits", "stuck"],
)
def test_a_late_success_while_its_undo_does_not_get_on_is_undone_all_the_same(
    failure: Failure, phase: str
) -> None:
    """It is known then what there is to undo; the step does not stand again."""
    definition = beside("a", "b", retry=Retry(attempts=1), compensation_retry=TWICE)
    run = Run(definition, failed("a"), rejected("b"))
    run.tell(failed("a", direction="compensation", failure=failure))
    assert run.phase("a") == phase
    status = run.known.status
    run.tell(succeeded("a", output={"id": 1}))
    assert (run.phase("a"), run.known.status, run.last.commands) == (phase, status, ())
    (undo,) = run.tell(RetryNow(step="a")).commands
    assert undo.payload["undo"] == {"id": 1}


def test_a_success_that_comes_after_its_undo_changes_nothing() -> None:
    """It has been undone, whatever it was: the barrier of the participant sees to that."""
    run = Run(beside("a", "b", "c", retry=Retry(attempts=1)), failed("a"), succeeded("b"))
    run.tell(rejected("c"), succeeded("a", direction="compensation"))
    assert (run.phase("a"), run.phase("b")) == ("undone", "undoing")
    assert run.tell(succeeded("a", output=7)).events == ()
    assert run.phase("a") == "undone"


def test_what_a_start_says_stands_in_the_state() -> None:
    """All of it is asked for later, by a process that has nothing but the state."""
    given: dict[str, Any] = {
        "key": "order-7",
        "secret": "s",
        "not_before": T0 + MINUTE,
        "parent": Parent(saga_id="above", step="hotel", attempt=2),
        "fork": ForkedFrom(saga_id="old", step="a", reason="why", by="ada"),
    }
    run = Run(linear("a", deadline=MINUTE), start=msgspec.structs.replace(START, **given))
    assert {name: getattr(run.known, name) for name in given} == given
    assert (run.phase("a"), run.last.wake_at) == ("pending", T0 + MINUTE)
    assert (run.known.deadline_at, run.known.input) == (T0 + 2 * MINUTE, START.input)


def test_a_start_that_is_due_at_once_has_no_time_to_wait_for() -> None:
    """Whether its time is past or has just come."""
    for early in (timedelta(), timedelta(seconds=1)):
        start = msgspec.structs.replace(START, not_before=T0 - early)
        run = Run(linear("a", deadline=MINUTE), start=start)
        assert (run.phase("a"), run.known.not_before) == ("running", None)
        assert run.known.deadline_at == T0 + MINUTE


def test_a_saga_that_has_ended_wants_no_timer() -> None:
    """Although its deadline is still to come."""
    run = Run(linear("a", deadline=MINUTE), succeeded("a"))
    assert (run.known.status, run.last.wake_at) == (Status.COMPLETED, None)
    assert wake_at(run.definition, run.known) is None


def test_a_step_that_will_not_be_tried_again_has_no_timer() -> None:
    """Neither while another one is in flight nor on the way back."""
    definition = beside("a", "b", retry=TWICE)
    run = Run(definition, failed("a"), Cancel())
    retry_at = run.known.step("a").due_at
    assert retry_at is not None
    assert run.last.wake_at == run.known.step("b").due_at != retry_at
    run.tell(failed("b"))
    assert run.phase("a") == "undoing"
    run = Run(saga(step("a", after=(), retry=TWICE, compensation=NOTHING_TO_UNDO)).definition)
    run.tell(failed("a"), Cancel())
    assert run.known.step("a").due_at is None


# Waits and signals ------------------------------------------------------------------------------


def test_no_participant_can_end_a_wait() -> None:
    """A reply for a step that waits by itself is refused."""
    definition = saga(wait("w", WaitFor("ok")), step("a")).definition
    run = Run(definition)
    assert "waits by itself" in run.tell(succeeded("w")).refused
    assert run.phase("w") == "running"


@pytest.mark.parametrize("data", ["yes", 7, None, {"comment": 7}, {"approved": "true"}])
def test_whatever_does_not_say_approved_does_not_approve(data: object) -> None:
    """Also what is no object, and a comment that is no text."""
    run = Run(saga(wait("w", WaitFor("ok", approval=True)), step("a")).definition)
    run.tell(Signal(name="ok", data=data))
    failure = run.known.step("w").failure
    assert failure is not None
    assert failure.message == "Signal 'ok' did not approve."
    assert run.known.status is Status.COMPENSATED


def test_a_signal_that_comes_again_after_the_end_is_no_mistake() -> None:
    """It is a duplicate; another one is too late."""
    definition = saga(wait("w", WaitFor("ok")), wait("v", WaitFor("go"))).definition
    run = Run(definition, Signal(name="ok"), Cancel())
    assert run.known.status.final
    assert run.tell(Signal(name="ok")).refused == ""
    assert "already" in run.tell(Signal(name="go")).refused


# Conditions, references, lists ------------------------------------------------------------------


def test_a_condition_that_leads_to_nothing_rejects_a_step_that_was_never_sent() -> None:
    """Nothing of it can stand, so nothing of it is undone."""
    definition = saga(step("a"), step("b", when=eq(Output("a", "size"), 1))).definition
    run = Run(definition, succeeded("a", output={}))
    assert run.phase("b") == "rejected"
    failure = run.known.step("b").failure
    assert failure is not None
    assert (failure.kind, failure.retryable) == ("ConditionUnresolved", False)
    assert sent(run.last) == [("a", "compensation", 1)]


def test_the_output_of_a_step_that_was_skipped_does_not_exist() -> None:
    """Not even as null."""
    never = eq(Input("order_id"), "another")
    definition = saga(
        step("a", when=never),
        step("b", when=exists(Output("a"))),
        step("c", when=Not(Exists(Output("a")))),
    ).definition
    run = Run(definition)
    assert [run.phase(name) for name in "abc"] == ["skipped", "skipped", "running"]


def test_a_sub_saga_whose_input_leads_to_nothing_rejects_its_step() -> None:
    """As a task whose payload does."""
    nested = Step("s", SubSaga("other"), payload={"id": Output("a", "id")})
    run = Run(saga(step("a"), nested).definition, succeeded("a", output={}))
    assert run.phase("s") == "rejected"


def test_other_steps_take_no_room_from_the_items_of_a_list() -> None:
    """One item at a time, whatever else is in flight."""
    listed = step(
        "l", after=(), each=Input("order_ids"), payload={"order_id": Item()}, items_at_once=1
    )
    definition = saga(step("a", after=()), listed, input=Orders).definition
    run = Run(definition, start=START_TWO)
    assert [run.phase(name) for name in ("a", "l[0]", "l[1]")] == ["running", "running", "pending"]


def test_a_saga_at_its_limit_may_still_end() -> None:
    """Only an attempt that would begin is too much."""
    run = Run(linear("a"))
    limits = Limits(events_max=3)
    decision = decide(run.definition, run.known, succeeded("a"), run.now, limits=limits, history=2)
    assert tags(decision.events) == ["step_succeeded", "saga_completed"]


# Operators --------------------------------------------------------------------------------------


def test_a_retry_of_one_step_leaves_the_others_to_their_time() -> None:
    """It names its step."""
    run = Run(beside("a", "b"), failed("a"), failed("b"))
    assert sent(run.tell(RetryNow(step="b"))) == [("b", "action", 2)]
    assert run.phase("a") == "retrying"


def test_an_undo_that_waits_is_tried_now_or_skipped() -> None:
    """As one that gave up."""
    back = (succeeded("a"), rejected("b"), failed("a", direction="compensation"))
    run = Run(linear("a", "b", compensation_retry=TWICE), *back)
    assert run.phase("a") == "undo_retrying"
    assert sent(run.tell(RetryNow(step="a"))) == [("a", "compensation", 2)]
    run = Run(linear("a", "b", compensation_retry=TWICE), *back, Skip(step="a"))
    assert run.known.status is Status.COMPENSATED


def test_a_saga_that_was_paused_and_resolved_is_not_paused() -> None:
    """It has ended."""
    run = Run(linear("a", "b"), succeeded("a"), rejected("b"))
    run.tell(rejected("a", direction="compensation"), Pause(), Resolve())
    assert (run.known.status, run.known.paused) == (Status.RESOLVED, False)


def test_giving_up_twice_is_written_down_once_and_about_no_step() -> None:
    """Before the pivot nobody has to vouch for anything."""
    run = Run(linear("a"), CompensateNow())
    assert [*run.known.steps] == ["a"]
    assert run.tell(CompensateNow()).events == ()
    assert run.tags.count("compensation_requested") == 1


def test_a_step_that_is_to_come_is_not_skipped_once_the_saga_turns_back() -> None:
    """It will not come."""
    run = Run(linear("a", "b"), Cancel())
    assert "cannot be skipped" in run.tell(Skip(step="b")).refused
    assert run.known.step("b").phase is Phase.PENDING
