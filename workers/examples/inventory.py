"""Inventory: what is reserved can be released again, and stock runs out."""

from typing import Final, TypedDict

from workers.examples.ledger import Ledger, linger, reference
from workers.examples.service import app, ledger_url
from workers.sdk import Participant, Reject, StepContext

OPENING_STOCK: Final = {
    "lamp": 1_000_000,
    "table": 1_000_000,
    "cable": 1_000_000,
    "chair": 5,
    # What a journey is made of: seats, rooms and places.
    "flight-lisbon": 1_000_000,
    "flight-oslo": 9,
    "hotel-lisbon": 1_000_000,
    "hotel-oslo": 4,
    "city-tour": 1_000_000,
    "surf-lesson": 8,
}

participant = Participant(app, ledger_url("inventory"))
ledger = Ledger("inventory")


class Reservation(TypedDict):
    """What a reservation was for, so that it can be released whatever the order says by then."""

    reservation_id: str
    sku: str
    quantity: int


@participant.action("inventory.reserve")
def reserve(
    context: StepContext, sku: str, quantity: int, delay_in: str = "", delay_seconds: float = 0
) -> Reservation:
    """Reserve stock; refuses what is unknown, and more than there is."""
    available = ledger.available(context.connection, sku)
    if available is None:
        raise Reject("UnknownSku", f"There is no {sku!r}; we have {', '.join(OPENING_STOCK)}.")
    if available < quantity:
        raise Reject("OutOfStock", f"{quantity} of {sku!r} are wanted, {available} are left.")
    reservation_id = reference(context, "res")
    ledger.book(context, "reserved", sku, quantity, reservation_id)
    linger(context, delay_in, delay_seconds)
    return {"reservation_id": reservation_id, "sku": sku, "quantity": quantity}


@participant.compensation("inventory.release")
def release(
    context: StepContext, undo: Reservation, delay_in: str = "", delay_seconds: float = 0
) -> None:
    """Release a reservation."""
    ledger.book(context, "released", undo["sku"], -undo["quantity"], undo["reservation_id"])
    linger(context, delay_in, delay_seconds)
