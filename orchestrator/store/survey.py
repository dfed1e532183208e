"""How the store is doing, for metrics: a few counts, each from an index and with an end.

A count stops at `COUNT_MAX`, so that a look costs milliseconds whatever has piled up.
"""

from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from orchestrator.core.state import ACTIVE, Status
from orchestrator.ports import Gate, Survey
from orchestrator.store.tables import (
    SAGA,
    SAGA_CONTROL,
    SAGA_DEAD_LETTER,
    SAGA_DEFINITION,
    SAGA_GATE,
    SAGA_OUTBOX,
    SAGA_SLOT,
)

COUNT_MAX: Final = 100_000

_NAMES: Final = sa.select(SAGA_DEFINITION.c.name).distinct()
_TIMERS: Final = SAGA.c.wake_at.is_not(None)
_OLDEST_TIMER: Final = sa.select(SAGA.c.wake_at).where(_TIMERS).order_by(SAGA.c.wake_at).limit(1)
_OLDEST_COMMAND: Final = (
    sa.select(SAGA_OUTBOX.c.committed_at)
    .where(SAGA_OUTBOX.c.committed_at.is_not(None))
    .order_by(SAGA_OUTBOX.c.committed_at)
    .limit(1)
)
# Who waits for room came after somebody who had it, or after an operator who left none.
_GATES: Final = sa.union(
    sa.select(SAGA_GATE.c.name, SAGA_GATE.c.step),
    sa.select(SAGA_CONTROL.c.name, SAGA_CONTROL.c.step).where(SAGA_CONTROL.c.kind == "limit"),
)
_PAUSED: Final = sa.select(SAGA_CONTROL.c.name).where(SAGA_CONTROL.c.kind == "pause")


def survey(connection: sa.Connection, late_before: datetime) -> Survey:
    """Look at all of it; see `orchestrator.ports.Store.survey`."""
    late = sa.select(sa.literal(1)).where(_TIMERS, SAGA.c.wake_at <= late_before)
    return Survey(
        in_flight=_in_flight(connection),
        timers_late=_count(connection, late),
        timer_due_at=_oldest(connection, _OLDEST_TIMER),
        outbox_size=_count(connection, sa.select(sa.literal(1)).select_from(SAGA_OUTBOX)),
        outbox_since=_oldest(connection, _OLDEST_COMMAND),
        dead_letters=_count(connection, sa.select(sa.literal(1)).select_from(SAGA_DEAD_LETTER)),
        awaiting_room=_awaiting_room(connection),
        paused=frozenset(connection.execute(_PAUSED).scalars()),
    )


def _in_flight(connection: sa.Connection) -> dict[tuple[str, Status], int]:
    names = connection.execute(_NAMES).scalars().all()
    pairs = [(name, status) for name in names for status in sorted(ACTIVE)]
    if not pairs:
        return {}
    # The status as text in the statement and not as a parameter: that few sagas are running among
    # a million is something that PostgreSQL knows of the value, not of the column.
    counts = [
        sa.select(
            sa.literal(name).label("name"),
            sa.literal_column(f"'{status.value}'").label("status"),
            sa.select(sa.func.count())
            .select_from(
                sa.select(sa.literal(1))
                .where(
                    SAGA.c.name == name, SAGA.c.status == sa.literal_column(f"'{status.value}'")
                )
                .limit(COUNT_MAX)
                .subquery()
            )
            .scalar_subquery()
            .label("sagas"),
        )
        for name, status in pairs
    ]
    found = connection.execute(sa.union_all(*counts))
    return {(row.name, Status(row.status)): row.sagas for row in found}


def _awaiting_room(connection: sa.Connection) -> dict[Gate, int]:
    gates = [(row.name, row.step) for row in connection.execute(_GATES)]
    slots = SAGA_SLOT.c
    return {
        (name, step): _count(
            connection,
            sa.select(sa.literal(1)).where(
                slots.name == name, slots.step == step, slots.waiting == 1
            ),
        )
        for name, step in gates
    }


def _count(connection: sa.Connection, query: sa.Select[Any]) -> int:
    counted = sa.select(sa.func.count()).select_from(query.limit(COUNT_MAX).subquery())
    return int(connection.execute(counted).scalar_one())


def _oldest(connection: sa.Connection, query: sa.Select[Any]) -> datetime | None:
    found: datetime | None = connection.execute(query).scalar()
    return found
