"""A definition whose second task no worker knows, and one that waits for a saga of it."""

import msgspec

from orchestrator.core.definition import Saga, Step, SubSaga


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the first step takes."""

    sku: str = "lamp"
    quantity: int = 1


UNANSWERED = Saga(
    name="unanswered",
    version=1,
    input=Order,
    steps=(
        Step("reserve", action="inventory.reserve", compensation="inventory.release"),
        Step("ask", action="payment.nobody_knows", compensation="payment.refund"),
    ),
)

ASKS_ANOTHER = Saga(
    name="asks-another",
    version=1,
    input=Order,
    steps=(Step("other", SubSaga("unanswered")),),
)
