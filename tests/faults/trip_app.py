"""The travel agency: a worker for the steps of `trip`."""

import sqlalchemy as sa
from celery import signals

from shared.celery_app import make_app
from shared.settings import settings
from tests.waiting import wait_until
from workers.sdk import Later, Participant, StepContext

HELD = "held"
"""File in ``SAGA_HOME``: tickets are not printed to the end while it is there."""

TOKENS = "tokens"
"""Folder in ``SAGA_HOME``: the token of each car, by the id of its saga."""

metadata = sa.MetaData()
bookings = sa.Table(
    "booking",
    metadata,
    sa.Column("saga_id", sa.String(100), primary_key=True),
    sa.Column("step", sa.String(100), primary_key=True),
    sa.Column("what", sa.String(100), nullable=False),
)

app = make_app("tests.faults.trip_app", service="travel", settings=settings)
participant = Participant(app, lambda: f"sqlite:///{settings().home.absolute()}/travel.db")


@signals.worker_init.connect(weak=False)
def create_tables(**_: object) -> None:
    """When a worker starts, and not in a test that imports this."""
    participant.create_tables(metadata)


def note(context: StepContext, what: str) -> None:
    """Write a booking down, in the transaction of the step."""
    context.connection.execute(
        bookings.insert().values(saga_id=context.saga_id, step=context.step, what=what)
    )


@participant.action("travel.book")
def book(context: StepContext, what: str) -> dict[str, str]:
    """Book something."""
    note(context, what)
    return {"what": what}


@participant.compensation("travel.cancel")
def cancel(context: StepContext) -> None:
    """Take it back."""
    context.connection.execute(
        bookings.delete().where(
            bookings.c.saga_id == context.saga_id, bookings.c.step == context.step
        )
    )


@participant.action("travel.order_car")
def order_car(context: StepContext, what: str) -> Later:
    """Somebody else says when the car is there."""
    note(context, what)
    folder = settings().home / TOKENS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / context.saga_id).write_text(context.token)
    return Later()


@participant.action("travel.mail")
def mail(context: StepContext, amount: int) -> None:
    """Say what was paid."""


@participant.action("travel.print")
def print_tickets(context: StepContext, receipt: str, cab: int) -> str:
    """Takes a while, and says so."""
    context.heartbeat({"printed": 1})
    wait_until(lambda: not (settings().home / HELD).exists(), timeout=30, what="the printer")
    return f"{receipt} and cab {cab}"
