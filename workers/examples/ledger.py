"""The books of a service: entries that are only ever added, and a balance.

They are the independent evidence of what really happened: nothing in them knows of the barrier, and
no constraint hides a double booking. `standing`, `effects` and `audit` read them.

On SQLite a service has one writer at a time, so a step that is slow makes the service's other steps
wait; PostgreSQL (``SAGA_LEDGER_URL``) has no such limit.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from shared.clock import pause, utc_now
from shared.errors import ConfigurationError
from shared.ids import Direction
from shared.settings import Settings, settings
from workers.examples.service import SERVICES
from workers.sdk import StepContext
from workers.sdk.barrier import engine_of

DELAY_SECONDS_MAX: Final = 60

metadata = sa.MetaData()

entries = sa.Table(
    "ledger_entry",
    metadata,
    sa.Column("entry_id", sa.Integer, sa.Identity(), primary_key=True),
    sa.Column("service", sa.String(32), nullable=False),
    sa.Column("saga_id", sa.String(255), nullable=False, index=True),
    sa.Column("step", sa.String(64), nullable=False),
    sa.Column("direction", sa.String(16), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("subject", sa.String(255), nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("reference", sa.String(255), nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
)

balances = sa.Table(
    "ledger_balance",
    metadata,
    sa.Column("service", sa.String(32), primary_key=True),
    sa.Column("subject", sa.String(255), primary_key=True),
    sa.Column("opening", sa.BigInteger, nullable=False),
    sa.Column("standing", sa.BigInteger, nullable=False),
)


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """One entry.

    Attributes:
        kind: What was done: ``reserved``, ``refunded``, …
        subject: What it was done to: an SKU, a card, a region.
        amount: Positive for what an action put there, negative for what was taken back.
        reference: Id that the service gave it.
    """

    service: str
    saga_id: str
    step: str
    direction: Direction
    attempt: int
    kind: str
    subject: str
    amount: int
    reference: str
    created_at: datetime


class Ledger:
    """The books of one service, in its own database."""

    def __init__(self, service: str) -> None:
        self.service = service

    def book(
        self, context: StepContext, kind: str, subject: str, amount: int, reference: str
    ) -> None:
        """Add an entry and move the balance, in the step's transaction."""
        context.connection.execute(
            entries.insert().values(
                service=self.service,
                saga_id=context.saga_id,
                step=context.step,
                direction=context.direction,
                attempt=context.attempt,
                kind=kind,
                subject=subject,
                amount=amount,
                reference=reference,
                created_at=utc_now(),
            )
        )
        insert = _insert(context.connection)(balances).values(
            service=self.service, subject=subject, opening=0, standing=amount
        )
        context.connection.execute(
            insert.on_conflict_do_update(
                index_elements=["service", "subject"],
                set_={"standing": balances.c.standing + amount},
            )
        )
        context.logger.info(
            "ledger.booked", kind=kind, subject=subject, amount=amount, reference=reference
        )

    def available(self, connection: sa.Connection, subject: str) -> int | None:
        """Opening stock less what stands, locked until the transaction ends; None if unknown."""
        query = sa.select(balances.c.opening - balances.c.standing).where(
            balances.c.service == self.service, balances.c.subject == subject
        )
        found: int | None = connection.execute(query.with_for_update()).scalar()
        return found

    def open(self, connection: sa.Connection, stock: Mapping[str, int]) -> None:
        """Write the opening stock of subjects that have none."""
        for subject, opening in stock.items():
            insert = _insert(connection)(balances).values(
                service=self.service, subject=subject, opening=opening, standing=0
            )
            connection.execute(insert.on_conflict_do_nothing())


def reference(context: StepContext, prefix: str) -> str:
    """An id for what a step makes: the same whenever the step is repeated."""
    return f"{prefix}-{context.saga_id[:8]}-{context.saga_id[-6:]}"


def linger(context: StepContext, delay_in: str, delay_seconds: float) -> None:
    """Take long, if the input asks that of this task: for trying out faults."""
    if delay_in == context.task:
        pause(min(delay_seconds, DELAY_SECONDS_MAX))


# Evidence ------------------------------------------------------------------------------------


def effects(saga_id: str, *, using: Settings | None = None) -> list[Effect]:
    """Every entry of a saga, in all services, in order of time."""
    return sorted(_read(entries.c.saga_id == saga_id, using), key=lambda one: one.created_at)


def standing(saga_id: str, *, using: Settings | None = None) -> dict[str, int]:
    """What is left standing of a saga, by service.

    Returns:
        Services where it is not zero: empty for a saga that was undone.
    """
    sums: Counter[str] = Counter()
    for effect in effects(saga_id, using=using):
        sums[effect.service] += effect.amount
    return {service: amount for service, amount in sums.items() if amount}


def audit(*, using: Settings | None = None) -> list[str]:
    """Everything that is wrong with the books, one sentence each; empty when they are right.

    An effect that happened twice, an undoing without an effect or of another size, a balance that
    is not the sum of its entries, stock below zero.
    """
    found: list[str] = []
    by_step: defaultdict[tuple[str, str, str], list[Effect]] = defaultdict(list)
    sums: Counter[tuple[str, str]] = Counter()
    for effect in _read(sa.true(), using):
        by_step[effect.service, effect.saga_id, effect.step].append(effect)
        sums[effect.service, effect.subject] += effect.amount
    for (service, saga_id, step), booked in by_step.items():
        where = f"{service}: step {step!r} of saga {saga_id}"
        done = [one for one in booked if one.direction == "action"]
        undone = [one for one in booked if one.direction == "compensation"]
        if len(done) > 1:
            found.append(f"{where} happened {len(done)} times")
        if len(undone) > 1:
            found.append(f"{where} was undone {len(undone)} times")
        if undone and not done:
            found.append(f"{where} was undone but never happened")
        elif undone and sum(one.amount for one in booked):
            found.append(f"{where} was undone by another amount than it had")
    for service, subject, opening, amount in _balances(using):
        booked_amount = sums[service, subject]
        if amount != booked_amount:
            found.append(
                f"{service}: {subject} stands at {amount}, its entries at {booked_amount}"
            )
        if opening and amount > opening:
            found.append(f"{service}: {subject} is {amount - opening} below zero")
    return found


def _read(condition: sa.ColumnElement[bool], using: Settings | None) -> list[Effect]:
    columns = [entries.c[name] for name in Effect.__struct_fields__]
    return [
        Effect(**row)
        for connection, service in _connections(using)
        for row in connection.execute(
            sa.select(*columns)
            .where(condition, entries.c.service == service)
            .order_by(entries.c.entry_id)
        ).mappings()
    ]


def _balances(using: Settings | None) -> list[tuple[str, str, int, int]]:
    return [
        (service, row.subject, row.opening, row.standing)
        for connection, service in _connections(using)
        for row in connection.execute(balances.select().where(balances.c.service == service))
    ]


def _connections(using: Settings | None) -> Iterator[tuple[sa.Connection, str]]:
    """A connection to each service's books; services that have none yet are left out."""
    for service in SERVICES:
        with _connection((using or settings()).ledger_url_of(service)) as connection:
            if connection is not None:
                yield connection, service


@contextmanager
def _connection(url: str) -> Iterator[sa.Connection | None]:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists():
        yield None
        return
    engine = engine_of(url)
    try:
        with engine.connect() as connection:
            yield connection if sa.inspect(connection).has_table(entries.name) else None
    finally:
        engine.dispose()


def _insert(connection: sa.Connection) -> Any:
    match connection.dialect.name:
        case "sqlite":
            return sqlite.insert
        case "postgresql":
            return postgresql.insert
        case other:
            raise ConfigurationError(f"The books are kept in SQLite or PostgreSQL, not {other}.")
