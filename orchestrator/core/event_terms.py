"""What a definition says about events: which one starts a saga, which ones it publishes. Data."""

from collections.abc import Mapping
from typing import Any
from typing import Literal as OneOf

import msgspec

from orchestrator.core.references import Input, Literal, Output

SagaFact = OneOf["saga_id", "key", "error_kind", "error_message"]


class FromSaga(msgspec.Struct, frozen=True, tag="saga"):
    """A fact about the saga itself, in the payload of an event that it publishes.

    The error is what made it turn back; null for a saga that did not.
    """

    fact: SagaFact


class FromEvent(msgspec.Struct, frozen=True):
    """Reference to a field of the event that starts a saga, or to a path inside it."""

    path: str


class StartsOn(msgspec.Struct, frozen=True):
    """Says which event starts a saga, where their fields differ.

    Attributes:
        event: A subclass of `shared.bus.Event`.
        input: Fields of the saga's input as values and `FromEvent`; None: those of the same name.
        key: Business key of the saga; by default the event's id, so that each event starts one.
    """

    event: Any
    input: Mapping[str, Any] | None = None
    key: FromEvent | None = None


class Publish(msgspec.Struct, frozen=True):
    """An event that a saga publishes at a milestone.

    Attributes:
        event: A subclass of `shared.bus.Event`.
        payload: Its fields as values and references (`Input`, `Output`, `FromSaga`); None: those
            of the saga's input that have the same name.
    """

    event: Any
    payload: Mapping[str, Any] | None = None


class PlannedPublication(msgspec.Struct, frozen=True, kw_only=True):
    """A publication as it is stored: the event's name on the wire, every field explicit."""

    milestone: str
    event: str
    payload: dict[str, Input | Output | Literal | FromSaga]
