"""Steps that take their time: signals, sleeps, work that goes on elsewhere, signs of life."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from orchestrator.core.definition import (
    Gather,
    Input,
    Limit,
    Output,
    Saga,
    Sleep,
    Step,
    SubSaga,
    WaitFor,
)
from orchestrator.core.messages import (
    Cancel,
    Complete,
    Heartbeat,
    Message,
    Pause,
    Resume,
    Signal,
    Skip,
    Tick,
)
from orchestrator.core.state import CauseKind, Phase, Status
from shared.errors import DecodeError, DefinitionError
from shared.tokens import proof_of, read_token
from tests.core.builders import (
    FOR_GOOD,
    NOTHING_TO_UNDO,
    SAGA_ID,
    SECRET,
    START,
    T0,
    Retry,
    Run,
    accepted,
    failed,
    linear,
    saga,
    sent,
    step,
    succeeded,
    tags,
    wait,
)

MINUTE = timedelta(minutes=1)
TIMEOUT = timedelta(seconds=30)
APPROVED = Signal(name="ok", data={"approved": True, "by": "ada"}, by="ada")
REFUSED = Signal(name="ok", data={"approved": False, "comment": "too dear"}, by="ada")


def approval(**options: Any) -> Run:
    """A saga that waits for an approval between two tasks."""
    work = WaitFor("ok", **{"approval": True, **options})
    return Run(saga(step("a"), wait("w", work), step("b")).definition)


def alive(step: str, progress: Any = None, attempt: int = 1) -> Heartbeat:
    """A sign of life of an action."""
    return Heartbeat(step=step, direction="action", attempt=attempt, progress=progress)


# Signals --------------------------------------------------------------------------------------


def test_a_step_waits_for_its_signal_and_gives_its_data_on() -> None:
    """Nothing is sent for it; the data are its output."""
    run = approval()
    assert sent(run.tell(succeeded("a"))) == []
    assert (run.phase("w"), run.last.wake_at) == ("running", T0 + MINUTE)
    assert sent(run.tell(APPROVED)) == [("b", "action", 1)]
    assert run.known.step("w").output == APPROVED.data


def test_a_signal_that_comes_before_its_step_is_kept() -> None:
    """The step succeeds as soon as it begins."""
    run = approval()
    assert tags(run.tell(APPROVED).events) == ["signal_received"]
    assert sent(run.tell(succeeded("a"))) == [("b", "action", 1)]


def test_the_first_signal_of_a_name_counts() -> None:
    """A duplicate, or another opinion later, changes nothing."""
    run = approval()
    run.tell(APPROVED)
    assert run.tell(REFUSED).events == ()
    assert run.known.signals == {"ok": APPROVED.data}


def test_an_approval_that_is_refused_undoes_the_saga() -> None:
    """With the comment as the reason; the wait itself leaves nothing to undo."""
    run = approval()
    run.tell(succeeded("a"))
    assert sent(run.tell(REFUSED)) == [("a", "compensation", 1)]
    cause = run.known.cause
    assert cause is not None
    assert cause.failure is not None
    assert (cause.step, cause.failure.kind, cause.failure.message) == (
        "w",
        "NotApproved",
        "too dear",
    )


@pytest.mark.parametrize(
    ("otherwise", "phase", "cause"),
    [
        ("reject", Phase.REJECTED, CauseKind.REJECTED),
        ("fail", Phase.FAILED, CauseKind.TIMED_OUT),
        ("default", Phase.SUCCEEDED, None),
    ],
)
def test_what_happens_when_nobody_answers(
    otherwise: str, phase: Phase, cause: CauseKind | None
) -> None:
    """The deadline of the step decides by what the definition says."""
    run = approval(otherwise=otherwise, default=7 if otherwise == "default" else None)
    run.tell(succeeded("a"))
    run.wait(MINUTE)
    run.tell(Tick())
    assert run.known.step("w").phase is phase
    assert (run.known.cause.kind if run.known.cause else None) is cause
    assert run.known.step("w").output == (7 if otherwise == "default" else None)


def test_a_signal_that_nobody_waits_for_is_refused() -> None:
    """It names the ones that there are; after the end no new one is taken."""
    run = approval()
    assert "waits for no signal 'no', but for 'ok'" in run.tell(Signal(name="no")).refused
    run.tell(Cancel(), succeeded("a"), succeeded("a", direction="compensation"))
    assert run.tell(APPROVED).refused == "The saga is compensated already."
    none = Run(linear("a")).tell(Signal(name="no")).refused
    assert none == "Saga 'test' waits for no signal 'no', and for no other."


def test_a_cancel_does_not_wait_for_a_signal() -> None:
    """What only waits ends at once: nothing has happened there."""
    run = approval()
    run.tell(succeeded("a"))
    assert sent(run.tell(Cancel())) == [("a", "compensation", 1)]
    assert run.phase("w") == "rejected"


def test_a_signal_that_comes_while_the_saga_is_paused_beats_the_deadline() -> None:
    """It came in time, whenever the saga goes on."""
    run = approval()
    run.tell(succeeded("a"), Pause(), APPROVED)
    run.wait(2 * MINUTE)
    run.tell(Tick())
    assert run.phase("w") == "succeeded"
    assert sent(run.tell(Resume())) == [("b", "action", 1)]


def test_an_operator_ends_a_wait() -> None:
    """With an answer of its own."""
    run = approval()
    run.tell(succeeded("a"))
    assert sent(run.tell(Skip(step="w", output={"approved": True}))) == [("b", "action", 1)]


# Sleeps ---------------------------------------------------------------------------------------


def test_a_sleep_ends_by_itself() -> None:
    """Not before its time."""
    run = Run(saga(step("a"), wait("w", Sleep(MINUTE)), step("b")).definition)
    assert run.tell(succeeded("a")).wake_at == T0 + MINUTE
    run.wait(MINUTE - timedelta(microseconds=1))
    assert run.tell(Tick()).events == ()
    run.wait(timedelta(microseconds=1))
    assert sent(run.tell(Tick())) == [("b", "action", 1)]


def test_a_sleep_until_a_time_of_an_output() -> None:
    """A time that has passed is no wait at all."""
    until = wait("w", Sleep(until=Output("a", "at")))
    run = Run(saga(step("a"), until, step("b")).definition)
    assert run.tell(succeeded("a", output={"at": "2026-01-01T01:00:00+00:00"})).wake_at == (
        T0 + timedelta(hours=1)
    )
    late = Run(saga(step("a"), until, step("b")).definition)
    assert sent(late.tell(succeeded("a", output={"at": "2025-01-01T00:00:00Z"}))) == [
        ("b", "action", 1)
    ]


@pytest.mark.parametrize("output", [{"at": "soon"}, {"at": "2026-01-01T01:00:00"}, {}, {"at": 7}])
def test_a_sleep_until_no_time_rejects_the_step(output: object) -> None:
    """With the value in the reason."""
    until = wait("w", Sleep(until=Output("a", "at")))
    run = Run(saga(step("a"), until).definition)
    run.tell(succeeded("a", output=output))
    cause = run.known.cause
    assert cause is not None
    assert cause.failure is not None
    assert cause.failure.kind == "PayloadUnresolved"
    assert cause.failure.message.startswith("until of step 'w': ")


# A start at a given time ----------------------------------------------------------------------


def started_later(*messages: Message, deadline: timedelta | None = None) -> Run:
    """A saga of one step that begins in an hour."""
    start = msgspec.structs.replace(START, not_before=T0 + timedelta(hours=1))
    run = Run(linear("a", deadline=deadline))
    run.state, run.events = None, []
    run.tell(start, *messages)
    return run


def test_a_saga_begins_at_a_given_time() -> None:
    """It exists at once, and wakes for its first step; its deadline counts from there."""
    run = started_later(deadline=timedelta(hours=2))
    assert (run.tags, run.last.wake_at) == (["saga_started"], T0 + timedelta(hours=1))
    assert run.known.deadline_at == T0 + timedelta(hours=3)
    run.wait(timedelta(hours=1))
    assert sent(run.tell(Tick())) == [("a", "action", 1)]
    assert run.last.wake_at == run.now + TIMEOUT


def test_a_saga_that_has_not_begun_can_be_cancelled_and_paused() -> None:
    """Nothing is left of it; a paused one does not begin."""
    assert started_later(Cancel()).known.status is Status.COMPENSATED
    run = started_later(Pause())
    assert run.last.wake_at is None
    run.wait(timedelta(hours=2))
    assert sent(run.tell(Tick())) == []
    assert sent(run.tell(Resume())) == [("a", "action", 1)]


# Work that goes on elsewhere ------------------------------------------------------------------


def test_an_accepted_attempt_stays_in_flight_until_it_is_completed() -> None:
    """With the token of its command, as if its participant had replied."""
    run = Run(linear("a", "b"))
    (command,) = run.last.commands
    assert tags(run.tell(accepted("a")).events) == ["step_accepted"]
    assert (run.phase("a"), run.last.wake_at) == ("running", T0 + TIMEOUT)
    proof = read_token(command.token).proof
    done = Complete(reply=succeeded("a", output={"id": 1}), proof=proof)
    assert sent(run.tell(done)) == [("b", "action", 1)]
    assert run.tell(done).events == ()
    assert run.tell(Complete(reply=failed("a"), proof=proof)).events == ()


def test_a_completion_may_overtake_the_acceptance() -> None:
    """The acceptance is stale then."""
    run = Run(linear("a", "b"))
    proof = read_token(run.last.commands[0].token).proof
    run.tell(Complete(reply=succeeded("a"), proof=proof))
    assert run.tell(accepted("a")).events == ()


def test_an_accepted_attempt_gets_its_own_time() -> None:
    """`completes_within`, from the acceptance on; then it is a time-out like any other."""
    run = Run(linear("a", retry=Retry(attempts=1), completes_within=timedelta(days=2)))
    run.wait(timedelta(seconds=10))
    assert run.tell(accepted("a")).wake_at == run.now + timedelta(days=2)
    run.wait(timedelta(days=2))
    assert sent(run.tell(Tick())) == [("a", "compensation", 1)]


def test_a_token_is_good_for_its_attempt_only() -> None:
    """Another attempt, another step, a made-up proof: refused."""
    run = Run(linear("a", "b"))
    proof = read_token(run.last.commands[0].token).proof
    for reply, given in (
        (succeeded("a", 2), proof),
        (succeeded("b"), proof),
        (succeeded("a"), "0" * 32),
        (succeeded("a"), ""),
    ):
        refused = run.tell(Complete(reply=reply, proof=given)).refused
        assert refused == "The token is not one of this saga."
    never = Complete(reply=succeeded("a", 2), proof=proof_of(SECRET, SAGA_ID, "a", "action", 2))
    assert "was never sent" in run.tell(never).refused


@pytest.mark.parametrize("text", ["", "x", "bm90IGpzb24", "W10", "é", "=" * 3000])
def test_what_is_no_token_is_an_error(text: str) -> None:
    """Not a crash."""
    with pytest.raises(DecodeError, match="not a token"):
        read_token(text)


def test_a_failed_completion_is_retried_like_a_reply() -> None:
    """By the policy of the step."""
    run = Run(linear("a", retry=Retry(attempts=2)))
    proof = read_token(run.last.commands[0].token).proof
    run.tell(accepted("a"), Complete(reply=failed("a"), proof=proof))
    assert run.phase("a") == "retrying"
    run.wait(MINUTE)
    run.tell(Tick())
    assert not run.known.step("a").accepted


# Signs of life --------------------------------------------------------------------------------


def test_a_sign_of_life_moves_the_time_out_and_leaves_no_event() -> None:
    """The last progress is in the state, and gone when the attempt has ended."""
    run = Run(linear("a", "b"))
    run.wait(timedelta(seconds=20))
    decision = run.tell(alive("a", {"done": 3}))
    assert (decision.events, decision.beat) == ((), True)
    assert decision.wake_at == run.now + TIMEOUT
    assert run.known.beats["a"].progress == {"done": 3}
    run.wait(timedelta(seconds=20))
    assert run.tell(Tick()).events == ()
    run.wait(timedelta(seconds=20))
    assert tags(run.tell(Tick()).events) == ["step_timed_out"]
    assert run.known.beats == {}


def test_signs_of_life_are_limited_to_one_a_second() -> None:
    """The others change nothing."""
    run = Run(linear("a"), alive("a"))
    assert not run.tell(alive("a")).beat
    run.wait(timedelta(seconds=1))
    assert run.tell(alive("a")).beat


def test_a_sign_of_life_counts_for_the_attempt_in_flight_only() -> None:
    """Late ones are stale, and ones that nobody asked for are refused."""
    run = Run(linear("a", "b"), failed("a"))
    assert not run.tell(alive("a")).beat
    assert "was never sent" in run.tell(alive("b")).refused
    run.tell(failed("a", failure=FOR_GOOD))


# Definitions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("waiting", "problem"),
    [
        (Step("w", WaitFor("ok")), "it waits for a signal; say how long with timeout="),
        (Step("w", Sleep()), "Sleep wants either a time that it lasts or until="),
        (Step("w", Sleep(MINUTE, Input("at"))), "Sleep wants either"),
        (Step("w", Sleep(-MINUTE)), "Sleep is -1 day, 23:59:00; it must be positive"),
        (Step("w", Sleep(until=Input("at"))), "until is Input('at'), but the input has order_id"),
        (wait("w", WaitFor("o k")), "its signal is named 'o k'"),
        (wait("w", WaitFor("ok", default=1)), 'it has a default; say otherwise="default"'),
        (wait("w", WaitFor("ok", otherwise="default", default={1j})), "default is not JSON"),
        (
            wait("w", WaitFor("ok"), compensation="x.y"),
            "it only waits, so there is nothing to undo",
        ),
        (wait("w", WaitFor("ok"), payload={}), "it only waits and calls nothing"),
        (wait("w", WaitFor("ok"), pivot=True), "it only waits and cannot be the pivot"),
        (
            wait("w", WaitFor("ok"), limit=Limit(in_flight=1)),
            "it only waits, which takes no room; leave the limit out",
        ),
        (Step("w", SubSaga("ho tel")), "its saga is named 'ho tel'"),
        (Step("w", SubSaga("hotel"), "x.y"), "it is a saga, which undoes itself"),
        (Step("w", SubSaga("hotel"), queue="x"), "it is a saga and has no queue"),
        (Step("w", Gather(("a",))), "action is Gather, which is made for a step with each="),
        (step("w", completes_within=-MINUTE), "completes_within is -1 day, 23:59:00"),
    ],
)
def test_mistakes_in_what_is_no_task_are_named(waiting: Step, problem: str) -> None:
    """When the definition is built."""
    with pytest.raises(DefinitionError) as caught:
        saga(waiting)
    found = [one.partition(": ")[2] for one in caught.value.problems]
    assert any(one.startswith(problem) for one in found), caught.value.problems


def test_a_signal_after_the_pivot_must_not_say_no() -> None:
    """There is no way back there."""
    pivot = step("p", pivot=True, compensation=NOTHING_TO_UNDO)
    with pytest.raises(DefinitionError, match="comes after the pivot and may say no"):
        saga(pivot, wait("w", WaitFor("ok")))
    with pytest.raises(DefinitionError, match="comes after the pivot and may say no"):
        saga(pivot, wait("w", WaitFor("ok", approval=True, otherwise="default")))
    assert isinstance(saga(pivot, wait("w", WaitFor("ok", otherwise="default"))), Saga)
    assert isinstance(saga(pivot, wait("w", Sleep(MINUTE))), Saga)
