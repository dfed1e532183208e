"""What operators say of all sagas of a name, in SQL."""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from orchestrator.core.limits import Limit
from orchestrator.ports import Control
from orchestrator.store.tables import SAGA_CONTROL

_VALUES = ("in_flight", "rate", "reason", "asked_by", "asked_at")


def read(connection: sa.Connection) -> list[Control]:
    """All of it, by name and step."""
    columns = SAGA_CONTROL.c
    query = sa.select(SAGA_CONTROL).order_by(columns.name, columns.step, columns.kind)
    return [_control(row) for row in connection.execute(query)]


def put(connection: sa.Connection, control: Control) -> None:
    """Keep it, instead of what was said before."""
    limit = control.limit or Limit()
    values = {
        "name": control.name,
        "step": control.step,
        "kind": control.kind,
        "in_flight": limit.in_flight,
        "rate": limit.rate,
        "reason": control.reason,
        "asked_by": control.by,
        "asked_at": control.at,
    }
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    kept = insert(SAGA_CONTROL).values(values)
    connection.execute(
        kept.on_conflict_do_update(
            index_elements=["name", "step", "kind"],
            set_={name: kept.excluded[name] for name in _VALUES},
        )
    )


def drop(connection: sa.Connection, name: str, step: str, kind: str) -> Control | None:
    """Take it back; returns what it was."""
    columns = SAGA_CONTROL.c
    gone = (
        sa.delete(SAGA_CONTROL)
        .where(columns.name == name, columns.step == step, columns.kind == kind)
        .returning(SAGA_CONTROL)
    )
    return next(map(_control, connection.execute(gone)), None)


def _control(row: sa.Row[tuple[object, ...]]) -> Control:
    limit = Limit(in_flight=row.in_flight, rate=row.rate) if row.kind == "limit" else None
    return Control(
        name=row.name,
        step=row.step,
        limit=limit,
        reason=row.reason,
        by=row.asked_by,
        at=row.asked_at,
    )
