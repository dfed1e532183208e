"""At most one effect: a record of each step in the participant's database, beside its work.

Messages come twice, late, out of order, and two copies run at the same time. The barrier answers
all of it with one insert in the transaction of the work (the idea is that of dtm's ``barrier.go``):

    action        inserts (saga, step, action)
                  │ inserted      it runs, and its outcome is stored in the row
                  │ has outcome   a duplicate: the stored outcome is the answer; but a later
                  │               attempt runs where the earlier one was rejected, or accepted
                  └ has tombstone its compensation came first: refused
    compensation  inserts (saga, step, compensation)
                  │ exists        a duplicate: the stored outcome is the answer
                  └ inserted      and inserts the action's row, as a tombstone
                      │ inserted      the action never happened and never will: nothing to undo
                      │ was rejected  nothing happened: nothing to undo, and a tombstone from now on
                      └ succeeded     it runs, with the undo data of the stored outcome

A second copy waits at the insert for the first one's transaction: on PostgreSQL in the unique
index, on SQLite in ``BEGIN IMMEDIATE``. A failure rolls everything back, the row too, so that a
later attempt runs afresh. A rejection rolls the work back and keeps the row, since a duplicate of
a rejected action must not succeed later. The number of the attempt tells a duplicate from another
try.
"""

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql, sqlite

from shared import codec
from shared.clock import utc_now
from shared.errors import ConfigurationError
from shared.ids import Direction
from shared.messages import Accepted, Rejected, Succeeded
from workers.sdk.command import StepCommand
from workers.sdk.outcome import Fail, Reject, failure, failure_of

COMPENSATED_BEFORE: Final = "CompensatedBefore"
BUSY_TIMEOUT_S: Final = 30
"""How long a transaction of SQLite waits for the one that writes."""

_LOCK_KEY: Final = 0x5A6A_BA22
"""Advisory lock of PostgreSQL: two processes that create tables at once."""


class Tombstone(msgspec.Struct, frozen=True, tag="tombstone"):
    """Stands in an action's row when its compensation came first."""


Settled = Succeeded | Rejected | Accepted
_Stored = Settled | Tombstone

Known = TypeVar("Known", Succeeded, Rejected, Succeeded | Accepted, Settled)

metadata = sa.MetaData()

saga_barrier = sa.Table(
    "saga_barrier",
    metadata,
    sa.Column("saga_id", sa.String(255), primary_key=True),
    sa.Column("step", sa.String(255), primary_key=True),
    sa.Column("direction", sa.String(16), primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    # Null only while the transaction runs that inserted the row.
    sa.Column("outcome", sa.Text),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
)


class Verdict(NamedTuple):
    """What the barrier says of an attempt.

    Attributes:
        outcome: What the orchestrator is told.
        note: ``duplicate`` or ``nothing_to_undo`` where the function was not called.
    """

    outcome: Settled
    note: str = ""


Work = Callable[[sa.Connection, Any], Succeeded | Accepted]
"""Does the step in the transaction; gets the stored undo data, None for an action."""


class Barrier:
    """The barrier in one database.

    Args:
        database: SQLAlchemy URL, or an engine for SQLite or PostgreSQL.

    Raises:
        ConfigurationError: Another kind of database.
    """

    def __init__(self, database: str | sa.Engine) -> None:
        self.engine = database if isinstance(database, sa.Engine) else engine_of(database)
        dialect = self.engine.dialect.name
        if dialect not in {"sqlite", "postgresql"}:
            raise ConfigurationError(
                f"A participant's database is SQLite or PostgreSQL, not {dialect}.",
                hint="Without one, make the steps idempotent by their idempotency_key.",
            )
        self._sqlite = dialect == "sqlite"
        self._insert = sqlite.insert if self._sqlite else postgresql.insert
        _discard_after_fork(self.engine)

    def create_tables(self, *more: sa.MetaData) -> None:
        """Create the barrier's table and, in the same way, those of other metadata.

        Does nothing where they exist; safe in several processes at once.
        """
        name = self.engine.url.database
        if self._sqlite and name and name != ":memory:":
            Path(name).parent.mkdir(parents=True, exist_ok=True)
        with self.transaction() as connection:
            if not self._sqlite:
                # CREATE TABLE IF NOT EXISTS is not safe against itself on PostgreSQL.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_KEY)))
            for one in (metadata, *more):
                one.create_all(connection)

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """A transaction that holds, on SQLite, the right to write from its beginning."""
        with self._turn(), self.engine.connect() as connection, connection.begin():
            if self._sqlite:
                _begin_immediate(connection)
            yield connection

    def run(self, command: StepCommand, work: Work) -> Verdict:
        """Do a step unless it was done before, in one transaction with the record of it.

        Raises:
            Exception: What `work` raises, but not the `Reject` of an action. Nothing is stored.
        """
        with self.transaction() as connection:
            if command.direction == "action":
                return self._action(connection, command, work)
            return self._compensation(connection, command, work)

    def _action(self, connection: sa.Connection, command: StepCommand, work: Work) -> Verdict:
        if not self._claim(connection, command, "action"):
            match _stored(connection, command, "action"):
                case (Rejected() | Accepted()) as known if _replaced(connection, command, known):
                    pass  # an attempt that was asked for after that one had ended
                case _:
                    return _known(connection, command)
        outcome: Settled
        savepoint = connection.begin_nested()
        try:
            outcome = work(connection, None)
        except Reject as rejection:
            savepoint.rollback()
            outcome = Rejected(failure=failure_of(rejection))
        else:
            savepoint.commit()
        return Verdict(_store(connection, command, outcome))

    def _compensation(
        self, connection: sa.Connection, command: StepCommand, work: Work
    ) -> Verdict:
        if not self._claim(connection, command, "compensation"):
            known = _stored(connection, command, "compensation")
            if not isinstance(known, Succeeded | Accepted):
                raise _unfinished(command)
            return Verdict(known, "duplicate")
        undo = None
        if self._claim(connection, command, "action", Tombstone()):
            return Verdict(_store(connection, command, Succeeded()), "nothing_to_undo")
        match _closed(connection, command):
            case Rejected() | Tombstone():
                return Verdict(_store(connection, command, Succeeded()), "nothing_to_undo")
            case Succeeded(undo=undo):
                pass
            case None | Accepted():
                # The function committed by itself and was then interrupted, or its work went on
                # elsewhere: it may have happened.
                pass
        outcome = work(connection, undo)
        return Verdict(_store(connection, command, outcome))

    def _claim(
        self,
        connection: sa.Connection,
        command: StepCommand,
        direction: Direction,
        outcome: _Stored | None = None,
    ) -> bool:
        """Insert the row; False where it exists. Waits for another transaction that inserts it."""
        insert = self._insert(saga_barrier).values(
            saga_id=command.effect_of,
            step=command.step,
            direction=direction,
            attempt=command.attempt,
            outcome=None if outcome is None else codec.encode(outcome).decode(),
            created_at=utc_now(),
        )
        # Drivers differ in what they count for an insert; a row that comes back was inserted.
        returned = insert.on_conflict_do_nothing().returning(saga_barrier.c.attempt)
        try:
            return connection.execute(returned).first() is not None
        except (exc.OperationalError, exc.ProgrammingError) as error:
            if not _lacks_table(error):
                raise
            raise ConfigurationError(
                "The participant's database has no table saga_barrier.",
                hint="Call participant.create_tables() once, before its worker starts.",
            ) from error

    def _turn(self) -> AbstractContextManager[Any]:
        return _sqlite_turn(str(self.engine.url)) if self._sqlite else nullcontext()


def engine_of(url: str) -> sa.Engine:
    """An engine for a database URL; connections that broke while they were idle are replaced."""
    try:
        parsed = sa.make_url(url)
    except (exc.ArgumentError, ValueError) as error:
        raise ConfigurationError(
            "The database of the participant is given by something that is no database URL.",
            hint="Write sqlite:///path or postgresql+psycopg://user:password@host/database.",
        ) from error
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "sqlite":
        return sa.create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_S})
    return sa.create_engine(parsed, pool_pre_ping=True)


def _lacks_table(error: exc.DBAPIError) -> bool:
    """Whether the table is missing: in the words of SQLite, and by the code of PostgreSQL."""
    code = getattr(error.orig, "sqlstate", "")
    return code == "42P01" or f"no such table: {saga_barrier.name}" in str(error.orig)


def _stored(
    connection: sa.Connection, command: StepCommand, direction: Direction
) -> _Stored | None:
    query = sa.select(saga_barrier.c.outcome).where(*_key(command, direction))
    raw: str | None = connection.execute(query).scalar_one()
    return None if raw is None else codec.decode(raw, _Stored)  # type: ignore[arg-type]  # a union


def _known(connection: sa.Connection, command: StepCommand) -> Verdict:
    """The stored outcome of an action, read anew: another transaction may have changed it."""
    match _stored(connection, command, "action"):
        case Tombstone():
            text = "The compensation of this step came first."
            refusal = failure(COMPENSATED_BEFORE, text, retryable=False)
            return Verdict(Rejected(failure=refusal), "duplicate")
        case None:
            raise _unfinished(command)
        case known:
            return Verdict(known, "duplicate")


def _replaced(connection: sa.Connection, command: StepCommand, known: Rejected | Accepted) -> bool:
    """Take the row of an earlier attempt over; False for a duplicate of that one.

    A later attempt is sent only after that one had ended: an operator asks for it after a
    rejection, perhaps with another payload, and a policy after work elsewhere has failed.
    """
    update = (
        saga_barrier.update()
        .where(*_key(command, "action"))
        # Another transaction may be faster: with its attempt, or with the compensation.
        .where(saga_barrier.c.attempt < command.attempt, saga_barrier.c.outcome == _text(known))
        .values(attempt=command.attempt, outcome=None)
        .returning(saga_barrier.c.attempt)
    )
    return connection.execute(update).first() is not None


def _closed(connection: sa.Connection, command: StepCommand) -> _Stored | None:
    """The outcome of an action that is compensated now; no later attempt of it may run.

    What had succeeded answers every later attempt by itself.
    """
    while True:
        known = _stored(connection, command, "action")
        if not isinstance(known, Rejected | Accepted):
            return known
        update = (
            saga_barrier.update()
            .where(*_key(command, "action"), saga_barrier.c.outcome == _text(known))
            .values(outcome=_text(Tombstone()))
            .returning(saga_barrier.c.attempt)
        )
        # Else a later attempt has taken the row over meanwhile, and its outcome counts.
        if connection.execute(update).first() is not None:
            return known


def _text(outcome: _Stored) -> str:
    return codec.encode(outcome).decode()


def _store(connection: sa.Connection, command: StepCommand, outcome: Known) -> Known:
    update = (
        saga_barrier.update()
        .where(*_key(command, command.direction))
        .values(outcome=codec.encode(outcome).decode())
    )
    connection.execute(update)
    return outcome


def _key(command: StepCommand, direction: Direction) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        saga_barrier.c.saga_id == command.effect_of,
        saga_barrier.c.step == command.step,
        saga_barrier.c.direction == direction,
    )


def _unfinished(command: StepCommand) -> Fail:
    return Fail(
        "CommittedByItself",
        f"The {command.direction} of step {command.step!r} committed the barrier's transaction "
        "by itself and was then interrupted; what it did is unknown.",
        retryable=False,
    )


def _begin_immediate(connection: sa.Connection) -> None:
    # The driver begins by itself, and only at the first write: too late for two copies that both
    # read first. An engine of the application's own may have begun already.
    if not getattr(connection.connection.dbapi_connection, "in_transaction", False):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


_turns: dict[str, threading.Lock] = {}


def _sqlite_turn(url: str) -> threading.Lock:
    """One writer at a time in this process, in order of arrival.

    SQLite waits inside the thread: a greenlet that waits there stops the one that it waits for.
    """
    return _turns.setdefault(url, threading.Lock())


def _discard_after_fork(engine: sa.Engine) -> None:
    """Leave a parent's connections to the parent."""
    reference = weakref.ref(engine)

    def discard() -> None:
        inherited = reference()
        if inherited is not None:
            inherited.dispose(close=False)

    os.register_at_fork(after_in_child=discard)
