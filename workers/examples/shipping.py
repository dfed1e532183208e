"""Shipping: some regions cannot be reached, and couriers do not always answer."""

from typing import Final, TypedDict

from workers.examples.ledger import Ledger, linger, reference
from workers.examples.service import app, ledger_url
from workers.sdk import Participant, Reject, StepContext

REGIONS: Final = frozenset({"asia", "eu", "uk", "us"})

participant = Participant(app, ledger_url("shipping"))
ledger = Ledger("shipping")


class Shipment(TypedDict):
    """A shipment that was arranged."""

    shipment_id: str
    region: str


@participant.action("shipping.arrange")
def arrange(
    context: StepContext,
    region: str,
    courier: str = "post",
    delay_in: str = "",
    delay_seconds: float = 0,
) -> Shipment:
    """Arrange a shipment."""
    if region not in REGIONS:
        raise Reject("UnreachableRegion", f"Nobody delivers to {region!r}.")
    shipment_id = reference(context, "ship")
    ledger.book(context, "arranged", region, 1, shipment_id)
    linger(context, delay_in, delay_seconds)
    _call(courier, context)
    return {"shipment_id": shipment_id, "region": region}


@participant.compensation("shipping.cancel")
def cancel(
    context: StepContext,
    undo: Shipment,
    courier: str = "post",
    delay_in: str = "",
    delay_seconds: float = 0,
) -> None:
    """Cancel a shipment."""
    ledger.book(context, "cancelled", undo["region"], -1, undo["shipment_id"])
    linger(context, delay_in, delay_seconds)
    _call(courier, context)


def _call(courier: str, context: StepContext) -> None:
    """Ask the courier; ``down`` never answers, ``flaky`` not at the first attempt."""
    if courier == "down" or (courier == "flaky" and context.attempt == 1):
        raise ConnectionError(f"The courier {courier!r} does not answer.")
