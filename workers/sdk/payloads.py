"""What a function gets of the payload of a message, and what becomes of its result in the reply.

Either may be sealed, and large values in it may be in the payload store: here they are opened and
fetched, or checked in. They are fetched before the barrier, whose transaction need not wait for
them, and written inside of it: what it records refers to what is there.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from shared import codec
from shared.claims import Claims, claims
from shared.errors import (
    DecodeError,
    InputError,
    PayloadStoreUnavailable,
    PayloadTooLarge,
)
from shared.messages import Accepted, Succeeded
from shared.sealing import ring
from shared.settings import settings
from shared.tickets import MARK, tickets_in
from workers.sdk.outcome import Fail, Later, Reject, succeeded_with

RESULT_NOT_JSON: Final = "ResultNotJson"
RESULT_TOO_LARGE: Final = "ResultTooLarge"
RESULT_IS_TICKET: Final = "ResultIsTicket"
PAYLOAD_SEALED: Final = "PayloadSealed"
PAYLOAD_UNAVAILABLE: Final = "PayloadUnavailable"
PAYLOAD_UNRESOLVED: Final = "PayloadUnresolved"

_NESTED: Final = (dict, list)

Wanted = Callable[[str], bool]
"""Whether a function asks for an argument of this name."""


def in_clear(payload: Mapping[str, Any], wanted: Wanted, saga_id: str) -> Mapping[str, Any]:
    """The payload of a message as the function gets it: opened, and with what its tickets stand for.

    Args:
        payload: As it came.
        wanted: Arguments that the function does not ask for are not fetched.
        saga_id: Who keeps the values.

    Raises:
        Fail: It is sealed with a key that this process does not have, or the payload store cannot
            be reached, or does not have a value; another process may, or later.
        Reject: A reference into a value leads to nothing.
    """
    try:
        found: Mapping[str, Any] = ring().open(payload)
    except DecodeError as error:
        raise Fail(PAYLOAD_SEALED, f"The payload cannot be opened. {error}") from error
    away = [
        name
        for name, value in found.items()
        if value.__class__ in _NESTED and _has_ticket(value) and wanted(name)
    ]
    if not away:
        return found
    return {**found, **{name: fetched(found[name], saga_id) for name in away}}


def everything(_name: str) -> bool:
    """For a function that gets all arguments."""
    return True


def fetched(value: Any, saga_id: str) -> Any:
    """A value with what its tickets stand for; raises as `in_clear`."""
    if not _has_ticket(value):
        return value
    known = claims()
    if known is None:
        raise Fail(
            PAYLOAD_UNAVAILABLE,
            "An argument is in the payload store, and SAGA_CLAIM_CHECK_URL is not set here.",
        )
    try:
        return known.fetch(value, saga_id)
    except (PayloadStoreUnavailable, DecodeError) as error:
        raise Fail(PAYLOAD_UNAVAILABLE, f"An argument cannot be fetched. {error}") from error
    except LookupError as error:
        raise Reject(PAYLOAD_UNRESOLVED, str(error.args[0])) from error


def encoded(result: Any, saga_id: str = "") -> Succeeded | Accepted:
    """What a function returned, as plain JSON values.

    Args:
        result: It.
        saga_id: Who keeps what is too large for a message; empty outside of sagas.

    Raises:
        Fail: It is not JSON, or too large: another attempt will not help. Or the payload store
            cannot be reached: it may.
    """
    if isinstance(result, Later):
        return Accepted()
    outcome = succeeded_with(result)
    known = claims() if saga_id else None
    try:
        if known is not None:
            outcome = _checked_in(outcome, known, saga_id)
        limit = settings().payload_bytes_max
        codec.check_size(outcome.output, limit, "The result")
        if outcome.undo is not outcome.output:
            codec.check_size(outcome.undo, limit, "The undo data")
        return codec.decode(codec.encode(outcome), Succeeded)
    except PayloadTooLarge as error:
        raise Fail(RESULT_TOO_LARGE, str(error), retryable=False) from error
    except InputError as error:
        raise Fail(RESULT_IS_TICKET, str(error), retryable=False) from error
    except DecodeError as error:
        text = f"The step returned what JSON has no form for: {error.message}"
        raise Fail(RESULT_NOT_JSON, text, retryable=False) from error
    except PayloadStoreUnavailable as error:
        raise Fail(PAYLOAD_UNAVAILABLE, f"The result cannot be kept. {error}") from error


def _checked_in(outcome: Succeeded, known: Claims, saga_id: str) -> Succeeded:
    output = known.kept(outcome.output, saga_id, "The result")
    if outcome.undo is outcome.output:
        return Succeeded(output=output, undo=output)
    return Succeeded(output=output, undo=known.kept(outcome.undo, saga_id, "The undo data"))


def _has_ticket(value: Any) -> bool:
    # To encode it takes a tenth of the time of a walk through it.
    return (
        value.__class__ in _NESTED
        and MARK in codec.encode(value)
        and any(True for _ in tickets_in(value))
    )
