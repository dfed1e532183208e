"""A tolerant reader: a function gets the arguments that it names, checked, and no others."""

import inspect
import typing
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Final

import msgspec
from typing_extensions import override

from workers.sdk.outcome import Reject

_NAMED: Final = frozenset(
    {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
)
_POSITIONAL: Final = frozenset(
    {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
)


class InvalidArguments(Reject):
    """The payload does not fit the function; names every argument that is wrong.

    Nothing was done, so this is a rejection. A compensation cannot be refused: there it becomes a
    failure that is not retried.
    """

    def __init__(self, message: str) -> None:
        super().__init__("InvalidArguments", message)

    @override
    def __reduce__(self) -> tuple[type["InvalidArguments"], tuple[str]]:
        return type(self), (self.message,)


class Arguments:
    """The keyword arguments of one function.

    Args:
        function: The function.
        skip: Leading parameters that do not come from the payload.
        convert: Whether annotations are honoured: values are converted strictly to their types.

    Raises:
        TypeError: The function cannot be called with keyword arguments.
    """

    def __init__(self, function: Callable[..., Any], *, skip: int = 0, convert: bool) -> None:
        parameters = list(inspect.signature(function).parameters.values())
        where = f"{function.__module__}.{getattr(function, '__qualname__', function)}"
        if len(parameters) < skip or any(one.kind not in _POSITIONAL for one in parameters[:skip]):
            raise TypeError(f"{where} takes no StepContext; it must be its first parameter.")
        parameters = parameters[skip:]
        self._required = [
            one.name for one in parameters if one.kind in _NAMED and one.default is one.empty
        ]
        for one in parameters:
            if one.kind is one.POSITIONAL_ONLY and one.default is one.empty:
                raise TypeError(f"{where}: {one.name!r} cannot be given by keyword.")
        self._named = frozenset(one.name for one in parameters if one.kind in _NAMED)
        self._takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)
        self._types = _types(function, parameters) if convert else {}

    def wants(self, name: str) -> bool:
        """Whether the function gets an argument of this name."""
        return self._takes_all or name in self._named

    def select(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments for a call.

        Raises:
            InvalidArguments: Arguments are missing or of another type.
        """
        problems = [f"{name}: missing" for name in self._required if name not in payload]
        chosen: dict[str, Any] = {}
        for name, value in payload.items():
            if not self.wants(name):
                continue
            chosen[name] = value
            if name in self._types:
                try:
                    chosen[name] = msgspec.convert(value, self._types[name])
                except msgspec.ValidationError as error:
                    problems.append(f"{name}: {error}")
        if problems:
            raise InvalidArguments("; ".join(problems))
        return chosen


def _types(function: Callable[..., Any], parameters: list[inspect.Parameter]) -> dict[str, Any]:
    # Only these: the context and the result may be annotated with names that exist for the type
    # checker alone.
    wanted = {
        one.name: one.annotation
        for one in parameters
        if one.kind in _NAMED and one.annotation is not one.empty
    }
    names = getattr(inspect.unwrap(function), "__globals__", {})
    return typing.get_type_hints(
        SimpleNamespace(__annotations__=wanted), globalns=names, include_extras=True
    )
