"""What a database refuses because of the data is no database that is away: the others go on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from orchestrator.store.opening import open_store
from orchestrator.store.sql import SqlStore
from shared.errors import InputError, UnavailableError
from shared.messages import Succeeded
from tests.contracts.store_contract import change, row
from tests.integration.test_unreadable import Town

REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger AS $$
BEGIN RAISE EXCEPTION 'index row size 2712 exceeds maximum 2704' USING ERRCODE = '{state}'; END
$$ LANGUAGE plpgsql;
CREATE TRIGGER refuse BEFORE UPDATE ON saga FOR EACH ROW WHEN (OLD.id = '{saga_id}' AND
NEW.sequence <> OLD.sequence) EXECUTE FUNCTION refuse();
"""


@pytest.fixture
def store(postgres_url: str) -> Iterator[SqlStore]:
    """A store in PostgreSQL."""
    made = open_store(postgres_url, create=True)
    yield made
    made.close()


def refuse(store: SqlStore, saga_id: str, state: str) -> None:
    """From now on the database refuses what happens to a saga."""
    with store.database.writing() as connection:
        connection.execute(sa.text(REFUSE.format(state=state, saga_id=saga_id)))


STATES: dict[str, type[Exception]] = {
    "54000": InputError,
    "54001": InputError,
    "22003": InputError,
    "23514": InputError,
    "53100": UnavailableError,
    "53300": UnavailableError,
    "57P01": UnavailableError,
    "40001": UnavailableError,
}


def test_the_class_of_the_sql_state_decides(store: SqlStore) -> None:
    """A full disk may be over soon; a value that is too large never is."""
    store.commit([change(row("s"))])
    for state, error in STATES.items():
        refuse(store, "s", state)
        with pytest.raises(error, match="index row size"):
            store.commit([change(row("s", 2))])
        with store.database.writing() as connection:
            connection.execute(sa.text("DROP TRIGGER refuse ON saga"))
            connection.execute(sa.text("DROP FUNCTION refuse"))
    assert store.commit([change(row("s", 2))]) == frozenset()


def test_sqlite_says_so_too(tmp_path: Path) -> None:
    """What its schema forbids is nothing that passes."""
    store = open_store(f"sqlite:///{tmp_path}/saga.db", create=True)
    for writing in (store.database.hot_writing, store.database.writing):
        with pytest.raises(InputError, match="CHECK constraint failed"), writing() as connection:
            connection.exec_driver_sql("INSERT INTO saga_event VALUES ('s', 0, 0, '', '')")
    store.close()


def test_a_saga_whose_change_is_refused_holds_up_nobody(store: SqlStore) -> None:
    """Its messages are dead letters, its timer comes later, and whoever waits is told."""
    town = Town(store)
    refuse(store, town.bad, "54000")
    with capture_logs() as logs:
        town.answer("a", Succeeded())
        town.answer("b", Succeeded())
    assert town.status(town.good) == "completed"
    told = [one for one in logs if one["event"] == "saga.refused_by_store"]
    assert {one["saga_id"] for one in told} == {town.bad}
    letters = town.client.dead_letters()
    assert {(one.saga_id, one.task) for one in letters} == {(town.bad, "saga.reply")}
    assert "index row size 2712" in letters[-1].reason
    assert town.engine.tick(10) == 0
    with pytest.raises(InputError, match="refuses what it was given"):
        town.client.cancel(town.bad, reason="no longer")
