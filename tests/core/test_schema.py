"""Where the paths into a type lead, and in which words a value does not fit."""

from typing import Any, Literal

import msgspec
import pytest

from orchestrator.core.schema import inside, items_of, mismatch


class Seat(msgspec.Struct):
    """At the end of a path."""

    number: int


class Coach(msgspec.Struct):
    """In the middle of one."""

    seats: list[Seat]
    first: Seat | None = None
    labels: dict[str, Seat] = {}
    pair: tuple[int, Seat] | None = None
    mixed: list[Seat | str] | None = None
    open: Any = None
    closed: Literal["yes", "no"] = "no"


ROOT = msgspec.json.schema(Coach)
SEAT = {"$ref": "#/$defs/Seat"}


def kinds(schemas: Any) -> list[object]:
    """The types of what was found; True for anything."""
    return [one if isinstance(one, bool) else one["type"] for one in schemas]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("", ["object"]),
        ("seats", ["array"]),
        ("first", ["object"]),  # whoever refers to it knows that it may be null
        ("first.number", ["integer"]),
        ("labels.window", ["object"]),
        ("labels.window.number", ["integer"]),
        ("mixed", ["array"]),
        ("open", [None]),
        ("open.anything.at.all", [True]),
        ("closed", [None]),
    ],
)
def test_a_path_leads_to_what_stands_there(path: str, found: list[object]) -> None:
    """Each alternative, and null to nowhere."""
    schemas = inside(ROOT, path)
    assert not isinstance(schemas, str)
    assert [one if isinstance(one, bool) else one.get("type") for one in schemas] == found


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("number", "seats, first, labels, pair, mixed, open, closed"),
        ("first.letter", "number in 'first'"),
        ("labels.window.letter", "number in 'labels.window'"),
        ("seats.number", "no fields in 'seats'"),
        ("first.number.digit", "no fields in 'first.number'"),
        ("closed.letter", "no fields in 'closed'"),
    ],
)
def test_a_path_to_nowhere_is_told_what_there_is(path: str, said: str) -> None:
    """With where it ended."""
    assert inside(ROOT, path) == said


@pytest.mark.parametrize(
    ("path", "items"),
    [
        ("seats", ["object"]),
        ("pair", ["integer", "object"]),
        ("mixed", ["string", "object"]),
        ("open", [True]),
        ("first", []),
        ("closed", []),
    ],
)
def test_what_a_list_holds_is_known(path: str, items: list[object]) -> None:
    """Of each alternative; a tuple ends where it ends."""
    schemas = inside(ROOT, path)
    assert not isinstance(schemas, str)
    assert kinds(items_of(ROOT, schemas)) == items


def test_a_list_of_anything_holds_anything() -> None:
    """Also where the whole type says nothing."""
    assert items_of(True, [{"type": "array"}]) == [True]
    assert items_of(True, [True]) == [True]
    assert inside(True, "a.b") == [True]
    assert inside(ROOT, "number", schema=SEAT) == [{"type": "integer"}]


@pytest.mark.parametrize(
    ("schema", "value", "said"),
    [
        ({"type": "integer"}, 3.0, ""),
        ({"type": "integer"}, 3.5, "it: a whole number is wanted, not a number"),
        ({"type": "integer"}, True, "it: a whole number is wanted, not true or false"),
        ({"type": "integer"}, "3", "it: a whole number is wanted, not a text"),
        ({"type": "number"}, 3, ""),
        ({"type": "number"}, False, "it: a number is wanted, not true or false"),
        ({"type": "string"}, None, "it: a text is wanted, not null"),
        ({"enum": [1, 2]}, True, "it: one of 1, 2 is wanted, not true or false"),
        ({"enum": [1, 2]}, 2, ""),
        ({"const": False}, 0, "it: one of false is wanted, not a whole number"),
        ({"type": "array", "minItems": 2, "maxItems": 3}, [1], "at least 2 items"),
        ({"type": "array", "minItems": 2, "maxItems": 3}, [1] * 4, "at most 3 items"),
        ({"anyOf": [{"type": "null"}, SEAT]}, {"number": "x"}, "number: a whole number is wanted"),
        ({"anyOf": [SEAT, {"type": "null"}]}, {"number": "x"}, "number: a whole number is wanted"),
        ({"type": "string", "contentEncoding": "base64"}, "?", "it: a base64 is wanted"),
    ],
)
def test_what_does_not_fit_is_told_in_words(schema: Any, value: object, said: str) -> None:
    """Whole numbers may be written with a point; true is no number."""
    found = mismatch({**schema, "$defs": ROOT["$defs"]}, value)
    assert said in found
    assert bool(said) is bool(found)
