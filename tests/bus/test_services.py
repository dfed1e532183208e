"""Three services as processes of their own, each in another pool: delivery, traces, logs."""

import os
import uuid
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from celery import Celery

from shared.bus import CommandBus, EventBus, QueryBus, replying
from shared.bus.publisher import queue_of
from shared.bus.registry import registry_of
from shared.celery_app import make_app
from shared.embedded import free_port
from shared.errors import NobodyAnswered, UnavailableError
from shared.messages import Succeeded
from shared.settings import Settings
from shared.telemetry.tracing import span
from tests.bus.messages import CreateOrder, FindOrder, OrderCreated, OrderView
from tests.bus.worker import stop, worker
from tests.servers.otlp import OtlpReceiver, ReceivedSpan, otlp_http
from tests.servers.spantree import assert_one_tree
from tests.telemetry.conftest import StartTracing, lines, start_tracing
from tests.waiting import wait_until

PATIENT = timedelta(seconds=30)

__all__ = ["lines", "otlp_http", "start_tracing"]


def client(broker_url: str) -> Celery[Any]:
    """The app of a program that sends and asks."""
    return make_app("tests.client", service="client", settings=Settings(broker_url=broker_url))


def expect_events_of(app: Celery[Any], service: str, subscriber: str) -> None:
    """Make the queue of a subscriber whose worker is not up yet."""
    bus = EventBus(app, service=service)
    bus.subscriber(OrderCreated, name=subscriber)(lambda _: None)
    bus.declare()


def test_one_command_is_one_trace_over_all_services_and_pools(
    tmp_path: Path, redis_url: str, otlp_http: OtlpReceiver, start_tracing: StartTracing
) -> None:
    """A subscriber that is down gets its event later, and a failed attempt is a sibling."""
    start_tracing(otlp_http)
    env = otlp_http.environment
    order_id = f"broken{uuid.uuid4().hex}"
    with (
        client(redis_url) as app,
        worker(tmp_path / "orders", redis_url, "-P", "threads", "-Q", "orders", **env) as orders,
        worker(tmp_path / "billing", redis_url, "-P", "gevent", "-Q", "billing", **env) as billing,
    ):
        expect_events_of(app, "audit", "record")
        orders.ready()
        billing.ready()
        with span("place an order") as root:
            trace_id = f"{root.get_span_context().trace_id:032x}"
            CommandBus(app).dispatch(CreateOrder(order_id))
            assert OrderView("o-1", 4200) == QueryBus(app).ask(FindOrder("o-1"), timeout=PATIENT)
        wait_until(lambda: "billed" in billing.effects(order_id))
        with worker(tmp_path / "audit", redis_url, "-P", "solo", "-Q", "audit", **env) as audit:
            wait_until(lambda: "recorded" in audit.effects(order_id))
            wait_until(lambda: billing.lines("message.dead_lettered"))
            stop(orders, billing, audit)
        spans = otlp_http.wait_for(lambda spans: len(spans) >= 12)
        QueryBus(app).close()

    assert_one_tree(spans, trace_id)
    by_id = {one.span_id: one for one in spans}
    edges = Counter(
        (by_id[one.parent_id].name if one.parent_id else "", one.name, one.service, one.status)
        for one in spans
    )
    assert edges == {
        ("", "place an order", "test-service", "unset"): 1,
        ("place an order", "send orders", "test-service", "unset"): 1,
        ("send orders", "process orders", "orders", "unset"): 2,
        ("process orders", "send orders.created", "orders", "unset"): 1,
        ("send orders.created", "process billing.on.send-invoice", "billing", "unset"): 1,
        ("send orders.created", "process billing.on.broken", "billing", "error"): 3,
        ("send orders.created", "process audit.on.record", "audit", "unset"): 1,
        ("place an order", "ask orders.find", "test-service", "unset"): 1,
        ("ask orders.find", "send orders", "test-service", "unset"): 1,
    }
    check_attributes({one.name: one for one in spans})
    billed = {one.name: one for one in spans}["process billing.on.send-invoice"]
    (line,) = billing.lines('"event":"billed"')
    assert {
        "trace_id": trace_id,
        "span_id": billed.span_id,
        "task_id": billed.attributes["messaging.message.id"],
        "saga_message": "orders.created",
    }.items() <= line.items()


def check_attributes(spans: dict[str, ReceivedSpan]) -> None:
    """By the messaging conventions, on both sides of an event."""
    sent, processed = spans["send orders.created"], spans["process billing.on.broken"]
    common = {
        "messaging.system": "redis",
        "bus.message.kind": "event",
        "bus.message.name": "orders.created",
    }
    for one, operation, destination, kind in (
        (sent, "send", "orders.created", "producer"),
        (processed, "process", "billing.on.broken", "consumer"),
    ):
        expected = common | {
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
            "messaging.destination.name": destination,
        }
        assert expected.items() <= dict(one.attributes).items()
        assert kind == one.kind
    # Celery's ids have to differ; the event's own stands in front of each.
    event_id = sent.attributes["messaging.message.id"]
    assert f"{event_id}:billing.on.broken" == processed.attributes["messaging.message.id"]
    assert "RuntimeError" == processed.attributes["error.type"]


def test_a_publish_that_fails_leaves_no_span_behind(
    otlp_http: OtlpReceiver, start_tracing: StartTracing
) -> None:
    """The next root span is a root, and the failed one says why."""
    start_tracing(otlp_http)
    with client(f"redis://127.0.0.1:{free_port()}/0") as app:
        app.conf.broker_connection_timeout = 0.1
        with pytest.raises(UnavailableError, match="cannot be used"):
            EventBus(app, service="orders").publish(OrderCreated("o-1"))
        with span("next"):
            pass
    spans = {one.name: one for one in otlp_http.wait_for(lambda spans: len(spans) == 2)}
    failed, following = spans["send orders.created"], spans["next"]
    assert ("error", "shared.errors.UnavailableError") == (
        failed.status,
        failed.attributes["error.type"],
    )
    assert ("", False) == (following.parent_id, following.trace_id == failed.trace_id)


def answer(app: Celery[Any], order_id: str) -> None:
    """Answer the queries that wait, up to the one for that order, as a worker would."""
    publisher = registry_of(app).publisher
    with app.connection_for_read() as connection, connection.channel() as channel:
        queue = queue_of(app, "orders").bind(channel)
        found = ""
        while found != order_id:
            message: Any = wait_until(lambda: queue.get(accept=["json"]), what="a query")
            found = msgspec.json.decode(message.body)[1]["order_id"]
            outcome = Succeeded(output={"order_id": found, "amount_cents": 1})
            replying.reply(publisher, message.headers, outcome)
            message.ack()


def test_a_forked_child_asks_for_itself(redis_url: str) -> None:
    """It has a queue and a thread of its own, and leaves those of its parent alone."""
    with client(redis_url) as app:
        bus = QueryBus(app)
        with pytest.raises(NobodyAnswered):
            bus.ask(FindOrder("o-1"), timeout=timedelta(milliseconds=10))
        child = os.fork()
        if not child:
            try:
                found = bus.ask(FindOrder("o-2"), timeout=PATIENT)
                os._exit(7 if found == OrderView("o-2", 1) else 2)
            except BaseException:  # noqa: BLE001 - the child must not go on as a test
                os._exit(1)
        answer(app, "o-2")
        assert 7 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        # The answer to the first question came late, and to the parent alone.
        wait_until(lambda: bus.late_answers == 1)
        bus.close()
