from typing import Any

import pytest
from cryptography.fernet import Fernet

from shared import sealing
from shared.errors import ConfigurationError, DecodeError
from shared.messages import (
    CompleteRequest,
    Failed,
    Failure,
    Inbound,
    Reply,
    SignalRequest,
    StartRequest,
    Succeeded,
    Undecodable,
)
from shared.names import SEALED
from shared.sealing import KeyRing, open_message, seal_outcome

OLD, NEW = (Fernet.generate_key().decode() for _ in range(2))
SECRET = "4111 1111 1111 1111"


@pytest.fixture
def keyed(monkeypatch: pytest.MonkeyPatch) -> KeyRing:
    """The ring of this process has a key."""
    made = KeyRing([NEW])
    monkeypatch.setattr(sealing, "ring", lambda: made)
    return made


@pytest.mark.parametrize("value", [{"card": SECRET}, SECRET, [SECRET, 2**60], 0, "", False])
def test_a_payload_is_sealed_and_opened(value: Any) -> None:
    """Nobody reads it on its way, and it comes out as it was."""
    sealed = KeyRing([NEW]).seal(value)
    assert list(sealed) == [SEALED]
    assert SECRET not in str(sealed)
    assert value == KeyRing([OLD, NEW]).open(sealed)


def test_the_first_key_seals_and_every_key_opens() -> None:
    """So that a ring can be changed on one machine after the other."""
    before, between, after = KeyRing([OLD]), KeyRing([NEW, OLD]), KeyRing([NEW])
    text = before.seal_text(SECRET)
    assert SECRET == between.open_text(text)
    assert SECRET == after.open_text(between.reseal_text(text))
    with pytest.raises(DecodeError, match="key that is not on the ring"):
        after.open_text(text)
    assert SECRET == KeyRing([NEW]).open_text(SECRET)  # from before there was a key


def test_without_a_key_nothing_is_sealed_and_nothing_opened() -> None:
    """A payload is as it is; one that is sealed says what is missing."""
    ring = KeyRing()
    assert not ring.seals
    assert ({"a": 1}, "a") == (ring.seal({"a": 1}), ring.seal_text("a"))
    assert {"a": 1} == ring.open({"a": 1})
    with pytest.raises(DecodeError, match="there is no key"):
        ring.open(KeyRing([NEW]).seal(1))
    with pytest.raises(DecodeError, match="SAGA_ENCRYPTION_KEYS"):
        ring.open_text(KeyRing([NEW]).seal_text("a"))


def test_what_was_tampered_with_is_refused() -> None:
    """Not decrypted to something else."""
    ring = KeyRing([NEW])
    sealed = ring.seal({"amount": 1})[SEALED]
    middle = len(sealed) // 2
    broken = sealed[:middle] + ("A" if sealed[middle] != "A" else "B") + sealed[middle + 1 :]
    with pytest.raises(DecodeError, match="damaged"):
        ring.open({SEALED: broken})


def test_a_wrong_key_is_named_by_its_place() -> None:
    """Never by its text, which may be the right one with a letter too few."""
    with pytest.raises(ConfigurationError, match="key 2 of 2 is no key") as caught:
        KeyRing([NEW, OLD[1:]])
    assert OLD[1:] not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda payload: Reply(
            saga_id="s",
            step="a",
            direction="action",
            attempt=1,
            outcome=Succeeded(output=payload, undo=payload),
        ),
        lambda payload: CompleteRequest(token="t", outcome=Succeeded(output=payload, undo=None)),
        lambda payload: CompleteRequest(
            token="t", outcome=Failed(failure=Failure(kind="k"), undo=payload)
        ),
        lambda payload: StartRequest(name="n", input=payload),
        lambda payload: SignalRequest(saga_id="s", name="n", data=payload),
    ],
    ids=["reply", "completion", "failure", "start", "signal"],
)
def test_payloads_of_messages_are_opened(make: Any, keyed: KeyRing) -> None:
    """Of every kind that carries one, sealed or not; what cannot be opened says why."""
    payload = {"card": SECRET}
    clear: Inbound = make(payload)
    assert clear == open_message(make(keyed.seal(payload)))
    assert clear == open_message(clear)
    refused = open_message(make(KeyRing([OLD]).seal(payload)))
    assert isinstance(refused, Undecodable)
    assert "SAGA_ENCRYPTION_KEYS" in refused.reason


def test_what_a_failure_says_stays_readable(keyed: KeyRing) -> None:
    """Operators have to see it; secrets are redacted in it already."""
    failed = Failed(failure=Failure(kind="OSError", message="x"))
    assert failed is seal_outcome(failed)
    undone = seal_outcome(Failed(failure=failed.failure, undo={"card": SECRET}))
    assert isinstance(undone, Failed)
    assert (undone.failure, SECRET in str(undone)) == (failed.failure, False)
    assert keyed.open(undone.undo) == {"card": SECRET}
    sealed = seal_outcome(Succeeded(output=SECRET, undo=None))
    assert isinstance(sealed, Succeeded)
    assert SECRET not in str(sealed)
    assert sealed.undo is None
