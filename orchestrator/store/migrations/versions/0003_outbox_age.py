"""When a command was committed: how long the outbox has been waiting, whoever tried to send it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # Null for what was committed before: such rows are gone within seconds.
    op.add_column("saga_outbox", sa.Column("committed_at", sa.BigInteger(), nullable=True))
    op.create_index("ix_saga_outbox_committed_at", "saga_outbox", ["committed_at"], unique=False)
