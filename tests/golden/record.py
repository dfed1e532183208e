"""Records golden histories: ``python -m tests.golden.record``.

A file that exists stays as it is, for ever: it stands for the sagas that are in a store out there.
A new scenario gets a new file; a new form of the files a new folder.
"""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

from orchestrator.core.definition import (
    NOTHING_TO_UNDO,
    TIMED_OUT,
    Definition,
    Input,
    Item,
    Output,
    Retry,
    Saga,
    Sleep,
    Step,
    SubSaga,
    WaitFor,
)
from orchestrator.core.events import ForkedFrom, Origin, StepCopied, Trace
from orchestrator.core.limits import Limits
from orchestrator.core.machine import NO_LIMITS, decide
from orchestrator.core.messages import (
    Cancel,
    CompensateNow,
    Complete,
    HandOver,
    Heartbeat,
    Message,
    Pause,
    Resolve,
    Resume,
    RetryNow,
    Signal,
    Skip,
    Start,
    Tick,
    Undo,
)
from orchestrator.core.references import all_of, eq, exists
from orchestrator.core.state import SagaState, fold
from shared.ids import Direction
from shared.messages import (
    TASK_UNKNOWN,
    Accepted,
    Execution,
    Failed,
    Failure,
    Outcome,
    Parent,
    Rejected,
    Reply,
    Succeeded,
)
from shared.tokens import proof_of
from tests.golden.history import FOLDER, SUMS, Arrival, GoldenHistory, kind_of, timer_of

SAGA_ID = "0199c8a0-0000-7000-8000-000000000001"
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class Order(msgspec.Struct, frozen=True):
    order_id: str
    amount: int = 1


class Boxes(msgspec.Struct, frozen=True):
    gift: bool = False


ORDER = Saga(
    name="golden-order",
    version=3,
    input=Order,
    deadline=timedelta(hours=1),
    steps=(
        Step("reserve", "inventory.reserve", "inventory.release"),
        Step(
            "charge",
            "payment.charge",
            "payment.refund",
            retry=Retry(attempts=2),
            compensation_retry=Retry(attempts=2),
            payload={
                "order_id": Input("order_id"),
                "reservation": Output("reserve", "id"),
                "currency": "NOK",
            },
        ),
        Step("score", "risk.score", NOTHING_TO_UNDO),
        Step("confirm", "orders.confirm", pivot=True),
        Step("mail", "mail.send", after=("confirm",), retry=Retry.forever()),
        Step("ship", "shipping.ship", after=("confirm",), retry=Retry(attempts=2)),
    ),
).definition

PATIENT = Saga(
    name="golden-patience",
    version=1,
    input=Order,
    deadline=timedelta(days=7),
    steps=(
        Step(
            "pack",
            "depot.pack",
            "depot.unpack",
            completes_within=timedelta(hours=2),
            retry=Retry(attempts=2, never_on=("Lost",), by_kind={TIMED_OUT: Retry(attempts=3)}),
        ),
        Step("cool-off", Sleep(timedelta(minutes=10))),
        Step(
            "approval",
            WaitFor("approved", approval=True, otherwise="fail"),
            after=("pack",),
            timeout=timedelta(hours=1),
        ),
        Step("pick-up", Sleep(until=Output("pack", "at")), after=("approval", "cool-off")),
        Step("confirm", "orders.confirm", pivot=True),
        Step(
            "gift",
            WaitFor("gift", otherwise="default", default={"wrap": False}),
            timeout=timedelta(minutes=5),
        ),
    ),
).definition

BOXES = Saga(
    name="golden-boxes",
    version=1,
    input=Boxes,
    steps=(
        Step("plan", "depot.plan", NOTHING_TO_UNDO),
        Step(
            "gift",
            "depot.wrap",
            "depot.unwrap",
            when=all_of(exists(Input("gift")), eq(Input("gift"), True)),
        ),
        Step(
            "pack",
            "depot.pack",
            "depot.unpack",
            each=Output("plan", "boxes"),
            items_max=3,
            items_at_once=2,
            payload={"size": Item("size"), "ribbon": Output("gift", "ribbon", default="none")},
            retry=Retry(attempts=1),
        ),
        Step("send", "depot.send", "depot.recall", payload={"parcels": Output("pack")}),
    ),
).definition

LINE = Saga(
    name="golden-line",
    version=1,
    input=Order,
    steps=(Step("reserve", "inventory.reserve", "inventory.release"),),
).definition

TRIP = Saga(
    name="golden-trip",
    version=1,
    input=Order,
    deadline=timedelta(hours=1),
    steps=(
        Step("flight", "air.book", "air.cancel"),
        Step(
            "hotel",
            SubSaga("hotel"),
            payload={"order_id": Input("order_id")},
            timeout=timedelta(minutes=10),
        ),
        Step("car", SubSaga("car", trace="linked"), retry=Retry(attempts=2)),
    ),
).definition

START = Start(
    saga_id=SAGA_ID,
    input={"order_id": "o-1", "amount": 1},
    key="o-1",
    trace=Trace(
        trace_id="0af7651916cd43dd8448eb211c80319c",
        root_span_id="b7ad6b7169203331",
        parent_span_id="00f067aa0ba902b7",
        tracestate="vendor=1",
    ),
)
BROKEN = Failure(kind="ConnectionError", message="no route to host", traceback="Traceback ...")
FOR_GOOD = Failure(kind="ValueError", message="never", retryable=False)
UNHEARD = Failure(kind=TASK_UNKNOWN, message="No worker knows the task.", retryable=False)
SOLD_OUT = Failure(kind="sold_out", message="none left", retryable=False)


class Told(NamedTuple):
    """A message, and when it comes: seconds after the one before, or None for when it is due."""

    message: Message
    wait_seconds: int | None = 1


DUE = Told(Tick(), None)
LATE = Told(Tick(), 7200)
CANCEL = Told(Cancel(reason="changed my mind", by="ada"))


def said(step: str, outcome: Outcome, attempt: int = 1, direction: Direction = "action") -> Told:
    """A reply one second later, with the time that the step took."""
    ran = Execution(worker="w-1", started_at=BEGIN, ended_at=BEGIN + timedelta(milliseconds=20))
    return Told(
        Reply(
            saga_id=SAGA_ID,
            step=step,
            direction=direction,
            attempt=attempt,
            outcome=outcome,
            execution=ran,
        )
    )


def done(step: str, attempt: int = 1) -> Told:
    """It happened."""
    return said(step, Succeeded(output={"id": f"{step}-1"}, undo={"id": f"{step}-1"}), attempt)


def undone(step: str, attempt: int = 1) -> Told:
    """It has been undone."""
    return said(step, Succeeded(), attempt, "compensation")


def waits() -> dict[str, tuple[str, tuple[Told, ...]]]:
    """Histories of the saga that waits."""
    token = proof_of("golden", SAGA_ID, "pack", "action", 1)
    packed = Succeeded(output={"at": "2026-01-01T03:00:00Z"}, undo={"id": "box-1"})
    later = said("pack", Accepted())
    reply = Reply(saga_id=SAGA_ID, step="pack", direction="action", attempt=1, outcome=packed)
    complete = Told(Complete(reply=reply, proof=token))
    beat = Told(Heartbeat(step="pack", direction="action", attempt=1, progress={"boxes": 1}))
    yes = Told(Signal(name="approved", data={"approved": True}, by="ada"))
    no = Told(Signal(name="approved", data={"approved": False, "comment": "dear"}, by="ada"))
    begin = Told(
        msgspec.structs.replace(
            START, secret="golden", not_before=BEGIN + timedelta(minutes=1), key=None
        ),
        0,
    )
    return {
        "waited": (
            "A later start, an attempt that is accepted, an early approval, sleeps, and no signal.",
            (
                begin,
                DUE,
                beat,
                later,
                beat,
                Told(Complete(reply=reply, proof="made up")),
                yes,
                complete,
                complete,
                DUE,
                DUE,
                done("confirm"),
                DUE,
            ),
        ),
        "not-approved": (
            "An approval is refused while another branch sleeps: all is undone.",
            (begin, DUE, done("pack"), no, yes, undone("pack")),
        ),
        "nobody-answered": (
            "The approval fails when its time is over; a token of an older attempt is too late.",
            (begin, DUE, complete, DUE, DUE, undone("pack"), complete),
        ),
    }


def lists() -> dict[str, tuple[str, tuple[Told, ...]]]:
    """Histories of the saga with a list."""
    begin = Told(msgspec.structs.replace(START, input={"gift": False}, key=None), 0)
    sizes = Succeeded(output={"boxes": [{"size": size} for size in (1, 2, 3)]})
    no = Rejected(failure=SOLD_OUT)
    many = Succeeded(output={"boxes": [{"size": 1}] * 4})
    return {
        "listed": (
            "A step is skipped by its condition, another one runs for each of three items.",
            (
                begin,
                said("plan", sizes),
                done("pack[1]"),
                done("pack[0]"),
                done("pack[2]"),
                done("send"),
            ),
        ),
        "one-item-rejected": (
            "One item is rejected: the other that had begun ends and is undone, the third never begins.",
            (
                begin,
                said("plan", sizes),
                said("pack[1]", no),
                done("pack[0]"),
                undone("pack[0]"),
            ),
        ),
        "too-many-items": (
            "A list that is too long rejects its step.",
            (begin, said("plan", many)),
        ),
    }


def nested() -> dict[str, tuple[Definition, str, tuple[Told, ...]]]:
    """Histories of a saga with sub-sagas, and of sub-sagas."""
    begin = Told(msgspec.structs.replace(START, key=None), 0)
    parent = Parent(saga_id="0199c8a0-0000-7000-8000-00000000abcd", step="order", attempt=1)
    below = Told(msgspec.structs.replace(START, key=None, parent=parent), 0)
    ended = Failed(failure=Failure(kind="Broken", message="The sub-saga was undone."))
    to_pivot = (done("reserve"), done("charge"), done("score"))
    undo = Told(Undo(attempt=1, reason="the trip is off"))
    return {
        "nested": (
            TRIP,
            "Two sub-sagas; the second one is tried again, and fails: the first one is undone.",
            (
                begin,
                done("flight"),
                done("hotel"),
                said("car", ended),
                DUE,
                said("car", ended, 2),
                undone("car"),
                undone("hotel"),
                undone("flight"),
            ),
        ),
        "called-back": (
            TRIP,
            "A sub-saga takes too long and is called back; the cancel calls it back no second time.",
            (
                begin,
                done("flight"),
                DUE,
                CANCEL,
                said("hotel", Rejected(failure=SOLD_OUT)),
                undone("flight"),
            ),
        ),
        "asked-again": (
            TRIP,
            "A sub-saga is asked what became of it: it goes on. Then it is called back, again twice.",
            (
                begin,
                done("flight"),
                Told(Tick(), 60),
                said("hotel", Accepted()),
                said("hotel", Accepted()),
                CANCEL,
                Told(Tick(), 60),
                said("hotel", Accepted()),
                said("hotel", Rejected(failure=SOLD_OUT)),
                undone("flight"),
            ),
        ),
        "undone-as-a-sub-saga": (
            LINE,
            "A sub-saga completes, and is undone afterwards; each attempt of that is answered.",
            (
                below,
                done("reserve"),
                undo,
                undo,
                Told(Undo(attempt=2)),
                undone("reserve"),
                Told(Undo(attempt=3)),
            ),
        ),
        "not-undone-as-a-sub-saga": (
            ORDER,
            "A sub-saga is past its pivot: that it cannot be undone is the answer.",
            (below, *to_pivot, done("confirm"), undo, Told(Undo()), done("mail"), done("ship")),
        ),
        "never-begun": (
            LINE,
            "The undo of a sub-saga overtakes its start.",
            (
                Told(msgspec.structs.replace(below.message, undo=Undo(attempt=1)), 0),
                below,
            ),
        ),
    }


def scenarios() -> dict[str, tuple[str, tuple[Told, ...]]]:
    """What each golden history is about, and what arrives in it."""
    to_pivot = (done("reserve"), done("charge"), done("score"))
    broken, for_good = Failed(failure=BROKEN), Failed(failure=FOR_GOOD)
    no = Rejected(failure=SOLD_OUT)
    unheard = Rejected(failure=UNHEARD)
    retry = Told(RetryNow(reason="deployed", by="ada"))
    return {
        "given-up-for-an-unknown-task": (
            "No worker knows a task, nor after a deploy: given up, it is undone without that step.",
            (
                done("reserve"),
                said("charge", unheard),
                retry,
                said("charge", unheard, 2),
                Told(CompensateNow(reason="not worth it", by="ada")),
                undone("reserve"),
            ),
        ),
        "completed": (
            "Every step succeeds at once; two of them run in parallel.",
            (*to_pivot, done("confirm"), done("ship"), done("mail")),
        ),
        "compensated": (
            "A rejection: what came before is undone, in reverse.",
            (
                done("reserve"),
                done("charge"),
                said("score", no),
                undone("charge"),
                undone("reserve"),
            ),
        ),
        "retried": (
            "A failure, a second attempt, a late reply of the first, and a duplicate.",
            (
                done("reserve"),
                said("charge", broken),
                DUE,
                said("charge", broken),
                done("charge", 2),
                done("charge", 2),
                done("score"),
                done("confirm"),
                said("mail", broken),
                DUE,
                done("mail", 2),
                done("ship"),
            ),
        ),
        "timed-out": (
            "Two attempts without a reply; undone; the success that comes late is kept.",
            (
                done("reserve"),
                DUE,
                DUE,
                DUE,
                done("charge"),
                DUE,
                DUE,
                undone("charge", 1),
                undone("reserve"),
                undone("charge", 2),
            ),
        ),
        "rejected-after-unknown": (
            "Nothing happened in the second attempt, but who knows about the first: undone.",
            (
                done("reserve"),
                DUE,
                DUE,
                said("charge", no, 2),
                undone("charge"),
                undone("reserve"),
            ),
        ),
        "cancelled": (
            "A cancel waits for the step in flight; the second one changes nothing.",
            (done("reserve"), CANCEL, CANCEL, done("charge"), undone("charge"), undone("reserve")),
        ),
        "cancelled-while-waiting": (
            "A cancel while a step waits for its retry: that step is undone, too.",
            (done("reserve"), said("charge", broken), CANCEL, undone("charge"), undone("reserve")),
        ),
        "cancel-refused": (
            "A cancel and the deadline after the pivot change nothing.",
            (*to_pivot, done("confirm"), CANCEL, LATE, DUE, done("mail", 2), done("ship", 2)),
        ),
        "deadline": (
            "The deadline passes while a step waits for its retry: that step is undone, too.",
            (done("reserve"), said("charge", broken), LATE, undone("charge"), undone("reserve")),
        ),
        "stuck-undoing": (
            "A compensation gives up; a late success of it frees the saga.",
            (
                done("reserve"),
                said("charge", for_good),
                said("charge", broken, 1, "compensation"),
                DUE,
                said("charge", broken, 2, "compensation"),
                undone("charge", 1),
                said("reserve", no, 1, "compensation"),
            ),
        ),
        "stuck-at-the-pivot": (
            "The pivot cannot be undone and nobody knows whether it happened.",
            (
                *to_pivot,
                CANCEL,
                said("confirm", broken),
                DUE,
                CANCEL,
                said("confirm", for_good, 2),
            ),
        ),
        "stuck-after-the-pivot": (
            "A step after the pivot gives up; the other one ends.",
            (*to_pivot, done("confirm"), said("ship", for_good), done("mail")),
        ),
        "paused-and-resumed": (
            "Replies are recorded while it is paused, a time-out too; then it goes on.",
            (
                Told(Pause(reason="payment is down", by="ada")),
                Told(Pause(reason="again", by="ada")),
                done("reserve"),
                Told(RetryNow(by="ada")),
                Told(Resume(reason="payment is up", by="ada")),
                Told(Pause()),
                DUE,
                Told(Resume()),
                done("charge", 2),
            ),
        ),
        "retried-by-hand": (
            "A step after the pivot gave up; its next attempt gets an edited payload.",
            (
                *to_pivot,
                done("confirm"),
                said("ship", for_good),
                Told(RetryNow(step="ship", payload={"city": "Oslo"}, reason="typo", by="ada")),
                done("ship", 2),
                said("mail", broken),
                Told(RetryNow(reason="mail is up", by="ada")),
                done("mail", 2),
            ),
        ),
        "skipped-steps": (
            "One step is skipped before its turn, one that gave up, and one undo is not possible.",
            (
                done("reserve"),
                Told(Skip(step="score", output={"score": 1}, reason="known customer", by="ada")),
                done("charge"),
                done("confirm"),
                Told(Skip(step="confirm", by="ada")),
                said("ship", for_good),
                Told(Skip(step="ship", reason="picked up", by="ada")),
                done("mail"),
            ),
        ),
        "skipped-undo": (
            "A compensation gave up; an operator undid it by hand.",
            (
                done("reserve"),
                said("charge", no),
                said("reserve", for_good, 1, "compensation"),
                Told(Skip(step="reserve", reason="put back by hand", by="ada")),
            ),
        ),
        "resolved": (
            "Stuck after the pivot, and put right by hand: not while a step is in flight.",
            (
                *to_pivot,
                done("confirm"),
                said("ship", for_good),
                Told(Resolve(reason="too early", by="ada")),
                done("mail"),
                Told(Resolve(reason="called the customer", by="ada")),
                Told(Resolve()),
            ),
        ),
        "given-up-at-the-pivot": (
            "Nobody knows whether the pivot happened; an operator vouches that it did not.",
            (
                *to_pivot,
                said("confirm", broken),
                Told(CompensateNow(reason="the shop says no", by="ada")),
                undone("charge"),
                undone("reserve"),
            ),
        ),
    }


def forked() -> dict[str, tuple[Definition, str, tuple[Told, ...]]]:
    """Histories of a saga that was forked, of its fork, and of a sub-saga that both had."""
    old = "0199c8a0-0000-7000-8000-00000000abcd"
    origin = Origin(saga_id=old, link="00-0af7651916cd43dd8448eb211c80319d-00f067aa0ba902b7-01")
    room = {"room": {"id": "r-1"}}
    copied = (
        StepCopied(step="flight", origin=origin, attempt=2, success=1, output={"id": "f-1"}),
        StepCopied(step="hotel", origin=origin, attempt=1, success=1, output=room, payload={}),
    )
    fork = ForkedFrom(saga_id=old, step="car", reason="another car", by="ada")
    start = msgspec.structs.replace(START, key=None, fork=fork, copied=copied)
    over = HandOver(to="the-fork", step="ship", steps=("reserve", "charge"), by="ada")
    parent = Parent(saga_id=old, step="hotel", attempt=1)
    other = Parent(saga_id="the-fork", step="hotel", attempt=1)
    below = Told(msgspec.structs.replace(START, key=None, parent=parent), 0)
    undo = Told(Undo(attempt=1, reason="the trip is off", parent=other))
    gone = Failed(failure=FOR_GOOD)
    return {
        "forked": (
            TRIP,
            "A fork goes on from its third step, fails, and undoes what it had copied.",
            (Told(start, 0), said("car", gone), undone("car"), undone("hotel"), undone("flight")),
        ),
        "handed-over": (
            ORDER,
            "A saga has ended, and a fork takes effects of it over; a second one cannot.",
            (
                Told(START, 0),
                *(
                    done(step)
                    for step in ("reserve", "charge", "score", "confirm", "mail", "ship")
                ),
                Told(over),
                Told(over),
            ),
        ),
        "undone-for-a-fork": (
            LINE,
            "A sub-saga is undone by a fork of the saga that it was started for.",
            (below, done("reserve"), undo, undone("reserve")),
        ),
        "refused-to-a-fork": (
            ORDER,
            "A sub-saga is past its pivot, and says so to the fork that asks.",
            (below, *(done(step) for step in ("reserve", "charge", "score", "confirm")), undo),
        ),
    }


def every_history() -> dict[str, GoldenHistory]:
    """All of them, by name, as the machine of today makes them."""
    ordered = {
        name: recorded(ORDER, about, (Told(START, 0), *told))
        for name, (about, told) in scenarios().items()
    }
    patient = {name: recorded(PATIENT, about, told) for name, (about, told) in waits().items()}
    listed = {name: recorded(BOXES, about, told) for name, (about, told) in lists().items()}
    linked = {name: recorded(*story) for name, story in {**nested(), **forked()}.items()}
    few = Limits(events_max=5)
    about = "The history is as long as it may be; resumed under the same limit it is stuck again."
    told = (Told(START, 0), done("reserve"), said("charge", Failed(failure=BROKEN)), DUE)
    full = recorded(ORDER, about, (*told, Told(Resume(by="ada"))), few)
    about = "A step waits for room, and its saga is cancelled meanwhile."
    held = (Told(START, 0), done("reserve"), Told(Tick()), CANCEL, undone("reserve"))
    no_room = recorded(ORDER, about, held, Limits(room={"reserve": 1, "charge": 0}))
    return {**ordered, **patient, **listed, **linked, "history-full": full, "no-room": no_room}


def recorded(
    definition: Definition, about: str, told: tuple[Told, ...], limits: Limits = NO_LIMITS
) -> GoldenHistory:
    """Let messages arrive, and write down what followed."""
    arrivals = tuple(_arrivals(definition, told, limits))
    state = fold(event for arrival in arrivals for event in arrival.events)
    assert state is not None
    return GoldenHistory(
        form=1, about=about, definition=definition, arrivals=arrivals, state=state, limits=limits
    )


def _arrivals(definition: Definition, told: tuple[Told, ...], limits: Limits) -> Iterator[Arrival]:
    state: SagaState | None = None
    count = 0
    now, wake_at = BEGIN, None
    for message, wait_seconds in told:
        if wait_seconds is None:
            assert wake_at is not None, "nothing is due"
            now = max(now, wake_at)
        else:
            now += timedelta(seconds=wait_seconds)
        decision = decide(definition, state, message, now, limits=limits, history=count)
        count += len(decision.events)
        state = decision.state
        due_at = timer_of(definition, decision)
        wake_at = due_at if decision.events or decision.beat else wake_at
        yield Arrival(
            at=now,
            kind=kind_of(message),
            message=msgspec.to_builtins(message),
            events=decision.events,
            sent=tuple(command.id for command in decision.commands),
            wake_at=due_at,
            refused=decision.refused,
        )


def main() -> None:
    """Write the files that do not exist yet."""
    for name, history in every_history().items():
        path = FOLDER / f"{name}.json"
        if not path.exists():
            raw = msgspec.json.encode(history)
            path.write_bytes(msgspec.json.format(raw, indent=1) + b"\n")
            with SUMS.open("a") as sums:
                sums.write(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
            print(path)


if __name__ == "__main__":
    main()
