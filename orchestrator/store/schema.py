"""The version of the schema: which one there is, and how to get to this one."""

from pathlib import Path
from typing import Final

import sqlalchemy as sa

from orchestrator.store.database import Database, wrong_schema
from shared.errors import ConfigurationError

HEAD: Final = "0001"
"""Revision that this version of the product needs; a test holds it to the newest migration."""

_MIGRATIONS: Final = Path(__file__).with_name("migrations")
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
    with database.reading() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def migrate(database: Database) -> None:
    """Run the migrations that are missing; two processes may do it at once."""
    # Alembic is needed here alone, and costs a command a tenth of a second.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    with database.writing() as connection:
        if not database.is_sqlite:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
