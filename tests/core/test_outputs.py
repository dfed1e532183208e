"""Output types: references into them are checked at build, what comes is checked when it comes."""

from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.catalog import Catalog
from orchestrator.core.definition import (
    Definition,
    Input,
    Item,
    Output,
    Retry,
    Saga,
    Sleep,
    Step,
    SubSaga,
    WaitFor,
)
from orchestrator.core.event_terms import Publish
from orchestrator.core.eventing import succeeded as succeeds
from orchestrator.core.messages import Complete, Signal, Skip
from orchestrator.core.outputs import INVALID_OUTPUT
from orchestrator.core.references import exists, gt
from orchestrator.core.schema import mismatch, unchecked
from orchestrator.core.state import Phase, Status
from orchestrator.store import rows
from orchestrator.store.definitions import check_same
from shared.bus import Event
from shared.errors import DefinitionChanged, DefinitionError
from shared.messages import Failed, Reply, Succeeded
from shared.tickets import ticket
from shared.tokens import proof_of
from tests.core.builders import (
    FOR_GOOD,
    SAGA_ID,
    SECRET,
    START_TWO,
    Order,
    Orders,
    Run,
    accepted,
    saga,
    sent,
    step,
    succeeded,
)

HOUR = timedelta(hours=1)


class Card(msgspec.Struct):
    """A part of an output."""

    last4: str
    expires: date | None = None


class Charge(msgspec.Struct):
    """What a payment returns."""

    id: str
    cents: Annotated[int, msgspec.Meta(ge=0)]
    card: Card | None = None
    parts: list[Card] = []
    notes: dict[str, int] = {}
    raw: Any = None


class Kind(Enum):
    """Two words."""

    A = "a"
    B = "b"


class Sea(msgspec.Struct, tag="sea"):
    """One way."""

    ship: str


class Air(msgspec.Struct, tag="air"):
    """Another one."""

    flight: int


class Every(msgspec.Struct, rename="camel"):
    """A field of each kind."""

    the_name: Annotated[str, msgspec.Meta(min_length=1, max_length=3, pattern="^[a-z]")]
    amount: float
    at: Annotated[datetime, msgspec.Meta(tz=True)]
    day: date
    hour: Annotated[time, msgspec.Meta(tz=True)]
    lasts: timedelta
    price: Decimal
    uid: UUID
    blob: bytes
    kind: Kind
    word: Literal["x", 1]
    way: Sea | Air
    pair: tuple[int, str]
    some: Annotated[list[int], msgspec.Meta(max_length=2)]
    once: set[int]
    by_name: dict[str, int]
    odd: Annotated[int, msgspec.Meta(gt=0, lt=10, multiple_of=3)] | None
    yes: bool
    inner: "Every | None" = None


GOOD: dict[str, Any] = {
    "theName": "abc",
    "amount": 1,
    "at": "2026-01-01T00:00:00Z",
    "day": "2026-01-01",
    "hour": "10:00:00Z",
    "lasts": "PT5S",
    "price": "1.50",
    "uid": "0199c8a0-0000-7000-8000-000000000001",
    "blob": "aGk=",
    "kind": "a",
    "word": 1,
    "way": {"type": "air", "flight": 7},
    "pair": [1, "b"],
    "some": [1, 2],
    "once": [1],
    "byName": {"a": 1},
    "odd": 3,
    "yes": True,
}
VALUES: tuple[Any, ...] = (
    *(None, True, 0, 1, 3, 4, 12, 1.5, -1.0, "", "a", "abcd", "Abc", "x", "b"),
    *([], [1], [1, 2], [1, 2, 3], [1, "b"], ["a"], [1, "b", 2], {}, {"a": 1}, {"a": "b"}),
    *("2026-01-01", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00", "PT5S", "10:00:00Z", "1.5"),
    *("0199c8a0-0000-7000-8000-000000000001", "aGk=", "aGk"),
    *({"type": "sea", "ship": "s"}, {"type": "sea", "flight": 1}, {"type": "rail"}, {"ship": "s"}),
)


def fits(value: Any) -> bool:
    """What msgspec itself says."""
    try:
        msgspec.convert(value, Every)
    except msgspec.ValidationError:
        return False
    return True


@given(
    st.lists(
        st.tuples(st.sampled_from([*GOOD, "inner", "new"]), st.sampled_from(VALUES)), max_size=2
    )
)
def test_a_schema_says_what_its_type_says(changes: list[tuple[str, Any]]) -> None:
    """The stored schema takes the values that the type in the code takes, and no others."""
    value = {**GOOD, **dict(changes)}
    if isinstance(value["price"], int | float):
        return  # msgspec takes a number for a decimal, and writes a text
    assert (not mismatch(msgspec.json.schema(Every), value)) == fits(value)
    missing = (
        {name: one for name, one in value.items() if name != changes[0][0]} if changes else {}
    )
    assert (not mismatch(msgspec.json.schema(Every), missing)) == fits(missing)


@pytest.mark.parametrize(
    "output, words",
    [
        (None, "it: an object is wanted, not null"),
        ({"id": "c"}, "cents: missing"),
        ({"id": 1, "cents": 1}, "id: a text is wanted, not a whole number"),
        ({"id": "c", "cents": -1}, "cents: at least 0 is wanted"),
        (
            {"id": "c", "cents": 1, "card": {"last4": None}},
            "card.last4: a text is wanted, not null",
        ),
        ({"id": "c", "cents": 1, "card": 7}, "card: an object is wanted, not a whole number"),
        ({"id": "c", "cents": 1, "parts": [{}]}, "parts[0].last4: missing"),
        (
            {"id": "c", "cents": 1, "notes": {"a": "b"}},
            "notes.a: a whole number is wanted, not a text",
        ),
    ],
)
def test_the_field_is_named_and_its_value_is_not(output: Any, words: str) -> None:
    """An error goes into logs and spans; what a participant returned may be a secret."""
    assert words in mismatch(msgspec.json.schema(Charge), output)


def charged(*more: Step, **options: Any) -> Definition:
    """A saga whose second step has an output type."""
    return saga(step("a"), step("b", output=Charge, **options), *more).definition


def heard(*more: Step, approval: bool = False, **options: Any) -> Definition:
    """A saga whose second step waits for a signal with a type, and undoes the first one without."""
    wait = WaitFor("charged", approval=approval, **options)
    return saga(step("a"), Step("w", wait, timeout=HOUR, output=Charge), *more).definition


# When it is built -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference",
    [
        Output("b"),
        Output("b", "id"),
        Output("b", "card.last4"),
        Output("b", "notes.anything"),
        Output("b", "raw.any.thing"),
    ],
)
def test_a_path_into_an_output_type_is_taken(reference: Output) -> None:
    """Into what may be null, into free keys, and into what may be anything, too."""
    charged(step("c", payload={"x": reference}))


@pytest.mark.parametrize(
    "made, words",
    [
        (
            lambda: charged(step("c", payload={"x": Output("b", "idd")})),
            "payload 'x' is Output('b', 'idd'), but its output has id, cents, card, parts, notes, raw",
        ),
        (
            lambda: charged(step("c", payload={"x": Output("b", "card.first4", default="")})),
            "payload 'x' is Output('b', 'card.first4'), but its output has last4, expires in 'card'",
        ),
        (
            lambda: charged(step("c", when=gt(Output("b", "cent"), 1))),
            "when is Output('b', 'cent'), but its output has",
        ),
        (
            lambda: charged(step("c", when=exists(Output("b", "id.more")))),
            "when is Output('b', 'id.more'), but its output has no fields in 'id'",
        ),
        (
            lambda: charged(step("c", each=Output("b", "card"), payload={"x": Item()})),
            "each is Output(step='b', path='card', default=UNSET), which is no list",
        ),
        (
            lambda: charged(step("c", each=Output("b", "parts"), payload={"x": Item("last5")})),
            "payload 'x' is Item('last5'), but an item has last4, expires",
        ),
        (
            lambda: charged(
                step("c", payload={"x": Output("b", "id")}),
                each=Input("order_id"),
                payload={"y": Item()},
            ),
            "payload 'x' is Output('b', 'id'), but its output is a list: one for each item",
        ),
        (
            lambda: saga(step("a", output=int)),
            "output is <class 'int'>; it must be a subclass of msgspec.Struct",
        ),
        (
            lambda: saga(Step("w", Sleep(timedelta(1)), output=Charge)),
            "it sleeps, which returns nothing, and has an output=; leave it out",
        ),
        (
            lambda: heard(step("c", payload={"x": Output("w", "idd")})),
            "payload 'x' is Output('w', 'idd'), but its output has id, cents",
        ),
        (
            lambda: saga(
                Step("s", SubSaga("other"), output=Charge),
                step("c", payload={"x": Output("s", "idd")}),
            ),
            "payload 'x' is Output('s', 'idd'), but its output has id, cents",
        ),
        (
            lambda: heard(otherwise="default", default={"id": "c"}),
            "default is no Charge: cents: missing",
        ),
    ],
)
def test_a_mistake_is_named_when_the_saga_is_built(made: Callable[[], object], words: str) -> None:
    """In every place that a reference can stand in, with what there is."""
    with pytest.raises(DefinitionError) as refused:
        made()
    assert words in str(refused.value)


def test_an_event_that_is_published_is_checked_too() -> None:
    """Its fields come from outputs like those of a payload."""

    class Paid(Event, name="outputs.paid"):
        charge: str

    publish = {succeeds("b"): Publish(Paid, payload={"charge": Output("b", "idd")})}
    steps = (step("a"), step("b", output=Charge))
    with pytest.raises(DefinitionError, match="Output\\('b', 'idd'\\), but its output has id"):
        Saga(name="test", version=1, input=Order, steps=steps, publishes=publish)


def test_a_path_into_the_input_is_checked_to_its_end() -> None:
    """Not its first part alone."""
    with pytest.raises(DefinitionError, match="but the input has no fields in 'order_id'"):
        saga(step("a", payload={"x": Input("order_id.more")}))


# What is stored -------------------------------------------------------------------------------


def test_the_type_is_pinned_and_an_old_definition_has_none() -> None:
    """A change of the type is a change of the definition, and is shown."""

    class Other(msgspec.Struct):
        id: int

    typed = charged()
    assert rows.definition_from(rows.to_json(typed)) == typed
    old = rows.to_json(typed).replace(',"output_schema":null', "")
    assert old.count("output_schema") == 1
    assert rows.definition_from(old) == typed
    other = saga(step("a"), step("b", output=Other)).definition
    with pytest.raises(DefinitionChanged, match=r"steps\.b\.output_schema"):
        check_same(rows.to_json(typed), other)


# When it comes --------------------------------------------------------------------------------

RIGHT = {"id": "c-1", "cents": 5, "something": "new"}
WRONG = {"id": "c-1", "cents": "5"}


def test_an_output_that_fits_is_taken_as_it_is() -> None:
    """With fields that the type does not know: participants may be newer."""
    run = Run(charged(), succeeded("a"), succeeded("b", output=RIGHT))
    assert (run.phase("b"), run.known.step("b").output) == ("succeeded", RIGHT)


def test_an_output_that_does_not_fit_has_happened_and_is_undone() -> None:
    """At once, whatever the policy: the barrier would answer the same; with the undo data."""
    run = Run(charged(), succeeded("a"), succeeded("b", output=WRONG))
    failure = run.known.step("b").failure
    assert failure is not None
    assert failure.kind == INVALID_OUTPUT
    words = "The output of step 'b' is no Charge: cents: a whole number is wanted, not a text."
    assert failure.message == words
    assert [("b", "compensation", 1)] == sent(run.last)
    assert run.last.commands[0].payload["undo"] == WRONG


def test_what_is_in_the_payload_store_is_not_looked_at() -> None:
    """The core has a ticket for it; the other fields are checked all the same."""
    large = ticket("0" * 64, 1_000_000)
    run = Run(charged(), succeeded("a"), succeeded("b", output={**RIGHT, "card": large}))
    assert run.phase("b") == "succeeded"
    run = Run(charged(), succeeded("a"), succeeded("b", output={"id": large}))
    assert "cents: missing" in getattr(run.known.step("b").failure, "message", "")


def test_a_pivot_whose_output_does_not_fit_is_stuck() -> None:
    """It has happened and cannot be undone; an operator says what its output is, of the same type."""
    pivot = step("p", output=Charge, pivot=True, compensation=None)
    run = Run(saga(step("a"), pivot).definition, succeeded("a"), succeeded("p", output=WRONG))
    assert run.known.status.value == "stuck"
    refused = run.tell(Skip(step="p", output=WRONG)).refused
    assert "The output of step 'p' is no Charge: cents" in refused
    run.tell(Skip(step="p", output=RIGHT))
    assert run.known.status.value == "completed"


def test_each_item_of_a_list_has_an_output_of_the_type() -> None:
    """The output of the step is the list of them, which is no such thing."""
    listed = step("b", output=Charge, each=Input("order_ids"), payload={"x": Item()})
    run = Run(saga(listed, input=Orders).definition, start=START_TWO)
    run.tell(succeeded("b[0]", output=RIGHT), succeeded("b[1]", output=RIGHT))
    assert run.known.status.value == "completed"
    other = Run(saga(listed, input=Orders).definition, start=START_TWO)
    other.tell(succeeded("b[0]", output=RIGHT), succeeded("b[1]", output=WRONG))
    assert other.known.status.value == "compensating"


def test_a_completion_that_does_not_fit_is_refused_and_the_step_waits_on() -> None:
    """Whoever has the token is told, and may try again."""
    run = Run(charged(), succeeded("a"), accepted("b"))
    before = run.state
    refused = run.tell(completion(WRONG)).refused
    assert refused == (
        "The output of step 'b' is no Charge: cents: a whole number is wanted, not a text."
    )
    assert run.state == before
    run.tell(completion(RIGHT))
    assert run.phase("b") == "succeeded"


def completion(output: Any) -> Complete:
    """A success that is told with the token of the second step."""
    reply = Reply(
        saga_id=SAGA_ID, step="b", direction="action", attempt=1, outcome=Succeeded(output=output)
    )
    return Complete(reply=reply, proof=proof_of(SECRET, SAGA_ID, "b", "action", 1))


def test_what_undoes_it_may_return_anything() -> None:
    """The type is that of the action."""
    run = Run(charged(step("c")), succeeded("a"), succeeded("b", output=WRONG))
    run.tell(succeeded("b", 1, "compensation", output="whatever"))
    assert run.phase("b") == "undone"


def test_a_participant_may_say_how_to_undo_what_failed() -> None:
    """As the core does for an output that does not fit."""
    run = Run(saga(step("a")).definition)
    outcome = Failed(failure=FOR_GOOD, undo={"id": "c-1"})
    run.tell(Reply(saga_id=SAGA_ID, step="a", direction="action", attempt=1, outcome=outcome))
    assert run.last.commands[0].payload["undo"] == {"id": "c-1"}


@pytest.mark.parametrize(
    "schema",
    [
        {"odd": 1},
        {"$defs": {"A": {"odd": 1}}},
        {"properties": {"a": {"odd": 1}}},
        {"anyOf": [{"type": "null"}, {"odd": 1}]},
        {"prefixItems": [{"odd": 1}]},
        {"items": {"odd": 1}},
        {"additionalProperties": {"odd": 1}},
        {"propertyNames": {"odd": 1}},
    ],
)
def test_what_would_not_be_checked_is_found_wherever_it_stands(schema: dict[str, Any]) -> None:
    """A type that says more than is looked at is refused and not half checked."""
    assert [*unchecked(schema)] == ["odd"]
    assert [*unchecked(True)] == [*unchecked({"type": "object"})] == []


class ByCard(msgspec.Struct, tag="card"):
    last4: str


class ByInvoice(msgspec.Struct, tag="invoice"):
    days: int


@pytest.mark.parametrize(
    "value, words",
    [
        ({"type": "invoice", "days": 14}, ""),
        ({"type": "invoice", "days": "soon"}, "days: a whole number is wanted"),
        ({"type": "card", "last4": 4242}, "last4: a text is wanted"),
        ({"type": "cash"}, "missing"),
        (7, "an object is wanted"),
    ],
)
def test_the_tag_says_which_of_several_types_is_meant(value: object, words: str) -> None:
    """What is wrong is said of that one, whichever comes first."""
    found = mismatch(msgspec.json.schema(ByCard | ByInvoice), value)
    assert words in found
    assert bool(found) is bool(words)


@pytest.mark.parametrize(
    "schema, value, fits",
    [
        ({"const": 1}, 1, True),
        ({"const": 1}, 2, False),
        ({"type": "number", "minimum": 2}, 2.5, True),
        ({"type": "number", "minimum": 2}, 1.5, False),
        ({"type": "integer", "minimum": 2}, 1, False),
        ({"type": "boolean"}, True, True),
        (False, None, False),
        (True, None, True),
    ],
)
def test_a_single_value_fits_or_does_not(schema: Any, value: object, fits: bool) -> None:
    """Also in the forms of a schema that msgspec writes seldom."""
    assert (mismatch(schema, value) == "") is fits


@pytest.mark.parametrize(
    "schema, fits, does_not, words",
    [
        ({"type": "integer", "minimum": 2}, 2, 1, "at least 2 is wanted"),
        ({"type": "integer", "maximum": 2}, 2, 3, "at most 2 is wanted"),
        ({"type": "number", "exclusiveMinimum": 2}, 2.5, 2, "more than 2 is wanted"),
        ({"type": "number", "exclusiveMaximum": 2}, 1.5, 2, "less than 2 is wanted"),
        ({"type": "integer", "multipleOf": 5}, 10, 7, "a multiple of 5 is wanted"),
        ({"type": "string", "minLength": 2}, "ab", "a", "it: at least 2 characters are wanted"),
        ({"type": "string", "maxLength": 2}, "ab", "abc", "it: at most 2 characters are wanted"),
        ({"type": "string", "pattern": "^a"}, "ab", "b", "a text like ^a is wanted"),
        ({"type": "string", "format": "date"}, "2026-01-01", "then", "a date is wanted"),
        ({"type": "string", "contentEncoding": "base64"}, "YQ==", "!", "a base64 is wanted"),
        ({"type": "array", "minItems": 1}, [1], [], "it: at least 1 items are wanted"),
        ({"type": "array", "maxItems": 1}, [1], [1, 2], "it: at most 1 items are wanted"),
        ({"type": "array", "prefixItems": [{"type": "null"}]}, [None, 1], [1], "[0]: null"),
        ({"type": "object", "maxProperties": 1}, {"a": 1}, {"a": 1, "b": 2}, "at most 1 fields"),
        (
            {"type": "object", "propertyNames": {"type": "string", "maxLength": 1}},
            {"a": 1},
            {"ab": 1},
            "ab: at most 1 characters",
        ),
    ],
)
def test_each_limit_of_a_type_is_checked_up_to_its_edge(
    schema: dict[str, Any], fits: object, does_not: object, words: str
) -> None:
    """With what is wanted."""
    assert mismatch(schema, fits) == ""
    assert words in mismatch(schema, does_not)


# Signals, and sagas as steps ------------------------------------------------------------------


@pytest.mark.parametrize("early", [False, True])
def test_a_signal_of_another_type_is_refused_and_the_step_waits_on(*, early: bool) -> None:
    """Whoever sends it is told the field; before the step waits, too. The first that fits counts."""
    run = Run(heard(step("c", payload={"x": Output("w", "id")})))
    if not early:
        run.tell(succeeded("a"))
    refused = run.tell(Signal(name="charged", data=WRONG)).refused
    assert (
        refused
        == "The output of step 'w' is no Charge: cents: a whole number is wanted, not a text."
    )
    assert "charged" not in run.known.signals
    run.tell(Signal(name="charged", data=RIGHT))
    assert run.tell(Signal(name="charged", data=WRONG)).refused == ""  # late: it changes nothing
    if early:
        run.tell(succeeded("a"))
    assert run.known.step("w").output == RIGHT
    assert run.known.step("c").phase is Phase.RUNNING


def test_what_denies_an_approval_needs_no_type() -> None:
    """It is no output; what approves is one."""
    approves = {**RIGHT, "approved": True}
    run = Run(heard(approval=True), succeeded("a"))
    assert "cents" in run.tell(Signal(name="charged", data={"approved": True, "id": "c"})).refused
    run.tell(Signal(name="charged", data={"approved": False, "comment": "no"}))
    assert run.known.step("w").phase is Phase.REJECTED
    other = Run(heard(approval=True), succeeded("a"), Signal(name="charged", data=approves))
    assert other.known.step("w").output == approves


def test_a_wait_is_skipped_with_what_fits_alone() -> None:
    """As any other step."""
    run = Run(heard(), succeeded("a"))
    assert "cents" in run.tell(Skip(step="w", output=WRONG)).refused


def test_a_saga_as_a_step_has_failed_where_it_returns_something_else() -> None:
    """It is done, so it is undone; not tried again, whatever its policy."""
    sub_saga = Step("s", SubSaga("other"), output=Charge, retry=Retry(attempts=3))
    run = Run(saga(step("a"), sub_saga).definition, succeeded("a"), succeeded("s", output=WRONG))
    s = run.known.step("s")
    assert s.failure is not None
    assert (s.failure.kind, s.phase) == ("InvalidOutput", Phase.UNDOING)
    assert "no Charge: cents: a whole number" in s.failure.message
    run.tell(succeeded("s", 1, "compensation"), succeeded("a", 1, "compensation"))
    assert run.known.status is Status.COMPENSATED


def test_a_type_asks_a_saga_for_no_step_that_it_does_not_have() -> None:
    """Said when the definitions are loaded, with what was meant."""

    class Rooms(msgspec.Struct):
        room: dict[str, str]

    class Wrong(msgspec.Struct):
        rooom: dict[str, str]

    hotel = Saga(name="hotel", version=1, input=Order, steps=(step("room"),))
    Catalog([hotel, saga(Step("s", SubSaga("hotel"), output=Rooms))])
    with pytest.raises(
        DefinitionError, match="'rooom', and the saga 'hotel' has no such step"
    ) as no:
        Catalog([hotel, saga(Step("s", SubSaga("hotel"), output=Wrong))])
    assert "Did you mean room?" in str(no.value)
