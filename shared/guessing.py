"""What somebody may have meant who names something that there is not: for the hints of errors."""

import difflib
from collections.abc import Iterable


def guess(given: str, known: Iterable[str], most: int = 3) -> str:
    """The names that are most like it, as a question; empty where none is."""
    near = difflib.get_close_matches(given, list(known), n=most, cutoff=0.5)
    return f"Did you mean {' or '.join(near)}?" if near else ""


def listed(known: Iterable[str]) -> str:
    """All the names, where none is like it."""
    return f"Known are: {', '.join(sorted(known)) or 'none'}."
