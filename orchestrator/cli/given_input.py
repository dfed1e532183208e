"""The input of a saga as it is given on the command line."""

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

from shared.errors import InputError


def read_input(given: str, option: str = "--input") -> dict[str, Any]:
    """Read an object.

    Args:
        given: JSON, ``@FILE``, or ``-`` for standard input.
        option: What it was given for, for the errors.

    Raises:
        InputError: It cannot be read, is not JSON (says line and column), or is no object.
    """
    value = read_value(given, option)
    if not isinstance(value, dict):
        raise InputError(
            f"{_where(given, option)} is {_kind(value)}; it must be an object with the fields of "
            f"the {option.removeprefix('--')}.",
            hint=_hint(given, option),
        )
    return value


def read_value(given: str, option: str) -> Any:
    """Read any JSON value; as `read_input`.

    Raises:
        InputError: It cannot be read or is not JSON; says line and column.
    """
    text, where = _text(given, option), _where(given, option)
    try:
        value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_object)
        # Half a surrogate pair, as "\\ud800" is, is no text that can be stored.
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where} is not JSON: {error.msg}, line {error.lineno}, column {error.colno}.",
            hint=_hint(given, option),
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}.", hint=_hint(given, option)) from error
    return value


def _text(given: str, option: str) -> str:
    what = f"The {option.removeprefix('--')}"
    takes = f"{option} takes JSON, @FILE, or - for standard input."
    if given == "@":
        raise InputError(f"{what} is @ without the name of a file.", hint=takes)
    try:
        if given == "-":
            # None where the caller has closed it, as `<&-` does.
            return sys.stdin.buffer.read().decode() if sys.stdin else ""
        if given.startswith("@"):
            return Path(given[1:]).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{what} cannot be read: {error.strerror}: {given[1:] or 'standard input'!r}.",
            hint=takes,
        ) from error
    except UnicodeDecodeError as error:
        where = _where(given, option)
        raise InputError(f"{where} is not UTF-8: {error}.", hint=_hint(given, option)) from error
    return given


def _where(given: str, option: str) -> str:
    what = f"The {option.removeprefix('--')}"
    if given == "-":
        return f"{what} on standard input"
    return f"{what} in {given[1:]}" if given.startswith("@") else what


def _hint(given: str, option: str) -> str:
    nothing = "Nothing was started." if option == "--input" else "Nothing was done."
    if given == "-" or given.startswith("@"):
        return nothing
    return f"{nothing} {option} takes JSON, @FILE, or - for standard input."


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
