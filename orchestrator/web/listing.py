"""Lists of sagas over HTTP: what the address of a request asks for, page by page."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from starlette.datastructures import QueryParams
from starlette.requests import Request

from orchestrator.reader import Reader
from orchestrator.search import Filter, Older, statuses_of
from shared.clock import utc_now
from shared.durations import given_duration
from shared.errors import InputError
from shared.guessing import guess

LIMIT_DEFAULT: Final = 50
LIMIT_MAX: Final = 1_000
LOOKED_AT_MAX: Final = 5_000
"""Sagas that one request reads at most: other requests wait meanwhile, a second or so."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_COUNT_MAX: Final = 1_000_000

T = TypeVar("T")


class Listing:
    """The request for a list.

    Args:
        reader: Finds the sagas.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def sagas(self, request: Request, _body: bytes) -> tuple[int, Any]:
        """Sagas that fit, newest first; `next` is what `after` has to be for those that follow."""
        wanted, limit, older = asked_for(request.query_params, utc_now())
        found = self._reader.summaries(wanted, limit, older=older, looked_at_max=LOOKED_AT_MAX)
        return 200, {
            "sagas": found.sagas,
            "next": None if found.older is None else place_as_text(found.older),
        }


def asked_for(given: QueryParams, now: datetime) -> tuple[Filter, int, Older | None]:
    """What a request asks for: which sagas, how many at most, and after which one.

    Raises:
        InputError: A parameter is wrong, or there is none of its name; names each.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name in given:
        texts = given.getlist(name)
        try:
            if name not in _READ:
                raise InputError("unknown parameter.", hint=_known(name))
            if len(texts) > 1 and name != "status":
                raise InputError("it is given more than once.")
            values[name] = statuses_of(texts) if name == "status" else _READ[name](texts[0])
        except InputError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise InputError(
            f"The request has wrong parameters: {' '.join(problems)}",
            problems=tuple(problems),
            hint="docs/http-api.md describes them.",
        )
    limit, older = values.pop("limit", LIMIT_DEFAULT), values.pop("after", None)
    age = values.pop("older_than", None)
    statuses = tuple(values.pop("status", ()))
    unchanged_since = None if age is None else now - age
    wanted = Filter(statuses=statuses, unchanged_since=unchanged_since, **values)
    return wanted, limit, older


def place_as_text(place: Older) -> str:
    """A place in a list, for the address of a request."""
    started_at, saga_id = place
    return f"{(started_at - _EPOCH) // _MICROSECOND}~{saga_id}"


def _place(text: str) -> Older:
    micros, mark, saga_id = text.partition("~")
    try:
        if not mark:
            raise ValueError
        return _EPOCH + int(micros) * _MICROSECOND, saga_id
    except (ValueError, OverflowError):
        raise InputError(
            f"{text!r} is no place in a list.", hint="Give what the page before has as `next`."
        ) from None


def _truth(text: str) -> bool:
    if text not in {"true", "false"}:
        raise InputError(f"it is true or false, not {text!r}.")
    return text == "true"


def _number(smallest: int, largest: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and smallest <= int(text[:10]) <= largest):
            raise InputError(f"it is a number from {smallest} to {largest}, not {text!r}.")
        return int(text)

    return read


def _duration(text: str) -> timedelta:
    found = given_duration(text, "it")
    if found > timedelta(days=36_500):
        raise InputError(f"{text!r} is more than 100 years.")
    return found


_READ: Final[Mapping[str, Callable[[str], Any]]] = {
    "status": str,
    "name": str,
    "key": str,
    "step": str,
    "error": str,
    "attempts": _number(0, _COUNT_MAX),
    "retrying": _truth,
    "paused": _truth,
    "unreadable": _truth,
    "older_than": _duration,
    "limit": _number(1, LIMIT_MAX),
    "after": _place,
}


def _known(name: str) -> str:
    return guess(name, _READ) or f"There are {', '.join(_READ)}."
