from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.ports import Store
from orchestrator.store.memory import MemoryStore
from orchestrator.store.opening import open_store, upgrade
from orchestrator.store.sql import SqlStore
from tests.contracts.slot_contract import SlotContract
from tests.contracts.store_contract import Opener, StoreContract, change, command, row


class TestMemoryStore(StoreContract, SlotContract):
    @pytest.fixture
    def opener(self) -> Opener:
        """All of them are one: its data are its own."""
        store = MemoryStore()
        return lambda: store

    def test_what_before_commit_raises_commits_nothing(self) -> None:
        """The simulation makes a database fail there."""

        def fail() -> None:
            raise OSError

        store = MemoryStore(before_commit=fail)
        with pytest.raises(OSError):
            store.commit([change(row("s"), commands=[command("s")])])
        assert (store.load(["s"]), store.outbox_size()) == ({}, 0)

    def test_what_after_commit_raises_leaves_it_committed(self) -> None:
        """The answer of a database may get lost."""

        def fail() -> None:
            raise OSError

        store = MemoryStore(after_commit=fail)
        with pytest.raises(OSError):
            store.commit([change(row("s"), commands=[command("s")])])
        assert (store.load(["s"]), store.outbox_size()) == ({"s": row("s")}, 1)


def opener_of(url: str) -> Iterator[Opener]:
    """Open stores on a database that has the schema, and close them all."""
    made: list[SqlStore] = []

    def open_one() -> Store:
        made.append(open_store(url, create=False))
        return made[-1]

    yield open_one
    for store in made:
        store.close()


class TestSqliteStore(StoreContract, SlotContract):
    @pytest.fixture
    def opener(self, tmp_path: Path) -> Iterator[Opener]:
        """Each has its own connections to one file."""
        url = f"sqlite:///{tmp_path}/saga.db"
        upgrade(url)
        yield from opener_of(url)

    def test_what_was_committed_is_there_after_close(self, tmp_path: Path, opener: Opener) -> None:
        """It is in the file."""
        store = opener()
        store.commit([change(row("s"))])
        store.close()
        assert opener().load(["s"]) == {"s": row("s")}


class TestPostgresStore(StoreContract, SlotContract):
    @pytest.fixture
    def opener(self, postgres_url: str) -> Iterator[Opener]:
        """Each has its own connections to one database."""
        upgrade(postgres_url)
        yield from opener_of(postgres_url)


class TestNewStore:
    def test_create_makes_the_schema_where_there_is_none(self, tmp_path: Path) -> None:
        """The embedded store needs no step before its first use; opening it again is fine."""
        url = f"sqlite:///{tmp_path}/new.db"
        for _ in range(2):
            store = open_store(url, create=True)
            store.check()
            store.close()
