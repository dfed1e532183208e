"""Payment: a card that ends in 0002 is declined, one that ends in 0003 cannot be refunded."""

from typing import Final, TypedDict

from workers.examples.ledger import Ledger, linger, reference
from workers.examples.service import app, ledger_url
from workers.sdk import Fail, Participant, Reject, StepContext

DECLINED: Final = "0002"
NOT_REFUNDABLE: Final = "0003"

participant = Participant(app, ledger_url("payment"))
ledger = Ledger("payment")


class Payment(TypedDict):
    """A charge. The card number stays in this service: only its last digits leave it."""

    payment_id: str
    card_last4: str
    amount_cents: int


@participant.action("payment.charge")
def charge(
    context: StepContext,
    card: str,
    amount_cents: int,
    delay_in: str = "",
    delay_seconds: float = 0,
) -> Payment:
    """Charge a card."""
    last4 = card[-4:]
    if last4 == DECLINED:
        raise Reject("CardDeclined", f"The bank declined the card that ends in {last4}.")
    payment_id = reference(context, "pay")
    ledger.book(context, "charged", last4, amount_cents, payment_id)
    linger(context, delay_in, delay_seconds)
    return {"payment_id": payment_id, "card_last4": last4, "amount_cents": amount_cents}


@participant.compensation("payment.refund")
def refund(
    context: StepContext, undo: Payment, delay_in: str = "", delay_seconds: float = 0
) -> None:
    """Refund a charge; where the bank never will, an operator has to."""
    if undo["card_last4"] == NOT_REFUNDABLE:
        raise Fail("RefundRefused", "The bank does not refund to this card.", retryable=False)
    ledger.book(context, "refunded", undo["card_last4"], -undo["amount_cents"], undo["payment_id"])
    linger(context, delay_in, delay_seconds)
