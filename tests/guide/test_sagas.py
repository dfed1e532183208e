"""How a saga is defined. Each test is one section of docs/sagas.md, in the same order.

Everything runs in memory: see `shop` for what stands in for workers, broker and clock.
"""

from datetime import timedelta
from typing import Any

import msgspec

from orchestrator.core.definition import Retry, Saga, Step
from tests.guide.shop import Shop
from workers.sdk import Fail


class Order(msgspec.Struct):
    """Input of the sagas below."""

    order_id: str


def nothing(**_: Any) -> None:
    """A participant that does what it is asked, without a word."""


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
