"""A trip: a saga that uses everything that a definition can say."""

from datetime import timedelta

import msgspec

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


class Trip(msgspec.Struct, frozen=True):
    """What is booked."""

    hotels: tuple[str, ...]
    price: int = 100


class Bill(msgspec.Struct, frozen=True):
    """What is paid."""

    amount: int


BOOK_TRIP = Saga(
    name="book-trip",
    version=1,
    input=Trip,
    deadline=timedelta(minutes=10),
    steps=(
        Step(
            "hotels",
            "travel.book",
            "travel.cancel",
            each=Input("hotels"),
            items_at_once=2,
            payload={"what": Item()},
            after=(),
        ),
        Step(
            "car",
            "travel.order_car",
            "travel.cancel",
            payload={"what": "car"},
            completes_within=timedelta(minutes=1),
            after=(),
        ),
        Step(
            "insurance",
            "travel.book",
            "travel.cancel",
            when=gt(Input("price"), 1000),
            payload={"what": "insurance"},
            after=(),
        ),
        Step(
            "approval",
            WaitFor("approved", approval=True),
            timeout=timedelta(minutes=5),
            after=("hotels", "car", "insurance"),
        ),
        Step("cool-off", Sleep(timedelta(milliseconds=100))),
        Step("pay", SubSaga("pay-trip"), payload={"amount": Input("price")}, pivot=True),
        Step(
            "tickets",
            "travel.print",
            payload={"receipt": Output("pay", "charge.what"), "cab": Output("car", "cab")},
            retry=Retry.forever(),
        ),
    ),
)

PAY_TRIP = Saga(
    name="pay-trip",
    version=1,
    input=Bill,
    steps=(
        Step("charge", "travel.book", "travel.cancel", payload={"what": "payment"}),
        Step("mail", "travel.mail", NOTHING_TO_UNDO, payload={"amount": Input("amount")}),
    ),
)

PAY_BY_LINK = Saga(
    name="pay-by-link",
    version=1,
    input=Bill,
    steps=(Step("pay", SubSaga("pay-trip", trace="linked")),),
)
