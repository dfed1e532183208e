"""Message classes: their names, their checks."""

from typing import Any

import msgspec
import pytest

from shared.codec import PAYLOAD_BYTES_MAX_DEFAULT
from shared.contract import (
    Command,
    Event,
    MessageType,
    Query,
    answer_type,
    decoded,
    encoded,
    wire_of,
)
from shared.errors import DecodeError, DefinitionError, InputError, PayloadTooLarge


class View(msgspec.Struct):
    found: bool


class SendWelcomeMail(Command):
    to: str
    again: int = 0


class HTTPRequestFailed(Event):
    pass


class Find(Query[View], name="orders.find"):
    pass


class FindFast(Find, name="orders.find-fast", queue="fast-lane"):
    pass


class FindOrder(Query[list[View]]):
    pass


class Ping(Command):
    pass


class Picky(Command, name="a.picky", forbid_unknown_fields=True):
    x: int


@pytest.mark.parametrize(
    "message, wire",
    [
        (SendWelcomeMail, ("command", "welcome-mail.send", "welcome-mail")),
        (HTTPRequestFailed, ("event", "http-request.failed", "http-request")),
        (Find, ("query", "orders.find", "orders")),
        (FindFast, ("query", "orders.find-fast", "fast-lane")),
        (FindOrder, ("query", "order.find", "order")),
    ],
)
def test_names_on_the_wire(message: type, wire: tuple[str, str, str]) -> None:
    """Never changed: a class that is renamed keeps its name by saying it."""
    assert wire == wire_of(message)


@pytest.mark.parametrize("message", [Ping, Command, msgspec.Struct, int])
def test_what_has_no_name(message: type) -> None:
    """The error says what to write."""
    with pytest.raises(DefinitionError, match=r"name=\"service\.verb\"|Derive it from"):
        wire_of(message)


@pytest.mark.parametrize("name", ["orders", "Orders.create", "a.b.c", "a b.c", f"a.{'b' * 127}"])
def test_a_name_has_two_parts(name: str) -> None:
    """Queue names and subscribers' names are made of it."""
    with pytest.raises(DefinitionError, match=r"service\.verb"):
        MessageType("Made", (Command,), {}, name=name)


def test_the_type_of_an_answer() -> None:
    """Also of a class that derives from a query."""
    assert (View, View, list[View]) == (
        answer_type(Find),
        answer_type(FindFast),
        answer_type(FindOrder),
    )


def test_a_reader_ignores_fields_that_it_does_not_know_unless_it_says_otherwise() -> None:
    """A service may add fields before its readers know them."""
    fields: dict[str, Any] = {"to": "a", "new": 1}
    assert SendWelcomeMail("a") == decoded(SendWelcomeMail, fields)
    with pytest.raises(InputError, match="new: unknown field"):
        decoded(Picky, {"x": 1, "new": 1})


def test_every_wrong_field_is_named_on_both_sides() -> None:
    """The constructors of msgspec check nothing."""
    wrong: Any = SendWelcomeMail
    problems = ("to: expected `str`, got `int`", "again: expected `int`, got `str`")
    with pytest.raises(InputError) as sent:
        encoded(wrong(1, "x"), PAYLOAD_BYTES_MAX_DEFAULT)
    with pytest.raises(InputError) as received:
        decoded(SendWelcomeMail, {"to": 1, "again": "x"})
    assert problems == sent.value.problems == received.value.problems


def test_what_is_too_large_or_not_json() -> None:
    """The limit is that of every payload."""
    with pytest.raises(PayloadTooLarge, match=r"command 'welcome-mail\.send' is .* SAGA_PAYLOAD"):
        encoded(SendWelcomeMail("x" * 2000), 1024)
    wrong: Any = SendWelcomeMail
    with pytest.raises(DecodeError):
        encoded(wrong(object()), 1024)
