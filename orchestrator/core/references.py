"""References into the data of a saga, and conditions on them: data, so that they can be stored.

payload={"order": Input("order_id"), "card": Output("charge", "card.last4", default=None)}
when=all_of(gt(Input("amount"), 1000), exists(Input("address.country")))
"""

import typing
from contextlib import suppress
from typing import Any

import msgspec

from shared import codec
from shared.errors import DecodeError

UNSET = msgspec.UNSET


class Input(msgspec.Struct, frozen=True, tag="input"):
    """Reference to a field of the saga's input, or to a path inside it (``"address.city"``)."""

    path: str


class Output(msgspec.Struct, frozen=True, tag="output"):
    """Reference to the output of an earlier step, or to a path inside it; empty: all of it.

    Attributes:
        default: Stands for an output that is not there: the step was skipped by its `Step.when`,
            or what it returned has no such path.
    """

    step: str
    path: str = ""
    default: Any = UNSET


class Item(msgspec.Struct, frozen=True, tag="item"):
    """Reference to the item that this run of a step with `Step.each` is for, or into it."""

    path: str = ""


class Literal(msgspec.Struct, frozen=True, tag="literal"):
    """A value that stands in a payload as it is."""

    value: Any


class Element(msgspec.Struct, frozen=True, tag="element"):
    """An item of a list, by its place: what `Item` means for one run of its step."""

    of: Input | Output
    index: int
    path: str = ""


Reference = Input | Output | Item | Literal | Element
Operator = typing.Literal["eq", "ne", "lt", "le", "gt", "ge", "in"]


class Compare(msgspec.Struct, frozen=True, tag="compare"):
    """Whether two values compare in this way."""

    op: Operator
    left: Reference
    right: Reference


class Exists(msgspec.Struct, frozen=True, tag="exists"):
    """Whether a reference leads somewhere; null is somewhere."""

    what: Reference


class AllOf(msgspec.Struct, frozen=True, tag="all"):
    """Whether all of these hold; they are looked at in order, up to the first that does not."""

    of: tuple["Condition", ...]


class AnyOf(msgspec.Struct, frozen=True, tag="any"):
    """Whether one of these holds; they are looked at in order, up to the first that does."""

    of: tuple["Condition", ...]


class Not(msgspec.Struct, frozen=True, tag="not"):
    """Whether this does not hold."""

    of: "Condition"


Condition = Compare | Exists | AllOf | AnyOf | Not


def as_reference(value: Any) -> Reference:
    """A reference as it is, and any other value as a literal, as JSON gives it back."""
    match value:
        case Output(step, path, default) if default is not UNSET:
            return Output(step, path, _plain(default))
        case Input() | Output() | Item() | Element():
            return value
        case Literal(plain):
            return Literal(_plain(plain))
        case _:
            return Literal(_plain(value))


def _plain(value: Any) -> Any:
    # What is stored equals what the code says: a tuple is a list.
    with suppress(DecodeError):  # the checks name it
        return codec.decode(codec.encode(value), Any)
    return value


def eq(left: Any, right: Any) -> Compare:
    """``left == right``."""
    return Compare("eq", as_reference(left), as_reference(right))


def ne(left: Any, right: Any) -> Compare:
    """``left != right``."""
    return Compare("ne", as_reference(left), as_reference(right))


def lt(left: Any, right: Any) -> Compare:
    """``left < right``: two numbers or two texts."""
    return Compare("lt", as_reference(left), as_reference(right))


def le(left: Any, right: Any) -> Compare:
    """``left <= right``: two numbers or two texts."""
    return Compare("le", as_reference(left), as_reference(right))


def gt(left: Any, right: Any) -> Compare:
    """``left > right``: two numbers or two texts."""
    return Compare("gt", as_reference(left), as_reference(right))


def ge(left: Any, right: Any) -> Compare:
    """``left >= right``: two numbers or two texts."""
    return Compare("ge", as_reference(left), as_reference(right))


def is_in(left: Any, right: Any) -> Compare:
    """``left in right``: an item of a list, a key of an object, a part of a text."""
    return Compare("in", as_reference(left), as_reference(right))


def exists(what: Reference) -> Exists:
    """Whether a reference leads somewhere; null is somewhere."""
    return Exists(what)


def all_of(*of: Condition) -> AllOf:
    """Whether all of these hold."""
    return AllOf(of)


def any_of(*of: Condition) -> AnyOf:
    """Whether one of these holds."""
    return AnyOf(of)


def not_(of: Condition) -> Not:
    """Whether this does not hold."""
    return Not(of)


def references_in(condition: Condition) -> typing.Iterator[tuple[Reference, bool]]:
    """Every reference of a condition, and whether it may lead to nothing."""
    match condition:
        case Compare(_, left, right):
            yield left, False
            yield right, False
        case Exists(what):
            yield what, True
        case AllOf(of) | AnyOf(of):
            for one in of:
                yield from references_in(one)
        case Not(one):
            yield from references_in(one)
