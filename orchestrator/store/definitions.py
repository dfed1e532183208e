"""How a definition differs from the stored copy of the same version, field by field."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from orchestrator.core.definition import Definition
from orchestrator.store import rows
from shared.errors import DefinitionChanged

_VALUE_CHARS_MAX: Final = 120


def check_same(stored: str, offered: Definition) -> None:
    """Check that a definition is the stored one.

    Both are compared as this version of the product reads them, so that a field that a later
    version adds with a default is no change.

    Args:
        stored: JSON of the stored definition.
        offered: The definition as the code has it now.

    Raises:
        DefinitionChanged: It differs; every field is named with its old and its new value.
    """
    before = msgspec.to_builtins(rows.definition_from(stored))
    after = msgspec.to_builtins(rows.definition_from(rows.to_json(offered)))
    problems = tuple(differences(before, after))
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise DefinitionChanged(
            f"Saga {offered.name!r} version {offered.version} differs from the stored definition "
            f"(stored -> now):{listed}\n",
            problems=problems,
            hint=f"Raise its version number to {offered.version + 1}: sagas that run finish on "
            "the definition that they started with.",
        )


def differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Each field that differs, as ``steps.charge-payment.timeout: PT30S -> PT10S``."""
    if before == after:
        return
    old, new = _fields(before), _fields(after)
    if old is None or new is None:
        yield f"{path}: {_shown(before)} -> {_shown(after)}"
        return
    for name in old | new:
        inner = f"{path}.{name}" if path else name
        if name not in new:
            yield f"{inner}: removed (was {_shown(old[name])})"
        elif name not in old:
            yield f"{inner}: added ({_shown(new[name])})"
        else:
            yield from differences(old[name], new[name], inner)
    common = [name for name in old if name in new]
    if isinstance(before, list | tuple) and common != [name for name in new if name in old]:
        yield f"{path}: order {', '.join(old)} -> {', '.join(new)}"


def _fields(value: Any) -> dict[str, Any] | None:
    """What can be named inside a value: the keys of an object, the steps of a list of steps."""
    if isinstance(value, dict):
        return value
    named = (
        isinstance(value, list | tuple)
        and value
        and all(isinstance(item, dict) and "name" in item for item in value)
    )
    return {item["name"]: item for item in value} if named else None


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) and value else msgspec.json.encode(value).decode()
    return text if len(text) <= _VALUE_CHARS_MAX else f"{text[:_VALUE_CHARS_MAX]}…"
