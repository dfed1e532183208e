"""Example definitions: plain data. Participants are named here, never imported."""

from orchestrator.core.definition import Saga
from orchestrator.sagas.place_order import PLACE_ORDER, PlaceOrder

SAGAS: tuple[Saga, ...] = (PLACE_ORDER,)

__all__ = ["PLACE_ORDER", "SAGAS", "PlaceOrder"]
