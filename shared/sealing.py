"""Payloads encrypted at rest and in messages, by the key ring in SAGA_ENCRYPTION_KEYS.

Sealed are inputs, outputs, undo data and signals: as text in the store (states, events, commands,
bodies of dead letters), as a value in commands and replies. What operation needs stays readable:
ids, names, steps, statuses, times, queues, headers, kinds of events and of failures.

The first key of the ring seals, every key opens: a new key is put first on all machines, and an
old one is taken away when nothing is sealed with it any more (`saga db reseal`). Without keys
nothing is sealed, and what was sealed cannot be read.

Fernet (https://github.com/fernet/spec, by the package `cryptography`): AES-128-CBC with HMAC-SHA256,
so that what was tampered with is refused.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shared import codec
from shared.errors import ConfigurationError, DecodeError
from shared.messages import (
    CompleteRequest,
    Failed,
    Inbound,
    Outcome,
    Reply,
    SignalRequest,
    StartRequest,
    Succeeded,
    Undecodable,
)
from shared.names import SEALED
from shared.settings import settings

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

_PREFIX: Final = f"{SEALED}:"
_HINT: Final = "Every process of a system needs the same SAGA_ENCRYPTION_KEYS."


class KeyRing:
    """Seals with the first key, and opens with any.

    Args:
        keys: Fernet keys: 32 bytes each, as URL-safe base64. None at all seals nothing.

    Raises:
        ConfigurationError: One is no key (says which one, not what it is), or `cryptography` is
            not installed.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._fernet = _fernet(keys) if keys else None

    @property
    def seals(self) -> bool:
        """Whether there is a key to seal with."""
        return self._fernet is not None

    def seal_text(self, text: str) -> str:
        """Text for a database column."""
        if self._fernet is None:
            return text
        return _PREFIX + self._fernet.encrypt(text.encode()).decode()

    def open_text(self, text: str) -> str:
        """The text in a column, sealed or not.

        Raises:
            DecodeError: It is sealed with a key that is not on the ring, or damaged.
        """
        if not text.startswith(_PREFIX):
            return text
        return self._opened(text[len(_PREFIX) :]).decode()

    def reseal_text(self, text: str) -> str:
        """The same text sealed with the first key; as it was without any.

        Raises:
            DecodeError: It is sealed with a key that is not on the ring, or damaged.
        """
        return self.seal_text(self.open_text(text))

    def seal(self, value: Any) -> Any:
        """A payload for a message: an object with one field, or the value itself without keys."""
        if self._fernet is None or value is None:
            return value
        return {SEALED: self._fernet.encrypt(codec.encode(value)).decode()}

    def open(self, value: Any) -> Any:
        """The payload in a message, sealed or not.

        Raises:
            DecodeError: It is sealed with a key that is not on the ring, or damaged.
        """
        if not (isinstance(value, dict) and len(value) == 1 and SEALED in value):
            return value
        return codec.decode(self._opened(str(value[SEALED])), Any)

    def _opened(self, token: str) -> bytes:
        if self._fernet is None:
            raise DecodeError("It is encrypted, and there is no key.", hint=_HINT)
        from cryptography.fernet import InvalidToken

        try:
            return self._fernet.decrypt(token)
        except InvalidToken as error:
            raise DecodeError(
                "It is encrypted with a key that is not on the ring, or damaged.", hint=_HINT
            ) from error


@cache
def ring() -> KeyRing:
    """The key ring of this process, made once from the settings.

    Raises:
        ConfigurationError: A key is none, or `cryptography` is not installed.
    """
    return KeyRing(settings().encryption_keys)


def seal_outcome(outcome: Outcome) -> Outcome:
    """The outcome of an attempt for a message; what a failure says stays readable."""
    if not ring().seals:
        return outcome
    if isinstance(outcome, Failed) and outcome.undo is not None:
        return Failed(failure=outcome.failure, undo=ring().seal(outcome.undo))
    if not isinstance(outcome, Succeeded):
        return outcome
    output = ring().seal(outcome.output)
    undo = output if outcome.undo is outcome.output else ring().seal(outcome.undo)
    return Succeeded(output=output, undo=undo)


def open_message(message: Inbound) -> Inbound:
    """An inbound message with its payload in clear; `Undecodable`, with the reason, if it cannot be."""
    try:
        match message:
            case (
                Reply(outcome=Succeeded() | Failed() as outcome)
                | CompleteRequest(outcome=Succeeded() | Failed() as outcome)
            ):
                return msgspec.structs.replace(message, outcome=_opened(outcome))
            case StartRequest(input=value):
                return msgspec.structs.replace(message, input=ring().open(value))
            case SignalRequest(data=value):
                return msgspec.structs.replace(message, data=ring().open(value))
            case _:
                return message
    except DecodeError as error:
        return Undecodable(reason=str(error), task="", body="")


def _opened(outcome: Succeeded | Failed) -> Succeeded | Failed:
    if isinstance(outcome, Failed):
        undo = ring().open(outcome.undo)
        return outcome if undo is outcome.undo else Failed(failure=outcome.failure, undo=undo)
    return Succeeded(output=ring().open(outcome.output), undo=ring().open(outcome.undo))


def _fernet(keys: Sequence[str]) -> "MultiFernet":
    try:
        from cryptography.fernet import Fernet, MultiFernet
    except ImportError as error:
        raise ConfigurationError(
            "SAGA_ENCRYPTION_KEYS is set, and the package cryptography is not installed.",
            hint="pip install 'celery-saga-orchestrator[encryption]'",
        ) from error
    found = []
    for number, key in enumerate(keys, 1):
        try:
            found.append(Fernet(key))
        except ValueError as error:
            raise ConfigurationError(
                f"SAGA_ENCRYPTION_KEYS: key {number} of {len(keys)} is no key.",
                hint="A key is 32 bytes as URL-safe base64; `saga db new-key` prints one.",
            ) from error
    return MultiFernet(found)
