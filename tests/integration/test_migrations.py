import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from orchestrator.store import migrations, schema
from orchestrator.store.opening import open_store, upgrade
from orchestrator.store.tables import METADATA
from shared.errors import ConfigurationError
from tests.contracts.store_contract import change, row

BOTH = ["sqlite", "postgresql"]

_POSTGRESQL = """
    SELECT 'index', indexname, indexdef FROM pg_indexes
    WHERE schemaname = 'public' AND tablename <> 'saga_schema'
    UNION ALL
    SELECT 'constraint', conname, conrelid::regclass || ' ' || pg_get_constraintdef(oid)
    FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'saga_schema'
    UNION ALL
    SELECT 'column', table_name || '.' || ordinal_position || '.' || column_name,
        data_type || ' ' || is_nullable || ' ' || coalesce(column_default, '')
    FROM information_schema.columns
    WHERE table_schema = 'public' AND table_name <> 'saga_schema'
"""
_SQLITE = """
    SELECT type, name, sql FROM sqlite_master
    WHERE tbl_name <> 'saga_schema' AND sql IS NOT NULL
"""


@pytest.fixture(params=BOTH)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/saga.db"
    made: str = request.getfixturevalue("postgres_url")
    return made


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    """A plain engine on it, without anything of the store."""
    made = sa.create_engine(url)
    yield made
    made.dispose()


def objects(engine: sa.Engine) -> dict[tuple[str, str], str]:
    """Every table, column, constraint and index of a database with its definition."""
    query = _SQLITE if engine.dialect.name == "sqlite" else _POSTGRESQL
    with engine.connect() as connection:
        return {
            (kind, name): _in_order(" ".join(str(text).split()))
            for kind, name, text in connection.execute(sa.text(query))
        }


def _in_order(definition: str) -> str:
    """SQLite keeps the text of a table, in which the order of constraints means nothing."""
    columns, *constraints = definition.removesuffix(" )").split(", CONSTRAINT ")
    return ", CONSTRAINT ".join([columns, *sorted(constraints)])


def test_migrations_reach_exactly_the_declared_schema(url: str, engine: sa.Engine) -> None:
    """Alembic sees no difference, nor does the database: checks and partial indexes too."""
    upgrade(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "version_table": schema.VERSION_TABLE,
            },
        )
        found: list[Any] = compare_metadata(context, METADATA)
    assert found == []
    migrated = objects(engine)
    assert migrated
    METADATA.drop_all(engine)
    assert objects(engine) == {}
    METADATA.create_all(engine)
    assert objects(engine) == migrated


def test_upgrading_twice_is_fine(url: str, engine: sa.Engine) -> None:
    """It keeps what is stored."""
    upgrade(url)
    store = open_store(url, create=False)
    store.commit([change(row("s"))])
    before = objects(engine)
    upgrade(url)
    assert objects(engine) == before
    assert store.load(["s"]) == {"s": row("s")}
    store.close()


def test_two_processes_may_upgrade_at_once(url: str) -> None:
    """Orchestrators of one deployment start together; both find it done."""
    together = threading.Barrier(2, timeout=30)
    done: list[None] = []

    def run() -> None:
        together.wait()
        upgrade(url)
        done.append(None)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(done) == 2
    store = open_store(url, create=False)
    store.check()
    store.close()


def test_an_empty_database_is_told_from_an_upgraded_one(url: str, engine: sa.Engine) -> None:
    """The error says what to run, and nothing is created behind anybody's back."""
    with pytest.raises(ConfigurationError, match="Run `saga db upgrade`"):
        open_store(url, create=False)
    assert objects(engine) == {}
    upgrade(url)
    open_store(url, create=False).close()


def test_an_older_schema_says_how_to_upgrade(url: str, engine: sa.Engine) -> None:
    """With both revisions."""
    upgrade(url)
    _stamp(engine, "0000")
    with pytest.raises(ConfigurationError, match=rf"0000.*{schema.HEAD}.*`saga db upgrade`"):
        open_store(url, create=False)


def test_a_newer_schema_is_refused(url: str, engine: sa.Engine) -> None:
    """An older program must not touch it, and cannot mend it by upgrading."""
    upgrade(url)
    _stamp(engine, "9999")
    for attempt in (
        lambda: open_store(url, create=False),
        lambda: open_store(url, create=True),
        lambda: upgrade(url),
    ):
        with pytest.raises(ConfigurationError, match="9999, newer"):
            attempt()


@pytest.mark.parametrize("theirs", ["ae1027a6acf0", schema.HEAD])
def test_a_database_may_have_migrations_of_another_application(
    url: str, engine: sa.Engine, theirs: str
) -> None:
    """Alembic's own table is theirs: what it says is not about us, and stays as it is."""
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        connection.execute(sa.text("INSERT INTO alembic_version VALUES (:it)"), {"it": theirs})
    with pytest.raises(ConfigurationError, match="no tables yet"):
        open_store(url, create=False)
    upgrade(url)
    store = open_store(url, create=False)
    assert store.commit([change(row("s"))]) == frozenset()
    store.close()
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalars()
        assert list(found) == [theirs]


def test_tables_of_other_origin_are_named_and_kept(url: str, engine: sa.Engine) -> None:
    """Somebody else's table may be called like one of ours."""
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE saga (title TEXT)"))
    before = objects(engine)
    with pytest.raises(ConfigurationError, match=r"named as ours: saga\."):
        upgrade(url)
    assert objects(engine) == before


def test_head_is_the_newest_migration() -> None:
    """The check at the start asks for the one that the migrations end with."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


def _stamp(engine: sa.Engine, revision: str) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE saga_schema SET version_num = :revision"), {"revision": revision}
        )
