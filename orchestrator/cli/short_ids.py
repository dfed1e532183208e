"""The first characters of a saga's id, in place of all of them."""

import re
from typing import Final

from orchestrator.cli import session

CHARS_MIN: Final = 6
"""Fewest: the first ones are the time of the start, and sagas of some hours share six of them."""

SHOWN_MAX: Final = 10

_SHAPE: Final = "00000000-0000-0000-0000-000000000000"
_HEX: Final = re.compile("[0-9a-f]")


def whole_id(text: str | None) -> str | None:
    """The id that begins so; what is no beginning of an id, or of none that there is, as it is.

    Raises:
        InputError: Several ids begin so; names them.
    """
    if text is None or not _is_beginning(text) or not session.has_store(session.settings()):
        return text
    with session.reading() as client:
        found = client.ids_from(text, SHOWN_MAX + 1)
    if len(found) > 1:
        from shared.errors import InputError

        more = ", …" if len(found) > SHOWN_MAX else ""
        raise InputError(
            f"The ids of several sagas begin with {text!r}: {', '.join(found[:SHOWN_MAX])}{more}.",
            hint="Give more of the one that you mean.",
        )
    return found[0] if found else text


def whole_ids(texts: list[str] | None) -> list[str] | None:
    """The same of each."""
    return None if texts is None else [whole_id(text) or text for text in texts]


def _is_beginning(text: str) -> bool:
    """Whether it is the beginning of an id, and no whole one."""
    return CHARS_MIN <= len(text) < len(_SHAPE) and all(
        char == "-" if wanted == "-" else _HEX.fullmatch(char) is not None
        for char, wanted in zip(text, _SHAPE, strict=False)
    )
