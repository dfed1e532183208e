"""A limit is one limit, however many orchestrators there are and whatever becomes of them."""

import sys
from pathlib import Path

import sqlalchemy as sa

from orchestrator.core.state import ACTIVE
from orchestrator.store.opening import open_store, upgrade
from tests.integration.room_process import AT_ONCE, WORKING
from tests.servers.process import kill_tree, spawn
from tests.waiting import wait_until

SAGAS = 10


def test_two_orchestrators_never_exceed_a_limit_and_a_killed_one_holds_no_slot(
    postgres_url: str, tmp_path: Path
) -> None:
    """Counted by those who are called; the other one carries on with the sagas of both."""
    upgrade(postgres_url)
    store, outside = open_store(postgres_url, create=False), sa.create_engine(postgres_url)
    WORKING.create(outside)
    here = str(Path(__file__).parents[2])
    module = [sys.executable, "-m", "tests.integration.room_process", postgres_url]
    first, second = (
        spawn(
            [*module, name, str(SAGAS), *after],
            log=tmp_path / f"{name}.log",
            env={"PYTHONPATH": here},
        )
        for name, *after in (("first",), ("second", "first"))
    )

    def rows(*columns: sa.ColumnElement[object]) -> list[tuple[object, ...]]:
        with outside.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.select(*columns))]

    def is_under_way() -> bool:
        of = [row[0] for row in rows(WORKING.c.process)]
        return "first" in of and len(of) >= 2 * AT_ONCE

    try:
        wait_until(is_under_way, timeout=60, what="both work")
        kill_tree(first)
        with outside.begin() as connection:  # whoever it called is not busy any more
            killed = sa.update(WORKING).where(WORKING.c.process == "first")
            connection.execute(killed.values(over=True))
        wait_until(lambda: second.poll() is not None, timeout=60, what="the other one ends")
        assert second.returncode == 0, (tmp_path / "second.log").read_text()
        assert store.list_sagas(statuses=ACTIVE) == []
        assert max(row[0] for row in rows(WORKING.c.at_once)) == AT_ONCE  # type: ignore[type-var]
        assert store.crowds([("limited", "charge")], 1)["limited", "charge"].in_flight == 0
    finally:
        for process in (first, second):
            if process.poll() is None:
                kill_tree(process)
        store.close()
        outside.dispose()
