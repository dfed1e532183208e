"""Typed look-ups of environment variables, with errors that name the variable and what is allowed."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from shared.errors import ConfigurationError

T = TypeVar("T")


class Environment:
    """Typed look-ups; an empty variable counts as one that is not set, as OpenTelemetry says."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, variable: str) -> str:
        """A value without the spaces around it."""
        return self._environ.get(variable, "").strip()

    def flag(self, variable: str) -> bool:
        """``true`` or ``false``, the default."""
        return self.choice(variable, {"true": True, "false": False}, default=False)

    def choice(self, variable: str, allowed: Mapping[str, T], *, default: T) -> T:
        """One of some words, in any case."""
        value = self.text(variable)
        if not value:
            return default
        if value.lower() not in allowed:
            raise _wrong(variable, value, f"one of {', '.join(allowed)}")
        return allowed[value.lower()]

    def first_choice(
        self, variables: tuple[str, ...], allowed: Mapping[str, T], *, default: T
    ) -> T:
        """As `choice`, from the first variable that is set."""
        variable = next(filter(self.text, variables), "")
        return self.choice(variable, allowed, default=default) if variable else default

    def number(
        self,
        variables: tuple[str, ...],
        default: float,
        *,
        low: float,
        high: float = float("inf"),
    ) -> float:
        """A number within limits, from the first variable that is set."""
        variable = next(filter(self.text, variables), "")
        if not variable:
            return default
        try:
            value = float(self.text(variable))
        except ValueError:
            value = float("nan")
        if not low <= value <= high:  # also false for what is not a number
            limit = f"a number from {low:g}" + (f" to {high:g}" if high < float("inf") else "")
            raise _wrong(variable, self.text(variable), limit)
        return value

    def milliseconds(self, variables: tuple[str, ...], default: timedelta) -> timedelta:
        """A duration, from the first variable that is set."""
        value = self.number(variables, default / timedelta(milliseconds=1), low=1, high=3_600_000)
        return timedelta(milliseconds=value)

    def url(self, variable: str) -> str:
        """An http or https URL; without a scheme it is http."""
        value = self.text(variable)
        if not value:
            return ""
        candidate = value if "://" in value else f"http://{value}"
        if not is_url(candidate):
            raise _wrong(variable, value, "a URL such as http://localhost:4318")
        return candidate

    def words(self, *variables: str) -> tuple[str, ...]:
        """A list separated by commas, from the first variable that is set."""
        variable = next(filter(self.text, variables), "")
        parts = map(str.strip, self.text(variable).split(",")) if variable else ()
        return tuple(dict.fromkeys(filter(None, parts)))

    def refuse(self, variables: tuple[str, ...], allowed: str) -> ConfigurationError:
        """The error for a value that only the caller knows to be wrong."""
        variable = next(filter(self.text, variables), variables[0])
        return _wrong(variable, self.text(variable), allowed)

    def pairs(self, variable: str, *, secret: bool = False) -> dict[str, str]:
        """``key=value,key=value``; values are URL-decoded. A secret one is not in the error."""
        found: dict[str, str] = {}
        for part in filter(None, map(str.strip, self.text(variable).split(","))):
            key, equals, value = part.partition("=")
            if not equals or not re.fullmatch(r"[^\s=]+", key.strip()):
                shown = "…" if secret else self.text(variable)
                raise _wrong(variable, shown, "key=value,key=value")
            found[key.strip()] = unquote(value.strip())
        return found


def is_url(value: str) -> bool:
    """Whether it is an http or https URL with a host."""
    try:
        parts = urlsplit(value)
        _ = parts.port  # raises for a port that is not a number
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)


def _wrong(variable: str, value: str, allowed: str) -> ConfigurationError:
    return ConfigurationError(f"{variable}={value!r} is not allowed; expected {allowed}.")
