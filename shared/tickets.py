"""Tickets: what travels in place of a value that is kept in the payload store (`shared.claims`).

    {"$claim": "9f86d081…", "bytes": 3145728}

``$claim`` is the SHA-256 of the value as JSON. A ticket says nothing of the saga that keeps the
value: it always is the one whose data the ticket stands in, so that nobody can ask for the values
of another saga. A reference that leads *into* the value becomes a ticket with a ``path``, and the
``default`` of the reference, which count where the value is fetched.

To everybody in between, the core included, a ticket is a value like any other. An object that has
only some of these fields, or other values in them, is no ticket.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from msgspec import UNSET

CLAIM: Final = "$claim"
BYTES: Final = "bytes"
PATH: Final = "path"
DEFAULT: Final = "default"

MARK: Final = b'"$claim"'
"""What the JSON of a ticket contains; other JSON seldom does."""

_FIELDS: Final = frozenset({CLAIM, BYTES, PATH, DEFAULT})
_DIGEST: Final = re.compile("[0-9a-f]{64}")


def ticket(digest: str, size_bytes: int) -> dict[str, Any]:
    """The ticket for a value."""
    return {CLAIM: digest, BYTES: size_bytes}


def is_ticket(value: Any) -> bool:
    """Whether a value is a ticket for another one."""
    return isinstance(value, dict) and CLAIM in value and _well_formed(value)


def into(found: dict[str, Any], path: str) -> dict[str, Any]:
    """A ticket for what stands at a path in the value of a ticket."""
    return {**found, PATH: f"{found[PATH]}.{path}" if found.get(PATH) else path}


def or_else(found: dict[str, Any], default: Any) -> dict[str, Any]:
    """A ticket that stands for a default where its path leads to nothing; `UNSET` for none."""
    return {**found, DEFAULT: default} if found.get(PATH) and default is not UNSET else found


def follow(found: dict[str, Any], value: Any) -> Any:
    """What a ticket stands for.

    Args:
        found: The ticket.
        value: What it was given for.

    Raises:
        LookupError: Its path leads to nothing, and it has no default.
    """
    for part in found[PATH].split(".") if found.get(PATH) else ():
        if not isinstance(value, dict) or part not in value:
            if DEFAULT in found:
                return found[DEFAULT]
            raise LookupError(f"the value in the payload store has no {found[PATH]!r}")
        value = value[part]
    return value


def tickets_in(value: Any) -> Iterator[dict[str, Any]]:
    """Every ticket in a value, at whatever depth."""
    below: list[Any] = [value]
    while below:
        one = below.pop()
        if isinstance(one, dict):
            if is_ticket(one):
                yield one
            else:
                below += one.values()
        elif isinstance(one, list):
            below += one


def replaced(value: Any, replace: Callable[[dict[str, Any]], Any]) -> Any:
    """A value with something else for each ticket in it; the value itself where there is none."""
    if not any(True for _ in tickets_in(value)):
        return value
    return _replaced(value, replace)


def _replaced(value: Any, replace: Callable[[dict[str, Any]], Any]) -> Any:
    if isinstance(value, dict):
        if is_ticket(value):
            return replace(value)
        return {name: _replaced(one, replace) for name, one in value.items()}
    if isinstance(value, list):
        return [_replaced(one, replace) for one in value]
    return value


def shown(found: dict[str, Any]) -> str:
    """A ticket for people."""
    size, unit = float(found[BYTES]), "bytes"
    for larger in ("kB", "MB", "GB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    number = f"{size:.0f}" if unit == "bytes" else f"{size:.1f}"
    return f"<{number} {unit} in the payload store>"


def _well_formed(value: dict[str, Any]) -> bool:
    digest, size = value[CLAIM], value.get(BYTES)
    return (
        value.keys() <= _FIELDS
        and isinstance(digest, str)
        and _DIGEST.fullmatch(digest) is not None
        and isinstance(size, int)
        and isinstance(value.get(PATH, ""), str)
    )
