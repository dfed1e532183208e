"""A saga that starts on an event and says by events how it ended; a step of it is a saga."""

import msgspec

from orchestrator.core.definition import NOTHING_TO_UNDO, Saga, Step, SubSaga
from orchestrator.core.event_terms import FromSaga, Publish
from orchestrator.core.references import Input
from tests.bus.messages import OrderCreated, OrderFailed, OrderFulfilled


class FulfilOrder(msgspec.Struct):
    """What it needs of an order."""

    order_id: str


SEAL_PARCEL = Saga(
    name="seal-parcel",
    version=1,
    input=FulfilOrder,
    steps=(Step("seal", action="packing.seal", compensation="packing.unseal"),),
)

FULFIL_ORDER = Saga(
    name="fulfil-order",
    version=1,
    input=FulfilOrder,
    starts_on=OrderCreated,
    publishes={
        "completed": OrderFulfilled,
        "compensated": Publish(
            OrderFailed, {"order_id": Input("order_id"), "why": FromSaga("error_kind")}
        ),
    },
    steps=(
        Step("parcel", SubSaga("seal-parcel")),
        Step("pack", action="packing.pack", compensation=NOTHING_TO_UNDO),
    ),
)
