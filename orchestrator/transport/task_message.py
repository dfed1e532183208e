"""A command as a Celery task message, and a task message as a delivery. No I/O."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from kombu.compression import decompress

from orchestrator.ports import Delivery
from shared import envelope, names
from shared.codec import decode_inbound, task_body
from shared.messages import Command, Inbound, Undecodable
from shared.sealing import open_message, ring
from shared.telemetry import header_propagator, propagation


def body_of(command: Command) -> bytes:
    """Body: ``[args, kwargs, embed]`` as JSON; the payload of a step sealed where there is a key."""
    # Subscribers of an event may be anybody.
    return task_body(command.payload if command.is_event else ring().seal(command.payload))


def headers_of(command: Command, origin: str) -> dict[str, Any]:
    """Headers of a command, or of an event: those of Celery's protocol 2, and ours.

    Args:
        command: What is sent.
        origin: Name of the sending process, as Celery shows it.
    """
    made = envelope.headers(task=command.task, task_id=command.id, origin=origin)
    if command.is_event:
        return made | _event_headers(command)
    headers: dict[str, Any] = {
        **made,
        names.SAGA_ID: command.saga_id,
        names.SAGA_NAME: command.saga_name,
        names.SAGA_VERSION: command.saga_version,
        names.SAGA_STEP: command.step,
        names.SAGA_DIRECTION: command.direction,
        names.SAGA_ATTEMPT: command.attempt,
        names.SAGA_REPLY_TO: names.REPLIES_QUEUE,
        names.SAGA_DEADLINE: command.deadline_at.isoformat(),
    }
    if command.token:
        headers[names.SAGA_TOKEN] = command.token
    if command.origin_id:
        headers[names.SAGA_ORIGIN_ID] = command.origin_id
    propagation.inject(headers, command.traceparent, command.tracestate, command.baggage)
    return headers


def _event_headers(event: Command) -> dict[str, Any]:
    headers = {
        names.SAGA_MESSAGE: event.task,
        names.SAGA_MESSAGE_KIND: "event",
        names.SAGA_EVENT_ID: event.id,
        names.SAGA_ID: event.saga_id,
        names.SAGA_NAME: event.saga_name,
    }
    propagation.inject(headers, event.traceparent, event.tracestate, event.baggage)
    return headers


def delivery(
    *,
    headers: Mapping[str, Any],
    content_type: str | None,
    body: bytes | str | None,
    receipt: Any,
    problem: str = "",
) -> Delivery:
    """Read an inbound task message; never raises for what the message holds.

    Args:
        headers: Its headers.
        content_type: What it says it is; anything but JSON is refused without looking inside.
        body: Its body as sent, without the transport's own encoding.
        receipt: For the acknowledgement.
        problem: What the transport found wrong with it already.
    """
    raw = body.encode() if isinstance(body, str) else bytes(body or b"")
    task = _text(headers.get("task"))
    if not problem and content_type != envelope.CONTENT_TYPE:
        problem = f"content type {content_type!r} is refused; expected {envelope.CONTENT_TYPE!r}"
    # A dead letter's text goes into a database column, which cannot hold NUL.
    text = raw.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
    message: Inbound
    if problem:
        message = Undecodable(reason=problem, task=task, body=text)
    else:
        # Replies, nearly all of what comes, continue no trace.
        event = names.SAGA_EVENT_ID in headers
        begins = event or task == names.START_TASK
        caller = header_propagator.received(headers) if begins else {}
        if event:
            caller |= {key: headers.get(key) for key in (names.SAGA_EVENT_ID, names.SAGA_MESSAGE)}
        message = open_message(decode_inbound(task, _text(headers.get("id")), raw, caller))
    if isinstance(message, Undecodable):
        message = msgspec.structs.replace(message, body=text)
    return Delivery(message=message, task=task, body=text, receipt=receipt)


class _Envelope(msgspec.Struct, rename="kebab"):
    """A message as kombu's virtual transports write it."""

    body: str | None = None
    content_type: str | None = None
    headers: dict[str, Any] = {}
    properties: dict[str, Any] = {}


_envelopes: Final = msgspec.json.Decoder(_Envelope)


def delivery_of_envelope(raw: bytes, receipt: Any) -> Delivery:
    """Read a message as it lies in a Redis list; never raises for what the message holds."""
    try:
        found = _envelopes.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        problem = f"not a message of kombu: {error}"
        return delivery(headers={}, content_type=None, body=raw, receipt=receipt, problem=problem)
    body: bytes = (found.body or "").encode()
    problem = ""
    try:
        if found.properties.get("body_encoding") == "base64":
            body = base64.b64decode(body, validate=True)
        if found.headers.get("compression"):
            body = decompress(body, found.headers["compression"])
    except binascii.Error as error:
        problem = f"its body is not base64: {error}"
    except Exception as error:  # noqa: BLE001 - each compression library has errors of its own
        problem = f"its body cannot be decompressed: {error!r}"
    return delivery(
        headers=found.headers,
        content_type=found.content_type,
        body=body,
        receipt=receipt,
        problem=problem,
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
