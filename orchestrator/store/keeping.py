"""Which sagas are kept after their end, for one that may still want them undone."""

from typing import Final

import sqlalchemy as sa

from orchestrator.core.state import ACTIVE
from orchestrator.store.tables import SAGA, SAGA_KEPT

ABOVE: Final = SAGA.alias("above")
"""The saga that another one is kept for."""

IS_KEPT: Final = sa.exists().where(SAGA_KEPT.alias("higher").c.saga_id == ABOVE.c.id)
"""Whether that is kept for a third one itself, or was."""


def is_kept(*unless: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Whether a saga is kept: for one that is active, or of which one of these holds."""
    return sa.exists().where(
        SAGA_KEPT.c.saga_id == SAGA.c.id,
        SAGA_KEPT.c.kept_for == ABOVE.c.id,
        sa.or_(ABOVE.c.status.in_([status.value for status in sorted(ACTIVE)]), *unless),
    )
