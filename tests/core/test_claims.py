"""Large values are kept in a payload store, each once, and come out as they were or not at all."""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

from shared import claims as module
from shared.claims import Claims, claims_of
from shared.clock import utc_now
from shared.errors import (
    ConfigurationError,
    DecodeError,
    InputError,
    PayloadMissing,
    PayloadStoreUnavailable,
    PayloadTooLarge,
)
from shared.payload_store import PayloadStore
from shared.sealing import KeyRing
from shared.settings import Settings
from shared.tickets import ticket

LARGE = "x" * 2_000
OLD, NEW = (Fernet.generate_key().decode() for _ in range(2))


def claims_in(folder: Path, *keys: str) -> Claims:
    """A claim check that keeps files in a folder."""
    folder.parent.mkdir(exist_ok=True)
    if not folder.exists():
        folder.mkdir()
    return Claims(
        PayloadStore(f"file://{folder}"),
        value_bytes=1_000,
        value_bytes_max=10_000,
        keys=KeyRing(keys),
    )


@pytest.fixture
def claims(tmp_path: Path) -> Claims:
    """One without keys."""
    return claims_in(tmp_path / "claims")


@pytest.mark.parametrize("url", ["file://{}", "memory://{}"])
@pytest.mark.parametrize(
    "value",
    [
        {"a": LARGE, "b": 1},
        {"a": LARGE, "again": LARGE, "b": [LARGE]},
        [LARGE],
        LARGE,
        {"unit": {"price": 2**60, "name": "é" * 900}},
    ],
)
def test_a_large_field_becomes_a_ticket_and_comes_back(
    value: Any, url: str, tmp_path: Path
) -> None:
    """On every kind of file system; what is small stays where it is."""
    (tmp_path / "c").mkdir()
    store = PayloadStore(url.format(tmp_path / "c"))
    claims = Claims(store, value_bytes=1_000, value_bytes_max=10_000, keys=KeyRing())
    kept = claims.kept(value, "s-1", "It")
    assert len(str(kept)) < 500
    if isinstance(value, dict) and "b" in value and value["b"] == 1:
        assert kept["b"] == 1
    assert value == claims.fetch(kept, "s-1")
    assert ["s-1"] == store.sagas()
    store.delete("s-1")
    store.delete("s-1")
    assert [] == store.sagas() == store.digests("s-1")
    assert store.newest("s-1") is None


@pytest.mark.parametrize("value", [{"a": "x"}, [], None, {"a": {"$claim": "y"}}, "x" * 900])
def test_what_is_small_is_not_touched(value: Any, claims: Claims) -> None:
    """The very object: nothing is decoded, and nothing is written."""
    assert claims.check_in(value, "It").value is value
    assert [] == claims.store.sagas()


def test_the_same_value_is_kept_once_and_never_written_again(claims: Claims) -> None:
    """A step that is done twice changes nothing for who reads what it wrote first."""
    kept = claims.kept({"a": LARGE}, "s-1", "It")
    (digest,) = claims.store.digests("s-1")
    path = Path(claims.store._files()[1], "s-1", digest)
    path.write_bytes(b"mark")
    assert kept == claims.kept(
        {
            "a": LARGE,
        },
        "s-1",
        "It",
    )
    assert b"mark" == path.read_bytes()


def test_what_looks_like_a_ticket_is_refused(claims: Claims) -> None:
    """Whoever could pass one in would read what another step has kept."""
    forged = {"a": [ticket("0" * 64, 1)], "b": LARGE}
    for value in (forged, {"a": ticket("0" * 64, 1)}):
        with pytest.raises(InputError, match=r"The input holds an object that has '\$claim'"):
            claims.check_in(value, "The input")
    assert claims.check_in(forged, "It", tickets=True).value["a"] == forged["a"]


def test_a_value_that_is_too_large_for_the_store_says_so(claims: Claims) -> None:
    """With its field and the setting."""
    with pytest.raises(PayloadTooLarge, match="The input, field 'a', is 20002 bytes") as caught:
        claims.check_in({"a": "x" * 20_000}, "The input")
    assert "SAGA_CLAIM_CHECK_BYTES_MAX" in str(caught.value)


def test_a_value_that_is_gone_or_damaged_is_named(claims: Claims) -> None:
    """Never passed on as if it were right."""
    kept = claims.kept({"a": LARGE}, "s-1", "It")
    with pytest.raises(PayloadMissing, match=r"does not have the payload .* of saga s-2"):
        claims.fetch(kept, "s-2")
    (digest,) = claims.store.digests("s-1")
    for damaged in (LARGE.encode(), b"\xff"):
        claims.store.write("s-1", digest, damaged, anew=True)
        with pytest.raises(DecodeError, match="is damaged"):
            claims.fetch(kept, "s-1")


def test_kept_values_are_sealed_and_every_key_opens_them(tmp_path: Path) -> None:
    """After the first key was changed too; then they are sealed with the new one."""
    folder = tmp_path / "c"
    kept = claims_in(folder, OLD).kept({"a": LARGE}, "s-1", "It")
    assert not any(b"xxxx" in one.read_bytes() for one in folder.rglob("*") if one.is_file())
    between = claims_in(folder, NEW, OLD)
    assert {"a": LARGE} == between.fetch(kept, "s-1")
    with pytest.raises(DecodeError, match="not on the ring"):
        claims_in(folder, NEW).fetch(kept, "s-1")
    assert 1 == between.reseal()
    assert {"a": LARGE} == claims_in(folder, NEW).fetch(kept, "s-1")


def test_what_is_purged_while_it_is_resealed_is_left_out(
    claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But nothing is left out that is there and cannot be read."""
    claims.kept({"a": LARGE}, "s-1", "It")
    claims.kept({"a": LARGE}, "s-2", "It")
    listed = claims.store.digests

    def purged(saga_id: str) -> list[str]:
        found = listed(saga_id)
        if saga_id == "s-1":
            claims.store.delete(saga_id)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(claims.store, "digests", purged)
        assert 1 == claims.reseal()
    monkeypatch.setattr(claims.store, "digests", lambda _: ["0" * 64])
    with pytest.raises(PayloadStoreUnavailable):
        claims.reseal()


def test_a_value_is_copied_to_another_saga_whatever_becomes_of_the_first(claims: Claims) -> None:
    """What neither of them has is not there, for now at least."""
    kept = claims.kept({"a": LARGE}, "s-1", "It")
    claims.copy([kept], "s-1", "s-2")
    claims.store.delete("s-1")
    claims.copy([kept], "s-1", "s-2")
    assert {"a": LARGE} == claims.fetch(kept, "s-2")
    for store in (claims.store, PayloadStore("memory://copies")):
        store.write("s-3", "0" * 64, b"1")
        store.copy("0" * 64, "s-3", "s-4")
        assert b"1" == store.read("s-4", "0" * 64)
        with pytest.raises(PayloadMissing, match="does not have"):
            store.copy("1" * 64, "s-3", "s-4")


@pytest.mark.parametrize("saga_id", ["../../etc", "..", "a/b", "", "%2E", "ü b"])
def test_no_id_leads_out_of_the_store(saga_id: str, tmp_path: Path) -> None:
    """An id may come from outside; each has a folder of its own."""
    claims = claims_in(tmp_path / "deep" / "c")
    kept = claims.kept({"a": LARGE}, saga_id, "It")
    claims.kept({"a": LARGE}, "other", "It")
    assert {"a": LARGE} == claims.fetch(kept, saga_id)
    assert [tmp_path / "deep"] == list(tmp_path.iterdir())
    assert [tmp_path / "deep" / "c"] == list((tmp_path / "deep").iterdir())
    claims.store.delete(saga_id)
    assert ["other"] == claims.store.sagas()


def test_when_a_saga_was_last_written_is_known(claims: Claims) -> None:
    """By that leftovers are told from what is about to begin."""
    claims.kept({"a": LARGE}, "s-1", "It")
    newest = claims.store.newest("s-1")
    assert newest is not None
    assert abs(newest - utc_now()) < timedelta(minutes=1)


def test_a_folder_that_is_not_there_is_not_made(claims: Claims, tmp_path: Path) -> None:
    """A volume may not be mounted: what was written elsewhere nobody would find."""
    kept = claims.kept({"a": LARGE}, "s-1", "It")
    (tmp_path / "claims").rename(tmp_path / "elsewhere")
    attempts: list[Callable[[], object]] = [
        lambda: claims.kept({"a": LARGE}, "s-1", "It"),
        lambda: claims.fetch(kept, "s-1"),
        lambda: claims.copy(kept, "s-1", "s-2"),
        claims.store.sagas,
    ]
    for attempt in attempts:
        with pytest.raises(PayloadStoreUnavailable, match=r"store file://.*/claims ") as caught:
            attempt()
        assert "SAGA_CLAIM_CHECK_URL" in str(caught.value)
    assert not (tmp_path / "claims").exists()


def test_a_folder_that_is_empty_may_be_another_one(claims: Claims, tmp_path: Path) -> None:
    """Where nothing is mounted, nothing is missing for good."""
    kept = claims.kept({"a": LARGE}, "s-1", "It")
    (tmp_path / "claims").rename(tmp_path / "elsewhere")
    (tmp_path / "claims").mkdir()
    with pytest.raises(PayloadStoreUnavailable, match="nor anything else") as caught:
        claims.fetch(kept, "s-1")
    assert not isinstance(caught.value, PayloadMissing)


def test_a_bucket_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As s3fs says it: no such file."""
    with pytest.raises(PayloadStoreUnavailable, match="may not be mounted") as caught:
        PayloadStore("memory://nowhere").read("s-1", "0" * 64)
    assert not isinstance(caught.value, PayloadMissing)

    def no_bucket(*_: object) -> None:
        raise FileNotFoundError("The specified bucket does not exist")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.pipe_file", no_bucket)
    with pytest.raises(PayloadStoreUnavailable, match="bucket does not exist"):
        PayloadStore("memory://bucket").write("s-1", "0" * 64, b"1")


def test_nothing_unfinished_has_a_name(claims: Claims, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash in the middle leaves what nobody finds, and the next write goes through."""

    def crash(_: int) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crash)
        with pytest.raises(SystemExit):
            claims.kept({"a": LARGE}, "s-1", "It")
    assert [] == claims.store.digests("s-1")
    kept = claims.kept({"a": LARGE}, "s-1", "It")
    assert {"a": LARGE} == claims.fetch(kept, "s-1")


# Settings -------------------------------------------------------------------------------------


def test_without_a_url_there_is_no_claim_check() -> None:
    """The default: what is too large is refused."""
    assert claims_of(Settings()) is None


def test_a_field_that_is_too_large_for_a_message_never_stays_in_it(tmp_path: Path) -> None:
    """Whichever of the two settings is smaller."""
    made = claims_of(
        Settings(
            claim_check_url=f"file://{tmp_path}", claim_check_bytes=5_000, payload_bytes_max=1_024
        )
    )
    assert made is not None
    assert made.check_in({"a": LARGE}, "It").parts


@pytest.mark.parametrize(
    "url, said",
    [("nope://:pw@x/y", "Protocol not known"), ("s3://u:pw@bucket/x", "Install s3fs")],
)
def test_a_scheme_that_nobody_reads_is_a_wrong_setting(url: str, said: str) -> None:
    """With the package that would, and without the password."""
    with pytest.raises(ConfigurationError, match=said) as caught:
        claims_of(Settings(claim_check_url=url))
    assert "SAGA_CLAIM_CHECK_URL" in str(caught.value)
    assert "pw" not in str(caught.value)


def test_without_fsspec_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ConfigurationError, match=r"pip install .*\[claims\]"):
        claims_of(Settings(claim_check_url="memory://x"))


@pytest.mark.parametrize("url", ["/var/claims", "file://claims", "s3://", "file:///"])
def test_a_url_that_names_no_place_is_refused(url: str) -> None:
    """When the settings are read."""
    with pytest.raises(ValueError, match="claim_check_url"):
        Settings(claim_check_url=url)


def test_every_process_makes_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it makes its key ring."""
    monkeypatch.setattr(module, "settings", lambda: Settings(claim_check_url="memory://once"))
    module.claims.cache_clear()
    try:
        assert module.claims() is module.claims()
    finally:
        module.claims.cache_clear()
