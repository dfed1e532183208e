"""Tokens with which an attempt is completed from elsewhere.

A token names the attempt and proves that its holder was given it: the proof is a keyed hash, whose
key is a random secret of the saga. So nothing has to be stored for an attempt, and a token is good
before the orchestrator has heard that the attempt was accepted.
"""

import base64
import binascii
import hashlib
import hmac

import msgspec

from shared.errors import DecodeError
from shared.ids import Direction, command_id

TOKEN_CHARS_MAX = 2_000


class Token(msgspec.Struct, frozen=True, array_like=True):
    """What a token says."""

    saga_id: str
    step: str
    direction: Direction
    attempt: int
    proof: str


def proof_of(secret: str, saga_id: str, step: str, direction: Direction, attempt: int) -> str:
    """What only the saga and the holder of the token know; empty without a secret."""
    if not secret:
        return ""
    text = command_id(saga_id, step, direction, attempt).encode()
    return hashlib.blake2b(text, key=secret.encode()[:64], digest_size=16).hexdigest()


def token_of(secret: str, saga_id: str, step: str, direction: Direction, attempt: int) -> str:
    """The token of an attempt: text that is safe in URLs; empty without a secret."""
    proof = proof_of(secret, saga_id, step, direction, attempt)
    if not proof:
        return ""
    raw = msgspec.json.encode(Token(saga_id, step, direction, attempt, proof))
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def read_token(token: str) -> Token:
    """What a token says. Whether it is a good one, only its saga can tell.

    Raises:
        DecodeError: It is not a token.
    """
    if len(token) <= TOKEN_CHARS_MAX:
        padded = token + "=" * (-len(token) % 4)
        try:
            raw = base64.urlsafe_b64decode(padded.encode())
            return msgspec.json.decode(raw, type=Token)
        except (binascii.Error, ValueError):
            pass
    raise DecodeError(
        "This is not a token of a step.", hint="Give it as the participant got it, unchanged."
    )


def is_proof(given: str, expected: str) -> bool:
    """Whether a proof is right, in a time that does not tell how much of it is."""
    return bool(expected) and hmac.compare_digest(given.encode(), expected.encode())
