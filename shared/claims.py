"""Claim check: large values are kept in a payload store, and a small ticket travels instead.

(Hohpe and Woolf, *Enterprise Integration Patterns*, "Claim Check".) Off, unless
SAGA_CLAIM_CHECK_URL names a store; then

* whoever makes a payload checks it in: the client the input of a saga, the participant the output
  of a step. A field that is larger than SAGA_CLAIM_CHECK_BYTES is written to the store *before*
  anything refers to it, and its ticket (`shared.tickets`) takes its place. Small fields stay, so
  that conditions and references can read them;
* a participant fetches what its function asks for just before it calls it.

A value is encrypted where payloads are (`shared.sealing`).
"""

from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from shared import codec
from shared.errors import DecodeError, InputError, PayloadStoreUnavailable, PayloadTooLarge
from shared.payload_store import PayloadStore
from shared.sealing import KeyRing, ring
from shared.settings import Settings, settings
from shared.telemetry.payloads import access
from shared.tickets import CLAIM, MARK, follow, replaced, ticket, tickets_in

NO_PARTS: Final[Mapping[str, bytes]] = MappingProxyType({})


class CheckedIn(NamedTuple):
    """A payload as it travels.

    Attributes:
        value: With tickets for its large fields.
        parts: Those, as JSON, by their names; to be put into the store first.
    """

    value: Any
    parts: Mapping[str, bytes] = NO_PARTS


class Claims:
    """Checks values in and fetches them.

    Args:
        store: Where they are kept.
        value_bytes: Size from which on a field is kept there.
        value_bytes_max: Largest value that is.
        keys: Seal what is kept.
    """

    def __init__(
        self, store: PayloadStore, *, value_bytes: int, value_bytes_max: int, keys: KeyRing
    ) -> None:
        self.store = store
        self._value_bytes = value_bytes
        self._value_bytes_max = value_bytes_max
        self._keys = keys

    def check_in(self, value: Any, what: str, *, tickets: bool = False) -> CheckedIn:
        """Take the large fields out of a payload; nothing is written.

        Args:
            value: A payload: its fields are looked at where it is an object, else all of it.
            what: It, for an error.
            tickets: It may hold tickets of the saga that it is for.

        Raises:
            PayloadTooLarge: A field is larger than the payload store takes.
            InputError: It holds what looks like a ticket.
            DecodeError: It is not JSON.
        """
        raw = codec.encode(value)
        small = len(raw) <= self._value_bytes
        if small and MARK not in raw:
            return CheckedIn(value)
        plain = codec.decode(raw, Any)
        if not tickets and MARK in raw:
            _refuse_tickets(plain, what)
        if small:
            return CheckedIn(value)
        parts: dict[str, bytes] = {}
        if not isinstance(plain, dict):
            return CheckedIn(self._checked_in(plain, what, parts), parts)
        fields = {
            name: self._checked_in(one, f"{what}, field {name!r},", parts)
            for name, one in plain.items()
        }
        return CheckedIn(fields, parts)

    def put(self, saga_id: str, parts: Mapping[str, bytes]) -> None:
        """Keep what was checked in, for a saga; repeating it changes nothing.

        Raises:
            PayloadStoreUnavailable: Not all of it is kept.
        """
        for digest, raw in parts.items():
            with access("write", self.store.system, saga_id, digest) as written:
                data = self._keys.seal_text(raw.decode()).encode()
                written.size_bytes = len(data)
                self.store.write(saga_id, digest, data)

    def kept(self, value: Any, saga_id: str, what: str) -> Any:
        """`check_in` and `put` in one."""
        checked = self.check_in(value, what)
        self.put(saga_id, checked.parts)
        return checked.value

    def fetch(self, value: Any, saga_id: str) -> Any:
        """A payload with what its tickets stand for.

        Args:
            value: It.
            saga_id: Who keeps the values.

        Raises:
            PayloadStoreUnavailable: The store cannot be reached; `PayloadMissing` where it is, and
                does not have a value.
            DecodeError: A value is damaged, or encrypted with an unknown key.
            LookupError: A reference into a value leads to nothing.
        """
        known: dict[str, bytes] = {}

        def fetched(found: dict[str, Any]) -> Any:
            digest = found[CLAIM]
            if digest not in known:
                known[digest] = self.read(saga_id, digest)
            # Decoded each time: a function may change one of its arguments.
            return follow(found, codec.decode(known[digest], Any))

        return replaced(value, fetched)

    def read(self, saga_id: str, digest: str) -> bytes:
        """A value as JSON.

        Raises:
            PayloadStoreUnavailable: The store cannot be reached; `PayloadMissing` where it is, and
                does not have it.
            DecodeError: It is damaged, or encrypted with an unknown key.
        """
        with access("read", self.store.system, saga_id, digest) as got:
            data = self.store.read(saga_id, digest)
            got.size_bytes = len(data)
            return self._opened(data, saga_id, digest)

    def _opened(self, data: bytes, saga_id: str, digest: str) -> bytes:
        try:
            raw = self._keys.open_text(data.decode()).encode()
        except UnicodeDecodeError:
            raw = b""
        if sha256(raw).hexdigest() != digest:
            raise DecodeError(
                f"The payload {digest[:12]}… of saga {saga_id} is damaged: its SHA-256 is another "
                "one.",
                hint=f"It is in {self.store.shown_url}.",
                saga_id=saga_id,
            )
        return raw

    def copy(self, value: Any, source: str, target: str) -> None:
        """Give a saga what another one keeps of the tickets in a value.

        Raises:
            PayloadStoreUnavailable: The store cannot be reached; `PayloadMissing` where it is, and
                does not have all of it.
        """
        for digest in {one[CLAIM] for one in tickets_in(value)}:
            with access("copy", self.store.system, target, digest):
                self.store.copy(digest, source, target)

    def reseal(self) -> int:
        """Seal everything with the first key, while sagas run; returns how much.

        Raises:
            PayloadStoreUnavailable: The store cannot be reached.
            DecodeError: Something is damaged, or encrypted with an unknown key.
        """
        count = 0
        for saga_id in self.store.sagas():
            for digest in self.store.digests(saga_id):
                try:
                    sealed = self.store.read(saga_id, digest).decode()
                except PayloadStoreUnavailable:
                    if saga_id in self.store.sagas():
                        raise
                    continue  # purged meanwhile
                text = self._keys.reseal_text(sealed)
                self.store.write(saga_id, digest, text.encode(), anew=True)
                count += 1
        return count

    def _checked_in(self, value: Any, what: str, parts: dict[str, bytes]) -> Any:
        raw = codec.encode(value)
        size = len(raw)
        if size <= self._value_bytes:
            return value
        if size > self._value_bytes_max:
            raise PayloadTooLarge(
                f"{what} is {size} bytes as JSON; the payload store takes {self._value_bytes_max} "
                "bytes.",
                hint="Send a reference instead of the data, or raise SAGA_CLAIM_CHECK_BYTES_MAX.",
            )
        digest = sha256(raw).hexdigest()
        parts[digest] = raw
        return ticket(digest, size)


def claims_of(configured: Settings) -> Claims | None:
    """The claim check that the settings ask for; None where they ask for none.

    Raises:
        ConfigurationError: The URL is wrong, or a package for it is not installed.
    """
    if not configured.claim_check_url:
        return None
    return Claims(
        PayloadStore(configured.claim_check_url),
        # What is too large for a message must not stay in it.
        value_bytes=min(configured.claim_check_bytes, configured.payload_bytes_max),
        value_bytes_max=configured.claim_check_bytes_max,
        keys=ring(),
    )


@cache
def claims() -> Claims | None:
    """The claim check of this process, made once from the settings; raises as `claims_of`."""
    return claims_of(settings())


def _refuse_tickets(value: Any, what: str) -> None:
    if any(True for _ in tickets_in(value)):
        raise InputError(
            f"{what} holds an object that has {CLAIM!r} and looks like a ticket of the payload "
            "store.",
            hint="Give the value itself.",
        )
