"""What becomes of a message whose handler fails."""

import traceback
from typing import Final

import msgspec
from typing_extensions import override

from shared.backoff import Backoff
from shared.errors import DefinitionError
from shared.messages import (
    FAILURE_MESSAGE_CHARS_MAX,
    FAILURE_TRACEBACK_CHARS_MAX,
    TRACEBACK_CHARS_READ,
    Failure,
)
from shared.telemetry.current import text_of
from shared.telemetry.redaction import redacted_text

ATTEMPTS_MAX: Final = 1_000


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When a handler that failed is called again; after the last attempt it is a dead letter.

    Attributes:
        attempts: Most attempts, the first included.
        backoff: The waits in between. On Redis a wait is cut to half the visibility timeout: a
            message that is held longer is delivered twice.
        never_on: Kinds of failure that another attempt cannot mend: class names of exceptions.

    Raises:
        DefinitionError: There would be no attempt, or more than `ATTEMPTS_MAX`.
    """

    attempts: int = 5
    backoff: Backoff = Backoff()
    never_on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what no type says."""
        if not 1 <= self.attempts <= ATTEMPTS_MAX:
            raise DefinitionError(
                f"RetryPolicy.attempts is {self.attempts}; between 1 and {ATTEMPTS_MAX} are allowed."
            )

    def gives_up(self, attempt: int, failure: Failure) -> bool:
        """Whether this attempt, counted from 1, was the last."""
        return attempt >= self.attempts or not failure.retryable or failure.kind in self.never_on


class Refuse(Exception):
    """A handler says no, and asking again will not help.

    A command or an event becomes a dead letter at once; the caller of a query gets a `QueryFailed`
    of this kind.

    Args:
        kind: Stable machine-readable reason, for example ``UnknownOrder``.
        message: One line for people.
    """

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    @override
    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" if self.message else self.kind


def failure_of(error: BaseException) -> Failure:
    """What an exception says about its attempt; the last part of a long traceback is kept."""
    if isinstance(error, Refuse):
        return failure(error.kind, error.message, retryable=False)
    trace = "".join(traceback.format_exception(error))
    return Failure(
        kind=type(error).__name__,
        message=redacted_text(text_of(error))[:FAILURE_MESSAGE_CHARS_MAX],
        traceback=redacted_text(trace[-TRACEBACK_CHARS_READ:])[-FAILURE_TRACEBACK_CHARS_MAX:],
    )


def failure(kind: str, message: str, *, retryable: bool) -> Failure:
    """A failure without a traceback, its message without secrets and cut to the limit."""
    shown = redacted_text(message)[:FAILURE_MESSAGE_CHARS_MAX]
    return Failure(kind=kind, message=shown, retryable=retryable)
