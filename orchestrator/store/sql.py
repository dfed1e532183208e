"""The store in SQL: SQLite for one machine, PostgreSQL for several.

Sagas are advanced by compare-and-set on their sequence. On PostgreSQL the rows of a batch are
locked first, in order of id, so that two orchestrators wait for each other instead of failing; on
SQLite there is one writer at a time.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql, sqlite
from typing_extensions import override

from orchestrator.core.definition import Definition
from orchestrator.core.events import Recorded
from orchestrator.core.limits import Limit
from orchestrator.core.state import ACTIVE, Status
from orchestrator.ports import (
    NO_GATES,
    NOTHING_TRACED,
    Change,
    Control,
    Crowd,
    DeadLetter,
    Gate,
    SagaRow,
    SagaSummary,
    Store,
    Survey,
    kept_for,
)
from orchestrator.store import controls, queries, rows, schema, slots
from orchestrator.store.database import Database, Hot
from orchestrator.store.definitions import check_same
from orchestrator.store.keeping import is_kept
from orchestrator.store.statements import PostgresqlStatements, SqliteStatements
from orchestrator.store.survey import survey
from orchestrator.store.tables import (
    IS_FINAL,
    SAGA,
    SAGA_DEAD_LETTER,
    SAGA_DEFINITION,
    SAGA_EVENT,
    SAGA_KEPT,
    SAGA_OUTBOX,
    SAGA_SLOT,
)
from shared.errors import DecodeError
from shared.messages import Command

UNREADABLE_AGAIN: Final = timedelta(minutes=2)
"""How much later a command that cannot be read comes again."""

log = structlog.get_logger("orchestrator")


class SqlStore(Store):
    """Sagas in a SQL database.

    Args:
        url: ``sqlite:///…`` or ``postgresql+psycopg://…``.
    """

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self._hot = SqliteStatements() if self.database.is_sqlite else PostgresqlStatements()
        insert = sqlite.insert if self.database.is_sqlite else postgresql.insert
        self._insert_definition: sa.Insert = insert(SAGA_DEFINITION).on_conflict_do_nothing()

    def migrate(self) -> None:
        """Run the migrations that are missing."""
        found = schema.revision(self.database)
        if found is not None and found > schema.HEAD:
            raise schema.too_new(self.database.shown_url, found)
        if found != schema.HEAD:
            schema.migrate(self.database)

    @override
    def check(self) -> None:
        schema.check(self.database)

    @override
    def close(self) -> None:
        self.database.close()

    # Sagas -----------------------------------------------------------------------------------

    @override
    def load(self, saga_ids: Collection[str]) -> dict[str, SagaRow]:
        ids = rows.storable_ids(saga_ids)
        if not ids:
            return {}
        with self.database.hot_reading() as connection:
            return self._hot.load(connection, ids)

    @override
    def find_by_key(self, name: str, key: str) -> SagaRow | None:
        if not (rows.storable(name) and rows.storable(key)):
            return None
        found = self.load([row.id for row in self._all(queries.by_key(name, key))])
        return next(iter(found.values()), None)

    @override
    def ids_from(self, beginning: str, limit: int) -> list[str]:
        if not rows.storable(beginning):
            return []
        found = self._all(queries.ids_from(beginning, limit))
        return [row.id for row in found if row.id.startswith(beginning)]

    @override
    def find_by_trace(self, trace_id: str) -> list[SagaSummary]:
        if not rows.storable(trace_id):
            return []
        return [rows.summary_from(row) for row in self._all(queries.of_trace(trace_id))]

    @override
    def list_sagas(
        self,
        *,
        statuses: Collection[Status] = (),
        name: str | None = None,
        key: str | None = None,
        limit: int = 50,
        older: tuple[datetime, str] | None = None,
    ) -> list[SagaSummary]:
        wanted = set(statuses) or set(Status)
        if not all(rows.storable(text) for text in (name, key) if text is not None):
            return []
        found = self._all(queries.newest(wanted, name=name, key=key, limit=limit, older=older))
        summaries = [rows.summary_from(row) for row in found if row.status in wanted]
        return sorted(summaries, key=lambda one: (one.started_at, one.saga_id), reverse=True)[
            :limit
        ]

    @override
    def count_by_status(self) -> dict[Status, int]:
        return {Status(row.status): row.sagas for row in self._all(queries.BY_STATUS)}

    @override
    def history(self, saga_ids: Collection[str]) -> dict[str, list[Recorded]]:
        ids = rows.storable_ids(saga_ids)
        if not ids:
            return {}
        with self.database.hot_reading() as connection:
            return self._hot.history(connection, ids)

    @override
    def commit(
        self,
        changes: Sequence[Change],
        *,
        published: Collection[str] = (),
        dead_letters: Sequence[DeadLetter] = (),
        traced: Mapping[str, datetime] = NOTHING_TRACED,
        together: bool = False,
        gates: Mapping[Gate, Limit] = NO_GATES,
    ) -> frozenset[str]:
        for change in changes:
            if not change.expected_sequence:
                rows.require_storable(change.row.saga_id, "The saga id")
                rows.require_storable(change.row.state.key, "The business key")
        try:
            won = self._commit(
                changes, published, dead_letters, traced, together=together, gates=gates
            )
        except _ApartError:
            won = []
        return frozenset(change.row.saga_id for change in changes) - {
            change.row.saga_id for change in won
        }

    def _commit(
        self,
        changes: Sequence[Change],
        published: Collection[str],
        dead_letters: Sequence[DeadLetter],
        traced: Mapping[str, datetime],
        *,
        together: bool,
        gates: Mapping[Gate, Limit],
    ) -> list[Change]:
        """Commit; returns the changes that nobody else was faster with."""
        limited = any(change.slots is not None for change in changes)
        opened = self.database.writing() if limited else self.database.hot_writing()
        with opened as connection:
            fresh = self._fresh(connection, changes, traced)
            if isinstance(connection, sa.Connection) and limited:
                fresh = slots.admit(connection, fresh, gates)
            won = self._write(connection, fresh, published)
            if together and len(won) < len(changes):
                raise _ApartError
            if isinstance(connection, sa.Connection) and limited:
                slots.write(connection, won)
            if dead_letters:
                self._hot.put_aside(connection, dead_letters)
        return won

    def _fresh(
        self, connection: Hot, changes: Sequence[Change], traced: Mapping[str, datetime]
    ) -> list[Change]:
        """Those that nobody else has overtaken; their sagas are locked, but for new ones."""
        locked = {one.row.saga_id for one in changes if one.expected_sequence} | set(traced)
        current = self._hot.sequences(connection, locked) if locked else {}
        if traced:
            self._hot.clear_traces(connection, traced)
        return [one for one in changes if current.get(one.row.saga_id, 0) == one.expected_sequence]

    def _write(
        self, connection: Hot, changes: Sequence[Change], published: Collection[str]
    ) -> list[Change]:
        """Write changes; returns them without new sagas whose id or key is taken."""
        # By key: two batches that begin the same sagas must not wait for each other in a circle.
        new = sorted((one for one in changes if not one.expected_sequence), key=_identity)
        inserted = self._hot.insert(connection, new) if new else set()
        won = [one for one in changes if one.expected_sequence or one.row.saga_id in inserted]
        if won or published:
            self._hot.write(connection, won, published)
        kept = {one.row.saga_id: above for one in won if (above := kept_for(one))}
        if kept:
            self._hot.keep(connection, kept)
        return won

    # Retention -------------------------------------------------------------------------------

    @override
    def ended(
        self,
        before: datetime,
        limit: int,
        *,
        name: str | None = None,
        statuses: Collection[Status] = (),
    ) -> list[str]:
        if name is not None and not rows.storable(name):
            return []
        query = queries.ended(before, limit, name=name, statuses=statuses)
        return [row.id for row in self._all(query)]

    @override
    def delete(self, saga_ids: Collection[str]) -> frozenset[str]:
        ids = rows.storable_ids(saga_ids)
        if not ids:
            return frozenset()
        final = sa.delete(SAGA).where(SAGA.c.id.in_(ids), IS_FINAL, ~is_kept())
        with self.database.writing() as connection:
            gone = list(connection.execute(final.returning(SAGA.c.id)).scalars())
            for table in (SAGA_EVENT, SAGA_OUTBOX, SAGA_KEPT):
                connection.execute(sa.delete(table).where(table.c.saga_id.in_(gone)))
        return frozenset(gone)

    # Timers and outbox -----------------------------------------------------------------------

    @override
    def due(self, now: datetime, limit: int) -> list[str]:
        return [row.id for row in self._all(queries.DUE, {"now": now, "most": limit})]

    @override
    def claim_unpublished(self, before: datetime, now: datetime, limit: int) -> list[Command]:
        asked = {"before": before, "most": limit}
        # Most of the time there is nothing, and a look needs no lock.
        if not self._all(queries.UNPUBLISHED, asked):
            return []
        claim = (
            sa.update(SAGA_OUTBOX)
            .where(SAGA_OUTBOX.c.id.in_(queries.picked(queries.UNPUBLISHED)))
            .values(handed_out_at=now)
            .returning(SAGA_OUTBOX.c.id, SAGA_OUTBOX.c.saga_id, SAGA_OUTBOX.c.command)
        )
        found, unreadable = [], []
        with self.database.writing() as connection:
            for row in connection.execute(claim, asked).all():
                try:
                    found.append(rows.command_from(row.command))
                except DecodeError as error:
                    unreadable.append(row.id)
                    named = {"command_id": row.id, "saga_id": row.saga_id}
                    log.error("outbox.unreadable", **named, reason=str(error))  # noqa: TRY400 - told in one line
            if unreadable:
                later = sa.update(SAGA_OUTBOX).where(SAGA_OUTBOX.c.id.in_(unreadable))
                connection.execute(later.values(handed_out_at=now + UNREADABLE_AGAIN))
        return found

    @override
    def postpone(self, saga_ids: Collection[str], until: datetime) -> None:
        ids = rows.storable_ids(saga_ids)
        active = SAGA.c.status.in_([status.value for status in ACTIVE])
        later = sa.update(SAGA).where(SAGA.c.id.in_(ids), active).values(wake_at=until)
        waiting = SAGA_SLOT.c.saga_id.in_(ids), SAGA_SLOT.c.waiting == 1
        with self.database.writing() as connection:
            connection.execute(later)
            connection.execute(sa.delete(SAGA_SLOT).where(*waiting))

    @override
    def claim_untraced(self, now: datetime, until: datetime, limit: int) -> list[str]:
        asked = {"now": now, "most": limit}
        if not self._all(queries.UNTRACED, asked):
            return []
        claim = (
            sa.update(SAGA)
            .where(SAGA.c.id.in_(queries.picked(queries.UNTRACED)))
            .values(trace_due_at=until)
            .returning(SAGA.c.id)
        )
        with self.database.writing() as connection:
            return list(connection.execute(claim, asked).scalars())

    @override
    def outbox_size(self) -> int:
        return int(self._all(queries.OUTBOX_SIZE)[0][0])

    @override
    def survey(self, late_before: datetime) -> Survey:
        with self.database.reading() as connection:
            return survey(connection, late_before)

    # Room within limits ----------------------------------------------------------------------

    @override
    def crowds(self, gates: Collection[Gate], waiting_max: int) -> dict[Gate, Crowd]:
        with self.database.reading() as connection:
            return slots.crowds(connection, gates, waiting_max)

    @override
    def stray_slots(self, known: Collection[Gate], limit: int) -> list[str]:
        with self.database.writing() as connection:
            return slots.stray(connection, known, limit)

    @override
    def controls(self) -> list[Control]:
        with self.database.reading() as connection:
            return controls.read(connection)

    @override
    def put_control(self, control: Control) -> None:
        with self.database.writing() as connection:
            controls.put(connection, control)

    @override
    def drop_control(self, name: str, step: str, kind: str) -> Control | None:
        with self.database.writing() as connection:
            return controls.drop(connection, name, step, kind)

    # Definitions and dead letters ------------------------------------------------------------

    @override
    def put_definition(self, definition: Definition, now: datetime) -> None:
        stored = self._document(definition.name, definition.version)
        if stored is None:
            with self.database.writing() as connection:
                connection.execute(
                    self._insert_definition,
                    {
                        "name": definition.name,
                        "version": definition.version,
                        "stored_at": now,
                        "document": rows.to_json(definition),
                    },
                )
            # Somebody else may have been faster, with another one.
            stored = self._document(definition.name, definition.version)
        if stored is not None:
            check_same(stored, definition)

    @override
    def definition(self, name: str, version: int) -> Definition | None:
        stored = self._document(name, version)
        return rows.definition_from(stored) if stored else None

    @override
    def definitions(self) -> list[Definition]:
        return [rows.definition_from(row.document) for row in self._all(queries.DOCUMENTS)]

    @override
    def dead_letters(self, limit: int = 50) -> list[DeadLetter]:
        return [rows.dead_letter_from(row) for row in self._all(queries.dead_letters(limit))]

    @override
    def dead_letter(self, dead_letter_id: int) -> DeadLetter | None:
        query = sa.select(SAGA_DEAD_LETTER).where(SAGA_DEAD_LETTER.c.id == dead_letter_id)
        return next((rows.dead_letter_from(row) for row in self._all(query)), None)

    @override
    def drop_dead_letters(self, dead_letter_ids: Collection[int]) -> int:
        drop = sa.delete(SAGA_DEAD_LETTER).where(SAGA_DEAD_LETTER.c.id.in_(dead_letter_ids))
        with self.database.writing() as connection:
            return connection.execute(drop).rowcount

    def _document(self, name: str, version: int) -> str | None:
        if not rows.storable(name):
            return None
        found = self._all(queries.document(name, version))
        return found[0].document if found else None

    def _all(
        self,
        query: sa.Select[Any] | sa.CompoundSelect[Any],
        values: Mapping[str, Any] | None = None,
    ) -> Sequence[sa.Row[Any]]:
        with self.database.reading() as connection:
            return connection.execute(query, values or {}).all()


class _ApartError(Exception):
    """Somebody else was faster with one of the changes that belong together: roll back."""


def _identity(change: Change) -> tuple[str, str, str]:
    state = change.row.state
    return state.name, state.key or "", state.saga_id
