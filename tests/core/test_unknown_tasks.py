"""A task that no worker knows: nobody said no, so an operator decides, before the pivot too."""

from datetime import timedelta

import pytest

from orchestrator.core.definition import Step, SubSaga
from orchestrator.core.events import StepRejected, TaskUnknown
from orchestrator.core.limits import Limits
from orchestrator.core.machine import decide
from orchestrator.core.messages import (
    Cancel,
    CompensateNow,
    RetryNow,
    Skip,
    Tick,
)
from orchestrator.core.state import CauseKind, Status, fold
from orchestrator.core.timers import wake_at
from tests.core.builders import (
    NOTHING_TO_UNDO,
    SAGA_ID,
    T0,
    UNHEARD,
    Retry,
    Run,
    accepted,
    failed,
    linear,
    rejected,
    saga,
    sent,
    step,
    succeeded,
    unheard,
)


def stuck_at_b() -> Run:
    """A saga whose second of three tasks no worker knows."""
    return Run(linear("a", "b", "c"), succeeded("a"), unheard("b"))


def test_a_saga_whose_task_no_worker_knows_is_stuck_with_that_reason() -> None:
    """It does not turn back, sends nothing, and waits for nobody but an operator."""
    run = stuck_at_b()
    assert ["task_unknown", "saga_stuck"] == run.tags[-2:]
    assert run.known.status.value == "stuck"
    assert (run.known.cause, run.known.went_wrong) == (None, True)
    assert UNHEARD == run.known.step("b").failure
    assert [] == sent(run.last)
    assert wake_at(run.definition, run.known) is None


def test_after_the_deploy_it_goes_on() -> None:
    """`retry` makes the next attempt, and the saga completes as if nothing had been."""
    run = stuck_at_b()
    assert [("b", "action", 2)] == sent(run.tell(RetryNow(reason="deployed")))
    assert run.known.status.value == "running"
    run.tell(succeeded("b", 2), succeeded("c"))
    assert run.known.status.value == "completed"


def test_what_never_ran_needs_no_undo() -> None:
    """`compensate` undoes what was done before it, and nothing else."""
    run = stuck_at_b()
    assert [("a", "compensation", 1)] == sent(run.tell(CompensateNow(reason="give up")))
    assert run.known.status.value == "compensating"
    run.tell(succeeded("a", 1, "compensation"))
    assert run.known.status.value == "compensated"
    assert "rejected" == run.phase("b")


@pytest.mark.parametrize("retried", [False, True])
def test_a_cancel_undoes_it(retried: bool) -> None:
    """Before and after an operator has asked for another attempt, which has not been answered."""
    run = stuck_at_b()
    if retried:
        run.tell(RetryNow(), Cancel(), unheard("b", 2))
    else:
        run.tell(Cancel())
    assert ("a", "compensation", 1) in sent(run.last)
    assert CauseKind.CANCELLED is (run.known.cause and run.known.cause.kind)
    run.tell(succeeded("a", 1, "compensation"))
    assert run.known.status.value == "compensated"


def test_its_deadline_undoes_it() -> None:
    """A definition that says how long it may take means it: it is woken for that."""
    run = Run(linear("a", "b", deadline=timedelta(hours=1)), succeeded("a"), unheard("b"))
    assert T0 + timedelta(hours=1) == run.last.wake_at
    run.wait(timedelta(hours=1))
    assert [("a", "compensation", 1)] == sent(run.tell(Tick()))
    assert run.known.status.value == "compensating"


def test_a_refusal_after_the_deploy_undoes_it_without_that_step() -> None:
    """The attempt that never ran leaves no doubt: nothing happened."""
    run = stuck_at_b()
    run.tell(RetryNow(), rejected("b", 2))
    assert "rejected" == run.phase("b")
    assert [("a", "compensation", 1)] == sent(run.last)


def test_an_earlier_attempt_that_may_have_run_is_undone() -> None:
    """The first attempt timed out, the second found no worker that knows the task."""
    run = Run(linear("a", retry=Retry(attempts=2)))
    run.wait(timedelta(minutes=5))
    run.tell(Tick())
    run.wait(timedelta(minutes=5))
    run.tell(Tick(), unheard("a", 2))
    assert ("failed", Status.STUCK) == (run.phase("a"), run.known.status)
    assert [("a", "compensation", 1)] == sent(run.tell(CompensateNow()))


@pytest.mark.parametrize("pivot", [False, True])
def test_it_has_not_run_either_while_its_next_attempt_waits_for_room(pivot: bool) -> None:
    """So it is not undone, and no pivot that nobody knows the end of."""
    last = step("b", pivot=pivot, compensation=None if pivot else "service.undo-b")
    run = Run(saga(step("a"), last).definition, succeeded("a"), unheard("b"))
    for message in (Cancel(), CompensateNow()):
        full = Limits(room={"b": 0})
        waits = decide(run.definition, run.known, RetryNow(), run.now, limits=full)
        assert waits.awaiting == {"b": "b"}
        back = decide(run.definition, waits.state, message, run.now, limits=full)
        assert [("a", "compensation", 1)] == sent(back)
        assert back.state is not None
        assert (back.state.step("b").phase, back.state.step("b").by_hand) == ("rejected", False)


def test_it_counts_for_the_attempt_in_flight_alone() -> None:
    """Or for one that has just timed out; not for an older one, nor where the end is known."""
    again = Run(linear("a", retry=Retry(attempts=2)), failed("a"), RetryNow())
    assert again.tell(unheard("a", 1)).events == ()
    waits = Run(linear("a"))
    waits.wait(timedelta(seconds=30))
    waits.tell(Tick(), unheard("a"))
    assert ["task_unknown", "saga_stuck"] == waits.tags[-2:]
    known = stuck_at_b()
    assert known.tell(unheard("b")).events == ()
    assert known.tell(unheard("a")).events == ()


def test_who_has_accepted_an_attempt_knew_its_task() -> None:
    """Its refusal is one, whatever it calls the reason."""
    run = Run(linear("a", "b"), succeeded("a"), accepted("b"), unheard("b"))
    assert "step_rejected" in run.tags
    assert [("a", "compensation", 1)] == sent(run.last)


def test_a_late_success_of_another_delivery_counts() -> None:
    """Workers of two versions share a queue, and one of them had the task after all."""
    run = stuck_at_b()
    assert [("c", "action", 1)] == sent(run.tell(succeeded("b")))
    assert run.known.status.value == "running"


def test_skipped_it_needs_no_undo_either() -> None:
    """An operator does without the step; a later refusal does not undo what never ran."""
    run = stuck_at_b()
    run.tell(Skip(step="b", reason="not needed"), rejected("c"))
    assert [("a", "compensation", 1)] == sent(run.last)


def test_another_branch_goes_on_and_its_refusal_turns_the_saga_back() -> None:
    """What does not need the step goes on; what fails there is a reason like any other."""
    branches = (step("a", after=()), step("b", after=()), step("c", after=("b",)))
    run = Run(saga(*branches, step("d", after=("a", "c"))).definition, unheard("a"))
    assert run.known.status.value == "stuck"
    assert [("c", "action", 1)] == sent(run.tell(succeeded("b")))
    run.tell(rejected("c"))
    assert run.known.status.value == "compensating"
    assert [("b", "compensation", 1)] == sent(run.last)


def test_a_pivot_that_never_ran_is_no_point_of_no_return() -> None:
    """It can be tried again, and cancelled while that attempt is in flight."""
    pivot = step("p", pivot=True, compensation=None)
    run = Run(saga(step("a"), pivot).definition, succeeded("a"), unheard("p"))
    assert run.known.status.value == "stuck"
    run.tell(RetryNow(), Cancel())
    assert run.last.refused == ""
    assert [("a", "compensation", 1)] == sent(run.tell(unheard("p", 2)))


def test_after_the_pivot_it_is_stuck_too_and_cannot_be_undone() -> None:
    """As for every step there that gives up."""
    beyond = step("b", compensation=NOTHING_TO_UNDO)
    run = Run(saga(step("p", pivot=True), beyond).definition, succeeded("p"), unheard("b"))
    assert run.known.status.value == "stuck"
    assert "can only go forward" in run.tell(CompensateNow()).refused
    run.tell(RetryNow(), succeeded("b", 2))
    assert run.known.status.value == "completed"


def test_a_sub_saga_that_was_undone_for_it_was_refused() -> None:
    """It passes on the kind of what undid it; to its parent that is a refusal like any other."""
    run = Run(saga(step("a"), Step("s", SubSaga("other"))).definition, succeeded("a"))
    run.tell(unheard("s"))
    assert "step_rejected" in run.tags
    assert run.known.status.value == "compensating"


def test_an_old_history_that_was_undone_for_it_folds_as_it_did() -> None:
    """Older versions took it for a refusal; what they have stored means what it meant."""
    run = Run(linear("a", "b"), succeeded("a"))
    old = StepRejected(step="b", attempt=1, failure=UNHEARD)
    known = fold([*run.events, old])
    assert known is not None
    assert CauseKind.REJECTED is (known.cause and known.cause.kind)
    now = fold([*run.events, TaskUnknown(step="b", attempt=1, failure=UNHEARD)])
    assert now is not None
    assert (SAGA_ID, None) == (now.saga_id, now.cause)
