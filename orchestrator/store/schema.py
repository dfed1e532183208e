"""The version of the schema: which one there is, and how to get to this one."""

from pathlib import Path
from typing import Final

import sqlalchemy as sa

from orchestrator.store.database import Database, wrong_schema
from orchestrator.store.tables import METADATA
from shared.errors import ConfigurationError

HEAD: Final = "0005"
"""Revision that this version of the product needs; a test holds it to the newest migration."""

_MIGRATIONS: Final = Path(__file__).with_name("migrations")
VERSION_TABLE: Final = "saga_schema"
"""Not Alembic's own name for it: an application whose database we share may use that one."""

_LOCK: Final = 0x5A6A_0001
"""Number of PostgreSQL's advisory lock for migrations."""


def check(database: Database) -> None:
    """Check that the database answers and has the schema of this version.

    Raises:
        UnavailableError: It does not answer.
        ConfigurationError: Its schema is older or newer.
    """
    found = revision(database)
    if found is None:
        raise wrong_schema(database.shown_url, "has no tables yet")
    if found > HEAD:
        raise too_new(database.shown_url, found)
    if found < HEAD:
        raise wrong_schema(database.shown_url, f"has schema {found}; this version needs {HEAD}")


def too_new(shown_url: str, found: str) -> ConfigurationError:
    """The error for a store that a later version of the product has migrated."""
    return ConfigurationError(
        f"The store {shown_url} has schema {found}, newer than {HEAD}, ours.",
        hint="Run the version of the product that has migrated it, or a later one.",
    )


def revision(database: Database) -> str | None:
    """The revision of the database; None where no migration has run."""
    if database.missing:
        return None
    with database.reading() as connection:
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None
        version = sa.table(VERSION_TABLE, sa.column("version_num", sa.Text))
        return connection.execute(sa.select(version.c.version_num)).scalar()


def migrate(database: Database) -> None:
    """Run the migrations that are missing; two processes may do it at once."""
    # Alembic is needed here alone, and costs a command a tenth of a second.
    from alembic import command
    from alembic.config import Config

    database.make_folder()
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    with database.writing() as connection:
        if not database.is_sqlite:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        _check_free(connection, database.shown_url)
        config.attributes["connection"] = connection
        config.attributes["version_table"] = VERSION_TABLE
        command.upgrade(config, "head")


def _check_free(connection: sa.Connection, shown_url: str) -> None:
    inspector = sa.inspect(connection)
    taken = METADATA.tables.keys() & set(inspector.get_table_names())
    if taken and not inspector.has_table(VERSION_TABLE):
        raise ConfigurationError(
            f"The store {shown_url} has tables of other origin that are named as ours: "
            f"{', '.join(sorted(taken))}.",
            hint="Give the orchestrator a database, or a schema, without them.",
        )
