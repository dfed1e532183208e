"""W3C Baggage: values that travel with a trace, restricted to what is allowed. No I/O.

https://www.w3.org/TR/baggage/. Baggage comes from whoever calls and goes to whoever is called, so
nothing passes but the keys of an allow-list, up to a size.
"""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, unquote

HEADER_CHARS_MAX: Final = 8192
"""What the specification asks to support; a longer header is ignored."""

ALL_KEYS: Final = "*"

_KEY: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
_VALUE: Final = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*", re.ASCII)
_SAFE: Final = "!#$&'()*+-./:<=>?@[]^_`{|}~"

Baggage = Mapping[str, str]

NOTHING: Final[Baggage] = {}


def parse(header: str) -> tuple[dict[str, str], bool]:
    """Read a ``baggage`` header; properties of an entry (behind ``;``) are left out.

    Returns:
        The entries that are well-formed, and whether all were.
    """
    found: dict[str, str] = {}
    complete = True
    for entry in filter(None, map(str.strip, header.split(","))):
        key, equals, value = entry.partition(";")[0].partition("=")
        key, value = key.strip(), value.strip()
        if equals and _KEY.fullmatch(key) and _VALUE.fullmatch(value):
            found[key] = unquote(value, errors="replace")
        else:
            complete = False
    return found, complete


def allowed(
    entries: Mapping[str, Any], keys: tuple[str, ...], bytes_max: int
) -> tuple[dict[str, str], bool]:
    """Keep the entries whose key is in an allow-list, as long as there is room.

    Args:
        entries: Values that are no text are left out.
        keys: What passes; ``*`` means every key.
        bytes_max: Most that the header may have with them.

    Returns:
        The entries in their order, and whether all that are allowed had room.
    """
    found: dict[str, str] = {}
    room = bytes_max
    complete = True
    for key, value in entries.items():
        if not (ALL_KEYS in keys or key in keys) or not isinstance(value, str):
            continue
        size = len(_entry(key, value)) + (1 if found else 0)
        if size <= room and _KEY.fullmatch(key):
            found[key] = value
            room -= size
        else:
            complete = False
    return found, complete


def format_header(entries: Baggage) -> str:
    """Write a ``baggage`` header."""
    return ",".join(_entry(key, value) for key, value in entries.items())


def _entry(key: str, value: str) -> str:
    return f"{key}={quote(value, safe=_SAFE, errors='replace')}"
