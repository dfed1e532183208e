"""How a service takes part in sagas. Each test is one concept, in the order of learning.

A participant is a Celery app. Nothing here starts a worker: `ask` does what a worker does with one
message, and returns what the orchestrator would be told.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from celery import Celery, Task

from shared.messages import Failed, Outcome, Rejected, Succeeded
from tests.workers.eager import Eager
from tests.workers.stand_in import command
from workers.sdk import Fail, Participant, Reject, StepContext, StepResult, install

metadata = sa.MetaData()
seats = sa.Table(
    "seat",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("passenger", sa.String(100), nullable=False),
)

Ask = Callable[..., Outcome]


class Passenger(msgspec.Struct):
    """Who wants to fly."""

    name: str
    age: int


@pytest.fixture
def app() -> Celery[Any]:
    """The service's Celery app, as you have it already."""
    return Celery("airline", broker="memory://", set_as_current=False)


@pytest.fixture
def participant(app: Celery[Any], tmp_path: Path) -> Iterator[Participant]:
    """The service as a participant, with its own database."""
    made = Participant(app, f"sqlite:///{tmp_path}/airline.db")
    made.create_tables(metadata)
    yield made
    made.engine.dispose()


@pytest.fixture
def ask(app: Celery[Any]) -> Iterator[Ask]:
    """What a worker does with a command of the step ``book-seat``."""
    with Eager(app) as eager:

        def send(task: str, *, compensate: bool = False, attempt: int = 1, **payload: Any) -> Any:
            of = command(
                "compensation" if compensate else "action", step="book-seat", attempt=attempt
            )
            (reply,) = eager.run(task, of, payload)
            return reply.outcome

        yield send


def taken(participant: Participant) -> list[int]:
    """The seats that are taken."""
    with participant.engine.connect() as connection:
        return list(connection.execute(sa.select(seats.c.number)).scalars())


def book(context: StepContext, seat: int, passenger: str) -> dict[str, int]:
    """Book a seat."""
    context.connection.execute(seats.insert().values(number=seat, passenger=passenger))
    return {"seat": seat}


def free(context: StepContext, undo: dict[str, int]) -> None:
    """Free a seat."""
    context.connection.execute(seats.delete().where(seats.c.number == undo["seat"]))


def test_action_is_a_function_and_its_result_the_output(
    participant: Participant, ask: Ask
) -> None:
    """Name the fields of the payload that you want; work through the context's connection."""
    participant.action("seat.book")(book)
    outcome = ask("seat.book", seat=12, passenger="Ada", meal="vegan")
    assert isinstance(outcome, Succeeded)
    assert outcome.output == {"seat": 12}
    assert taken(participant) == [12]


def test_compensation_gets_what_the_action_returned(participant: Participant, ask: Ask) -> None:
    """Name `undo`, and undo from that alone: the world may have changed since."""
    participant.action("seat.book")(book)
    participant.compensation("seat.free")(free)
    ask("seat.book", seat=12, passenger="Ada")
    ask("seat.free", compensate=True, seat=12, passenger="Ada")
    assert taken(participant) == []


def test_undo_data_can_be_kept_apart(participant: Participant, ask: Ask) -> None:
    """`StepResult` separates what the saga sees from what only the compensation needs."""

    @participant.action("seat.book")
    def book_and_remember(context: StepContext, seat: int, passenger: str) -> StepResult:
        book(context, seat, passenger)
        return StepResult(output="booked", undo={"seat": seat})

    outcome = ask("seat.book", seat=12, passenger="Ada")
    assert isinstance(outcome, Succeeded)
    assert (outcome.output, outcome.undo) == ("booked", {"seat": 12})


def test_reject_says_no(participant: Participant, ask: Ask) -> None:
    """Nothing happened, it is not retried, and the saga turns back."""

    @participant.action("seat.book")
    def refuse(context: StepContext, seat: int) -> None:
        raise Reject("SeatTaken", f"Seat {seat} is taken.")

    outcome = ask("seat.book", seat=12)
    assert isinstance(outcome, Rejected)
    assert outcome.failure.kind == "SeatTaken"


def test_any_other_exception_may_be_retried(participant: Participant, ask: Ask) -> None:
    """The work is rolled back; the saga's policy decides about another attempt."""

    @participant.action("seat.book")
    def break_down(context: StepContext, seat: int, passenger: str) -> None:
        book(context, seat, passenger)
        raise ConnectionError("The reservation system does not answer.")

    outcome = ask("seat.book", seat=12, passenger="Ada")
    assert isinstance(outcome, Failed)
    assert outcome.failure.retryable
    assert taken(participant) == []


def test_fail_names_the_failure_and_says_whether_to_retry(
    participant: Participant, ask: Ask
) -> None:
    """For what another attempt cannot mend, without claiming that nothing happened."""

    @participant.action("seat.book")
    def give_up(context: StepContext) -> None:
        raise Fail("FlightDeparted", retryable=False)

    outcome = ask("seat.book")
    assert isinstance(outcome, Failed)
    assert (outcome.failure.kind, outcome.failure.retryable) == ("FlightDeparted", False)


def test_arguments_are_checked_against_their_types(participant: Participant, ask: Ask) -> None:
    """Annotate with anything that msgspec knows; what does not fit is rejected by name."""

    @participant.action("seat.greet")
    def greet(context: StepContext, passenger: Passenger) -> str:
        return f"Welcome, {passenger.name}!"

    outcome = ask("seat.greet", passenger={"name": "Ada"})
    assert isinstance(outcome, Rejected)
    assert outcome.failure.kind == "InvalidArguments"
    assert outcome.failure.message == "passenger: Object missing required field `age`"


def test_second_delivery_has_no_second_effect(participant: Participant, ask: Ask) -> None:
    """Messages come twice. The barrier knows, and answers with the first outcome."""
    participant.action("seat.book")(book)
    first = ask("seat.book", seat=12, passenger="Ada")
    second = ask("seat.book", attempt=2, seat=12, passenger="Ada")
    assert first == second
    assert taken(participant) == [12]


def test_late_action_is_refused_after_its_compensation(participant: Participant, ask: Ask) -> None:
    """Messages overtake each other: nothing is undone, and nothing happens afterwards."""
    participant.action("seat.book")(book)
    participant.compensation("seat.free")(free)
    assert isinstance(ask("seat.free", compensate=True), Succeeded)
    outcome = ask("seat.book", seat=12, passenger="Ada")
    assert isinstance(outcome, Rejected)
    assert outcome.failure.kind == "CompensatedBefore"
    assert taken(participant) == []


def test_service_without_a_database_uses_the_idempotency_key(app: Celery[Any], ask: Ask) -> None:
    """Hand the key to the system that does the work: it is the same for every attempt."""
    charged: dict[str, int] = {}

    @Participant(app).action("payment.charge")
    def charge(context: StepContext, amount: int) -> None:
        charged.setdefault(context.idempotency_key, amount)

    ask("payment.charge", amount=5)
    ask("payment.charge", attempt=2, amount=5)
    assert charged == {"saga-1:book-seat:action": 5}


def test_existing_tasks_become_steps_without_a_change(app: Celery[Any], ask: Ask) -> None:
    """`install` answers for tasks that know nothing of sagas, and leaves their other uses alone."""

    @app.task(name="mail.send", bind=True)
    def send_mail(self: Task[Any, Any], to: str) -> str:
        return f"sent to {to}"

    install(app)
    outcome = ask("mail.send", to="ada@example.org", seat=12)
    assert isinstance(outcome, Succeeded)
    assert outcome.output == "sent to ada@example.org"
    assert send_mail("bob@example.org") == "sent to bob@example.org"
