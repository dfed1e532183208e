"""``book-travel``: everything that a definition can say, in one saga.

    seat ──────┐
    room ──────┼── approval ── pay ── confirm ── tell
    activities ┘   (a person)  (saga) (pivot)    (for ever)

Seat, room and each of the activities are reserved in parallel. What is expensive waits for a
manager. Payment is a saga of its own. Every path can be reached through the input alone:

| input                                         | what happens                                       |
|-----------------------------------------------|----------------------------------------------------|
| (defaults)                                    | completed; nobody is asked                         |
| ``"activities": ["city-tour", "surf-lesson"]``| each is reserved beside seat and room              |
| ``"amount_cents": 250000``                    | waits for ``saga approve ID manager``; ``--reject`` undoes all |
| ``"hotel": "hotel-moon"``                     | ``UnknownSku``: what was reserved beside it is undone |
| ``"activities": ["unicorn-ride"]``            | the same, for one item of the list                 |
| ``"card": "4000000000000002"``                | the payment is undone, and the reservations with it |
| ``"amount_cents": 1000001``                   | approved, paid, and refused by the pivot: the payment, which had completed, is undone |
| ``"email": "me@flaky.example"``               | after the pivot the first attempt fails, then completed |
"""

from datetime import timedelta
from typing import Annotated

import msgspec
from msgspec import Meta

from orchestrator.core.definition import (
    Input,
    Item,
    Retry,
    Saga,
    Sleep,
    Step,
    SubSaga,
    WaitFor,
)
from orchestrator.core.references import gt

APPROVAL_OVER_CENTS = 200_000

_Name = Annotated[str, Meta(min_length=1, max_length=100)]
_Card = Annotated[str, Meta(pattern="^[0-9]{12,19}$")]
_Cents = Annotated[int, Meta(ge=1, le=100_000_000)]


class CollectPayment(msgspec.Struct, frozen=True, kw_only=True):
    """A payment.

    Attributes:
        card: Card number; one that ends in 0002 is declined.
        amount_cents: What it is charged, in cents.
    """

    card: _Card
    amount_cents: _Cents


class BookTravel(msgspec.Struct, frozen=True, kw_only=True):
    """A journey.

    Attributes:
        booking_id: The agency's own id.
        flight: ``flight-lisbon`` or ``flight-oslo``.
        hotel: ``hotel-lisbon`` or ``hotel-oslo``.
        activities: Any of ``city-tour`` and ``surf-lesson``.
        travellers: How many.
        amount_cents: What the card is charged; above `APPROVAL_OVER_CENTS` somebody has to approve.
        card: Card number; one that ends in 0002 is declined.
        email: Where the tickets go.
    """

    booking_id: _Name
    flight: _Name = "flight-lisbon"
    hotel: _Name = "hotel-lisbon"
    activities: Annotated[tuple[_Name, ...], Meta(max_length=10)] = ()
    travellers: Annotated[int, Meta(ge=1, le=100)] = 1
    amount_cents: _Cents = 80_000
    card: _Card = "4242424242424242"
    email: Annotated[str, Meta(max_length=254)] = "traveller@example.org"


COLLECT_PAYMENT = Saga(
    name="collect-payment",
    version=1,
    input=CollectPayment,
    deadline=timedelta(hours=1),
    steps=(
        Step("charge", action="payment.charge", compensation="payment.refund"),
        # The bank wants to be left alone before the money may be used.
        Step("settle", Sleep(lasts=timedelta(milliseconds=200))),
    ),
)
"""Charge, and wait until it is settled. It has no pivot: as a step it can always be undone."""

BOOK_TRAVEL = Saga(
    name="book-travel",
    version=1,
    input=BookTravel,
    steps=(
        Step(
            "seat",
            action="inventory.reserve",
            compensation="inventory.release",
            after=(),
            payload={"sku": Input("flight"), "quantity": Input("travellers")},
        ),
        Step(
            "room",
            action="inventory.reserve",
            compensation="inventory.release",
            after=(),
            payload={"sku": Input("hotel"), "quantity": Input("travellers")},
        ),
        Step(
            "activities",
            action="inventory.reserve",
            compensation="inventory.release",
            after=(),
            each=Input("activities"),
            items_at_once=3,
            payload={"sku": Item(), "quantity": Input("travellers")},
        ),
        Step(
            "approval",
            WaitFor("manager", approval=True),
            after=("seat", "room", "activities"),
            when=gt(Input("amount_cents"), APPROVAL_OVER_CENTS),
            timeout=timedelta(days=2),
        ),
        Step(
            "pay",
            SubSaga("collect-payment"),
            payload={"card": Input("card"), "amount_cents": Input("amount_cents")},
            timeout=timedelta(hours=2),
        ),
        Step(
            "confirm",
            action="orders.confirm",
            compensation="orders.withdraw",
            pivot=True,
            payload={"order_id": Input("booking_id"), "amount_cents": Input("amount_cents")},
        ),
        Step(
            "tell",
            action="notifications.send",
            retry=Retry.forever(),
            payload={"order_id": Input("booking_id"), "email": Input("email")},
        ),
    ),
)
"""Reserve in parallel, have it approved, pay, confirm, tell."""
