"""What sagas tell each other, word for word: each message, to whom, and as a part of which trace."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from orchestrator.core import between
from orchestrator.core.definition import Definition, Retry, SubSaga
from orchestrator.core.events import Trace
from orchestrator.core.machine import Cancel, Tick
from orchestrator.core.messages import CompensateNow, Message, Pause, Resolve, RetryNow, Undo
from shared.ids import Direction, sub_saga_id
from shared.messages import (
    Accepted,
    Command,
    Ended,
    Failed,
    Failure,
    Parent,
    Rejected,
    Reply,
    StartRequest,
    Succeeded,
    UndoRequest,
)
from tests.core.builders import (
    FOR_GOOD,
    REFUSAL,
    SAGA_ID,
    START,
    TRACE,
    Run,
    failed,
    rejected,
    saga,
    step,
    succeeded,
)

CHILD = sub_saga_id(SAGA_ID, "hotel", 1)
ABOVE = Parent(saga_id="above", step="trip", attempt=2, depth=3, above=(("year", "trip"),))
HERE = (*ABOVE.above, ("test", "hotel"))
TRAVELS: Trace = msgspec.structs.replace(
    TRACE, tracestate="vendor=1", baggage=(("tenant", "acme"),), sampled=False
)
BELOW = msgspec.structs.replace(START, parent=ABOVE, trace=TRAVELS)


def parent(trace: Any = "same", **options: Any) -> Run:
    """A saga with a sub-saga that has been started, which is a sub-saga itself."""
    hotel = step("hotel", action=SubSaga("hotel", trace=trace), compensation=None, **options)
    return Run(saga(hotel, step("mail")).definition, start=BELOW)


def child(*messages: Message, definition: Definition | None = None) -> Run:
    """A sub-saga of two steps to which these messages came."""
    steps = saga(step("a", retry=Retry(attempts=1)), step("b", retry=Retry(attempts=1)))
    return Run(definition or steps.definition, *messages, start=BELOW)


def only(commands: tuple[Command, ...]) -> Command:
    """The one command of a decision."""
    (command,) = commands
    return command


# Downwards ------------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", ["same", "linked"])
def test_a_start_says_whose_sub_saga_it_is_and_what_it_continues(trace: str) -> None:
    """One trace, or one of its own with a link; the baggage goes along in both."""
    command = only(parent(trace).last.commands)
    here, linked = command.traceparent, trace == "linked"
    assert here.split("-")[1] == TRACE.trace_id
    assert msgspec.convert(command.payload, StartRequest) == StartRequest(
        name="hotel",
        input={"order_id": "o-1"},
        saga_id=CHILD,
        traceparent=None if linked else here,
        tracestate="" if linked else "vendor=1",
        baggage={"tenant": "acme"},
        parent=Parent(
            saga_id=SAGA_ID,
            step="hotel",
            attempt=1,
            depth=4,
            link=here if linked else "",
            above=HERE,
        ),
    )
    assert (command.tracestate, command.baggage) == ("vendor=1", {"tenant": "acme"})


def test_the_first_saga_of_a_nest_stands_above_one_level() -> None:
    """The depth is counted from there: a saga that starts itself has to end."""
    run = Run(saga(step("hotel", action=SubSaga("hotel"), compensation=None)).definition)
    assert only(run.last.commands).payload["parent"].get("depth", 1) == 1


@pytest.mark.parametrize(
    "turned, reason",
    [(True, "the saga it belongs to turned back"), (False, "TimedOut")],
    ids=["cancel", "time-out"],
)
def test_a_sub_saga_that_is_called_back_is_told_why_each_time(
    *, turned: bool, reason: str
) -> None:
    """It stands in its history as the reason of its cancel."""
    run = parent(timeout=timedelta(seconds=20))
    if not turned:
        run.wait(timedelta(seconds=20))
    first = only(run.tell(Cancel() if turned else Tick()).commands)
    told = msgspec.convert(first.payload, UndoRequest)
    assert (told.saga_id, told.attempt, told.reason) == (CHILD, 0, reason)
    assert told.start.parent == Parent(
        saga_id=SAGA_ID, step="hotel", attempt=1, depth=4, above=HERE
    )
    assert (first.step, first.direction, first.attempt) == ("hotel", "action", 1)
    assert (first.id, first.tracestate) == (f"{SAGA_ID}:hotel:recall:1", "vendor=1")
    run.wait(timedelta(minutes=1))
    assert only(run.tell(Tick()).commands).payload == first.payload


def test_an_undo_names_the_attempt_and_the_reason() -> None:
    """What went wrong above stands in the history below."""
    run = parent()
    run.tell(succeeded("hotel"))
    told = msgspec.convert(only(run.tell(rejected("mail")).commands).payload, UndoRequest)
    assert (told.saga_id, told.attempt, told.began) == (CHILD, 1, True)
    assert told.reason == REFUSAL.message


def test_a_deadline_is_a_reason_without_words() -> None:
    """Nobody said anything."""
    hotel = step("hotel", action=SubSaga("hotel"), compensation=None)
    definition = saga(hotel, step("mail"), deadline=timedelta(seconds=10)).definition
    run = Run(definition, succeeded("hotel"))
    run.wait(timedelta(seconds=10))
    run.tell(Tick(), succeeded("mail"), succeeded("mail", direction="compensation"))
    told = msgspec.convert(only(run.last.commands).payload, UndoRequest)
    assert (told.saga_id, told.reason) == (CHILD, "")


def test_the_sub_saga_that_succeeded_is_undone_and_not_that_of_the_last_attempt() -> None:
    """The first one has answered late, while the second was on its way."""
    run = parent(retry=Retry(attempts=2))
    run.tell(failed("hotel"), RetryNow(), succeeded("hotel", 1), rejected("mail"))
    told = msgspec.convert(only(run.last.commands).payload, UndoRequest)
    assert run.known.step("hotel").attempt == 2
    assert (told.saga_id, told.start.saga_id) == (CHILD, CHILD)


def test_a_sub_saga_of_which_nobody_knows_is_undone_by_its_last_attempt() -> None:
    """It may not even have begun, and is told that it need not."""
    run = parent()
    told = msgspec.convert(only(run.tell(failed("hotel")).commands).payload, UndoRequest)
    assert (told.saga_id, told.attempt, told.began) == (CHILD, 1, False)


def test_what_is_asked_again_is_what_was_asked() -> None:
    """To the last word, its deadline included, but for the id."""
    run = parent(timeout=timedelta(hours=1))
    asked = [only(run.last.commands)]
    run.wait(timedelta(minutes=1))
    again = [only(run.tell(Tick()).commands)]
    run.tell(succeeded("hotel"))
    asked.append(only(run.tell(rejected("mail")).commands))
    run.wait(timedelta(minutes=1))
    again.append(only(run.tell(Tick()).commands))
    assert [one.id for one in again] == [f"{one.id}:again:1" for one in asked]
    assert asked == [
        msgspec.structs.replace(two, id=one.id) for one, two in zip(asked, again, strict=True)
    ]


# Upwards --------------------------------------------------------------------------------------

UNDONE_A = succeeded("a", direction="compensation")
WHERE = f"The sub-saga {SAGA_ID} was undone"
BY_HAND = Failure(
    kind="SubSagaResolved",
    message=f"The sub-saga {SAGA_ID} was resolved by hand.",
    retryable=False,
)


@pytest.mark.parametrize(
    "messages, outcome",
    [
        (
            (succeeded("a", output={"room": 7}), succeeded("b")),
            Succeeded(output={"a": {"room": 7}, "b": None}),
        ),
        (
            (succeeded("a"), rejected("b"), UNDONE_A),
            Rejected(
                failure=Failure(
                    kind="sold_out", message=f"{WHERE} at step 'b': none left", retryable=False
                )
            ),
        ),
        (
            (failed("a"), UNDONE_A),
            Failed(
                failure=Failure(
                    kind="ConnectionError", message=f"{WHERE} at step 'a': no route to host"
                )
            ),
        ),
        (
            (succeeded("a"), Cancel(reason="rain"), rejected("b"), UNDONE_A),
            Rejected(failure=Failure(kind="Cancelled", message=f"{WHERE}: rain", retryable=False)),
        ),
        (
            (succeeded("a"), CompensateNow(), rejected("b"), UNDONE_A),
            Rejected(failure=Failure(kind="Cancelled", message=WHERE, retryable=False)),
        ),
        (
            (failed("a"), failed("a", direction="compensation", failure=FOR_GOOD), Resolve()),
            Failed(failure=BY_HAND),
        ),
    ],
    ids=["completed", "rejected", "failed", "cancelled", "given up", "resolved"],
)
def test_a_sub_saga_tells_how_it_ended_and_tells_it_again(
    messages: tuple[Message, ...], outcome: Ended
) -> None:
    """As the outcome of the attempt that started it; an operator's end is nobody's success."""
    run = child(*messages)
    assert run.known.status.final
    (told,) = (one for one in run.last.commands if one.task == "saga.reply")
    _is_answer(told, run, "action", 2, outcome)


def test_a_sub_saga_past_its_deadline_has_failed() -> None:
    """No one refused anything: the step above may be tried again."""
    late = saga(step("a"), step("b"), deadline=timedelta(seconds=10)).definition
    run = child(succeeded("a"), definition=late)
    run.wait(timedelta(seconds=10))
    run.tell(Tick(), rejected("b"), UNDONE_A)
    failure = Failure(kind="SubSagaUndone", message=WHERE)
    _is_answer(only(run.last.commands), run, "action", 2, Failed(failure=failure))


@pytest.mark.parametrize("by_hand", [False, True])
def test_an_undo_that_was_asked_for_is_answered_as_that(*, by_hand: bool) -> None:
    """With its own attempt, also where an operator has undone it by hand."""
    run = child(succeeded("a"), succeeded("b"), Undo(attempt=3))
    run.tell(succeeded("b", direction="compensation"))
    if by_hand:
        run.tell(failed("a", direction="compensation", failure=FOR_GOOD), Resolve())
    else:
        run.tell(UNDONE_A)
    _is_answer(only(run.last.commands), run, "compensation", 3, Succeeded())


def test_a_sub_saga_past_its_pivot_refuses_each_time_with_the_reason() -> None:
    """And asking again does not help."""
    pivot = saga(step("a"), step("b", pivot=True, compensation=None)).definition
    run = child(succeeded("a"), succeeded("b"), Undo(attempt=1), definition=pivot)
    text = f"The sub-saga {SAGA_ID} is past its pivot 'b': it cannot be undone."
    failure = Failure(kind="SubSagaPastPivot", message=text, retryable=False)
    _is_answer(only(run.last.commands), run, "compensation", 1, Failed(failure=failure))


def test_a_sub_saga_that_goes_on_says_so_and_one_that_is_being_undone_says_nothing() -> None:
    """Its answer is the end."""
    run = child(succeeded("a"))
    going = between.report(run.definition, run.known)
    assert going == _reply("action", 2, Accepted())
    run.tell(succeeded("b"), Undo(attempt=1))
    assert between.report(run.definition, run.known) is None
    alone = Run(run.definition, succeeded("a"), succeeded("b"))
    assert between.report(alone.definition, alone.known) is None
    assert alone.last.commands == ()


def test_a_stuck_sub_saga_has_not_ended() -> None:
    """It goes on when an operator has decided, paused or not."""
    run = child(failed("a"), failed("a", direction="compensation", failure=FOR_GOOD), Pause())
    assert run.known.status == "stuck"
    assert between.report(run.definition, run.known) == _reply("action", 2, Accepted())


def _reply(direction: Direction, attempt: int, outcome: Any) -> Reply:
    return Reply(
        saga_id="above", step="trip", direction=direction, attempt=attempt, outcome=outcome
    )


def _is_answer(
    told: Command, run: Run, direction: Direction, attempt: int, outcome: Ended
) -> None:
    reply = _reply(direction, attempt, outcome)
    assert msgspec.convert(told.payload, Reply) == reply
    assert between.report(run.definition, run.known) == reply
    assert told == Command(
        id=f"{SAGA_ID}:parent:{direction}:{attempt}",
        saga_id=SAGA_ID,
        saga_name="test",
        saga_version=1,
        step="trip",
        direction=direction,
        attempt=attempt,
        task="saga.reply",
        queue="saga.replies",
        payload=told.payload,
        deadline_at=run.now,
        traceparent=f"00-{TRACE.trace_id}-{TRACE.root_span_id}-00",
        tracestate="vendor=1",
    )
