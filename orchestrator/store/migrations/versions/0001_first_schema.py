"""The first schema: sagas, histories, outbox, definitions and dead letters."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "saga",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("trace_id", sa.Text(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("wake_at", sa.BigInteger(), nullable=True),
        sa.Column("trace_due_at", sa.BigInteger(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "status IN ('compensated', 'compensating', 'completed', 'resolved', 'running', 'stuck')",
            name=op.f("ck_saga_status"),
        ),
        sa.CheckConstraint(
            "wake_at IS NULL OR status NOT IN ('compensated', 'completed', 'resolved')",
            name=op.f("ck_saga_final_has_no_timer"),
        ),
        sa.CheckConstraint("sequence >= 1", name=op.f("ck_saga_sequence")),
        sa.CheckConstraint("version >= 1", name=op.f("ck_saga_version")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_saga")),
    )
    op.create_index(
        "ix_saga_name_status", "saga", ["name", "status", "started_at", "id"], unique=False
    )
    op.create_index("ix_saga_status", "saga", ["status", "started_at", "id"], unique=False)
    op.create_index(
        "ix_saga_trace_due_at",
        "saga",
        ["trace_due_at"],
        unique=False,
        sqlite_where=sa.text("trace_due_at IS NOT NULL"),
        postgresql_where=sa.text("trace_due_at IS NOT NULL"),
    )
    op.create_index("ix_saga_trace_id", "saga", ["trace_id"], unique=False)
    op.create_index(
        "ix_saga_wake_at",
        "saga",
        ["wake_at"],
        unique=False,
        sqlite_where=sa.text("wake_at IS NOT NULL"),
        postgresql_where=sa.text("wake_at IS NOT NULL"),
    )
    op.create_index(
        "ux_saga_key_name",
        "saga",
        ["key", "name"],
        unique=True,
        sqlite_where=sa.text('"key" IS NOT NULL'),
        postgresql_where=sa.text('"key" IS NOT NULL'),
    )
    op.create_table(
        "saga_dead_letter",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("saga_id", sa.Text(), nullable=True),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_saga_dead_letter")),
    )
    op.create_table(
        "saga_definition",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("stored_at", sa.BigInteger(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.CheckConstraint("version >= 1", name=op.f("ck_saga_definition_version")),
        sa.PrimaryKeyConstraint("name", "version", name=op.f("pk_saga_definition")),
    )
    op.create_table(
        "saga_event",
        sa.Column("saga_id", sa.Text(), nullable=False),
        sa.Column("sequence", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.CheckConstraint("sequence >= 1", name=op.f("ck_saga_event_sequence")),
        sa.PrimaryKeyConstraint("saga_id", "sequence", name=op.f("pk_saga_event")),
    )
    op.create_table(
        "saga_outbox",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("saga_id", sa.Text(), nullable=False),
        sa.Column("handed_out_at", sa.BigInteger(), nullable=False),
        sa.Column("command", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_saga_outbox")),
    )
    op.create_index("ix_saga_outbox_handed_out_at", "saga_outbox", ["handed_out_at"], unique=False)
