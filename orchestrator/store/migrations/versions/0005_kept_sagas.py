"""For whom a saga is kept after its end: for the saga that may still want it undone."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "saga_kept",
        sa.Column("saga_id", sa.Text(), nullable=False),
        sa.Column("kept_for", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("saga_id", name="pk_saga_kept"),
    )
