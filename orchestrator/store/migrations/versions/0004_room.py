"""Limits that sagas share: who takes room and who waits for it, and what operators say of names."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "saga_slot",
        sa.Column("saga_id", sa.Text(), nullable=False),
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("waiting", sa.SmallInteger(), nullable=False),
        sa.Column("urgency", sa.SmallInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.CheckConstraint("urgency IN (0, 1)", name=op.f("ck_saga_slot_urgency")),
        sa.CheckConstraint("waiting IN (0, 1)", name=op.f("ck_saga_slot_waiting")),
        sa.PrimaryKeyConstraint("saga_id", "run", name=op.f("pk_saga_slot")),
    )
    op.create_index(
        "ix_saga_slot_gate",
        "saga_slot",
        ["name", "step", "waiting", "urgency", "started_at", "saga_id"],
        unique=False,
    )
    op.create_table(
        "saga_gate",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("free_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("name", "step", name=op.f("pk_saga_gate")),
    )
    op.create_table(
        "saga_control",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("in_flight", sa.Integer(), nullable=True),
        sa.Column("rate", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("asked_by", sa.Text(), nullable=False),
        sa.Column("asked_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("in_flight >= 1", name=op.f("ck_saga_control_in_flight")),
        sa.CheckConstraint("kind IN ('limit', 'pause')", name=op.f("ck_saga_control_kind")),
        sa.PrimaryKeyConstraint("name", "step", "kind", name=op.f("pk_saga_control")),
    )
