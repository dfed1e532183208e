"""The store in SQL: SQLite for one machine, PostgreSQL for several.

Sagas are advanced by compare-and-set on their sequence. On PostgreSQL the rows of a batch are
locked first, in order of id, so that two orchestrators wait for each other instead of failing; on
SQLite there is one writer at a time.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from typing_extensions import override

from orchestrator.core.definition import Definition
from orchestrator.core.events import Recorded
from orchestrator.core.state import Status
from orchestrator.ports import Change, DeadLetter, SagaRow, SagaSummary, Store
from orchestrator.store import rows, schema
from orchestrator.store.database import Database
from orchestrator.store.definitions import check_same
from orchestrator.store.tables import (
    SAGA,
    SAGA_DEAD_LETTER,
    SAGA_DEFINITION,
    SAGA_EVENT,
    SAGA_OUTBOX,
)
from shared.messages import Command

_ROW: Final = (
    SAGA.c.sequence,
    SAGA.c.state,
    SAGA.c.wake_at,
    SAGA.c.started_at,
    SAGA.c.updated_at,
    SAGA.c.trace_due_at,
)
_SUMMARY: Final = tuple(column for column in SAGA.c if column.name != "state")
_IDS: Final[sa.BindParameter[Any]] = sa.bindparam("ids", expanding=True)

_LOAD: Final = sa.select(*_ROW).where(SAGA.c.id.in_(_IDS))
_SEQUENCES: Final = (
    sa.select(SAGA.c.id, SAGA.c.sequence)
    .where(SAGA.c.id.in_(_IDS))
    .order_by(SAGA.c.id)
    .with_for_update()
)
_UPDATE: Final = (
    sa.update(SAGA)
    .where(SAGA.c.id == sa.bindparam("saga_id"))
    .values(
        {
            name: sa.bindparam(f"new_{name}")
            for name in (
                "status",
                "sequence",
                "updated_at",
                "wake_at",
                "trace_due_at",
                "state",
            )
        }
    )
)
_HISTORY: Final = (
    sa.select(SAGA_EVENT.c.saga_id, SAGA_EVENT.c.sequence, SAGA_EVENT.c.at, SAGA_EVENT.c.data)
    .where(SAGA_EVENT.c.saga_id.in_(_IDS))
    .order_by(SAGA_EVENT.c.saga_id, SAGA_EVENT.c.sequence)
)
_PUBLISHED: Final = sa.delete(SAGA_OUTBOX).where(SAGA_OUTBOX.c.id.in_(_IDS))
_TRACED: Final = sa.update(SAGA).where(SAGA.c.id.in_(_IDS)).values(trace_due_at=None)
_DUE: Final = (
    sa.select(SAGA.c.id)
    .where(SAGA.c.wake_at.is_not(None), SAGA.c.wake_at <= sa.bindparam("now"))
    .order_by(SAGA.c.wake_at)
    .limit(sa.bindparam("most"))
)
_UNPUBLISHED: Final = (
    sa.select(SAGA_OUTBOX.c.id)
    .where(SAGA_OUTBOX.c.handed_out_at < sa.bindparam("before"))
    .order_by(SAGA_OUTBOX.c.handed_out_at)
    .limit(sa.bindparam("most"))
)
_UNTRACED: Final = (
    sa.select(SAGA.c.id)
    .where(SAGA.c.trace_due_at.is_not(None), SAGA.c.trace_due_at <= sa.bindparam("now"))
    .order_by(SAGA.c.trace_due_at)
    .limit(sa.bindparam("most"))
)


def open_store(url: str, *, create: bool) -> "SqlStore":
    """Open a store whose schema is right.

    Args:
        url: SQLAlchemy URL.
        create: Run missing migrations, as the embedded store does; otherwise they are an error.

    Raises:
        UnavailableError: The database cannot be reached.
        ConfigurationError: The URL is wrong, or the schema is of another version.
    """
    store = SqlStore(url)
    try:
        if create:
            store.migrate()
        store.check()
    except BaseException:
        store.close()
        raise
    return store


def upgrade(url: str) -> None:
    """Bring the schema of a database to this version; repeating it does no harm.

    Raises:
        UnavailableError: The database cannot be reached.
        ConfigurationError: Its schema is newer than this version's.
    """
    store = SqlStore(url)
    try:
        store.migrate()
    finally:
        store.close()


class SqlStore(Store):
    """Sagas in a SQL database.

    Args:
        url: ``sqlite:///…`` or ``postgresql+psycopg://…``.
    """

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        insert = sqlite.insert if self.database.is_sqlite else postgresql.insert
        self._insert_saga: sa.Insert = insert(SAGA).on_conflict_do_nothing().returning(SAGA.c.id)
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
        found = map(_saga_row, self._all(_LOAD, {"ids": ids}))
        return {row.saga_id: row for row in found}

    @override
    def find_by_key(self, name: str, key: str) -> SagaRow | None:
        if not (rows.storable(name) and rows.storable(key)):
            return None
        query = sa.select(*_ROW).where(SAGA.c.name == name, SAGA.c.key == key)
        found = self._all(query)
        return _saga_row(found[0]) if found else None

    @override
    def find_by_trace(self, trace_id: str) -> list[SagaSummary]:
        if not rows.storable(trace_id):
            return []
        query = (
            sa.select(*_SUMMARY)
            .where(SAGA.c.trace_id == trace_id)
            .order_by(SAGA.c.started_at, SAGA.c.id)
        )
        return [rows.summary_from(row) for row in self._all(query)]

    @override
    def list_sagas(
        self,
        *,
        statuses: Collection[Status] = (),
        name: str | None = None,
        key: str | None = None,
        limit: int = 50,
    ) -> list[SagaSummary]:
        query = (
            sa.select(*_SUMMARY).order_by(SAGA.c.started_at.desc(), SAGA.c.id.desc()).limit(limit)
        )
        for column, wanted in ((SAGA.c.name, name), (SAGA.c.key, key)):
            if wanted is not None:
                if not rows.storable(wanted):
                    return []
                query = query.where(column == wanted)
        found: dict[str, SagaSummary] = {}
        with self.database.reading() as connection:
            # One status after the other, each straight from an index that ends at the limit.
            for status in set(statuses) or set(Status):
                page = connection.execute(query.where(SAGA.c.status == status.value))
                # By id: one that changes its status in between would be on two pages.
                found |= {row.id: rows.summary_from(row) for row in page}
        newest_first = sorted(
            found.values(), key=lambda one: (one.started_at, one.saga_id), reverse=True
        )
        return newest_first[:limit]

    @override
    def count_by_status(self) -> dict[Status, int]:
        query = sa.select(SAGA.c.status, sa.func.count().label("sagas")).group_by(SAGA.c.status)
        return {Status(row.status): row.sagas for row in self._all(query)}

    @override
    def history(self, saga_ids: Collection[str]) -> dict[str, list[Recorded]]:
        ids = rows.storable_ids(saga_ids)
        histories: dict[str, list[Recorded]] = {}
        if ids:
            for row in self._all(_HISTORY, {"ids": ids}):
                recorded = Recorded(
                    sequence=row.sequence, at=row.at, event=rows.event_from(row.data)
                )
                histories.setdefault(row.saga_id, []).append(recorded)
        return histories

    @override
    def commit(
        self,
        changes: Sequence[Change],
        *,
        published: Collection[str] = (),
        dead_letters: Sequence[DeadLetter] = (),
        traced: Collection[str] = (),
    ) -> frozenset[str]:
        for change in changes:
            if not change.expected_sequence:
                rows.require_storable(change.row.saga_id, "The saga id")
                rows.require_storable(change.row.state.key, "The business key")
        ordered = sorted(changes, key=lambda change: change.row.saga_id)
        with self.database.writing() as connection:
            if traced:
                connection.execute(_TRACED, {"ids": sorted(traced)})
            committed = self._advance(connection, ordered) if ordered else []
            if published:
                connection.execute(_PUBLISHED, {"ids": sorted(published)})
            if dead_letters:
                connection.execute(sa.insert(SAGA_DEAD_LETTER), list(map(_letter, dead_letters)))
        won = {change.row.saga_id for change in committed}
        return frozenset(change.row.saga_id for change in changes) - won

    def _advance(self, connection: sa.Connection, changes: Sequence[Change]) -> list[Change]:
        """Write the changes that nobody was faster with, and return them."""
        known = [change for change in changes if change.expected_sequence]
        new = [change for change in changes if not change.expected_sequence]
        won: set[str] = set()
        if known:
            current = connection.execute(
                _SEQUENCES, {"ids": [change.row.saga_id for change in known]}
            )
            expected = {change.row.saga_id: change.expected_sequence for change in known}
            won = {saga_id for saga_id, sequence in current if expected[saga_id] == sequence}
            updates = [_update(change.row) for change in known if change.row.saga_id in won]
            if updates:
                connection.execute(_UPDATE, updates)
        if new:
            inserted = connection.execute(
                self._insert_saga, [_insert(change.row) for change in new]
            )
            won |= set(inserted.scalars())
        committed = [change for change in changes if change.row.saga_id in won]
        events = [event for change in committed for event in _events(change)]
        commands = [command for change in committed for command in _commands(change)]
        if events:
            connection.execute(sa.insert(SAGA_EVENT), events)
        if commands:
            connection.execute(sa.insert(SAGA_OUTBOX), commands)
        return committed

    # Timers and outbox -----------------------------------------------------------------------

    @override
    def due(self, now: datetime, limit: int) -> list[str]:
        return [row.id for row in self._all(_DUE, {"now": now, "most": limit})]

    @override
    def claim_unpublished(self, before: datetime, now: datetime, limit: int) -> list[Command]:
        asked = {"before": before, "most": limit}
        # Most of the time there is nothing, and a look needs no lock.
        if not self._all(_UNPUBLISHED, asked):
            return []
        claim = (
            sa.update(SAGA_OUTBOX)
            .where(SAGA_OUTBOX.c.id.in_(_UNPUBLISHED.with_for_update(skip_locked=True)))
            .values(handed_out_at=now)
            .returning(SAGA_OUTBOX.c.command)
        )
        with self.database.writing() as connection:
            return [
                rows.command_from(command)
                for command in connection.execute(claim, asked).scalars()
            ]

    @override
    def claim_untraced(self, now: datetime, until: datetime, limit: int) -> list[str]:
        asked = {"now": now, "most": limit}
        if not self._all(_UNTRACED, asked):
            return []
        claim = (
            sa.update(SAGA)
            .where(SAGA.c.id.in_(_UNTRACED.with_for_update(skip_locked=True)))
            .values(trace_due_at=until)
            .returning(SAGA.c.id)
        )
        with self.database.writing() as connection:
            return list(connection.execute(claim, asked).scalars())

    @override
    def outbox_size(self) -> int:
        query = sa.select(sa.func.count()).select_from(SAGA_OUTBOX)
        return int(self._all(query)[0][0])

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
        query = sa.select(SAGA_DEFINITION.c.document).order_by(
            SAGA_DEFINITION.c.name, SAGA_DEFINITION.c.version
        )
        return [rows.definition_from(document) for (document,) in self._all(query)]

    @override
    def dead_letters(self, limit: int = 50) -> list[DeadLetter]:
        query = sa.select(SAGA_DEAD_LETTER).order_by(SAGA_DEAD_LETTER.c.id.desc()).limit(limit)
        return [
            DeadLetter(
                dead_letter_id=row.id,
                reason=row.reason,
                task=row.task,
                saga_id=row.saga_id,
                body=row.body,
                at=row.at,
            )
            for row in self._all(query)
        ]

    def _document(self, name: str, version: int) -> str | None:
        if not rows.storable(name):
            return None
        query = sa.select(SAGA_DEFINITION.c.document).where(
            SAGA_DEFINITION.c.name == name, SAGA_DEFINITION.c.version == version
        )
        found = self._all(query)
        return found[0].document if found else None

    def _all(
        self, query: sa.Select[Any], values: Mapping[str, Any] | None = None
    ) -> Sequence[sa.Row[Any]]:
        with self.database.reading() as connection:
            return connection.execute(query, values or {}).all()


def _saga_row(row: sa.Row[Any]) -> SagaRow:
    return SagaRow(
        sequence=row.sequence,
        state=rows.state_from(row.state),
        wake_at=row.wake_at,
        started_at=row.started_at,
        updated_at=row.updated_at,
        trace_due_at=row.trace_due_at,
    )


def _insert(row: SagaRow) -> dict[str, Any]:
    state = row.state
    return {
        "id": row.saga_id,
        "name": state.name,
        "version": state.version,
        "key": state.key,
        "status": state.status.value,
        "sequence": row.sequence,
        "trace_id": state.trace.trace_id,
        "started_at": row.started_at,
        "updated_at": row.updated_at,
        "wake_at": row.wake_at,
        "trace_due_at": row.trace_due_at,
        "state": rows.to_json(state),
    }


def _update(row: SagaRow) -> dict[str, Any]:
    return {
        "saga_id": row.saga_id,
        "new_status": row.state.status.value,
        "new_sequence": row.sequence,
        "new_updated_at": row.updated_at,
        "new_wake_at": row.wake_at,
        "new_trace_due_at": row.trace_due_at,
        "new_state": rows.to_json(row.state),
    }


def _events(change: Change) -> list[dict[str, Any]]:
    return [
        {
            "saga_id": change.row.saga_id,
            "sequence": recorded.sequence,
            "at": recorded.at,
            "type": rows.event_type(recorded.event),
            "data": rows.to_json(recorded.event),
        }
        for recorded in change.events
    ]


def _commands(change: Change) -> list[dict[str, Any]]:
    return [
        {
            "id": command.id,
            "saga_id": change.row.saga_id,
            "handed_out_at": change.row.updated_at,
            "command": rows.to_json(command),
        }
        for command in change.commands
    ]


def _letter(letter: DeadLetter) -> dict[str, Any]:
    printable = rows.printable(letter)
    return {
        "at": printable.at,
        "reason": printable.reason,
        "task": printable.task,
        "saga_id": printable.saga_id,
        "body": printable.body,
    }
