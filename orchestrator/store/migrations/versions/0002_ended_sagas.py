"""An index on the sagas that have ended, by the time of their end: for `saga purge`."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_FINAL = sa.text("status IN ('compensated', 'completed', 'resolved')")


def upgrade() -> None:
    op.create_index(
        "ix_saga_ended",
        "saga",
        ["updated_at"],
        unique=False,
        sqlite_where=_FINAL,
        postgresql_where=_FINAL,
    )
