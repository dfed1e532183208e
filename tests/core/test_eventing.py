"""Sagas that start on an event and publish others: checks, and what is published when."""

from typing import Any

import msgspec
import pytest

from orchestrator.core.definition import Saga
from orchestrator.core.event_terms import FromEvent, FromSaga, Publish, StartsOn
from orchestrator.core.eventing import input_of, key_of, succeeded
from orchestrator.core.references import Input, Output
from orchestrator.store import rows
from orchestrator.store.definitions import check_same
from shared.bus import Command, Event
from shared.errors import DefinitionError
from tests.core import builders
from tests.core.builders import Order, Run, rejected, step


class OrderCreated(Event, name="orders.created"):
    order_id: str
    amount: int = 0
    customer: dict[str, str] | None = None


class OrderPlaced(Event, name="orders.placed"):
    order_id: str
    receipt: Any = None
    why: str | None = None
    saga_id: str = ""


class Other(Event, name="other.happened"):
    number: int


class NoEvent(Command, name="orders.create"):
    order_id: str


def saga(**options: Any) -> Saga:
    """A saga of two steps."""
    steps = (step("a"), step("b"))
    return Saga(name="test", version=1, input=Order, steps=steps, **options)


PUBLISHING = saga(
    publishes={
        "started": OrderCreated,
        succeeded("a"): Publish(
            OrderPlaced, {"order_id": Input("order_id"), "receipt": Output("a", "receipt")}
        ),
        "completed": Publish(
            OrderPlaced,
            {"order_id": "all", "receipt": Output("a"), "saga_id": FromSaga("saga_id")},
        ),
        "compensated": Publish(
            OrderPlaced, {"order_id": Input("order_id"), "why": FromSaga("error_kind")}
        ),
        "stuck": Publish(OrderPlaced, {"order_id": "stuck", "why": FromSaga("error_message")}),
    }
)


def published(*replies: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """Id, name and fields of what a saga publishes, in order."""
    saga_run = Run(PUBLISHING.definition)
    decisions = [saga_run.last, *(saga_run.tell(reply) for reply in replies)]
    commands = [one for decision in decisions for one in decision.commands if one.is_event]
    return [(one.id.removeprefix(builders.SAGA_ID), one.task, one.payload) for one in commands]


def test_what_a_completed_saga_publishes() -> None:
    """At its start, after a step, and at its end, each with an id of its own."""
    done = [builders.succeeded("a", output={"receipt": 7}), builders.succeeded("b")]
    assert [
        (":started", "orders.created", {"order_id": "o-1"}),
        (":succeeded:a", "orders.placed", {"order_id": "o-1", "receipt": 7}),
        (
            ":completed",
            "orders.placed",
            {"order_id": "all", "receipt": {"receipt": 7}, "saga_id": builders.SAGA_ID},
        ),
    ] == published(*done)


def test_what_a_compensated_saga_publishes() -> None:
    """With the reason; what a step did not put out is null, for a milestone is no failure."""
    undone = builders.succeeded("a", direction="compensation")
    assert [
        (":started", "orders.created", {"order_id": "o-1"}),
        (":succeeded:a", "orders.placed", {"order_id": "o-1", "receipt": None}),
        (":compensated", "orders.placed", {"order_id": "o-1", "why": "sold_out"}),
    ] == published(builders.succeeded("a"), rejected("b"), undone)


def test_a_duplicate_publishes_nothing() -> None:
    """An empty decision is empty."""
    twice = published(builders.succeeded("a"), builders.succeeded("a"))
    assert [":started", ":succeeded:a"] == [identity for identity, _, _ in twice]


def test_the_trace_of_a_saga_goes_on_in_its_events() -> None:
    """Below a span that the orchestrator derives again when it exports the saga."""
    (event,) = (one for one in Run(PUBLISHING.definition).last.commands if one.is_event)
    assert event.traceparent.split("-")[1] == builders.TRACE.trace_id


def test_what_is_published_is_part_of_the_stored_definition() -> None:
    """Read back as it was; a definition from before this field is the same without it."""
    stored = rows.to_json(PUBLISHING.definition)
    assert PUBLISHING.definition == rows.definition_from(stored)
    plain = saga().definition
    older = msgspec.to_builtins(plain)
    del older["publishes"]
    check_same(msgspec.json.encode(older).decode(), plain)


def test_the_input_and_the_key_of_a_saga_that_an_event_starts() -> None:
    """Fields of the same name and the event's id, unless it says otherwise."""
    fields = {"order_id": "o-7", "amount": 3, "customer": {"name": "Ada"}}
    plain = saga(starts_on=OrderCreated)
    assert ({"order_id": "o-7"}, "e-1") == (input_of(plain, fields), key_of(plain, "e-1", fields))
    mapped = saga(
        starts_on=StartsOn(
            OrderCreated, input={"order_id": FromEvent("customer.name")}, key=FromEvent("order_id")
        )
    )
    assert ({"order_id": "Ada"}, "o-7") == (input_of(mapped, fields), key_of(mapped, "e", fields))


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"starts_on": NoEvent}, "starts_on: .*NoEvent.* is no subclass of shared.bus.Event"),
        (
            {"starts_on": StartsOn(OrderCreated, {"order": FromEvent("order_id")})},
            "starts_on: the input has no field 'order'",
        ),
        (
            {"starts_on": StartsOn(OrderCreated, {"order_id": FromEvent("id")})},
            r"'order_id' is FromEvent\('id'\), but the event has order_id, amount",
        ),
        (
            {"starts_on": StartsOn(OrderCreated, key=FromEvent("no"))},
            r"'key' is FromEvent\('no'\), but the event has",
        ),
        ({"publishes": {"finished": OrderPlaced}}, "'finished': there is no such milestone"),
        ({"publishes": {succeeded("c"): OrderPlaced}}, "the saga has no step 'c'"),
        ({"publishes": {"completed": NoEvent}}, "is no subclass of shared.bus.Event"),
        ({"publishes": {"completed": Other}}, "field 'number' of Other is given no value"),
        (
            {"publishes": {"completed": Publish(Other, {"number": 1, "more": 2})}},
            "Other has no field 'more'",
        ),
        (
            {"publishes": {"completed": Publish(Other, {"number": Input("no")})}},
            r"'number' is Input\('no'\), but the input has order_id",
        ),
        (
            {"publishes": {succeeded("a"): Publish(Other, {"number": Output("b")})}},
            "'number' is the output of 'b', which need not have succeeded by then",
        ),
        (
            {"publishes": {"stuck": Publish(Other, {"number": Output("a")})}},
            "'number' is the output of 'a', which need not have succeeded by then",
        ),
        (
            {"publishes": {"stuck": Publish(Other, {"number": FromEvent("a")})}},
            "'number' is a FromEvent; only `starts_on` knows an event",
        ),
    ],
)
def test_mistakes_are_named_when_the_definition_is_built(
    options: dict[str, Any], problem: str
) -> None:
    """Not when the event comes, or the milestone."""
    with pytest.raises(DefinitionError, match=problem):
        saga(**options)


def test_an_input_that_the_event_cannot_give() -> None:
    """Every field of the input that has no default needs one of the event."""

    class Needs(msgspec.Struct):
        order_id: str
        region: str

    with pytest.raises(
        DefinitionError, match="field 'region' of Needs is given no value by OrderCreated"
    ):
        Saga(name="test", version=1, input=Needs, steps=(step("a"),), starts_on=OrderCreated)
