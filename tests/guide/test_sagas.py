"""How a saga is defined. Each test is one section of docs/sagas.md, in the same order.

Everything runs in memory: see `shop` for what stands in for workers, broker and clock.
"""

from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from celery import Celery
from celery.beat import BeatLazyFunc, Scheduler
from celery.schedules import crontab
from kombu import Connection

from orchestrator.core.definition import (
    NOTHING_TO_UNDO,
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
from orchestrator.core.references import gt
from orchestrator.views import TimerView
from shared.codec import decode_inbound
from shared.errors import NotAllowed
from shared.messages import (
    CompleteRequest,
    HeartbeatRequest,
    Request,
    SignalRequest,
    StartRequest,
    Succeeded,
)
from tests.guide.shop import Shop, Task
from workers.sdk import Fail, Later, Reject, StepResult


class Order(msgspec.Struct):
    """Input of the sagas below."""

    order_id: str


class Present(msgspec.Struct):
    """Input of a saga with a condition."""

    price: int


class Tour(msgspec.Struct):
    """Input of a saga with a list."""

    hotels: list[str]


class Taxi(msgspec.Struct):
    """What a step returns."""

    cab: int


class Appointment(msgspec.Struct):
    """Input of a saga that waits for a time."""

    remind_at: datetime


def beat_once(app: Celery[Any]) -> list[Request]:
    """What Celery beat sends when the entries of its schedule are due."""
    scheduler = Scheduler(app, lazy=True)
    with Connection("memory://") as connection:
        queue = connection.SimpleQueue("saga.replies")
        queue.clear()
        scheduler.merge_inplace(app.conf.beat_schedule)
        for entry in scheduler.schedule.values():
            scheduler.apply_async(entry, advance=False)
        message: Any = queue.get(timeout=5)
        message.ack()
        queue.close()
    found = decode_inbound("saga.start", message.headers["id"], message.body, {})
    assert isinstance(found, StartRequest)
    return [found]


def nothing(**_: Any) -> None:
    """A participant that does what it is asked, without a word."""


def test_steps_in_parallel_that_are_undone_in_reverse() -> None:
    """The mail waits for both; when it is refused, seat and room are undone side by side."""
    saga = Saga(
        name="weekend",
        version=1,
        input=Order,
        steps=(
            Step("seat", "air.book", "air.cancel", after=()),
            Step("room", "hotel.book", "hotel.cancel", after=()),
            Step("pay", "payment.charge", "payment.refund", after=("room",)),
            Step("mail", "mail.send", NOTHING_TO_UNDO, after=("seat", "pay")),
        ),
    )

    def send(order_id: str) -> None:
        raise Reject("NoAddress")

    free = ("air.book", "air.cancel", "hotel.book", "hotel.cancel")
    paid = ("payment.charge", "payment.refund")
    shop = Shop(saga, tasks={"mail.send": send, **dict.fromkeys((*free, *paid), nothing)})
    saga_id = shop.start("weekend", order_id="o-1")
    assert shop.status(saga_id) == "compensated"
    assert shop.calls[:2] == ["air.book", "hotel.book"]
    assert shop.calls[2:4] == ["payment.charge", "mail.send"]
    undone = shop.calls[4:]
    assert sorted(undone) == ["air.cancel", "hotel.cancel", "payment.refund"]
    assert undone.index("payment.refund") < undone.index("hotel.cancel")


def test_what_a_step_is_called_with() -> None:
    """Of the input, of an earlier output, as it stands; and what its compensation gets."""
    saga = Saga(
        name="stay",
        version=1,
        input=Order,
        steps=(
            Step("room", "hotel.book", "hotel.cancel"),
            Step(
                "charge",
                "payment.charge",
                "payment.refund",
                payload={"room": Output("room", "id"), "currency": "NOK"},
            ),
            Step("mail", "mail.send", NOTHING_TO_UNDO, payload={"to": Input("order_id")}),
        ),
    )
    called: dict[str, dict[str, Any]] = {}

    def book(order_id: str) -> StepResult:
        return StepResult(output={"id": "r-7"}, undo={"secret": "s-1"})

    def cancel(order_id: str, undo: dict[str, str]) -> None:
        called["cancel"] = {"order_id": order_id, "undo": undo}

    def charge(room: str, currency: str) -> None:
        called["charge"] = {"room": room, "currency": currency}

    def send(to: str) -> None:
        raise Reject("NoAddress", to)

    tasks: dict[str, Task] = {
        "hotel.book": book,
        "hotel.cancel": cancel,
        "payment.charge": charge,
        "payment.refund": nothing,
        "mail.send": send,
    }
    Shop(saga, tasks=tasks).start("stay", order_id="o-1")
    assert called["charge"] == {"room": "r-7", "currency": "NOK"}
    assert called["cancel"] == {"order_id": "o-1", "undo": {"secret": "s-1"}}


def test_behind_the_pivot_there_is_only_forward() -> None:
    """No cancel turns it back; what fails is tried until it succeeds."""
    saga = Saga(
        name="order",
        version=1,
        input=Order,
        steps=(
            Step("charge", "payment.charge", "payment.refund"),
            Step("confirm", "orders.confirm", pivot=True),
            Step("mail", "mail.send", retry=Retry.forever()),
        ),
    )
    fails = iter([True] * 5)

    def send(order_id: str) -> None:
        if next(fails, False):
            raise Fail("ServerAway")

    tasks: dict[str, Task] = {"mail.send": send}
    tasks |= dict.fromkeys(("payment.charge", "orders.confirm"), nothing)
    shop = Shop(saga, tasks=tasks)
    saga_id = shop.start("order", order_id="o-1")
    assert shop.step(saga_id, "mail").phase == "retrying"
    with pytest.raises(NotAllowed, match="past its pivot 'confirm'"):
        shop.client.cancel(saga_id, reason="too late")
    shop.wait(timedelta(hours=1))
    assert (shop.status(saga_id), shop.step(saga_id, "mail").attempts) == ("completed", 6)


def test_a_policy_for_each_kind_of_failure() -> None:
    """A limited rate is waited out for as long as it takes; a time-out is tried once more."""
    answers = iter(["RateLimited", "RateLimited", "RateLimited", ""])

    def charge(order_id: str) -> dict[str, str]:
        if kind := next(answers):
            raise Fail(kind, "later")
        return {"payment": "pay-1"}

    saga = Saga(
        name="charge-order",
        version=1,
        input=Order,
        steps=(
            Step(
                "charge",
                "payment.charge",
                "payment.refund",
                retry=Retry(
                    attempts=2,
                    never_on=("CardStolen",),
                    by_kind={"RateLimited": Retry.forever(wait_max=timedelta(minutes=1))},
                ),
            ),
        ),
    )
    shop = Shop(saga, tasks={"payment.charge": charge})
    saga_id = shop.start("charge-order", order_id="o-1")
    shop.wait(timedelta(minutes=5))
    assert (shop.status(saga_id), shop.step(saga_id, "charge").attempts) == ("completed", 4)


def test_a_step_that_is_skipped_by_its_condition() -> None:
    """Visible as skipped; whoever reads its output says what stands for it."""
    saga = Saga(
        name="present",
        version=1,
        input=Present,
        steps=(
            Step("wrap", "gifts.wrap", "gifts.unwrap", when=gt(Input("price"), 50)),
            Step(
                "send",
                "shipping.ship",
                "shipping.recall",
                payload={"paper": Output("wrap", "paper", default="plain")},
            ),
        ),
    )
    papers: list[str] = []
    tasks: dict[str, Task] = {
        "gifts.wrap": lambda **_: {"paper": "gold"},
        "shipping.ship": lambda **payload: papers.append(payload["paper"]),
    }
    shop = Shop(saga, tasks=tasks)
    cheap, dear = shop.start("present", price=20), shop.start("present", price=70)
    assert papers == ["plain", "gold"]
    assert shop.step(cheap, "wrap").phase == "skipped"
    assert shop.step(dear, "wrap").phase == "succeeded"


def test_a_step_for_each_item_of_a_list() -> None:
    """In parallel, two at a time; when one is refused, the others are undone."""

    def book(hotel: str) -> dict[str, str]:
        if hotel == "full":
            raise Reject("NoRoom", hotel)
        return {"booking": f"{hotel}-1"}

    saga = Saga(
        name="tour",
        version=1,
        input=Tour,
        steps=(
            Step(
                "hotels",
                "hotel.book",
                "hotel.cancel",
                each=Input("hotels"),
                items_at_once=2,
                payload={"hotel": Item()},
            ),
            Step("mail", "mail.send", NOTHING_TO_UNDO, payload={"bookings": Output("hotels")}),
        ),
    )
    mails: list[object] = []
    tasks: dict[str, Task] = {
        "hotel.book": book,
        "hotel.cancel": nothing,
        "mail.send": lambda **payload: mails.append(payload["bookings"]),
    }
    shop = Shop(saga, tasks=tasks)
    shop.start("tour", hotels=["Ritz", "Savoy", "Adlon"])
    assert mails == [[{"booking": "Ritz-1"}, {"booking": "Savoy-1"}, {"booking": "Adlon-1"}]]
    failed = shop.start("tour", hotels=["Ritz", "Savoy", "full"])
    phases = {one.name: one.phase for one in shop.view(failed).steps}
    assert shop.status(failed) == "compensated"
    assert phases == {
        "hotels[0]": "undone",
        "hotels[1]": "undone",
        "hotels[2]": "rejected",
        "hotels": "pending",
        "mail": "pending",
    }


def test_a_human_approval_with_a_deadline() -> None:
    """The step waits for a signal; when nobody answers in time, the order is undone."""
    saga = Saga(
        name="big-order",
        version=1,
        input=Order,
        steps=(
            Step("reserve", "stock.reserve", "stock.release"),
            Step("approval", WaitFor("approved", approval=True), timeout=timedelta(days=2)),
            Step("ship", "shipping.ship", "shipping.recall"),
        ),
    )
    tasks = dict.fromkeys(("stock.reserve", "stock.release", "shipping.ship"), nothing)
    shop = Shop(saga, tasks=tasks)
    asked, forgotten = (shop.start("big-order", order_id=order) for order in ("o-1", "o-2"))
    assert shop.view(asked).next_timer == TimerView(
        at=shop.now + timedelta(days=2), what="approval stops waiting for signal approved"
    )

    shop.client.approve(asked, "approved", by="ada", comment="a good customer")
    shop.settle()
    assert shop.status(asked) == "completed"
    assert shop.step(asked, "approval").output["comment"] == "a good customer"

    shop.wait(timedelta(days=2))
    assert shop.status(forgotten) == "compensated"
    error = shop.view(forgotten).error
    assert error is not None
    assert (error.step, error.kind) == ("approval", "NoSignal")


def test_a_signal_from_another_service() -> None:
    """A plain Celery message; it may come before the step waits for it."""
    saga = Saga(
        name="refund",
        version=1,
        input=Order,
        steps=(
            Step("announce", "returns.announce", "returns.withdraw"),
            Step(
                "parcel",
                WaitFor("parcel-back", otherwise="default", default={"weight": 0}),
                timeout=timedelta(days=30),
            ),
            Step(
                "pay",
                "payment.pay-back",
                NOTHING_TO_UNDO,
                payload={"weight": Output("parcel", "weight")},
            ),
        ),
    )
    paid: list[int] = []
    shop = Shop(
        saga,
        tasks={
            "returns.announce": nothing,
            "payment.pay-back": lambda **payload: paid.append(payload["weight"]),
        },
    )
    saga_id = shop.client.start("refund", {"order_id": "o-1"}).row.saga_id
    # Another service: its app's send_task, with "saga.signal" and the queue "saga.replies".
    shop.send(SignalRequest(saga_id=saga_id, name="parcel-back", data={"weight": 7}))
    assert (shop.status(saga_id), paid) == ("completed", [7])


def test_a_step_that_is_completed_from_elsewhere() -> None:
    """The participant answers `Later`; whoever has the token ends the step."""
    tokens: list[str] = []

    def order_taxi(order_id: str) -> Later:
        # In a worker: context.token, given to the taxi company.
        tokens.append(shop.commands[-1].token)
        return Later()

    saga = Saga(
        name="taxi",
        version=1,
        input=Order,
        steps=(
            Step(
                "taxi",
                "taxi.order",
                "taxi.cancel",
                completes_within=timedelta(hours=2),
                output=Taxi,
            ),
            Step("ride", "taxi.ride", NOTHING_TO_UNDO, payload={"cab": Output("taxi", "cab")}),
        ),
    )
    shop = Shop(saga, tasks={"taxi.order": order_taxi, "taxi.ride": nothing})
    saga_id = shop.start("taxi", order_id="o-1")
    shop.wait(timedelta(hours=1))
    assert shop.step(saga_id, "taxi").accepted
    with pytest.raises(NotAllowed, match=r"step 'taxi' is no Taxi: cab: a whole number is wanted"):
        shop.client.complete(tokens[0], {"cab": "seven"})
    shop.send(CompleteRequest(token=tokens[0], outcome=Succeeded(output={})))
    assert "cab: missing" in shop.client.dead_letters()[0].reason
    shop.client.complete(tokens[0], {"cab": 7})
    shop.settle()
    assert (shop.status(saga_id), shop.calls) == ("completed", ["taxi.order", "taxi.ride"])
    assert shop.client.fail(tokens[0], "TooLate").events == ()


def test_a_long_step_shows_signs_of_life() -> None:
    """Each heartbeat begins the time-out anew; the last progress is what `saga show` shows."""
    saga = Saga(
        name="render",
        version=1,
        input=Order,
        steps=(Step("film", "film.render", NOTHING_TO_UNDO, timeout=timedelta(minutes=1)),),
    )
    shop = Shop(saga, tasks={})
    saga_id = shop.start("render", order_id="o-1")
    for percent in (10, 20, 30):
        shop.wait(timedelta(seconds=50))
        # In a worker: context.heartbeat({"percent": percent})
        shop.send(
            HeartbeatRequest(
                saga_id=saga_id,
                step="film",
                direction="action",
                attempt=1,
                progress={"percent": percent},
            )
        )
    film = shop.step(saga_id, "film")
    assert (film.attempts, film.progress) == (1, {"percent": 30})
    assert len(shop.view(saga_id).timeline) == 2


def test_sleeping_and_starting_at_a_given_time() -> None:
    """Durable: the time stands in the store, and no process has to live so long."""
    saga = Saga(
        name="reminder",
        version=1,
        input=Appointment,
        steps=(
            Step("cool-off", Sleep(timedelta(hours=1))),
            Step("day-before", Sleep(until=Input("remind_at"))),
            Step("mail", "mail.send", NOTHING_TO_UNDO),
        ),
    )
    shop = Shop(saga, tasks={"mail.send": nothing})
    remind_at = shop.now + timedelta(days=7)
    saga_id = shop.client.start(
        "reminder",
        {"remind_at": remind_at.isoformat()},
        not_before=shop.now + timedelta(days=1),
    ).row.saga_id
    shop.wait(timedelta(days=1, minutes=59))
    assert shop.step(saga_id, "cool-off").phase == "running"
    shop.wait(timedelta(minutes=1))
    assert shop.step(saga_id, "day-before").due_at == remind_at
    shop.wait(timedelta(days=7))
    assert (shop.status(saga_id), shop.calls) == ("completed", ["mail.send"])


def test_a_saga_every_night() -> None:
    """Celery beat sends `saga.start`; a key for each night makes a second beat harmless."""
    saga = Saga(
        name="nightly",
        version=1,
        input=Order,
        steps=(Step("tidy", "depot.tidy", NOTHING_TO_UNDO),),
    )
    shop = Shop(saga, tasks={"depot.tidy": nothing})
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.beat_schedule = {
        "nightly": {
            "task": "saga.start",
            "schedule": crontab(hour="3", minute="0"),
            "kwargs": {
                "name": "nightly",
                "input": {"order_id": "all"},
                "key": BeatLazyFunc(lambda: f"nightly-{shop.now:%Y-%m-%d}"),
            },
            "options": {"queue": "saga.replies"},
        }
    }
    for request in [*beat_once(app), *beat_once(app)]:
        shop.send(request)
    (nightly,) = shop.client.list(name="nightly")
    assert (nightly.key, nightly.status) == ("nightly-2026-01-01", "completed")


def test_a_saga_as_a_step() -> None:
    """The hotel is a saga of its own; when the trip is undone, so is the hotel that was booked."""
    hotel = Saga(
        name="hotel",
        version=1,
        input=Order,
        steps=(
            Step("room", "hotel.room", "hotel.free-room"),
            Step("meals", "hotel.meals", "hotel.no-meals"),
        ),
    )
    trip = Saga(
        name="trip",
        version=1,
        input=Order,
        steps=(
            Step("hotel", SubSaga("hotel")),
            Step(
                "flight",
                "air.book",
                "air.cancel",
                payload={"near": Output("hotel", "room.city")},
            ),
        ),
    )

    def book_flight(near: str) -> None:
        raise Reject("NoFlight", near)

    tasks: dict[str, Task] = {
        "hotel.room": lambda **_: {"city": "Oslo"},
        "hotel.meals": nothing,
        "hotel.no-meals": nothing,
        "hotel.free-room": nothing,
        "air.book": book_flight,
    }
    shop = Shop(trip, hotel, tasks=tasks)
    saga_id = shop.start("trip", order_id="o-1")
    below = shop.step(saga_id, "hotel").sub_saga
    assert (shop.status(saga_id), shop.status(below)) == ("compensated", "compensated")
    assert shop.calls == [
        "hotel.room",
        "hotel.meals",
        "air.book",
        "hotel.no-meals",
        "hotel.free-room",
    ]


def test_operators_put_a_stuck_saga_right() -> None:
    """A step past the pivot gave up: try again with an edited payload, or go on without it."""
    addresses: list[str] = []

    def ship(order_id: str, city: str = "") -> dict[str, str]:
        addresses.append(city)
        if not city:
            raise Fail("NoAddress", f"{order_id} goes nowhere", retryable=False)
        return {"parcel": "p-1"}

    saga = Saga(
        name="ship-order",
        version=1,
        input=Order,
        steps=(Step("confirm", "orders.confirm", pivot=True), Step("ship", "shipping.ship")),
    )
    shop = Shop(saga, tasks={"orders.confirm": nothing, "shipping.ship": ship})
    first, second = (
        shop.start("ship-order", order_id="o-1"),
        shop.start("ship-order", order_id="o-2"),
    )
    assert shop.status(first) == "stuck"

    fixed = {"order_id": "o-1", "city": "Oslo"}
    shop.client.retry(first, "ship", payload=fixed, reason="address was missing", by="ada")
    shop.settle()
    assert (shop.status(first), addresses) == ("completed", ["", "", "Oslo"])

    would = shop.client.skip(second, "ship", reason="picked up", by="ada", dry_run=True)
    assert would.row.state.status == "completed"
    assert shop.status(second) == "stuck"
    shop.client.resolve(second, reason="called the customer", by="ada")
    assert shop.status(second) == "resolved"
    last = shop.view(second).timeline[-1]
    assert (last.event, last.detail) == ("saga_resolved", "by ada: called the customer")


def test_a_paused_saga_begins_nothing() -> None:
    """What is in flight ends, and the next step waits for the resume."""
    saga = Saga(
        name="two",
        version=1,
        input=Order,
        steps=(
            Step("pack", "depot.pack", "depot.unpack"),
            Step("send", "depot.send", "depot.recall"),
        ),
    )
    shop = Shop(saga, tasks={"depot.pack": nothing, "depot.send": nothing})
    saga_id = shop.client.start("two", {"order_id": "o-1"}).row.saga_id
    shop.client.pause(saga_id, reason="stock take", by="ada")
    shop.settle()
    assert (shop.calls, shop.view(saga_id).paused) == (["depot.pack"], True)
    shop.client.resume(saga_id, reason="counted", by="ada")
    shop.settle()
    assert shop.status(saga_id) == "completed"
