"""The three buses over a real broker and a real worker: one contract, Redis and RabbitMQ."""

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from celery import Celery

from orchestrator.cli import session
from orchestrator.cli.entry import run
from shared.bus import CommandBus, DeadLetters, EventBus, QueryBus
from shared.celery_app import make_app
from shared.embedded import PrivateRedis
from shared.errors import InputError, NobodyAnswered, QueryFailed
from shared.settings import Settings
from tests.bus.messages import (
    AskingOrder,
    CreateOrder,
    DeadlyOrder,
    FindElsewhere,
    FindNothing,
    FindOrder,
    FlakyOrder,
    OrderCreated,
    OrderVanished,
    OrderView,
    RefusedOrder,
    SlowOrder,
    UnknownOrder,
)
from tests.bus.worker import Worker, worker
from tests.servers.rabbitmq import RabbitServer
from tests.waiting import wait_until

PATIENT = timedelta(seconds=30)
"""A pool takes seconds to replace a process that another test has killed."""


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def broker_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each broker in turn."""
    if request.param == "redis":
        redis_server: PrivateRedis = request.getfixturevalue("redis_server")
        redis_server.start()
        yield redis_server.url
        return
    rabbitmq_server: RabbitServer = request.getfixturevalue("rabbitmq_server")
    name = f"bus-{uuid.uuid4().hex[:12]}"
    rabbitmq_server.start().create_vhost(name)
    yield rabbitmq_server.url_of(name)
    rabbitmq_server.start().delete_vhost(name)


@pytest.fixture(scope="module")
def running(
    broker_url: str,
    tmp_path_factory: pytest.TempPathFactory,
    session_servers: list[Callable[[], set[int]]],
) -> Iterator[Worker]:
    """One worker of all services for all tests on a broker."""
    with worker(tmp_path_factory.mktemp("worker"), broker_url, "-c", "2") as running:
        # It outlives the test that started it.
        session_servers.append(pids := lambda: {running.process.pid})
        yield running.ready()
        session_servers.remove(pids)


@pytest.fixture(scope="module")
def app(broker_url: str) -> Iterator[Celery[Any]]:
    """The app of a program that sends and asks."""
    with make_app(
        "tests.client", service="client", settings=Settings(broker_url=broker_url)
    ) as made:
        yield made
        QueryBus(made).close()


@pytest.fixture
def order_id() -> str:
    """A new one for each test: the worker outlives it."""
    return uuid.uuid4().hex


def test_a_command_is_handled_once_and_its_event_reaches_every_subscriber(
    app: Celery[Any], running: Worker, order_id: str
) -> None:
    """Four functions in three services, each with a queue of its own."""
    at = datetime(2026, 11, 25, 9, 0, tzinfo=UTC)
    command_id = CommandBus(app).dispatch(CreateOrder(order_id, 4200, at))
    done = {"created", "billed", "printed", "recorded"}
    wait_until(lambda: done == set(running.effects(order_id)))
    assert len(done) == len(running.effects(order_id))
    (line,) = running.lines('"event":"created","logger":"tests.bus"')[-1:]
    assert {
        "task_id": command_id,
        "task_name": "orders.create",
        "saga_message": "orders.create",
    }.items() <= line.items()


def test_a_subscriber_that_fails_disturbs_no_other(
    app: Celery[Any], running: Worker, order_id: str
) -> None:
    """It is retried by its policy and its copy alone becomes a dead letter."""
    event_id = EventBus(app, service="orders").publish(OrderCreated(f"broken{order_id}"))
    wait_until(lambda: {"billed", "recorded"} == set(running.effects(f"broken{order_id}")))
    letter = the_letter(app, f"{event_id}:billing.on.broken")
    assert ("orders.created", "RuntimeError", "no paper", "billing.on.broken") == (
        letter.message,
        letter.kind,
        letter.reason,
        letter.queue,
    )
    assert {"billed", "recorded"} == set(running.effects(f"broken{order_id}"))
    assert 2 == len(running.effects(f"broken{order_id}"))


def test_an_event_without_subscribers_is_no_error(app: Celery[Any]) -> None:
    """Nobody is interested, yet."""
    assert EventBus(app, service="orders").publish(OrderVanished("o-1"))


def test_a_handler_that_fails_is_called_again(
    app: Celery[Any], running: Worker, order_id: str
) -> None:
    """Twice with back-off, and the third attempt succeeds."""
    command_id = CommandBus(app).dispatch(FlakyOrder(order_id, succeeds_at=3))
    wait_until(lambda: "succeeded" in running.effects(order_id))
    assert ["tried", "tried", "tried", "succeeded"] == running.effects(order_id)
    retried = [line for line in running.lines(command_id) if line["event"] == "message.retried"]
    assert [(1, "KeyError"), (2, "KeyError")] == [
        (line["attempt"], line["kind"]) for line in retried
    ]


def test_a_handler_that_gives_up_leaves_a_dead_letter_that_can_be_sent_again(
    app: Celery[Any], running: Worker, order_id: str
) -> None:
    """The message is kept whole, with the reason, and is as good as new."""
    command_id = CommandBus(app).dispatch(FlakyOrder(order_id, succeeds_at=5))
    wait_until(lambda: len(running.effects(order_id)) == 3)
    wait_until(lambda: running.lines(f'"{command_id}"') and dead(app, command_id))
    with DeadLetters(app).take() as letters:
        (letter,) = (one for one in letters if one.task_id == command_id)
        assert ("KeyError", "orders") == (letter.kind, letter.queue)
        letter.send_again()
    wait_until(lambda: "succeeded" in running.effects(order_id))
    assert not dead(app, command_id)


def test_the_command_line_shows_sends_again_and_drops_dead_letters(
    app: Celery[Any], running: Worker, dlq: Callable[..., Any], order_id: str
) -> None:
    """By their ids; where one is not there nothing is done to the others."""
    again = CommandBus(app).dispatch(FlakyOrder(order_id, succeeds_at=5))
    away = CommandBus(app).dispatch(RefusedOrder(order_id))
    for one in (again, away):
        the_letter(app, one)
    assert {again, away} <= {one["id"] for one in dlq("list", "--queue", "orders")}
    assert away not in {one["id"] for one in dlq("list", "--message", "orders.flaky")}
    shown = dlq("show", away)
    assert ("OutOfStock", "none left", "orders") == (
        *(shown[name] for name in ("kind", "reason", "queue")),
    )
    assert order_id in shown["body"]
    missing = dlq("drop", away, "nobody", code=2)["error"]["message"]
    assert "The buses have no dead letter 'nobody'." == missing
    assert dlq("requeue", code=2)["error"]["type"] == "InputError"
    assert {"sent_again": [again]} == dlq("requeue", again)
    assert away in dlq("drop", "--all", "--message", "orders.refused")["dropped"]
    wait_until(lambda: "succeeded" in running.effects(order_id))
    assert not {again, away} & {one["id"] for one in dlq("list")}


def test_a_refusal_is_not_retried(app: Celery[Any], running: Worker) -> None:
    """The handler said no: asking again will not help."""
    letter = the_letter(app, CommandBus(app).dispatch(RefusedOrder("o-1")))
    assert ("OutOfStock", "none left") == (letter.kind, letter.reason)


def test_an_unknown_command_is_kept(app: Celery[Any], running: Worker) -> None:
    """The worker says that it has no handler, and discards nothing."""
    command_id = CommandBus(app).dispatch(UnknownOrder("o-1"))
    letter = the_letter(app, command_id)
    assert ("UnknownCommand", "orders") == (letter.kind, letter.queue)
    assert "has no handler for the command 'orders.unknown'" in letter.reason
    (line,) = wait_until(lambda: running.lines(f'"{command_id}"'))
    assert ("message.dead_lettered", "orders.unknown") == (line["event"], line["saga_message"])


def test_a_message_that_does_not_fit_is_kept_with_every_field_named(
    app: Celery[Any], running: Worker
) -> None:
    """Another service, of another version, sent it."""
    task_id = uuid.uuid4().hex
    with app.connection_for_write() as connection:
        app.send_task(
            "orders.create",
            kwargs={"amount_cents": "many", "new_field": 1},
            queue="orders",
            task_id=task_id,
            connection=connection,
        )
    letter = the_letter(app, task_id)
    assert "InputError" == letter.kind
    assert "order_id: missing; amount_cents: expected `int`, got `str`" in letter.reason
    assert "new_field" not in letter.reason


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_a_handler_that_kills_its_process_is_a_dead_letter_in_the_end(
    app: Celery[Any], running: Worker, order_id: str
) -> None:
    """Three processes are enough."""
    letter = the_letter(app, CommandBus(app).dispatch(DeadlyOrder(order_id)), timeout=40)
    assert "WorkerLost" == letter.kind
    assert ["dying"] * 3 == running.effects(order_id)


def test_a_hard_time_limit_is_a_failure(app: Celery[Any], running: Worker) -> None:
    """Celery would acknowledge the message and forget it."""
    letter = the_letter(app, CommandBus(app).dispatch(SlowOrder("o-1")), timeout=20)
    assert "TimeLimitExceeded" == letter.kind


def test_a_query_is_answered_with_its_type(app: Celery[Any], running: Worker) -> None:
    """From several threads at once, each with its own answer."""
    bus = QueryBus(app)
    found: dict[str, OrderView] = {}

    def ask(order_id: str) -> None:
        found[order_id] = bus.ask(FindOrder(order_id), timeout=PATIENT)

    threads = [threading.Thread(target=partial(ask, f"o-{n}")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {f"o-{n}": OrderView(f"o-{n}", 4200) for n in range(8)}


@pytest.mark.parametrize(
    "query, kind, words",
    [
        (FindOrder("missing"), "UnknownOrder", "there is no order 'missing'"),
        (FindOrder("broken"), "ValueError", "the index is broken"),
        (FindOrder("mistyped"), "AnswerNotAsDeclared", "returned no OrderView"),
        (FindNothing(), "UnknownQuery", "no handler for the query 'orders.find-nothing'"),
    ],
)
def test_a_handler_that_fails_is_an_error_of_the_caller(
    query: Any, kind: str, words: str, app: Celery[Any], running: Worker
) -> None:
    """No exception crosses the broker: it is made of a kind and a message."""
    with pytest.raises(QueryFailed, match=words) as caught:
        QueryBus(app).ask(query, timeout=PATIENT)
    assert kind == caught.value.kind


def test_a_handler_asks_a_query(app: Celery[Any], running: Worker, order_id: str) -> None:
    """From a process of a pool, which was forked and has a queue of its own."""
    CommandBus(app).dispatch(AskingOrder(order_id))
    wait_until(lambda: ["found 4200"] == running.effects(order_id), timeout=30)


def test_nobody_answers(app: Celery[Any]) -> None:
    """The error says on which queue nobody listens."""
    with pytest.raises(
        NobodyAnswered,
        match=r"Nobody answered the query 'nowhere\.find' on queue 'nowhere' within 0\.2 s",
    ):
        QueryBus(app).ask(FindElsewhere(), timeout=timedelta(seconds=0.2))


def test_a_late_answer_is_dropped_and_counted(app: Celery[Any], running: Worker) -> None:
    """It never reaches a later query."""
    bus = QueryBus(app)
    late = bus.late_answers
    with pytest.raises(NobodyAnswered):
        bus.ask(FindOrder("slow", seconds=0.5), timeout=timedelta(seconds=0.2))
    wait_until(lambda: bus.late_answers == late + 1, timeout=30)
    assert OrderView("o-2", 4200) == bus.ask(FindOrder("o-2"), timeout=PATIENT)


def test_a_wrong_field_is_refused_before_anything_is_sent(app: Celery[Any]) -> None:
    """The constructors of msgspec check nothing."""
    wrong: Any = CreateOrder
    with pytest.raises(InputError) as caught:
        CommandBus(app).dispatch(wrong(order_id=1, amount_cents="x"))
    assert (
        "order_id: expected `str`, got `int`",
        "amount_cents: expected `int`, got `str`",
    ) == caught.value.problems


@pytest.fixture
def dlq(
    broker_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """Runs ``saga dlq bus … --json``, and gives what it says."""
    monkeypatch.setattr(session, "settings", lambda: Settings(broker_url=broker_url))
    monkeypatch.setattr(session, "log_errors_only", lambda: None)

    def command(*arguments: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert code == run(["dlq", "bus", *arguments, "--json"])
        said = capsys.readouterr()
        return json.loads(said.err.splitlines()[-1] if code else said.out)

    return command


def dead(app: Celery[Any], task_id: str) -> Any:
    """The dead letter of a message, if there is one; it stays."""
    with DeadLetters(app).take() as letters:
        return next((one for one in letters if one.task_id == task_id), None)


def the_letter(app: Celery[Any], task_id: str, timeout: float = 10) -> Any:
    """The dead letter of a message, as soon as there is one."""
    return wait_until(lambda: dead(app, task_id), timeout=timeout, what="a dead letter")
