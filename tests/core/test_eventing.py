"""Sagas that start on an event and publish others: checks, and what is published when."""

from datetime import timedelta
from typing import Any, get_args

import msgspec
import pytest

from orchestrator.core.definition import Saga
from orchestrator.core.event_terms import FromEvent, FromSaga, Publish, SagaFact, StartsOn
from orchestrator.core.eventing import input_of, key_of, succeeded
from orchestrator.core.machine import Cancel, Message, Tick
from orchestrator.core.references import Input, Output
from orchestrator.store import rows
from orchestrator.store.definitions import check_same
from shared.bus import Command, Event
from shared.errors import DefinitionError
from shared.ids import derived_span_id
from shared.messages import Command as BusMessage
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


class Empty(Event, name="nothing.said"):
    pass


class Nameless(Event):
    """Of one word: no name on the wire can be made of it."""


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


def test_an_event_is_a_message_of_the_whole_saga_and_its_trace_and_baggage_go_on_in_it() -> None:
    """Below a span that the orchestrator derives again when it exports the saga."""
    trace = msgspec.structs.replace(
        builders.TRACE, tracestate="vendor=1", baggage=(("tenant", "acme"),)
    )
    start = msgspec.structs.replace(builders.START, trace=trace)
    decision = Run(PUBLISHING.definition, start=start).last
    (event,) = (one for one in decision.commands if one.is_event)
    identity = f"{builders.SAGA_ID}:started"
    assert event == BusMessage(
        id=identity,
        saga_id=builders.SAGA_ID,
        saga_name="test",
        saga_version=1,
        step="",
        direction="action",
        attempt=0,
        task="orders.created",
        queue="saga.events",
        payload={"order_id": "o-1"},
        deadline_at=builders.T0,
        traceparent=trace.parent(derived_span_id(identity, "send")),
        tracestate="vendor=1",
        baggage={"tenant": "acme"},
    )


class Told(Event, name="sagas.told"):
    saga_id: str
    key: str | None
    error_kind: str | None
    error_message: str | None


TELLING = saga(
    deadline=timedelta(seconds=10),
    publishes=dict.fromkeys(
        ("started", "compensated", "stuck"),
        Publish(Told, {name: FromSaga(name) for name in get_args(SagaFact)}),
    ),
)
UNDONE = builders.succeeded("a", direction="compensation")
BROKEN = builders.failed("a", direction="compensation", failure=builders.FOR_GOOD)


@pytest.mark.parametrize(
    "replies, milestone, kind, text",
    [
        ((), ":started", None, None),
        (
            (builders.failed("a", failure=builders.FOR_GOOD), UNDONE),
            ":compensated",
            "ValueError",
            "never",
        ),
        ((rejected("a"),), ":compensated", "sold_out", "none left"),
        (
            (Cancel(reason="rain"), builders.succeeded("a"), UNDONE),
            ":compensated",
            "Cancelled",
            "rain",
        ),
        ((Tick(), builders.succeeded("a"), UNDONE), ":compensated", "deadline", None),
        (
            (builders.succeeded("a"), rejected("b"), BROKEN),
            ":stuck:a:compensation",
            "sold_out",
            "none left",
        ),
    ],
    ids=["nothing", "failed", "rejected", "cancelled", "deadline", "stuck"],
)
def test_an_event_may_say_whose_it_is_and_what_went_wrong(
    replies: tuple[Message, ...], milestone: str, kind: str | None, text: str | None
) -> None:
    """The reason to turn back, not what went wrong on the way; null where nobody said anything."""
    start = msgspec.structs.replace(builders.START, key="order-7")
    run = Run(TELLING.definition, start=start)
    run.wait(timedelta(seconds=10))
    run.tell(*replies)
    (event,) = (one for one in run.last.commands if one.is_event)
    assert (event.id, event.payload) == (
        builders.SAGA_ID + milestone,
        {"saga_id": builders.SAGA_ID, "key": "order-7", "error_kind": kind, "error_message": text},
    )


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
    fixed = saga(starts_on=StartsOn(OrderCreated, input={"order_id": "all"}))
    assert ({"order_id": "all"}, "e") == (input_of(fixed, fields), key_of(fixed, "e", fields))
    by_itself = saga(starts_on=StartsOn(OrderCreated))
    assert ({"order_id": "o-7"}, "e") == (
        input_of(by_itself, fields),
        key_of(by_itself, "e", fields),
    )


@pytest.mark.parametrize("customer", [None, "Ada", {}, {"name": "Ada"}])
def test_what_the_event_does_not_say_is_left_to_the_defaults(customer: object) -> None:
    """That of the input's field, and the event's id as the key: a path may end anywhere."""
    deep = FromEvent("customer.name.first")
    mapped = saga(starts_on=StartsOn(OrderCreated, input={"order_id": deep}, key=deep))
    fields = {"order_id": "o-7", "customer": customer}
    assert ({}, "e-1") == (input_of(mapped, fields), key_of(mapped, "e-1", fields))


def test_what_is_known_at_a_milestone_may_be_published() -> None:
    """A step's own output and that of every earlier one; all of them at the end; else a default."""
    known = {"receipt": Output("a"), "order_id": "x"}
    options = saga(
        publishes={
            succeeded("b"): Publish(OrderPlaced, {**known, "why": Output("b")}),
            "completed": Publish(OrderPlaced, {**known, "why": Output("b")}),
            "stuck": Publish(OrderPlaced, {**known, "receipt": Output("a", default=None)}),
        }
    )
    assert len(options.definition.publishes) == 3


def test_what_has_a_default_needs_no_value() -> None:
    """Neither a field of an event nor one of the input that an event starts with."""
    free = Saga(
        name="test",
        version=1,
        input=Order,
        steps=(step("a"),),
        starts_on=Other,
        publishes={"completed": Publish(OrderCreated, {"order_id": Input("order_id")})},
    )
    assert input_of(free, {"number": 7}) == {}


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
        (
            {"publishes": {"stuck": Publish(Other, {"number": FromSaga("color")})}},  # type: ignore[arg-type]  # wrong
            r"'number' is FromSaga\('color'\); there is saga_id, key, error_kind, error_message",
        ),
        (
            {"publishes": {"completed": Publish(Other, {"number": Output("z")})}},
            "'number' is the output of 'z', which need not have succeeded by then",
        ),
        ({"publishes": ["completed"]}, r"publishes is \['completed'\]; expected `object`"),
        ({"publishes": {"completed": 7}}, "'completed': 7 is no subclass of shared.bus.Event"),
        ({"publishes": {"completed": Nameless}}, "'completed': .*Nameless"),
        ({"starts_on": Nameless}, "starts_on: .*Nameless"),
        (
            {"starts_on": StartsOn(Empty, {"order_id": FromEvent("id")})},
            r"'order_id' is FromEvent\('id'\), but the event has no fields",
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
    told = StartsOn(OrderCreated, {"order_id": FromEvent("order_id"), "region": "eu"})
    given = Saga(name="test", version=1, input=Needs, steps=(step("a"),), starts_on=told)
    assert input_of(given, {"order_id": "o-7"}) == {"order_id": "o-7", "region": "eu"}


def test_a_field_of_an_input_that_has_none() -> None:
    """In words that can be read."""

    class Nothing(msgspec.Struct):
        pass

    tells = {"completed": Publish(Other, {"number": Input("y")})}
    with pytest.raises(DefinitionError, match=r"Input\('y'\), but the input has no fields"):
        Saga(name="test", version=1, input=Nothing, steps=(step("a"),), publishes=tells)
