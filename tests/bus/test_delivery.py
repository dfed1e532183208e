"""Who gets a message, and who gets it back, on each kind of broker; no worker runs here."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from celery import Celery
from kombu import Consumer

from orchestrator.transport.celery import CeleryTransport
from shared import names
from shared.broker_transport import transport_for
from shared.bus import Command, CommandBus, EventBus, QueryBus, Refuse, RetryPolicy
from shared.bus.registry import Handling, registry_of
from shared.bus.unknown import KeepUnknown
from shared.celery_app import make_app
from shared.contract import wire_of
from shared.errors import DefinitionError
from shared.messages import EventArrived
from shared.settings import Settings
from shared.telemetry.tracing import span
from tests.bus.messages import CreateOrder, FindOrder, OrderCreated
from tests.contracts.transport_contract import command
from tests.servers.otlp import OtlpReceiver, otlp_http
from tests.servers.spantree import assert_one_tree
from tests.telemetry.conftest import StartTracing, lines, start_tracing

__all__ = ["lines", "otlp_http", "start_tracing"]

SUBSCRIBERS = ("billing.on.one", "billing.on.two")


@pytest.fixture(params=["redis", "kombu's redis", "rabbitmq", "filesystem"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Celery[Any]]:
    """An app on each broker, with two subscribers whose queues exist."""
    url = "filesystem://"
    if request.param != "filesystem":
        fixture = "rabbitmq_url" if request.param == "rabbitmq" else "redis_url"
        url = request.getfixturevalue(fixture)
    with make_app(
        "tests.client", service="client", settings=Settings(broker_url=url, home=tmp_path)
    ) as made:
        made.conf.broker_transport = (
            transport_for(url) if request.param != "kombu's redis" else None
        )
        bus = EventBus(made, service="billing")
        for name in ("one", "two"):
            bus.subscriber(OrderCreated, name=name)(lambda _: None)
        bus.declare()
        yield made
        bus.close()


def waiting(app: Celery[Any], *queues: str) -> list[int]:
    """How many messages lie in some queues; an empty list of Redis does not exist."""
    found = []
    with app.connection_for_read() as connection:
        for queue in queues:
            with connection.channel() as channel:
                any_channel: Any = channel
                try:
                    found.append(any_channel.queue_declare(queue, passive=True).message_count)
                except connection.channel_errors:
                    found.append(0)
    return found


def take(app: Celery[Any], queue: str, then: Callable[[Any], None]) -> None:
    """Consume one message as a worker does, and end without settling it."""
    (subscriber,) = (
        one for one in registry_of(app).subscriber_queues("billing") if one.name == queue
    )
    with app.connection_for_read() as connection, connection.channel() as channel:
        taken: list[Any] = []
        with Consumer(channel, [subscriber], on_message=taken.append):
            while not taken:
                connection.drain_events(timeout=5)
        then(taken[0])


def test_what_one_subscriber_gives_back_goes_to_no_other(app: Celery[Any]) -> None:
    """Kombu gives a message back to where it was sent: sent to the exchange, to all of them."""
    event_id = EventBus(app, service="orders").publish(OrderCreated("o-1"))
    assert [1, 1] == waiting(app, *SUBSCRIBERS)
    seen: list[Any] = []
    take(app, SUBSCRIBERS[0], seen.append)
    assert (SUBSCRIBERS[0], f"{event_id}:{SUBSCRIBERS[0]}") == (
        seen[0].headers["task"],
        seen[0].headers["id"],
    )
    assert [1, 1] == waiting(app, *SUBSCRIBERS)


def test_a_subscriber_that_is_forgotten_gets_nothing_any_more(app: Celery[Any]) -> None:
    """Its queue and its binding are gone, whoever made them."""
    EventBus(app, service="billing").forget("one")
    EventBus(app, service="orders").publish(OrderCreated("o-1"))
    assert [0, 1] == waiting(app, *SUBSCRIBERS)


def test_the_orchestrator_subscribes_and_publishes(app: Celery[Any]) -> None:
    """Events come in on the queue of the replies, and go out as those of every other service."""
    ours = app.conf.broker_transport is not None
    transport = CeleryTransport(app, events=["orders.created"], own_transports=ours)
    try:
        assert [] == transport.receive(10, 0)
        event_id = EventBus(app, service="orders").publish(OrderCreated("o-1", 7))
        (delivery,) = transport.receive(10, 5)
        assert delivery.message == EventArrived(
            event_id=event_id,
            name="orders.created",
            fields={"order_id": "o-1", "amount_cents": 7},
        )
        transport.acknowledge([delivery])
        event = msgspec.structs.replace(
            command(1),
            queue=names.EVENTS_EXCHANGE,
            task="orders.created",
            payload={"order_id": "o-2"},
        )
        transport.publish([command(1), event])
        assert [2, 2, 1] == waiting(app, *SUBSCRIBERS, command(1).queue)
        (delivery,) = transport.receive(10, 5)
        assert isinstance(delivery.message, EventArrived)
        transport.acknowledge([delivery])
    finally:
        transport.close()


@pytest.mark.parametrize("app", ["rabbitmq"], indirect=True)
def test_a_queue_that_was_deleted_is_made_again(app: Celery[Any]) -> None:
    """RabbitMQ confirms what it drops: the command comes back, and is sent again."""
    bus = CommandBus(app)
    bus.dispatch(CreateOrder("o-1"))
    with app.connection_for_write() as connection, connection.channel() as channel:
        any_channel: Any = channel
        any_channel.queue_delete("orders")
    bus.dispatch(CreateOrder("o-2"))
    assert [1] == waiting(app, "orders")


@pytest.mark.parametrize("app", ["redis", "kombu's redis"], indirect=True)
def test_a_redis_that_lost_its_data_is_told_anew(app: Celery[Any], redis_url: str) -> None:
    """Kombu itself binds once in a process."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    EventBus(app, service="billing").declare()
    EventBus(app, service="orders").publish(OrderCreated("o-1"))
    assert [1, 1] == waiting(app, *SUBSCRIBERS)


@pytest.fixture
def nowhere() -> Celery[Any]:
    """An app without telemetry and without a broker."""
    return Celery("nowhere", broker="memory://", set_as_current=False)


def test_a_second_handler_is_refused(nowhere: Celery[Any]) -> None:
    """At registration, with the places of both."""
    commands, queries = CommandBus(nowhere), QueryBus(nowhere)
    events = EventBus(nowhere, service="billing")

    def one(_: Any) -> None: ...
    def two(_: Any) -> None: ...

    for register in (
        commands.handler(CreateOrder),
        queries.handler(FindOrder),
        events.subscriber(OrderCreated, name="same"),
    ):
        decorate: Any = register
        decorate(one)
        with pytest.raises(DefinitionError, match=r"two handlers: .*one and .*two"):
            decorate(two)
    events.subscriber(OrderCreated, name="other")(two)


def test_each_bus_takes_its_own_kind(nowhere: Celery[Any]) -> None:
    """A query is no command, and says so."""
    wrong: Any = FindOrder("o-1")
    for call in (
        lambda: CommandBus(nowhere).dispatch(wrong),
        lambda: EventBus(nowhere, service="a").publish(wrong),
        lambda: CommandBus(nowhere).handler(type(wrong)),
        lambda: EventBus(nowhere, service="a").subscriber(type(wrong)),
    ):
        with pytest.raises(DefinitionError, match="quer"):
            call()
    not_a_query: Any = CreateOrder("o-1")
    with pytest.raises(DefinitionError, match="is no query"):
        QueryBus(nowhere).ask(not_a_query)
    not_a_message: Any = object()
    with pytest.raises(DefinitionError, match="Derive it from"):
        CommandBus(nowhere).dispatch(not_a_message)


@pytest.mark.parametrize("attempts", [0, 1001])
def test_a_policy_has_at_least_one_attempt_and_an_end(attempts: int) -> None:
    """Every retry has a maximum."""
    with pytest.raises(DefinitionError, match="between 1 and 1000"):
        RetryPolicy(attempts=attempts)


def test_a_worker_without_instrumentation_is_traced_all_the_same(
    nowhere: Celery[Any], otlp_http: OtlpReceiver, start_tracing: StartTracing
) -> None:
    """An existing app has no telemetry of ours: the handler makes the span."""
    start_tracing(otlp_http)

    @CommandBus(nowhere).handler(CreateOrder, retry=RetryPolicy(attempts=1))
    def handle(command: CreateOrder) -> None:
        with span("inside"):
            raise Refuse("Closed")

    with span("caller") as caller:
        context = caller.get_span_context()
        trace_id = f"{context.trace_id:032x}"
        traceparent = f"00-{trace_id}-{context.span_id:016x}-01"
    headers = {"traceparent": traceparent, "saga_message": "orders.create"}
    nowhere.tasks["orders.create"].apply(kwargs={"order_id": "o-1"}, headers=headers)
    spans = otlp_http.wait_for(lambda spans: len(spans) == 3)
    assert_one_tree(spans, trace_id)
    found = {one.name: one for one in spans}
    assert found["process orders"].parent_id == found["caller"].span_id
    assert found["inside"].parent_id == found["process orders"].span_id
    assert ("error", "consumer") == (found["process orders"].status, found["process orders"].kind)


def test_every_app_of_ours_keeps_a_bus_message_that_it_does_not_know() -> None:
    """Also one without a bus: somebody else's mistake is no loss."""
    with make_app("a", service="a", settings=Settings(broker_url="memory://")) as made:
        assert KeepUnknown in made.steps["consumer"]


class Plain(Command, name="plain.do"):
    """Of a service that has a task of that name without the bus."""


def test_queues_and_tasks_have_the_names_that_are_documented(nowhere: Celery[Any]) -> None:
    """They are the contract with services that have another SDK, or none."""
    CommandBus(nowhere).handler(Plain)(lambda _: None)
    EventBus(nowhere, service="billing").subscriber(OrderCreated, name="x")(lambda _: None)
    found = [registry_of(nowhere).find(name) for name in ("plain.do", "billing.on.x")]
    assert [("plain.do", "plain"), ("billing.on.x", "billing.on.x")] == [
        (one.task, one.queue) for one in found if isinstance(one, Handling)
    ]
    assert {"plain.do", "billing.on.x"} <= nowhere.tasks.keys()
    assert "orders.created" == wire_of(OrderCreated).name
