"""Values to what a database holds, and back.

States, events, commands and definitions are stored as JSON text: `sqlite3` and `psql` show them as
they are, and msgspec reads them faster than either database's own JSON type would be parsed.
Instants are whole microseconds since 1970: exact, the same on every database, and compared as
numbers by every index.
"""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import msgspec

from orchestrator.core.definition import Definition
from orchestrator.core.events import Event
from orchestrator.core.state import SagaState, Status
from orchestrator.ports import DeadLetter, SagaSummary
from shared import codec
from shared.errors import DecodeError, InputError
from shared.messages import Command
from shared.sealing import ring

T = TypeVar("T")

IDENTITY_BYTES_MAX: Final = 512
"""Longest id of a saga, and longest business key. PostgreSQL indexes no more than 2,704 bytes."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

_states: Final = msgspec.json.Decoder(SagaState)
_events: Final[msgspec.json.Decoder[Event]] = msgspec.json.Decoder(Event)
_commands: Final = msgspec.json.Decoder(Command)
_definitions: Final = msgspec.json.Decoder(Definition)


def micros(at: datetime) -> int:
    """Microseconds since 1970 of an aware datetime."""
    return (at - _EPOCH) // _MICROSECOND


def micros_or_none(at: datetime | None) -> int | None:
    """Microseconds since 1970, if there is an instant."""
    return None if at is None else (at - _EPOCH) // _MICROSECOND


def instant(micros_since_1970: int) -> datetime:
    """The aware UTC datetime."""
    return _EPOCH + timedelta(microseconds=micros_since_1970)


def instant_or_none(micros_since_1970: int | None) -> datetime | None:
    """The aware UTC datetime, if there is one."""
    return None if micros_since_1970 is None else instant(micros_since_1970)


def to_json(value: SagaState | Event | Command | Definition) -> str:
    """JSON text of a stored value, sealed where there is a key; a definition holds no payload.

    Raises:
        DecodeError: It holds something that JSON has no form for.
    """
    text = codec.encode(value).decode()
    return text if isinstance(value, Definition) else ring().seal_text(text)


def state_from(text: str) -> SagaState:
    """Read a state.

    Raises:
        DecodeError: It cannot be read; names the field.
    """
    return _read(_states, text)


def event_from(text: str) -> Event:
    """Read an event.

    Raises:
        DecodeError: It cannot be read; names the field.
    """
    return _read(_events, text)


def command_from(text: str) -> Command:
    """Read a command.

    Raises:
        DecodeError: It cannot be read; names the field.
    """
    return _read(_commands, text)


def definition_from(text: str) -> Definition:
    """Read a definition.

    Raises:
        DecodeError: It cannot be read; names the field.
    """
    return _read(_definitions, text)


def event_type(event: Event) -> str:
    """Its tag, for queries by hand: the JSON has it too."""
    return str(event.__struct_config__.tag)


def storable(text: str) -> bool:
    """Whether every database can hold it: PostgreSQL has no NUL, and UTF-8 no lone surrogates."""
    if text.isascii():
        return "\0" not in text
    return "\0" not in text and text.encode("utf-8", "ignore").decode() == text


def storable_ids(texts: Collection[str]) -> list[str]:
    """What of it may be the id of something stored, each once, in order.

    Ids come from messages that anybody may send; one that no database can hold names nothing, and
    must not make the query of a whole batch fail.
    """
    return sorted(filter(storable, set(texts)))


def require_storable(text: str | None, what: str) -> None:
    """Check an id or a key before it is written.

    They come from messages that anybody may send. One that the database refuses would look as if
    the database were away, and its message would come back for ever, before all others.

    Raises:
        InputError: It is empty, longer than `IDENTITY_BYTES_MAX`, or no database can hold it.
    """
    if text is None:
        return
    if not text:
        raise InputError(
            f"{what} is empty.", hint="Leave it out, or give one. Nothing was started."
        )
    if not storable(text):
        raise InputError(
            f"{what} {text!r} holds a character that no database stores.",
            hint="Nothing was started.",
        )
    if len(text) > IDENTITY_BYTES_MAX or len(text.encode()) > IDENTITY_BYTES_MAX:
        raise InputError(
            f"{what} {text[:32]!r}… is {len(text.encode())} bytes long; the limit is "
            f"{IDENTITY_BYTES_MAX} bytes.",
            hint="Shorten it, or hash it. Nothing was started.",
        )


def printable(letter: DeadLetter) -> DeadLetter:
    """A dead letter whose texts every database can hold, what cannot be stored escaped."""
    return msgspec.structs.replace(
        letter,
        reason=_escaped(letter.reason),
        task=_escaped(letter.task),
        saga_id=None if letter.saga_id is None else _escaped(letter.saga_id),
        body=_escaped(letter.body),
    )


def summary_from(row: Any) -> SagaSummary:
    """A line of a list, from a row whose columns are named like the fields of the table."""
    return SagaSummary(
        saga_id=row.id,
        name=row.name,
        version=row.version,
        key=row.key,
        status=Status(row.status),
        trace_id=row.trace_id,
        started_at=row.started_at,
        updated_at=row.updated_at,
        wake_at=row.wake_at,
    )


def dead_letter_from(row: Any) -> DeadLetter:
    """A dead letter, from a row whose columns are named like those of the table."""
    return DeadLetter(
        dead_letter_id=row.id,
        reason=row.reason,
        task=row.task,
        saga_id=row.saga_id,
        body=ring().open_text(row.body),
        at=row.at,
    )


def _escaped(text: str) -> str:
    if storable(text):
        return text
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _read(decoder: "msgspec.json.Decoder[T]", text: str) -> T:
    try:
        return decoder.decode(ring().open_text(text))
    except msgspec.DecodeError as error:
        raise DecodeError(
            f"A stored value cannot be read: {error}.",
            hint="It was written by a newer version, or by hand.",
        ) from error
