"""The input of a saga as it is given on the command line."""

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

from shared.errors import InputError


def read_input(given: str) -> dict[str, Any]:
    """Read an input.

    Args:
        given: JSON, ``@FILE``, or ``-`` for standard input.

    Raises:
        InputError: It cannot be read, is not JSON (says line and column), or is no object.
    """
    text, where = _text(given)
    try:
        value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where} is not JSON: {error.msg}, line {error.lineno}, column {error.colno}.",
            hint=_hint(given),
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}.", hint=_hint(given)) from error
    if not isinstance(value, dict):
        raise InputError(
            f"{where} is {_kind(value)}; it must be an object with the fields of the input.",
            hint=_hint(given),
        )
    return value


def _text(given: str) -> tuple[str, str]:
    try:
        if given == "-":
            return sys.stdin.buffer.read().decode(), "The input on standard input"
        if given.startswith("@"):
            path = Path(given[1:])
            return path.read_text(encoding="utf-8"), f"The input in {path}"
    except OSError as error:
        raise InputError(
            f"The input cannot be read: {error.strerror}: {given[1:] or 'standard input'!r}.",
            hint="--input takes JSON, @FILE, or - for standard input.",
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"The input is not UTF-8: {error}.") from error
    return given, "The input"


def _hint(given: str) -> str:
    if given == "-" or given.startswith("@"):
        return "Nothing was started."
    return "Nothing was started. --input takes JSON, @FILE, or - for standard input."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"the field {', '.join(map(repr, twice))} is there twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON value")


def _kind(value: object) -> str:
    kinds = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
