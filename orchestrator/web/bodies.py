"""The bodies of requests, and how they are read."""

from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec

from shared import codec
from shared.errors import DecodeError, InputError

BY: Final = "http"
"""Who asks, in the history of a saga, where the request does not say."""

Given = Annotated[str, msgspec.Meta(min_length=1)]
"""What may not be empty."""

T = TypeVar("T", bound=msgspec.Struct)


class StartBody(msgspec.Struct, forbid_unknown_fields=True):
    """What a saga is started with."""

    input: dict[str, Any] = {}
    key: str | None = None
    not_before: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class ForkBody(msgspec.Struct, forbid_unknown_fields=True):
    """Where a saga is forked, and what the fork is started with; without `input` with the old one."""

    from_step: Given
    input: dict[str, Any] | None = None
    key: str | None = None
    reason: str = ""
    by: str = BY
    dry_run: bool = False


class CancelBody(msgspec.Struct, forbid_unknown_fields=True):
    """Why a saga is to be undone."""

    reason: str
    by: str = BY


class ReasonBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Why something is done."""

    reason: Given
    by: str = BY


class ActBody(ReasonBody, kw_only=True, forbid_unknown_fields=True):
    """Why an operator does something to a saga; `dry_run` only asks what would follow."""

    dry_run: bool = False


class RetryBody(ActBody, kw_only=True, forbid_unknown_fields=True):
    """Which step is tried again, and with which keyword arguments in place of its own."""

    step: str = ""
    payload: dict[str, Any] | None = None


class SkipBody(ActBody, kw_only=True, forbid_unknown_fields=True):
    """Which step is passed over, and what later steps see as its output."""

    step: Given
    output: Any = None


class LimitBody(ReasonBody, kw_only=True, forbid_unknown_fields=True):
    """A limit of a saga, or of one of its steps; `none` and `reset` as the command has them."""

    step: str = ""
    in_flight: int | None = None
    rate: str = ""
    none: bool = False
    reset: bool = False


class SignalBody(msgspec.Struct, forbid_unknown_fields=True):
    """A signal for a saga."""

    name: str
    data: Any = None
    by: str = BY


class CompletionBody(msgspec.Struct, forbid_unknown_fields=True):
    """The success of a step that was accepted; without `undo` its compensation gets the output."""

    token: str
    output: Any = None
    undo: Any = msgspec.UNSET


class FailureBody(msgspec.Struct, forbid_unknown_fields=True):
    """The failure, or the rejection, of a step that was accepted."""

    token: str
    kind: str
    message: str = ""
    retryable: bool = True
    rejected: bool = False


def read(body: bytes, as_type: type[T]) -> T:
    """Read a body.

    Raises:
        InputError: It cannot be read; says where, and which fields there are.
    """
    try:
        return codec.decode(body, as_type)
    except DecodeError as error:
        raise InputError(
            f"The body cannot be read: {error.message}.",
            hint=f"It is a JSON object with {', '.join(as_type.__struct_fields__)}.",
        ) from error
