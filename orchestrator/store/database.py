"""Connections to SQLite and PostgreSQL, and what their errors mean for a caller."""

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event, exc

from shared.errors import ConfigurationError, UnavailableError

BUSY_TIMEOUT_SECONDS: Final = 30
CONNECT_TIMEOUT_SECONDS: Final = 5

_PRAGMAS: Final = (
    "PRAGMA journal_mode=WAL",
    # A start is durable when the call returns, even when the power fails after it.
    "PRAGMA synchronous=FULL",
)
_NO_TABLE: Final = ("no such table", "UndefinedTable", "no such column", "UndefinedColumn")
_DRIVERS: Final = ("sqlite", "postgresql+psycopg")


class Database:
    """An engine for each kind of transaction, on one pool.

    Args:
        url: SQLAlchemy URL: ``sqlite:///…`` or ``postgresql+psycopg://…``; ``postgresql://…`` is
            taken as the latter.

    Raises:
        ConfigurationError: The URL is of neither kind.
    """

    def __init__(self, url: str) -> None:
        self.url = _checked(url)
        self.shown_url = self.url.render_as_string(hide_password=True)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        engine = _sqlite_engine(self.url) if self.is_sqlite else _postgresql_engine(self.url)
        self._read = engine
        self._write = engine.execution_options(saga_write=True)
        # A connection that a forked child shares with its parent would mix up both.
        mine = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forget_connections(mine()))

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that only reads; raises as `writing`."""
        with self._translated(), self._read.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that is committed at the end of the block.

        Raises:
            UnavailableError: The database cannot be reached, or broke off.
            ConfigurationError: Its schema is not the one of this version.
        """
        with self._translated(), self._write.begin() as connection:
            yield connection

    def close(self) -> None:
        """Give connections back."""
        self._read.dispose()

    def forget(self) -> None:
        """Drop connections without closing them: they belong to the parent of this process."""
        self._read.dispose(close=False)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (exc.OperationalError, exc.InterfaceError, exc.ProgrammingError) as error:
            reason = _reason(error)
            if any(sign in reason for sign in _NO_TABLE):
                raise wrong_schema(self.shown_url, "has no tables of this version") from error
            if isinstance(error, exc.ProgrammingError):
                raise
            raise self._unavailable(reason) from error
        except exc.DBAPIError as error:
            # Of SQLite's own errors this is the one that is about the file: it is no database.
            broken = type(error) is exc.DatabaseError
            if not (error.connection_invalidated or broken):
                raise
            raise self._unavailable(_reason(error)) from error
        except exc.TimeoutError as error:
            raise self._unavailable(str(error)) from error

    def _unavailable(self, reason: str) -> UnavailableError:
        return UnavailableError(
            f"The store {self.shown_url} cannot be used: {reason}.",
            hint="Check that it runs and that SAGA_DATABASE_URL is right.",
        )


def wrong_schema(shown_url: str, what: str) -> ConfigurationError:
    """The error for a store whose schema is not this version's."""
    return ConfigurationError(f"The store {shown_url} {what}.", hint="Run `saga db upgrade`.")


def _forget_connections(database: Database | None) -> None:
    if database is not None:
        database.forget()


def _reason(error: exc.DBAPIError) -> str:
    kind = type(error.orig).__name__
    lines = str(error.orig).strip().splitlines()
    return f"{kind}: {lines[0].rstrip('.')}" if lines else kind


def _checked(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except exc.ArgumentError as error:
        raise ConfigurationError(
            "SAGA_DATABASE_URL is no database URL.",
            hint="Write sqlite:///path or postgresql+psycopg://user:password@host/database.",
        ) from error
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername.removesuffix("+pysqlite") not in _DRIVERS:
        raise ConfigurationError(
            f"SAGA_DATABASE_URL is for {parsed.drivername!r}; allowed are {', '.join(_DRIVERS)}."
        )
    return parsed


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(
        url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "isolation_level": None}
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _record: Any) -> None:
        for pragma in _PRAGMAS:
            connection.execute(pragma)

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # A transaction that reads first and then writes could not be retried when it is busy.
        write = connection.get_execution_options().get("saga_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _postgresql_engine(url: sa.URL) -> sa.Engine:
    return sa.create_engine(
        url,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "application_name": "saga-orchestrator",
        },
    )
