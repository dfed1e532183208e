"""What a function returns, checked against the type that it declares."""

import inspect
import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

import msgspec

from workers.sdk.outcome import Fail, Later, StepResult

INVALID_RESULT: Final = "InvalidResult"

_OURS: Final = (StepResult, Later)


def result_type(function: Callable[..., Any]) -> type[msgspec.Struct] | None:
    """The struct that a function says it returns; None where it says something else, or nothing."""
    declared = inspect.signature(function).return_annotation
    if isinstance(declared, str):
        names = getattr(inspect.unwrap(function), "__globals__", {})
        wanted = SimpleNamespace(__annotations__={"return": declared})
        try:
            declared = typing.get_type_hints(wanted, globalns=names)["return"]
        except NameError:
            return None  # a name that exists for the type checker alone
    if isinstance(declared, type) and issubclass(declared, msgspec.Struct):
        return None if declared in _OURS else declared
    return None


def checked(result: Any, declared: type[msgspec.Struct] | None) -> Any:
    """The result of a function, if it is what the function declares.

    Struct or not: the constructor of a struct looks at no type.

    Raises:
        Fail: It is something else; names the field. Another attempt will not help.
    """
    if declared is None or isinstance(result, Later):
        return result
    output = result.output if isinstance(result, StepResult) else result
    try:
        msgspec.convert(msgspec.to_builtins(output), declared)
    except (msgspec.ValidationError, TypeError) as error:
        text = f"The step returned what is no {declared.__name__}: {error}"
        raise Fail(INVALID_RESULT, text, retryable=False) from error
    return result
