"""How a step function says what came of it, and the failure that the orchestrator is told."""

import traceback
from typing import Any

import msgspec
from typing_extensions import override

from shared.messages import (
    FAILURE_MESSAGE_CHARS_MAX,
    FAILURE_TRACEBACK_CHARS_MAX,
    TRACEBACK_CHARS_READ,
    Failure,
    Succeeded,
)
from shared.telemetry.current import text_of
from shared.telemetry.redaction import redacted_text


class Reject(Exception):
    """The participant says no: nothing happened, and asking again will not help.

    What the function did through the context's connection is rolled back.

    Args:
        code: Stable machine-readable reason, for example ``OutOfStock``.
        message: One line for people.
    """

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    @override
    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.message else self.code


class Fail(Exception):
    """The attempt failed in a way that the function can name; what happened counts as unknown.

    Any other exception says the same, with its class name as the kind and a retry allowed.

    Args:
        kind: Stable machine-readable name.
        message: One line for people.
        retryable: Whether another attempt may go better.
    """

    def __init__(self, kind: str, message: str = "", *, retryable: bool = True) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message
        self.retryable = retryable

    @override
    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" if self.message else self.kind


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """Output and undo data of an action, where they differ.

    Attributes:
        output: What later steps and the caller see; anything that JSON has a form for.
        undo: What the compensation gets as ``undo``; by default the output.
    """

    output: Any = None
    undo: Any = msgspec.UNSET


class Later(msgspec.Struct, frozen=True):
    """What a step function returns when its work goes on elsewhere.

    The step stays in flight until somebody completes it with `StepContext.token`, or its
    `completes_within` is over. What the function did through the context's connection is committed.
    """


def succeeded_with(result: Any) -> Succeeded:
    """What a function returned, as the outcome of its step."""
    if not isinstance(result, StepResult):
        return Succeeded(output=result, undo=result)
    undo = result.output if result.undo is msgspec.UNSET else result.undo
    return Succeeded(output=result.output, undo=undo)


def failure_of(error: BaseException) -> Failure:
    """What an exception says about its attempt, with its traceback unless it was raised on purpose.

    The last part of a long traceback is kept: it says where.
    """
    match error:
        case Reject(code=kind, message=message):
            return failure(kind, message, retryable=False)
        case Fail(kind=kind, message=message, retryable=retryable):
            return failure(kind, message, retryable=retryable)
        case _:
            trace = "".join(traceback.format_exception(error))
            return Failure(
                kind=type(error).__name__,
                message=_cut(_writable(redacted_text(text_of(error)))),
                traceback=_writable(redacted_text(trace[-TRACEBACK_CHARS_READ:]))[
                    -FAILURE_TRACEBACK_CHARS_MAX:
                ],
            )


def failure(kind: str, message: str, *, retryable: bool) -> Failure:
    """A failure without a traceback, its message without secrets and cut to the limit."""
    told = _cut(_writable(redacted_text(message)))
    return Failure(kind=_writable(kind), message=told, retryable=retryable)


def _writable(text: str) -> str:
    """The text without what UTF-8 has no form for, such as the name of a file that is no text.

    It would fail the reply itself, and the orchestrator would wait for it in vain.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _cut(text: str) -> str:
    if len(text) <= FAILURE_MESSAGE_CHARS_MAX:
        return text
    return text[: FAILURE_MESSAGE_CHARS_MAX - 1] + "…"
