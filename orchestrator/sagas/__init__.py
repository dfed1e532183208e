"""Example definitions: plain data. Participants are named here, never imported."""

from orchestrator.core.definition import Saga
from orchestrator.sagas.book_travel import BOOK_TRAVEL, COLLECT_PAYMENT, BookTravel, CollectPayment
from orchestrator.sagas.place_order import PLACE_ORDER, PlaceOrder

SAGAS: tuple[Saga, ...] = (BOOK_TRAVEL, COLLECT_PAYMENT, PLACE_ORDER)

__all__ = [
    "BOOK_TRAVEL",
    "COLLECT_PAYMENT",
    "PLACE_ORDER",
    "SAGAS",
    "BookTravel",
    "CollectPayment",
    "PlaceOrder",
]
