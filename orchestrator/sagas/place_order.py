"""``place-order``: five services take an order, or leave nothing of it behind.

Every path can be reached through the input alone:

| input                                  | what happens                                          |
|----------------------------------------|-------------------------------------------------------|
| (defaults)                             | completed                                             |
| ``"sku": "unicorn"``                   | ``UnknownSku``: rejected at the first step            |
| ``"sku": "chair", "quantity": 6``      | ``OutOfStock``: there are five                        |
| ``"card": "4000000000000002"``         | ``CardDeclined``: the reservation is released         |
| ``"region": "moon"``                   | ``UnreachableRegion``: payment and reservation undone |
| ``"courier": "flaky"``                 | its first attempt fails, the second succeeds          |
| ``"courier": "down"``                  | every attempt fails, everything is undone             |
| ``"amount_cents": 1000001``            | ``OverLimit``: the pivot refuses, everything is undone |
| ``"courier": "flaky"`` and over limit  | the undoing of the shipment needs a second attempt    |
| ``"card": "4000000000000003"``         | charged, but it cannot be refunded: with ``"region": "moon"`` the saga is stuck |
| ``"email": "me@flaky.example"``        | after the pivot the first attempt fails, then completed |
| ``"email": "nobody"``                  | after the pivot ``InvalidAddress``: stuck             |

``"delay_in": "payment.charge", "delay_seconds": 10`` makes one task slow, so that something can be
killed, cancelled or timed out in the middle of it.
"""

from datetime import timedelta
from typing import Annotated

import msgspec
from msgspec import Meta

from orchestrator.core.definition import Retry, Saga, Step

_Name = Annotated[str, Meta(min_length=1, max_length=100)]


class PlaceOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An order.

    Attributes:
        order_id: The shop's own id.
        sku: What is ordered: ``lamp``, ``table``, ``chair`` or ``cable`` are in stock.
        quantity: How many.
        amount_cents: What the card is charged, in cents.
        card: Card number; one that ends in 0002 is declined.
        email: Where the confirmation goes.
        region: Where the shipment goes: ``eu``, ``uk``, ``us`` or ``asia``.
        courier: ``post``, or for trying out faults ``flaky`` or ``down``.
        delay_in: For trying out faults: the task that is made slow, e.g. ``payment.charge``.
        delay_seconds: ... and by how much.
    """

    order_id: _Name
    sku: _Name = "lamp"
    quantity: Annotated[int, Meta(ge=1, le=1_000)] = 1
    amount_cents: Annotated[int, Meta(ge=1, le=100_000_000)] = 4_900
    card: Annotated[str, Meta(pattern="^[0-9]{12,19}$")] = "4242424242424242"
    email: Annotated[str, Meta(max_length=254)] = "customer@example.org"
    region: _Name = "eu"
    courier: _Name = "post"
    delay_in: Annotated[str, Meta(max_length=100)] = ""
    delay_seconds: Annotated[float, Meta(ge=0, le=60)] = 0.0


PLACE_ORDER = Saga(
    name="place-order",
    version=1,
    input=PlaceOrder,
    deadline=timedelta(hours=1),
    steps=(
        Step("reserve-inventory", action="inventory.reserve", compensation="inventory.release"),
        Step(
            "charge-payment",
            action="payment.charge",
            compensation="payment.refund",
            timeout=timedelta(seconds=30),
            retry=Retry(attempts=5),
        ),
        Step("arrange-shipping", action="shipping.arrange", compensation="shipping.cancel"),
        # With a compensation, an unknown outcome of the pivot can still be undone.
        Step("confirm-order", action="orders.confirm", compensation="orders.withdraw", pivot=True),
        Step("notify-customer", action="notifications.send", retry=Retry.forever()),
    ),
)
"""Reserve, charge, ship, confirm, notify."""
