import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
import sqlalchemy as sa
from celery import Celery
from kombu.exceptions import OperationalError
from structlog.testing import CapturingLogger

from shared.errors import ConfigurationError
from shared.ids import Direction
from shared.messages import (
    FAILURE_MESSAGE_CHARS_MAX,
    FAILURE_TRACEBACK_CHARS_MAX,
    Failed,
    HeartbeatRequest,
    Rejected,
    Succeeded,
)
from tests.workers.eager import Eager
from tests.workers.stand_in import TRACE_ID, command, summary
from workers.sdk import Fail, Later, Participant, Reject, StepContext, StepResult, runner

metadata = sa.MetaData()
effects = sa.Table("effect", metadata, sa.Column("what", sa.String(100), nullable=False))


class Service:
    """A participant with a database of its own, run in this process."""

    def __init__(self, folder: Path, *, database: bool) -> None:
        self.app: Celery[Any] = Celery("service", broker="memory://", set_as_current=False)
        url = f"sqlite:///{folder}/service.db" if database else None
        self.participant = Participant(self.app, url)
        self.calls: list[dict[str, Any]] = []
        if database:
            self.participant.create_tables(metadata)
        self.eager = Eager(self.app)

    def action(self, function: Any, name: str = "pay.charge") -> None:
        """Register an action."""
        self.participant.action(name)(function)

    def outcome(self, payload: Any = None, **of: Any) -> str:
        """Run the action once, and say what its only reply says."""
        (reply,) = self.eager.run("pay.charge", command(**of), payload or {})
        return summary(reply.outcome)

    def booked(self) -> int:
        """How many effects stand."""
        with self.participant.engine.connect() as connection:
            query = sa.select(sa.func.count()).select_from(effects)
            return connection.execute(query).scalar_one()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A participant with a database."""
    made = Service(tmp_path, database=True)
    with made.eager:
        yield made
    made.participant.engine.dispose()


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Service]:
    """A participant without a database."""
    made = Service(tmp_path, database=False)
    with made.eager:
        yield made


def book(context: StepContext) -> None:
    """Leave an effect behind."""
    context.connection.execute(effects.insert().values(what=context.step))


# Arguments -----------------------------------------------------------------------------------


class Address(msgspec.Struct):
    """A type of the function's own."""

    city: str


def test_function_gets_what_it_names_and_nothing_else(bare: Service) -> None:
    """A payload may have more fields than a participant knows of."""

    def charge(context: StepContext, amount: int, currency: str = "EUR") -> list[Any]:
        return [amount, currency]

    bare.action(charge)
    assert bare.outcome({"amount": 5, "sku": "lamp"}) == 'succeeded [5, "EUR"]'


def test_function_with_keywords_gets_everything(bare: Service) -> None:
    """`**fields` asks for all of the payload."""
    bare.action(lambda context, **fields: sorted(fields))
    assert bare.outcome({"b": 1, "a": 2}) == 'succeeded ["a", "b"]'


def test_arguments_are_converted_to_their_types(bare: Service) -> None:
    """An annotation is a promise: a struct arrives as one."""

    def charge(context: StepContext, address: Address) -> str:
        return address.city

    bare.action(charge)
    assert bare.outcome({"address": {"city": "Kyoto"}}) == 'succeeded "Kyoto"'


def test_every_wrong_argument_is_named(bare: Service) -> None:
    """Missing and mistyped arguments are all in one message, and nothing has run."""

    def charge(
        context: StepContext, amount: Annotated[int, msgspec.Meta(ge=1)], card: str, to: str
    ) -> None:
        raise AssertionError

    bare.action(charge)
    (reply,) = bare.eager.run("pay.charge", command(), {"amount": 0, "card": 42})
    assert isinstance(reply.outcome, Rejected)
    failure = reply.outcome.failure
    assert failure.kind == "InvalidArguments"
    assert "to: missing" in failure.message
    assert "amount: Expected `int` >= 1" in failure.message
    assert "card: Expected `str`, got `int`" in failure.message


def test_strings_are_not_taken_for_numbers(bare: Service) -> None:
    """Conversion is strict: "5" is no number."""

    def charge(context: StepContext, amount: int) -> None:
        raise AssertionError

    bare.action(charge)
    assert bare.outcome({"amount": "5"}) == "rejected InvalidArguments"


def test_refused_arguments_stay_refused(service: Service) -> None:
    """A rejection for its arguments is stored too: no later copy may succeed."""

    def charge(context: StepContext, amount: int) -> None:
        book(context)

    service.action(charge)
    assert service.outcome({}) == "rejected InvalidArguments"
    assert service.outcome({"amount": 1}) == "rejected InvalidArguments"
    assert service.booked() == 0


@pytest.mark.parametrize(
    "function", [lambda: None, lambda *, context: None], ids=["nothing", "keyword"]
)
def test_function_without_a_context_is_refused(bare: Service, function: Any) -> None:
    """The mistake shows when the module is imported, not when the first order comes."""
    with pytest.raises(TypeError, match="StepContext"):
        bare.action(function)


def test_positional_only_argument_is_refused(bare: Service) -> None:
    """A payload has names only."""
    with pytest.raises(TypeError, match="'amount' cannot be given by keyword"):
        bare.action(lambda context, amount, /: None)


# Outcomes ------------------------------------------------------------------------------------


def test_output_is_undo_data_by_default(service: Service) -> None:
    """What an action returns is what its compensation gets."""
    service.action(lambda context: {"id": 7})
    (reply,) = service.eager.run("pay.charge", command(), {})
    assert reply.outcome == Succeeded(output={"id": 7}, undo={"id": 7})


def test_output_and_undo_data_may_differ(service: Service) -> None:
    """`StepResult` keeps what others need not see out of the output."""
    service.action(lambda context: StepResult(output="done", undo={"secret": 1}))
    (reply,) = service.eager.run("pay.charge", command(), {})
    assert reply.outcome == Succeeded(output="done", undo={"secret": 1})


@pytest.mark.parametrize(
    "error, expected",
    [
        (Reject("CardDeclined", "no"), "rejected CardDeclined"),
        (Fail("BankClosed"), "failed BankClosed"),
        (Fail("BankGone", retryable=False), "failed BankGone for good"),
        (ConnectionError("x"), "failed ConnectionError"),
    ],
)
def test_exceptions_are_outcomes(service: Service, error: Exception, expected: str) -> None:
    """What a function raises decides what the saga does, and its work is rolled back."""

    def charge(context: StepContext) -> None:
        book(context)
        raise error

    service.action(charge)
    assert service.outcome() == expected
    assert service.booked() == 0


@pytest.mark.parametrize(
    "result, expected",
    [
        (object(), "failed ResultNotJson for good"),
        ({"when": {1: object}}, "failed ResultNotJson for good"),
        ("x" * 300_000, "failed ResultTooLarge for good"),
        (StepResult(undo="x" * 300_000), "failed ResultTooLarge for good"),
    ],
)
def test_result_that_cannot_be_sent_undoes_the_work(
    service: Service, result: object, expected: str
) -> None:
    """It is found before the commit, so nothing stands that nobody was told of."""

    def charge(context: StepContext) -> object:
        book(context)
        return result

    service.action(charge)
    assert service.outcome() == expected
    assert service.booked() == 0


def test_results_of_structs_are_plain_json(service: Service) -> None:
    """What JSON has a form for is sent, and reads the same for a duplicate."""
    service.action(lambda context: Address(city="Kyoto"))
    assert service.outcome() == 'succeeded {"city": "Kyoto"}'
    assert service.outcome(attempt=2) == 'succeeded {"city": "Kyoto"}'


def test_long_failure_texts_are_cut(service: Service) -> None:
    """A message keeps its beginning, a traceback its end, and both their limits."""

    def charge(context: StepContext) -> None:
        raise ValueError("x" * 100_000)

    service.action(charge)
    (reply,) = service.eager.run("pay.charge", command(), {})
    assert isinstance(reply.outcome, Failed)
    failure = reply.outcome.failure
    assert len(failure.message) == FAILURE_MESSAGE_CHARS_MAX
    assert len(failure.traceback) == FAILURE_TRACEBACK_CHARS_MAX
    assert failure.traceback.endswith("x\n")


@pytest.mark.parametrize("raised", [ValueError("no \udcff"), Reject("No\udcff", "no \udcff")])
def test_a_failure_that_is_no_text_is_told_all_the_same(
    service: Service, raised: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of files hold such characters: without its reply the attempt would time out."""
    # What pytest captures of it is no text either, and kills the tests that run beside this one.
    monkeypatch.setattr(logging.getLogger("celery.app.trace"), "disabled", True)

    def charge(context: StepContext) -> None:
        raise raised

    service.action(charge)
    (reply,) = service.eager.run("pay.charge", command(), {})
    assert isinstance(reply.outcome, Failed | Rejected)
    assert reply.outcome.failure.message == "no \\udcff"


def test_reply_says_where_and_when(bare: Service) -> None:
    """The reply carries the attempt it answers, and the worker and times of it."""
    bare.action(lambda context: None)
    (reply,) = bare.eager.run("pay.charge", command(attempt=3), {})
    assert (reply.saga_id, reply.step, reply.attempt) == ("saga-1", "pay", 3)
    assert reply.execution is not None
    assert reply.execution.worker
    assert reply.execution.started_at <= reply.execution.ended_at


@pytest.mark.parametrize("error", [Reject("A", "b"), Fail("A", "b", retryable=False)])
def test_exceptions_survive_a_process_border(error: Reject | Fail) -> None:
    """A prefork child hands its exception to its parent by pickle."""
    copy = pickle.loads(pickle.dumps(error))
    assert vars(copy) == vars(error)
    assert str(copy) == "A: b"


# Context -------------------------------------------------------------------------------------


def test_context_says_which_step_this_is(service: Service) -> None:
    """Saga, step, attempt, keys and trace are there without asking anyone."""

    def charge(context: StepContext) -> dict[str, Any]:
        return {
            "saga": [context.saga_id, context.saga_name, context.step, context.direction],
            "attempt": context.attempt,
            "key": context.idempotency_key,
            "trace": context.trace_id,
            "task": [context.task, context.task_id],
            "year": context.deadline_at.year if context.deadline_at else None,
        }

    service.action(charge)
    (reply,) = service.eager.run("pay.charge", command(attempt=2), {})
    assert isinstance(reply.outcome, Succeeded)
    assert reply.outcome.output == {
        "saga": ["saga-1", "place-order", "pay", "action"],
        "attempt": 2,
        "key": "saga-1:pay:action",
        "trace": TRACE_ID,
        "task": ["pay.charge", "saga-1:pay:action:2"],
        "year": 2030,
    }


def test_context_without_a_database_says_so(bare: Service) -> None:
    """Asking for a connection that nobody configured names the task and the way out."""
    bare.action(lambda context: context.connection)
    (reply,) = bare.eager.run("pay.charge", command(), {})
    assert isinstance(reply.outcome, Failed)
    assert "Participant(app" in reply.outcome.failure.message
    with pytest.raises(ConfigurationError, match="no database"):
        bare.participant.create_tables()


# Duplicates and compensations ----------------------------------------------------------------


def test_duplicate_is_answered_and_logged(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function runs once; the second reply is the same, and the log tells them apart."""

    def charge(context: StepContext) -> int:
        book(context)
        return service.booked() + 1

    service.action(charge)
    log = CapturingLogger()
    monkeypatch.setattr(runner, "_log", log)
    assert service.outcome() == service.outcome(attempt=2)
    assert service.booked() == 1
    said = [call.args[0] for call in log.calls]
    first, second = said[:2], said[2:]
    assert first == ["step.started", "step.succeeded"]
    assert second == ["step.started", "step.duplicate", "step.succeeded"]


@pytest.mark.parametrize("sent", [{"undo": {"id": 1}}, {"undo": None}, {}])
def test_compensation_gets_the_arguments_and_the_undo_data(
    service: Service, sent: dict[str, Any]
) -> None:
    """Where the orchestrator never saw the action's reply, the barrier remembers its undo data."""
    given = []
    service.action(lambda context: {"id": 1})
    service.participant.compensation("pay.refund")(
        lambda context, amount, undo: given.append((amount, undo))
    )
    service.outcome()
    (reply,) = service.eager.run(
        "pay.refund", command("compensation"), {"amount": 5, "sku": "lamp", **sent}
    )
    assert summary(reply.outcome) == "succeeded null"
    assert given == [(5, {"id": 1})]


def test_compensation_without_its_action_is_not_called(service: Service) -> None:
    """With a barrier there is nothing to undo, and the late action is refused."""
    service.action(book)
    service.participant.compensation("pay.refund")(book)
    (reply,) = service.eager.run("pay.refund", command("compensation"), {})
    assert summary(reply.outcome) == "succeeded null"
    assert service.outcome() == "rejected CompensatedBefore"
    assert service.booked() == 0


def test_compensation_without_a_database_is_always_called(bare: Service) -> None:
    """Nobody knows whether the action happened, so the function has to be idempotent."""
    given = []
    bare.participant.compensation("pay.refund")(lambda context, undo: given.append(undo))
    bare.eager.run("pay.refund", command("compensation"), {"undo": None})
    bare.eager.run("pay.refund", command("compensation"), {"undo": None})
    assert given == [None, None]


def test_compensation_cannot_be_refused(service: Service) -> None:
    """`Reject` in a compensation is a failure that is not retried: an operator has to look."""

    def refund(context: StepContext) -> None:
        raise Reject("TooLate")

    service.action(lambda context: None)
    service.participant.compensation("pay.refund")(refund)
    service.outcome()
    (reply,) = service.eager.run("pay.refund", command("compensation"), {})
    assert summary(reply.outcome) == "failed TooLate for good"


@pytest.mark.parametrize(
    "direction, expected",
    [
        ("action", "rejected DirectionMismatch"),
        ("compensation", "failed DirectionMismatch for good"),
    ],
)
def test_action_is_not_taken_for_a_compensation(
    bare: Service, direction: Direction, expected: str
) -> None:
    """A definition that mixes the two up is told so before anything runs."""
    register = bare.participant.compensation if direction == "action" else bare.participant.action
    register("pay.mixed")(lambda context: bare.calls.append({}))
    (reply,) = bare.eager.run("pay.mixed", command(direction), {})
    assert summary(reply.outcome) == expected
    assert bare.calls == []


# Outside of a saga ---------------------------------------------------------------------------


def test_plain_call_returns_the_output(service: Service) -> None:
    """Without saga headers a step is an ordinary task, with a transaction but no barrier."""

    def charge(context: StepContext, amount: int) -> dict[str, Any]:
        book(context)
        return {"amount": amount, "saga": context.saga_id, "keyed": bool(context.idempotency_key)}

    service.action(charge)
    expected = {"amount": 5, "saga": "", "keyed": True}
    assert service.eager.plainly("pay.charge", {"amount": 5, "x": 1}) == expected
    assert service.eager.plainly("pay.charge", {"amount": 5}) == expected
    assert service.booked() == 2
    assert service.eager.replies() == []


def test_decorator_leaves_the_function_alone(bare: Service) -> None:
    """A unit test calls the function itself."""

    @bare.participant.action("pay.charge")
    def charge(context: StepContext, amount: int) -> int:
        return amount + 1

    context = StepContext(
        saga_id="s",
        saga_name="n",
        step="pay",
        direction="action",
        attempt=1,
        task="pay.charge",
        task_id="t",
    )
    assert charge(context, 4) == 5


def test_malformed_headers_are_logged_and_nothing_runs(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could be answered, so nothing is done, and a line in the log names the header."""
    service.action(book)
    log = CapturingLogger()
    monkeypatch.setattr(runner, "_log", log)
    extra = {"saga_direction": "sideways"}
    assert service.eager.run("pay.charge", command(), {}, extra=extra) == []
    assert service.booked() == 0
    ((method, _, fields),) = log.calls
    assert method == "error"
    assert "sideways" in json.dumps(fields["reason"])


def test_reply_that_cannot_be_sent_fails_the_task_and_keeps_the_work(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work is committed; the step's timeout sends it again, and the barrier answers then."""

    def away(*_: Any, **__: Any) -> None:
        raise OperationalError("broker away")

    service.action(book)
    with monkeypatch.context() as patched:
        patched.setattr(runner, "send_reply", away)
        assert service.eager.run("pay.charge", command(), {}) == []
    assert service.booked() == 1
    assert service.outcome(attempt=2) == "succeeded null"
    assert service.booked() == 1


def test_work_that_goes_on_elsewhere_is_accepted_once(service: Service) -> None:
    """The transaction commits, and a duplicate is answered without running again."""
    runs: list[str] = []

    def charge(context: StepContext) -> Later:
        book(context)
        runs.append(context.token)
        return Later()

    service.action(charge)
    assert service.outcome(token="t-1") == "accepted"
    assert service.outcome(token="t-1") == "accepted"
    assert (runs, service.booked()) == (["t-1"], 1)
    assert service.eager.states == ["SUCCESS", "SUCCESS"]


class Booked(msgspec.Struct):
    """What an action says that it returns."""

    seat: str
    price: int


def test_a_result_is_what_its_function_declares(service: Service) -> None:
    """A struct, or fields that fit it; what does not is rolled back, by name, and not tried again."""
    results: list[Any] = [
        Booked("1A", 7),
        {"seat": "1A", "price": 7},
        StepResult(output={"seat": "1A", "price": 7}, undo="u"),
        Booked("1A", "much"),  # type: ignore[arg-type]  # which nothing hinders
        {"seat": "1A"},
        None,
    ]

    def charge(context: StepContext) -> Booked:
        book(context)
        result: Booked = results[context.attempt - 1]
        return result

    service.action(charge)
    said = [
        service.eager.run("pay.charge", command(saga_id=f"s-{number}", attempt=number), {})[
            0
        ].outcome
        for number in range(1, 7)
    ]
    assert [isinstance(one, Succeeded) for one in said] == [True, True, True, False, False, False]
    assert service.booked() == 3
    failures = [one.failure for one in said if isinstance(one, Failed)]
    assert {(one.kind, one.retryable) for one in failures} == {("InvalidResult", False)}
    assert [one.message for one in failures] == [
        "The step returned what is no Booked: Expected `int`, got `str` - at `$.price`",
        "The step returned what is no Booked: Object missing required field `price`",
        "The step returned what is no Booked: Expected `object`, got `null`",
    ]


def test_context_without_a_token_says_so(bare: Service) -> None:
    """Of a saga that an older version started."""

    def charge(context: StepContext) -> str:
        return context.token

    bare.action(charge)
    assert bare.outcome() == "failed ConfigurationError"


def test_heartbeats_are_sent_at_most_once_a_second(bare: Service) -> None:
    """With the progress, before the reply; one that is too large is the step's mistake."""

    def charge(context: StepContext) -> None:
        context.heartbeat({"done": 1})
        context.heartbeat({"done": 2})

    def talk(context: StepContext) -> None:
        context.heartbeat("x" * 5_000)

    bare.action(charge)
    bare.action(talk, "pay.talk")
    of = command(step="charge")
    told = bare.eager.told("pay.charge", of, {})
    assert [type(one).__name__ for one in told] == ["HeartbeatRequest", "Reply"]
    assert told[0] == HeartbeatRequest(
        saga_id=of.saga_id, step="charge", direction="action", attempt=1, progress={"done": 1}
    )
    (reply,) = bare.eager.run("pay.talk", command(step="talk"), {})
    assert summary(reply.outcome) == "failed PayloadTooLarge"
