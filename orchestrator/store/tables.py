"""The tables of the store. The migrations reach exactly this schema; a test proves it.

Every list and every poll of running sagas has an index that holds nothing but what it looks for
(partial indexes on the timers, which a final saga does not have) or that ends at its limit, so
that a million finished sagas cost the running ones nothing.
"""

from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from typing_extensions import override

from orchestrator.core.state import FINAL, Status
from orchestrator.store import rows


class Instant(sa.TypeDecorator[datetime]):
    """An aware UTC datetime, stored as microseconds since 1970.

    SQLite has no type for it, and PostgreSQL's would need a second form of every hot statement. A
    number is exact, compares right on both and costs nothing to read. In SQL by hand:
    ``to_timestamp(wake_at / 1e6)``, ``datetime(wake_at / 1000000, 'unixepoch')``.
    """

    impl = sa.BigInteger
    cache_ok = True

    @override
    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return rows.micros_or_none(value)

    @override
    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return rows.instant_or_none(value)


def _quoted(statuses: frozenset[Status]) -> str:
    return ", ".join(f"'{status}'" for status in sorted(statuses))


IS_FINAL: Final = sa.text(f"status IN ({_quoted(FINAL)})")
"""The condition of the index on what has ended; a query must say it in the same words."""

METADATA: Final = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)

SAGA: Final = sa.Table(
    "saga",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("key", sa.Text),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("trace_id", sa.Text, nullable=False),
    sa.Column("started_at", Instant, nullable=False),
    sa.Column("updated_at", Instant, nullable=False),
    sa.Column("wake_at", Instant),
    sa.Column("trace_due_at", Instant),
    # Last, so that a list reads past none of it.
    sa.Column("state", sa.Text, nullable=False),
    sa.CheckConstraint("version >= 1", name="version"),
    sa.CheckConstraint("sequence >= 1", name="sequence"),
    sa.CheckConstraint(f"status IN ({_quoted(frozenset(Status))})", name="status"),
    # A final saga with a timer would be woken for ever.
    sa.CheckConstraint(
        f"wake_at IS NULL OR status NOT IN ({_quoted(FINAL)})", name="final_has_no_timer"
    ),
)
# One saga for each business key of a name. By key first, so that a key alone is found, too;
# sagas without one stay out of the index.
sa.Index(
    "ux_saga_key_name",
    SAGA.c.key,
    SAGA.c.name,
    unique=True,
    sqlite_where=SAGA.c.key.is_not(None),
    postgresql_where=SAGA.c.key.is_not(None),
)
for _timer in (SAGA.c.wake_at, SAGA.c.trace_due_at):
    sa.Index(
        f"ix_saga_{_timer.name}",
        _timer,
        sqlite_where=_timer.is_not(None),
        postgresql_where=_timer.is_not(None),
    )
sa.Index("ix_saga_trace_id", SAGA.c.trace_id)
# What retention asks for: written once in the life of a saga, at its end.
sa.Index("ix_saga_ended", SAGA.c.updated_at, sqlite_where=IS_FINAL, postgresql_where=IS_FINAL)
# Lists ask for one status after the other and merge: see `queries.page`.
sa.Index("ix_saga_status", SAGA.c.status, SAGA.c.started_at, SAGA.c.id)
sa.Index("ix_saga_name_status", SAGA.c.name, SAGA.c.status, SAGA.c.started_at, SAGA.c.id)

SAGA_EVENT: Final = sa.Table(
    "saga_event",
    METADATA,
    sa.Column("saga_id", sa.Text, primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.CheckConstraint("sequence >= 1", name="sequence"),
)

SAGA_OUTBOX: Final = sa.Table(
    "saga_outbox",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("saga_id", sa.Text, nullable=False),
    sa.Column("handed_out_at", Instant, nullable=False),
    sa.Column("command", sa.Text, nullable=False),
    # Beside `handed_out_at`, which begins anew with each attempt to send it.
    sa.Column("committed_at", Instant),
)
sa.Index("ix_saga_outbox_handed_out_at", SAGA_OUTBOX.c.handed_out_at)
sa.Index("ix_saga_outbox_committed_at", SAGA_OUTBOX.c.committed_at)

SAGA_SLOT: Final = sa.Table(
    "saga_slot",
    METADATA,
    sa.Column("saga_id", sa.Text, primary_key=True),
    # The step, or its run for one item; empty for the saga itself.
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("step", sa.Text, nullable=False),
    # 0 takes room, 1 waits for it.
    sa.Column("waiting", sa.SmallInteger, nullable=False),
    # The order of those who wait: what undoes first, then the oldest saga.
    sa.Column("urgency", sa.SmallInteger, nullable=False),
    sa.Column("started_at", Instant, nullable=False),
    # Of the saga when this was written: where it is another one, somebody has forgotten the slots.
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.CheckConstraint("waiting IN (0, 1)", name="waiting"),
    sa.CheckConstraint("urgency IN (0, 1)", name="urgency"),
)
sa.Index(
    "ix_saga_slot_gate",
    SAGA_SLOT.c.name,
    SAGA_SLOT.c.step,
    SAGA_SLOT.c.waiting,
    SAGA_SLOT.c.urgency,
    SAGA_SLOT.c.started_at,
    SAGA_SLOT.c.saga_id,
)

# A row that whoever takes room locks first, and the time to which a rate is used up.
SAGA_GATE: Final = sa.Table(
    "saga_gate",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("step", sa.Text, primary_key=True),
    sa.Column("free_at", Instant),
)

SAGA_CONTROL: Final = sa.Table(
    "saga_control",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("step", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("in_flight", sa.Integer),
    sa.Column("rate", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("asked_by", sa.Text, nullable=False),
    sa.Column("asked_at", Instant, nullable=False),
    sa.CheckConstraint("kind IN ('limit', 'pause')", name="kind"),
    sa.CheckConstraint("in_flight >= 1", name="in_flight"),
)

SAGA_KEPT: Final = sa.Table(
    # A table of its own: for nearly all sagas there is nothing to say, and they pay nothing.
    "saga_kept",
    METADATA,
    sa.Column("saga_id", sa.Text, primary_key=True),
    sa.Column("kept_for", sa.Text, nullable=False),
)

SAGA_DEFINITION: Final = sa.Table(
    "saga_definition",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("stored_at", Instant, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.CheckConstraint("version >= 1", name="version"),
)

SAGA_DEAD_LETTER: Final = sa.Table(
    "saga_dead_letter",
    METADATA,
    # SQLite numbers the rows of an INTEGER primary key only.
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("at", Instant, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("saga_id", sa.Text),
    sa.Column("body", sa.Text, nullable=False),
)
