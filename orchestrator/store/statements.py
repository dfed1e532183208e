"""The statements that every step of every saga runs, as text for the driver.

Building them anew each time, with one parameter for each id and one round trip for each table,
cost 1.9 ms of CPU for a commit of one saga on PostgreSQL and 0.9 ms on SQLite; like this it is
0.75 and, straight by SQLite's driver, 0.25, of which the sync is 0.1. Everything else is SQLAlchemy Core, in `sql`.

Whatever is read or written here is as the database holds it: see `rows`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from typing_extensions import override

from orchestrator.core.events import Recorded
from orchestrator.ports import Change, DeadLetter, SagaRow
from orchestrator.store import rows
from orchestrator.store.database import Hot
from orchestrator.store.tables import SAGA, SAGA_EVENT, SAGA_OUTBOX
from shared.sealing import ring

_CHANGING: Final = ("status", "sequence", "updated_at", "wake_at", "trace_due_at", "state")
"""Columns of a saga that change; the others are what it started with."""

_LETTER: Final = ("at", "reason", "task", "saga_id", "body")

_Values = Mapping[str, Any]


class Statements:
    """What both databases have in common; `where_ids` is how each asks for a list of ids."""

    where_ids: str
    parameter: str
    """How a named parameter is written."""

    def __init__(self) -> None:
        self._load = (
            "SELECT sequence, state, wake_at, started_at, updated_at, trace_due_at "  # noqa: S608 - a constant
            f"FROM saga WHERE id {self.where_ids}"
        )
        self._history = (
            "SELECT saga_id, sequence, at, data FROM saga_event "  # noqa: S608 - a constant
            f"WHERE saga_id {self.where_ids} ORDER BY saga_id, sequence"
        )
        saga_id, due = map(self.parameter.format, ("saga_id", "due"))
        self._clear_traces = (
            f"UPDATE saga SET trace_due_at = NULL WHERE id = {saga_id} AND trace_due_at = {due}"  # noqa: S608 - constants
        )
        saga_id, above = map(self.parameter.format, ("saga_id", "kept_for"))
        self._keep = (
            f"INSERT INTO saga_kept (saga_id, kept_for) VALUES ({saga_id}, {above}) "  # noqa: S608 - constants
            "ON CONFLICT (saga_id) DO UPDATE SET kept_for = excluded.kept_for"
        )
        values = ", ".join(self.parameter.format(name) for name in _LETTER)
        self._put_aside = f"INSERT INTO saga_dead_letter ({', '.join(_LETTER)}) VALUES ({values})"  # noqa: S608 - constants

    def ids(self, ids: Collection[str]) -> tuple[str]:
        """The parameter of `where_ids`."""
        raise NotImplementedError

    def load(self, connection: Hot, ids: Collection[str]) -> dict[str, SagaRow]:
        """The rows of these sagas."""
        found = {}
        for row in connection.exec_driver_sql(self._load, self.ids(ids)):
            sequence, state, wake_at, started_at, updated_at, trace_due_at = row
            loaded = SagaRow(
                sequence=sequence,
                state=rows.state_from(state),
                wake_at=rows.instant_or_none(wake_at),
                started_at=rows.instant(started_at),
                updated_at=rows.instant(updated_at),
                trace_due_at=rows.instant_or_none(trace_due_at),
            )
            found[loaded.saga_id] = loaded
        return found

    def history(self, connection: Hot, ids: Collection[str]) -> dict[str, list[Recorded]]:
        """Their histories, in order."""
        found: dict[str, list[Recorded]] = {}
        for saga_id, sequence, at, data in connection.exec_driver_sql(
            self._history, self.ids(ids)
        ):
            recorded = Recorded(
                sequence=sequence, at=rows.instant(at), event=rows.event_from(data)
            )
            found.setdefault(saga_id, []).append(recorded)
        return found

    def sequences(self, connection: Hot, ids: Collection[str]) -> dict[str, int]:
        """Sequences of these sagas, which nobody else can change until the transaction ends."""
        raise NotImplementedError

    def insert(self, connection: Hot, changes: Iterable[Change]) -> set[str]:
        """Insert the sagas whose id and key are free, and return their ids."""
        raise NotImplementedError

    def write(
        self, connection: Hot, changes: Sequence[Change], published: Collection[str]
    ) -> None:
        """Write what follows from changes that have won: rows, events and outbox."""
        raise NotImplementedError

    def clear_traces(self, connection: Hot, traced: Mapping[str, datetime]) -> None:
        """Note that spans of these sagas were exported, which were due then."""
        due = [{"saga_id": one, "due": rows.micros(at)} for one, at in traced.items()]
        connection.exec_driver_sql(self._clear_traces, due)

    def keep(self, connection: Hot, kept: Mapping[str, str]) -> None:
        """Note for whom sagas are kept after their end."""
        pairs = [{"saga_id": one, "kept_for": above} for one, above in kept.items()]
        connection.exec_driver_sql(self._keep, pairs)

    def put_aside(self, connection: Hot, letters: Iterable[DeadLetter]) -> None:
        """Keep dead letters."""
        connection.exec_driver_sql(self._put_aside, [_letter(letter) for letter in letters])


class SqliteStatements(Statements):
    """A call of SQLite costs next to nothing: one for each row."""

    parameter = ":{}"
    where_ids = "IN (SELECT value FROM json_each(?))"

    _sequences = f"SELECT id, sequence FROM saga WHERE id {where_ids}"  # noqa: S608 - a constant
    _update = (
        str(
            sa.update(SAGA)
            .where(SAGA.c.id == sa.bindparam("saga_id"))
            .values({name: sa.bindparam(f"new_{name}") for name in _CHANGING})
            .compile(dialect=sqlite.dialect(paramstyle="named"))
        )
        .replace(":new_", ":")
        .replace(":saga_id", ":id")
    )
    _published = f"DELETE FROM saga_outbox WHERE id {where_ids}"  # noqa: S608 - a constant
    _insert_saga, _insert_event, _insert_command = (
        str(sa.insert(table).compile(dialect=sqlite.dialect(paramstyle="named")))
        for table in (SAGA, SAGA_EVENT, SAGA_OUTBOX)
    )
    _insert_new = f"{_insert_saga} ON CONFLICT DO NOTHING"
    # What is asked again without an event may be asked by two at once, by the same id.
    _insert_command += " ON CONFLICT DO NOTHING"

    @override
    def ids(self, ids: Collection[str]) -> tuple[str]:
        return (msgspec.json.encode(list(ids)).decode(),)

    @override
    def sequences(self, connection: Hot, ids: Collection[str]) -> dict[str, int]:
        # Nothing to lock: a transaction that writes is the only one.
        found = connection.exec_driver_sql(self._sequences, self.ids(ids))
        return {row[0]: row[1] for row in found}

    @override
    def insert(self, connection: Hot, changes: Iterable[Change]) -> set[str]:
        return {
            change.row.saga_id
            for change in changes
            if connection.exec_driver_sql(self._insert_new, _inserted(change.row)).rowcount
        }

    @override
    def write(
        self, connection: Hot, changes: Sequence[Change], published: Collection[str]
    ) -> None:
        for statement, values in (
            (self._update, _updates(changes)),
            (self._insert_event, _events(changes)),
            (self._insert_command, _commands(changes)),
        ):
            if values:
                connection.exec_driver_sql(statement, values)
        if published:
            connection.exec_driver_sql(self._published, self.ids(published))


class PostgresqlStatements(Statements):
    """A round trip costs more than what it asks for: all rows of all tables in one.

    Rows go as one JSON array for each table: one parameter of one type, so that the statement is
    prepared once, whatever its number of rows.
    """

    where_ids = "= ANY(%s::text[])"
    parameter = "%({})s"

    _sequences = (
        f"SELECT id, sequence FROM saga WHERE id {where_ids} "  # noqa: S608 - a constant
        # In order of id: two batches that share sagas wait for each other, and never in a circle.
        "ORDER BY id FOR UPDATE"
    )

    def __init__(self) -> None:
        super().__init__()
        self._insert_new = f"{_insert_from_json(SAGA)} ON CONFLICT DO NOTHING RETURNING id"
        assigned = ", ".join(f"{name} = new.{name}" for name in _CHANGING)
        self._write = (
            f"WITH changed AS (UPDATE saga SET {assigned} "  # noqa: S608 - from the tables
            f"FROM {_from_json(SAGA, ('id', *_CHANGING))} WHERE saga.id = new.id "
            # The planner takes every JSON for a hundred rows, and would read the whole table.
            f"AND saga.id {self.where_ids}), "
            f"happened AS ({_insert_from_json(SAGA_EVENT)}), "
            # What is asked again without an event may be asked by two at once, by the same id.
            f"sent AS ({_insert_from_json(SAGA_OUTBOX)} ON CONFLICT DO NOTHING) "
            f"DELETE FROM saga_outbox WHERE id {self.where_ids}"
        )

    @override
    def ids(self, ids: Collection[str]) -> tuple[str]:
        # The text of an array. The driver's own way takes ten times as long.
        escaped = (one.replace("\\", "\\\\").replace('"', '\\"') for one in ids)
        return ("{" + ",".join(f'"{one}"' for one in escaped) + "}",)

    @override
    def sequences(self, connection: Hot, ids: Collection[str]) -> dict[str, int]:
        found = connection.exec_driver_sql(self._sequences, self.ids(ids))
        return {row[0]: row[1] for row in found}

    @override
    def insert(self, connection: Hot, changes: Iterable[Change]) -> set[str]:
        values = _json([_inserted(change.row) for change in changes])
        return set(connection.exec_driver_sql(self._insert_new, (values,)).scalars())

    @override
    def write(
        self, connection: Hot, changes: Sequence[Change], published: Collection[str]
    ) -> None:
        updates = _updates(changes)
        parameters = (
            _json(updates),
            *self.ids([update["id"] for update in updates]),
            _json(_events(changes)),
            _json(_commands(changes)),
            *self.ids(published),
        )
        connection.exec_driver_sql(self._write, parameters)


_DIALECT: Final = sa.make_url("postgresql+psycopg://").get_dialect()()


def _from_json(table: sa.Table, names: Collection[str]) -> str:
    types = ", ".join(f"{name} {table.c[name].type.compile(dialect=_DIALECT)}" for name in names)
    return f"json_to_recordset(%s::json) AS new({types})"


def _insert_from_json(table: sa.Table) -> str:
    names = table.c.keys()
    columns = ", ".join(names)
    return f"INSERT INTO {table.name} ({columns}) SELECT {columns} FROM {_from_json(table, names)}"  # noqa: S608 - from the tables


def _json(values: Sequence[_Values]) -> str:
    return msgspec.json.encode(values).decode()


def _inserted(row: SagaRow) -> _Values:
    state = row.state
    return {
        **_updated(row),
        "name": state.name,
        "version": state.version,
        "key": state.key,
        "trace_id": state.trace.trace_id,
        "started_at": rows.micros(row.started_at),
    }


def _updated(row: SagaRow) -> _Values:
    return {
        "id": row.saga_id,
        "status": row.state.status.value,
        "sequence": row.sequence,
        "updated_at": rows.micros(row.updated_at),
        "wake_at": rows.micros_or_none(row.wake_at),
        "trace_due_at": rows.micros_or_none(row.trace_due_at),
        "state": rows.to_json(row.state),
    }


def _updates(changes: Iterable[Change]) -> list[_Values]:
    return [_updated(change.row) for change in changes if change.expected_sequence]


def _events(changes: Iterable[Change]) -> list[_Values]:
    return [
        {
            "saga_id": change.row.saga_id,
            "sequence": recorded.sequence,
            "at": rows.micros(recorded.at),
            "type": rows.event_type(recorded.event),
            "data": rows.to_json(recorded.event),
        }
        for change in changes
        for recorded in change.events
    ]


def _commands(changes: Iterable[Change]) -> list[_Values]:
    return [
        {
            "id": command.id,
            "saga_id": change.row.saga_id,
            "handed_out_at": rows.micros(change.sent_at),
            "command": rows.to_json(command),
            "committed_at": rows.micros(change.sent_at),
        }
        for change in changes
        for command in change.commands
    ]


def _letter(letter: DeadLetter) -> _Values:
    printable = rows.printable(letter)
    values = {name: getattr(printable, name) for name in _LETTER}
    sealed = ring().seal_text(printable.body)
    return {**values, "body": sealed, "at": rows.micros(printable.at)}
