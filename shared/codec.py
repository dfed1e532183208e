"""Bytes to messages and back: strict JSON, nothing else. Pickle is refused by never being decoded."""

from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec

from shared import names
from shared.errors import DecodeError, PayloadTooLarge
from shared.ids import saga_id_from
from shared.messages import (
    CancelRequest,
    CompleteRequest,
    EventArrived,
    HeartbeatRequest,
    Inbound,
    Reply,
    SignalRequest,
    StartRequest,
    Undecodable,
    UndoRequest,
)

PAYLOAD_BYTES_MAX_DEFAULT: Final = 256 * 1024

T = TypeVar("T")

_encoder = msgspec.json.Encoder()
INBOUND_TASKS: Final[dict[type, str]] = {
    Reply: names.REPLY_TASK,
    StartRequest: names.START_TASK,
    CancelRequest: names.CANCEL_TASK,
    SignalRequest: names.SIGNAL_TASK,
    CompleteRequest: names.COMPLETE_TASK,
    HeartbeatRequest: names.HEARTBEAT_TASK,
    UndoRequest: names.UNDO_TASK,
}
"""The task that carries each kind of inbound message; its keyword arguments are the fields."""

_INBOUND: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    task: msgspec.json.Decoder(tuple[list[Any], kind, dict[str, Any] | None])  # type: ignore[valid-type]  # a decoder for each
    for kind, task in INBOUND_TASKS.items()
}
_event_bodies: Final = msgspec.json.Decoder(tuple[list[Any], dict[str, Any], Any])
_EMBED: Final = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def encode(value: object) -> bytes:
    """Encode as JSON.

    Raises:
        DecodeError: The value holds something that JSON has no form for; names its type.
    """
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise DecodeError(f"not JSON: {error}") from error


def decode(raw: bytes | str, as_type: type[T]) -> T:
    """Decode JSON strictly as a type.

    Raises:
        DecodeError: Not JSON, or JSON of another shape; names the field.
    """
    try:
        return msgspec.json.decode(raw, type=as_type)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DecodeError(str(error)) from error


def check_size(value: object, limit_bytes: int, what: str) -> int:
    """Size of a value as JSON, in bytes.

    Raises:
        PayloadTooLarge: It is over the limit; names the limit and its setting.
        DecodeError: It is not JSON.
    """
    return check_bytes(encode(value), limit_bytes, what)


def check_bytes(raw: bytes, limit_bytes: int, what: str) -> int:
    """Size of a value that is JSON already, in bytes.

    Raises:
        PayloadTooLarge: It is over the limit; names the limit and its setting.
    """
    size = len(raw)
    if size > limit_bytes:
        raise PayloadTooLarge(
            f"{what} is {size} bytes as JSON; the limit is {limit_bytes} bytes.",
            hint="Send a reference instead of the data, or raise SAGA_PAYLOAD_BYTES_MAX.",
        )
    return size


def instant(value: object) -> datetime | None:
    """An aware time from the text of a header; None for anything else."""
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return found if found is not None and found.tzinfo is not None else None


def task_body(kwargs: dict[str, Any] | Inbound | msgspec.Raw) -> bytes:
    """Body of a Celery task message, protocol 2: ``[args, kwargs, embed]``."""
    return encode([[], kwargs, _EMBED])


def decode_inbound(task: str, task_id: str, body: bytes, headers: dict[str, Any]) -> Inbound:
    """Read a message of the queue ``saga.replies``; never raises for what the message holds.

    Args:
        task: Celery task name, from the header ``task``.
        task_id: Celery task id, from the header ``id``.
        body: Raw body, ``[args, kwargs, embed]`` as JSON.
        headers: The caller's ``traceparent``, ``tracestate`` and ``baggage``, read and checked;
            of an event its own id and name, too.

    Returns:
        The message, or `Undecodable` with the reason.
    """
    if isinstance(headers.get(names.SAGA_EVENT_ID), str):
        return _event(task, body, headers)
    decoder = _INBOUND.get(task)
    if decoder is None:
        reason = f"no task {task!r} here; expected one of {', '.join(_INBOUND)}"
        return Undecodable(reason=reason, task=task, body=_text(body))
    try:
        message: Inbound = decoder.decode(body)[1]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Undecodable(reason=str(error), task=task, body=_text(body))
    if isinstance(message, StartRequest):
        return msgspec.structs.replace(
            message,
            saga_id=message.saga_id or saga_id_from(task_id),
            traceparent=message.traceparent or headers.get(names.TRACEPARENT),
            tracestate=message.tracestate or headers.get(names.TRACESTATE) or "",
            baggage=message.baggage or headers.get(names.BAGGAGE) or {},
        )
    return message


def _event(task: str, body: bytes, headers: dict[str, Any]) -> EventArrived | Undecodable:
    try:
        fields = _event_bodies.decode(body)[1]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Undecodable(reason=str(error), task=task, body=_text(body))
    return EventArrived(
        event_id=headers[names.SAGA_EVENT_ID],
        name=str(headers.get(names.SAGA_MESSAGE) or task),
        fields=fields,
        traceparent=headers.get(names.TRACEPARENT),
        tracestate=headers.get(names.TRACESTATE) or "",
        baggage=headers.get(names.BAGGAGE) or {},
    )


def _text(body: bytes) -> str:
    return body.decode("utf-8", "backslashreplace")
