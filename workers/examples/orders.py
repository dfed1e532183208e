"""Orders: the point of no return. An order over the limit is refused."""

from typing import Final, TypedDict

from workers.examples.ledger import Ledger, linger
from workers.examples.service import app, ledger_url
from workers.sdk import Participant, Reject, StepContext

AMOUNT_CENTS_MAX: Final = 1_000_000

participant = Participant(app, ledger_url("orders"))
ledger = Ledger("orders")


class Order(TypedDict):
    """An order that was confirmed."""

    order_id: str


@participant.action("orders.confirm")
def confirm(
    context: StepContext,
    order_id: str,
    amount_cents: int,
    delay_in: str = "",
    delay_seconds: float = 0,
) -> Order:
    """Confirm an order."""
    if amount_cents > AMOUNT_CENTS_MAX:
        raise Reject(
            "OverLimit", f"{amount_cents} cents are more than we allow ({AMOUNT_CENTS_MAX})."
        )
    ledger.book(context, "confirmed", "orders", 1, order_id)
    linger(context, delay_in, delay_seconds)
    return {"order_id": order_id}


@participant.compensation("orders.withdraw")
def withdraw(
    context: StepContext, undo: Order, delay_in: str = "", delay_seconds: float = 0
) -> None:
    """Withdraw a confirmation that nobody got to know of."""
    ledger.book(context, "withdrawn", "orders", -1, undo["order_id"])
    linger(context, delay_in, delay_seconds)
