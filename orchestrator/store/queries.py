"""What the store reads where a statement may be put together anew each time.

What every batch needs is in `statements`, for each driver by itself.
"""

from collections.abc import Collection
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from orchestrator.core.state import Status
from orchestrator.ports import UUID_LEAST, UUID_MOST
from orchestrator.store.keeping import ABOVE, IS_KEPT, is_kept
from orchestrator.store.tables import (
    IS_FINAL,
    SAGA,
    SAGA_DEAD_LETTER,
    SAGA_DEFINITION,
    SAGA_OUTBOX,
)

_SUMMARY: Final = tuple(column for column in SAGA.c if column.name != "state")
DUE: Final = (
    sa.select(SAGA.c.id)
    .where(SAGA.c.wake_at.is_not(None), SAGA.c.wake_at <= sa.bindparam("now"))
    .order_by(SAGA.c.wake_at)
    .limit(sa.bindparam("most"))
)
UNPUBLISHED: Final = (
    sa.select(SAGA_OUTBOX.c.id)
    .where(SAGA_OUTBOX.c.handed_out_at < sa.bindparam("before"))
    .order_by(SAGA_OUTBOX.c.handed_out_at)
    .limit(sa.bindparam("most"))
)
UNTRACED: Final = (
    sa.select(SAGA.c.id)
    .where(SAGA.c.trace_due_at.is_not(None), SAGA.c.trace_due_at <= sa.bindparam("now"))
    .order_by(SAGA.c.trace_due_at)
    .limit(sa.bindparam("most"))
)
BY_STATUS: Final = sa.select(SAGA.c.status, sa.func.count().label("sagas")).group_by(SAGA.c.status)
OUTBOX_SIZE: Final = sa.select(sa.func.count()).select_from(SAGA_OUTBOX)
DOCUMENTS: Final = sa.select(SAGA_DEFINITION.c.document).order_by(
    SAGA_DEFINITION.c.name, SAGA_DEFINITION.c.version
)


def picked(query: sa.Select[tuple[str]]) -> sa.Select[tuple[str]]:
    """The rows that a query names, locked, to be changed by one statement."""
    # Picked once: a bare subquery with a limit may be run again for each row.
    once = query.with_for_update(skip_locked=True).cte("picked")
    return sa.select(once.c.id)


def by_key(name: str, key: str) -> sa.Select[Any]:
    """The id of the saga that has a business key."""
    return sa.select(SAGA.c.id).where(SAGA.c.name == name, SAGA.c.key == key)


def ids_from(beginning: str, limit: int) -> sa.Select[Any]:
    """Ids that begin so, in order, with a few that only sort like it."""
    # Between two ids of the same form, which every collation sorts alike: a range of the index.
    least, most = (beginning + one[len(beginning) :] for one in (UUID_LEAST, UUID_MOST))
    return (
        sa.select(SAGA.c.id)
        .where(SAGA.c.id.between(least, most), sa.func.length(SAGA.c.id) == len(UUID_LEAST))
        .order_by(SAGA.c.id)
        .limit(limit)
    )


def of_trace(trace_id: str) -> sa.Select[Any]:
    """The sagas of a trace, oldest first."""
    return (
        sa.select(*_SUMMARY)
        .where(SAGA.c.trace_id == trace_id)
        .order_by(SAGA.c.started_at, SAGA.c.id)
    )


def newest(
    statuses: Collection[Status],
    *,
    name: str | None,
    key: str | None,
    limit: int,
    older: tuple[datetime, str] | None,
) -> sa.Select[Any] | sa.CompoundSelect[Any]:
    """The newest sagas of each status, `limit` at most; with a key of any status."""
    query = sa.select(*_SUMMARY)
    if name is not None:
        query = query.where(SAGA.c.name == name)
    if older is not None:
        at, saga_id = older
        # Both: the first is what an index on the start alone can use.
        query = query.where(
            SAGA.c.started_at <= at, sa.tuple_(SAGA.c.started_at, SAGA.c.id) < (at, saga_id)
        )
    if key is not None:
        # At most one for each name: no reason to look at anything else.
        return query.where(SAGA.c.key == key)
    # Each status straight from an index that ends at the limit; all of them in one
    # statement, so that one that changes its status meanwhile is neither lost nor twice.
    page = query.order_by(SAGA.c.started_at.desc(), SAGA.c.id.desc()).limit(limit)
    pages = (page.where(SAGA.c.status == status.value) for status in sorted(statuses))
    return sa.union_all(*(sa.select(one.subquery()) for one in pages))


def ended(
    before: datetime, limit: int, *, name: str | None, statuses: Collection[Status]
) -> sa.Select[Any]:
    """Sagas that may be deleted, oldest first; see `Store.ended`."""
    query = (
        sa.select(SAGA.c.id)
        .where(IS_FINAL, SAGA.c.updated_at < before, SAGA.c.trace_due_at.is_(None))
        .where(~is_kept(ABOVE.c.updated_at >= before, IS_KEPT))
        .order_by(SAGA.c.updated_at)
        .limit(limit)
    )
    if name is not None:
        query = query.where(SAGA.c.name == name)
    if statuses:
        query = query.where(SAGA.c.status.in_([status.value for status in statuses]))
    return query


def document(name: str, version: int) -> sa.Select[Any]:
    """A definition."""
    return sa.select(SAGA_DEFINITION.c.document).where(
        SAGA_DEFINITION.c.name == name, SAGA_DEFINITION.c.version == version
    )


def dead_letters(limit: int) -> sa.Select[Any]:
    """Dead letters, newest first."""
    return sa.select(SAGA_DEAD_LETTER).order_by(SAGA_DEAD_LETTER.c.id.desc()).limit(limit)
