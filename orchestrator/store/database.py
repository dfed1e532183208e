"""Connections to SQLite and PostgreSQL, and what their errors mean for a caller.

Both drivers are in autocommit mode: a statement that reads is a transaction of its own, in one
round trip, and one that writes is between a BEGIN and a COMMIT of ours.
"""

import os
import sqlite3
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import sqlalchemy as sa
from sqlalchemy import event, exc

from shared.clock import monotonic, pause
from shared.errors import ConfigurationError, InputError, UnavailableError

BUSY_TIMEOUT_SECONDS: Final = 30
CONNECT_TIMEOUT_SECONDS: Final = 5

_POLL_SECONDS: Final = 0.01
_TURN_SOON_SECONDS: Final = 0.1
_TURN_POLL_SECONDS: Final = 0.0005
_TURN_LATER_POLL_SECONDS: Final = 0.005
_POSTGRESQL: Final = {
    "application_name": "saga-orchestrator",
    "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    # A server that vanishes without a word, as after a failover, is noticed all the same.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
_NO_TABLE: Final = ("no such table", "UndefinedTable", "no such column", "UndefinedColumn")
_OF_DATA: Final = ("22", "23", "54")
"""Classes of SQL states that are about the data and not about the server.

`psycopg` calls the last one an operational error like those of a server that is down: a row that is
too large for its index, for example. 53, no memory or disk, is about the server.
"""

_BEGIN_SQLITE: Final = "BEGIN IMMEDIATE"
_WAIT_NEVER: Final = "PRAGMA busy_timeout=0"
_WAIT_LONG: Final = f"PRAGMA busy_timeout={BUSY_TIMEOUT_SECONDS * 1000}"
_PRIMARY_CODE: Final = 0xFF
_DRIVERS: Final = ("sqlite", "postgresql+psycopg")


class Hot(Protocol):
    """A connection for `statements`: takes text for the driver, and lists for many rows."""

    def exec_driver_sql(self, statement: str, parameters: Any = None) -> Any:
        """Run a statement; returns its rows."""


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
        self._idle: deque[sa.PoolProxiedConnection] = deque()
        _opened.add(self)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Statements that only read, each a transaction of its own; raises as `writing`."""
        with self._translated(), self._read.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that is committed at the end of the block.

        Raises:
            UnavailableError: The database cannot be reached, or broke off.
            InputError: It refuses what it was given.
            ConfigurationError: Its schema is not the one of this version.
        """
        with self._translated(), self._write.begin() as connection:
            yield connection

    @contextmanager
    def hot_reading(self) -> Iterator[Hot]:
        """As `reading`, for statements as text: on SQLite straight by its driver.

        SQLAlchemy's part of a statement costs 40 microseconds and that of a transaction 150,
        where SQLite itself takes 5 for most of them.
        """
        if self.is_sqlite:
            with self._driver() as connection:
                yield _SqliteDriver(connection)
        else:
            with self.reading() as connection:
                yield connection

    @contextmanager
    def hot_writing(self) -> Iterator[Hot]:
        """As `writing`, for statements as text: on SQLite straight by its driver."""
        if self.is_sqlite:
            with self._driver() as connection:
                _in_turn(connection.execute, _BEGIN_SQLITE)
                try:
                    yield _SqliteDriver(connection)
                    _in_turn(connection.execute, "COMMIT")
                except BaseException:
                    connection.rollback()
                    raise
        else:
            with self.writing() as connection:
                yield connection

    @contextmanager
    def _driver(self) -> Iterator[sqlite3.Connection]:
        """A connection that is kept for the next who asks: taking one from the pool costs 25 µs."""
        with self._translated():
            try:
                pooled = self._idle.pop()
            except IndexError:
                pooled = self._read.raw_connection()
                pooled.driver_connection.execute(_WAIT_NEVER)  # type: ignore[union-attr]
            connection: Any = pooled.driver_connection
            try:
                yield connection
            except BaseException:
                connection.execute(_WAIT_LONG)
                pooled.close()
                raise
            self._idle.append(pooled)

    @property
    def missing(self) -> bool:
        """Whether it is a file that does not exist: connecting would make an empty one."""
        return self.is_sqlite and not Path(self.url.database or "").exists()

    def make_folder(self) -> None:
        """Make the folder that a database in a file needs."""
        if self.is_sqlite:
            Path(self.url.database or "").parent.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Give connections back."""
        while self._idle:
            self._idle.pop().close()
        self._read.dispose()

    def forget(self) -> None:
        """Drop connections without closing them: they belong to the parent of this process.

        They are kept, not collected: SQLite must not even close in a child what its parent opened.
        """
        _inherited.append((self._read.pool, self._idle))
        self._idle = deque()
        self._read.dispose(close=False)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except exc.DBAPIError as error:
            meant = self._meant(error)
            if meant is error:
                raise
            raise meant from error
        except exc.TimeoutError as error:
            raise self._unavailable(str(error)) from error
        except sqlite3.Error as error:
            meant_by_driver = self._meant_by_sqlite(error)
            if meant_by_driver is error:
                raise
            raise meant_by_driver from error

    def _meant(self, error: exc.DBAPIError) -> Exception:
        """What an error says to a caller; itself where it is a mistake of ours."""
        reason = _reason(error)
        of_data = isinstance(error, exc.DataError | exc.IntegrityError)
        if of_data or _sql_state(error)[:2] in _OF_DATA:
            return self._refused(reason)
        if any(sign in reason for sign in _NO_TABLE):
            return wrong_schema(self.shown_url, "has no tables of this version")
        # Of SQLite's own errors the last one is about the file: it is no database.
        away = isinstance(error, exc.OperationalError | exc.InterfaceError) or (
            error.connection_invalidated or type(error) is exc.DatabaseError
        )
        return self._unavailable(reason) if away else error

    def _meant_by_sqlite(self, error: sqlite3.Error) -> Exception:
        """The same, of the driver itself."""
        reason = _told(error)
        if isinstance(error, sqlite3.DataError | sqlite3.IntegrityError):
            return self._refused(reason)
        if any(sign in reason for sign in _NO_TABLE):
            return wrong_schema(self.shown_url, "has no tables of this version")
        away = isinstance(error, sqlite3.OperationalError | sqlite3.InterfaceError)
        return self._unavailable(reason) if away or type(error) is sqlite3.DatabaseError else error

    def _refused(self, reason: str) -> InputError:
        """It answers, and will never take this: to try again would hold up everything else."""
        return InputError(
            f"The store {self.shown_url} refuses what it was given: {reason}.",
            hint="Nothing of it was stored.",
        )

    def _unavailable(self, reason: str) -> UnavailableError:
        return UnavailableError(
            f"The store {self.shown_url} cannot be used: {reason}.",
            hint="Check that it runs and that SAGA_DATABASE_URL is right.",
        )


class _SqliteDriver:
    """SQLite's driver, called as SQLAlchemy's connection is."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def exec_driver_sql(self, statement: str, parameters: Any = ()) -> sqlite3.Cursor:
        many = isinstance(parameters, list)
        run = self._connection.executemany if many else self._connection.execute
        return _in_turn(run, statement, parameters)


def _in_turn(run: Callable[..., sqlite3.Cursor], *arguments: Any) -> sqlite3.Cursor:
    """Run a statement as soon as the others let us.

    SQLite itself waits 1, 2, 5, 10, 15, 20, 25 … 100 milliseconds between two looks, where the others
    need the lock for one or two: who came at a bad moment was 50 milliseconds late.
    """
    begun_at = None
    while True:
        try:
            return run(*arguments)
        except sqlite3.OperationalError as error:
            # The code may carry more: that the log is being recovered, for example.
            if error.sqlite_errorcode & _PRIMARY_CODE != sqlite3.SQLITE_BUSY:
                raise
            waited = 0.0 if begun_at is None else monotonic() - begun_at
            if waited >= BUSY_TIMEOUT_SECONDS:
                raise
        begun_at = monotonic() if begun_at is None else begun_at
        pause(_TURN_POLL_SECONDS if waited < _TURN_SOON_SECONDS else _TURN_LATER_POLL_SECONDS)


def wrong_schema(shown_url: str, what: str) -> ConfigurationError:
    """The error for a store whose schema is not this version's."""
    return ConfigurationError(f"The store {shown_url} {what}.", hint="Run `saga db upgrade`.")


_opened: Final["weakref.WeakSet[Database]"] = weakref.WeakSet()
_inherited: Final[list[object]] = []


def _forget_connections() -> None:
    # A connection that a forked child shares with its parent would mix up both.
    for database in list(_opened):
        database.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_connections)


def _sql_state(error: exc.DBAPIError) -> str:
    """The five characters of the SQL standard; empty where the database said nothing."""
    return getattr(error.orig, "sqlstate", None) or ""


def _reason(error: exc.DBAPIError) -> str:
    return _told(error.orig)


def _told(error: BaseException | None) -> str:
    kind = type(error).__name__
    lines = str(error).strip().splitlines()
    return f"{kind}: {lines[0].rstrip('.')}" if lines else kind


def _checked(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except (exc.ArgumentError, ValueError) as error:  # a port that is no number is the latter
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
    if parsed.get_backend_name() == "sqlite" and parsed.database in {None, "", ":memory:"}:
        raise ConfigurationError(
            "SAGA_DATABASE_URL is a SQLite in memory, which no other process could see.",
            hint="Name a file: sqlite:///path.",
        )
    return parsed


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    engine = sa.create_engine(
        url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "isolation_level": None}
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _record: Any) -> None:
        _journal_ahead(connection)
        # A start is durable when the call returns, even when the power fails after it.
        connection.execute("PRAGMA synchronous=FULL")

    # A transaction that reads first and then writes could not be retried when it is busy.
    _begin_writing(engine, _BEGIN_SQLITE)
    return engine


def _journal_ahead(connection: sqlite3.Connection) -> None:
    """Switch to WAL. SQLite does not wait for this lock: two may open a new file at once."""
    deadline = monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or monotonic() >= deadline:
                raise
        pause(_POLL_SECONDS)


def _postgresql_engine(url: sa.URL) -> sa.Engine:
    import psycopg  # not for who has SQLite: every command of theirs would wait for it

    given = {name: value for name, value in _POSTGRESQL.items() if name not in url.query}
    engine = sa.create_engine(url, connect_args={"autocommit": True, **given})

    @event.listens_for(engine, "checkout")
    def still_there(connection: Any, _record: Any, _proxy: Any) -> None:
        # What a ping would find out, without its round trip: a server that went away has closed
        # the socket. The first read may bring its farewell, the second the end.
        try:
            connection.pgconn.consume_input()
            connection.pgconn.consume_input()
        except psycopg.OperationalError as error:
            raise exc.DisconnectionError from error

    @event.listens_for(engine, "handle_error")
    def away(context: Any) -> None:
        # After a failover the old server still answers, and only reads.
        if isinstance(context.original_exception, psycopg.errors.ReadOnlySqlTransaction):
            context.is_disconnect = True

    # Compare-and-set relies on it, whatever the default of this database is.
    _begin_writing(engine, "BEGIN ISOLATION LEVEL READ COMMITTED")
    return engine


def _begin_writing(engine: sa.Engine, statement: str) -> None:
    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("saga_write"):
            connection.exec_driver_sql(statement)
