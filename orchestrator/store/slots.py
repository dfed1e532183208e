"""Slots in SQL: who takes room within a limit, who waits for it, and what there is room for.

A slot is written in the transaction that writes the state from which it follows, so that none can
be left behind. Whoever takes one locks the row of the gate first, and counts after that: two
orchestrators cannot both take the last one. Whoever gives one back locks nothing.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from orchestrator.core.limits import Limit
from orchestrator.ports import Change, Crowd, Gate
from orchestrator.store import admission
from orchestrator.store.tables import SAGA, SAGA_GATE, SAGA_SLOT

_AT_GATE: Final = sa.tuple_(SAGA_SLOT.c.name, SAGA_SLOT.c.step)
_GATE: Final = sa.tuple_(SAGA_GATE.c.name, SAGA_GATE.c.step)
_TAKEN: Final = SAGA_SLOT.c.waiting == 0


def admit(
    connection: sa.Connection, changes: Sequence[Change], gates: Mapping[Gate, Limit]
) -> list[Change]:
    """Those of the changes that have room for what they begin; what they use of rates is noted.

    Args:
        connection: In a transaction in which their sagas are locked.
        changes: That would be written.
        gates: The limits of what begins with them.
    """
    asked = admission.asked_of(changes, gates)
    if not asked:
        return list(changes)
    free_at = _locked(connection, asked)
    admitted = admission.admit(
        changes,
        gates,
        free_at=free_at,
        taken=_taken(connection, asked),
        taken_by=_taken_by(connection, asked, [change.row.saga_id for change in changes]),
    )
    for (name, step), until in admitted.free_at.items():
        connection.execute(
            sa.update(SAGA_GATE)
            .where(SAGA_GATE.c.name == name, SAGA_GATE.c.step == step)
            .values(free_at=until)
        )
    return admitted.changes


def write(connection: sa.Connection, changes: Iterable[Change]) -> None:
    """Write the slots of sagas that have been written; those that they had before are gone."""
    known = [change for change in changes if change.slots is not None]
    ids = [change.row.saga_id for change in known]
    if not ids:
        return
    connection.execute(sa.delete(SAGA_SLOT).where(SAGA_SLOT.c.saga_id.in_(ids)))
    values = [
        {
            "saga_id": change.row.saga_id,
            "run": slot.run,
            "name": change.row.state.name,
            "step": slot.step,
            "waiting": int(slot.waiting),
            "urgency": int(not change.row.state.backward),
            "started_at": change.row.started_at,
            "sequence": change.row.sequence,
        }
        for change in known
        for slot in change.slots or ()
    ]
    if values:
        connection.execute(sa.insert(SAGA_SLOT), values)


def crowds(
    connection: sa.Connection, gates: Collection[Gate], waiting_max: int
) -> dict[Gate, Crowd]:
    """Who is at these gates; see `orchestrator.ports.Store.crowds`."""
    if not gates:
        return {}
    found = connection.execute(sa.select(SAGA_GATE).where(_GATE.in_(gates)))
    free_at = {(row.name, row.step): row.free_at for row in found}
    taken = _taken(connection, gates)
    return {
        gate: Crowd(
            in_flight=taken[gate],
            free_at=free_at.get(gate),
            waiting=_waiting(connection, gate, waiting_max),
            known=gate in free_at,
        )
        for gate in gates
    }


def stray(connection: sa.Connection, known: Collection[Gate], limit: int) -> list[str]:
    """Sagas with slots that are not those of their state; see `Store.stray_slots`."""
    other = sa.true() if not known else _AT_GATE.not_in(known)
    query = (
        sa.select(SAGA_SLOT.c.saga_id, SAGA.c.id)
        .join(SAGA, SAGA.c.id == SAGA_SLOT.c.saga_id, isouter=True)
        .where(SAGA.c.id.is_(None) | (SAGA.c.sequence != SAGA_SLOT.c.sequence) | other)
        .limit(limit)
    )
    found = connection.execute(query).all()
    gone = {row.saga_id for row in found if row.id is None}
    if gone:
        connection.execute(sa.delete(SAGA_SLOT).where(SAGA_SLOT.c.saga_id.in_(gone)))
    return sorted({row.saga_id for row in found} - gone)


def _locked(connection: sa.Connection, gates: Collection[Gate]) -> dict[Gate, Any]:
    """The gates, which nobody else can lock until the transaction ends: until when each is used up."""
    # In order, so that two who want the same ones wait for each other and never in a circle.
    query = (
        sa.select(SAGA_GATE)
        .where(_GATE.in_(gates))
        .order_by(SAGA_GATE.c.name, SAGA_GATE.c.step)
        .with_for_update()
    )
    found = {(row.name, row.step): row.free_at for row in connection.execute(query)}
    if missing := sorted(set(gates) - found.keys()):
        insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        connection.execute(
            insert(SAGA_GATE).on_conflict_do_nothing(),
            [{"name": name, "step": step, "free_at": None} for name, step in missing],
        )
        found = {(row.name, row.step): row.free_at for row in connection.execute(query)}
    return found


def _taken(connection: sa.Connection, gates: Collection[Gate]) -> Counter[Gate]:
    query = (
        sa.select(SAGA_SLOT.c.name, SAGA_SLOT.c.step, sa.func.count().label("slots"))
        .where(_AT_GATE.in_(gates), _TAKEN)
        .group_by(SAGA_SLOT.c.name, SAGA_SLOT.c.step)
    )
    return Counter({(row.name, row.step): row.slots for row in connection.execute(query)})


def _taken_by(
    connection: sa.Connection, gates: Collection[Gate], saga_ids: Collection[str]
) -> Counter[tuple[str, Gate]]:
    query = sa.select(SAGA_SLOT.c.saga_id, SAGA_SLOT.c.name, SAGA_SLOT.c.step).where(
        SAGA_SLOT.c.saga_id.in_(saga_ids), _AT_GATE.in_(gates), _TAKEN
    )
    return Counter((row.saga_id, (row.name, row.step)) for row in connection.execute(query))


def _waiting(connection: sa.Connection, gate: Gate, most: int) -> tuple[tuple[int, Any, str], ...]:
    name, step = gate
    columns = (SAGA_SLOT.c.urgency, SAGA_SLOT.c.started_at, SAGA_SLOT.c.saga_id)
    query = (
        sa.select(*columns)
        .where(SAGA_SLOT.c.name == name, SAGA_SLOT.c.step == step, SAGA_SLOT.c.waiting == 1)
        .order_by(*columns)
        .limit(most)
    )
    return tuple((row.urgency, row.started_at, row.saga_id) for row in connection.execute(query))
