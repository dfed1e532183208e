"""Seals what is in the store with the first key of the ring: after a new key, or the first one."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import sqlalchemy as sa

from orchestrator.store.database import Database
from orchestrator.store.tables import SAGA, SAGA_DEAD_LETTER, SAGA_EVENT, SAGA_OUTBOX

BATCH_ROWS: Final = 200
"""Rows of one transaction: small enough that running sagas do not wait for it."""

_SEALED: Final = (
    (SAGA, SAGA.c.state),
    (SAGA_EVENT, SAGA_EVENT.c.data),
    (SAGA_OUTBOX, SAGA_OUTBOX.c.command),
    (SAGA_DEAD_LETTER, SAGA_DEAD_LETTER.c.body),
)


def reseal(database: Database, text: Callable[[str], str]) -> Iterator[int]:
    """Write every sealed text anew, while sagas run.

    Args:
        database: The store's.
        text: What becomes of a text.

    Yields:
        How many rows of a batch were written. One that somebody has changed meanwhile was sealed
        by them, and one that has come since was too.
    """
    for table, column in _SEALED:
        keys = list(table.primary_key.columns)
        update = (
            sa.update(table)
            .where(*(key == sa.bindparam(f"key_{key.name}") for key in keys))
            .where(column == sa.bindparam("old"))
            .values({column: sa.bindparam("new")})
        )
        for rows in _pages(database, keys, column):
            with database.writing() as connection:
                yield sum(
                    connection.execute(
                        update,
                        {
                            **{f"key_{key.name}": row[key.name] for key in keys},
                            "old": row[column.name],
                            "new": text(row[column.name]),
                        },
                    ).rowcount
                    for row in rows
                )


def _pages(
    database: Database, keys: Sequence[sa.Column[Any]], column: sa.Column[Any]
) -> Iterator[Sequence[sa.RowMapping]]:
    query = sa.select(*keys, column).order_by(*keys).limit(BATCH_ROWS)
    after: tuple[Any, ...] | None = None
    while True:
        asked = query
        if after is not None:
            asked = query.where(sa.tuple_(*keys) > sa.tuple_(*map(sa.literal, after)))
        with database.reading() as connection:
            rows = connection.execute(asked).mappings().all()
        if not rows:
            return
        yield rows
        after = tuple(rows[-1][key.name] for key in keys)
