"""Identifiers: random where something begins, derived everywhere else.

The one place that reads the random source. A derived id is a function of what it names, so that
the same decision made twice sends the same id twice.
"""

import hashlib
import os
import time
import uuid
from typing import Literal

Direction = Literal["action", "compensation"]

_NAMESPACE = uuid.UUID("5aa9a6f0-7d0c-5d2e-9f57-0f6a1c0b7e11")


def new_saga_id() -> str:
    """A new UUID version 7 (RFC 9562, section 5.7): sorts by time, so that indexes stay compact."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def new_request_id() -> str:
    """Id of an HTTP request whose caller gave none: like a saga's, it sorts by time."""
    return new_saga_id()


def saga_id_from(task_id: str) -> str:
    """Saga id for a start that came as a Celery message, so that its duplicate starts nothing new."""
    return str(uuid.uuid5(_NAMESPACE, task_id))


def new_trace_id() -> str:
    """A random trace id: 32 hexadecimal digits, not all zero (W3C Trace Context)."""
    return _nonzero(os.urandom(16)).hex()


def new_span_id() -> str:
    """A random span id: 16 hexadecimal digits, not all zero."""
    return _nonzero(os.urandom(8)).hex()


def new_secret() -> str:
    """A random secret: 32 hexadecimal digits."""
    return os.urandom(16).hex()


def sub_saga_id(saga_id: str, step: str, attempt: int) -> str:
    """Id of the sub-saga that an attempt of a step starts."""
    return saga_id_from(command_id(saga_id, step, "action", attempt))


def derived_trace_id(*parts: object) -> str:
    """The trace id of something that has a name; the same parts always give the same id."""
    text = "\x00".join(map(str, parts)).encode()
    return _nonzero(hashlib.blake2b(text, digest_size=16).digest()).hex()


def derived_span_id(*parts: object) -> str:
    """The span id of something that has a name; the same parts always give the same id."""
    text = "\x00".join(map(str, parts)).encode()
    return _nonzero(hashlib.blake2b(text, digest_size=8).digest()).hex()


def idempotency_key(saga_id: str, step: str, direction: Direction) -> str:
    """``saga:step:direction``: the same for every attempt of a step, for use with other systems."""
    return f"{saga_id}:{step}:{direction}"


def command_id(saga_id: str, step: str, direction: Direction, attempt: int) -> str:
    """Id of a command, which is also its Celery task id: the idempotency key and the attempt."""
    return f"{saga_id}:{step}:{direction}:{attempt}"


def _nonzero(raw: bytes) -> bytes:
    return raw if any(raw) else raw[:-1] + b"\x01"
