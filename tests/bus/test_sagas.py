"""A saga between two events: started by one, ending with another, on both brokers."""

import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from shared.bus import CommandBus, EventBus
from shared.celery_app import make_app
from shared.settings import Settings
from shared.telemetry.tracing import span
from tests.bus.messages import CreateOrder, OrderCreated
from tests.bus.worker import stop, worker
from tests.servers.otlp import OtlpReceiver, otlp_http
from tests.servers.spantree import assert_one_tree
from tests.telemetry.conftest import StartTracing, lines, start_tracing
from tests.waiting import wait_until

__all__ = ["lines", "otlp_http", "start_tracing"]

PREPARED = {"created", "billed", "printed", "recorded"}


@pytest.mark.parametrize("broker", ["redis_url", "rabbitmq_url"])
def test_a_saga_starts_on_an_event_and_publishes_how_it_ended(
    broker: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    otlp_http: OtlpReceiver,
    start_tracing: StartTracing,
) -> None:
    """One tree from the command to the last subscriber; a second copy of the event starts nothing.

    A step is a saga of its own: what the two tell each other goes over the broker, too.
    """
    url = request.getfixturevalue(broker)
    env = {**otlp_http.environment, "SAGA_DEFINITIONS": "tests.bus.sagas"}
    start_tracing(otlp_http)
    good, bad = uuid.uuid4().hex, f"unpackable{uuid.uuid4().hex}"
    services = ("-P", "threads", "-Q", "orders,billing,audit,packing")
    with (
        make_app("tests.client", service="client", settings=Settings(broker_url=url)) as app,
        worker(tmp_path / "services", url, *services, **env) as running,
        worker(tmp_path / "orchestrator", url, app="orchestrator", **env) as orchestrator,
    ):
        running.ready()
        wait_until(lambda: orchestrator.lines("events.subscribed"), timeout=30)
        with span("place an order") as root:
            trace_id = f"{root.get_span_context().trace_id:032x}"
            CommandBus(app).dispatch(CreateOrder(good))
        done = PREPARED | {"sealed", "packed", "collected"}
        wait_until(lambda: done == set(running.effects(good)), timeout=20)

        events = EventBus(app, service="orders")
        event_id = events.publish(OrderCreated(bad))
        wait_until(lambda: "refunded: TooLarge" in running.effects(bad), timeout=20)
        events.publish(OrderCreated(bad), event_id=event_id)
        wait_until(lambda: running.effects(bad).count("billed") == 2)
        stop(running, orchestrator)
        spans = otlp_http.spans(trace_id)
        events.close()

    assert 1 == running.effects(bad).count("refunded: TooLarge")
    assert 1 == len(orchestrator.lines(f'"key":"{event_id}"'))
    assert ["sealed", "unsealed"] == [one for one in running.effects(bad) if "sealed" in one]
    assert_one_tree(spans, trace_id)
    by_id: dict[str, Any] = {one.span_id: one for one in spans}
    edges = Counter(
        (by_id[one.parent_id].name if one.parent_id else "", one.name) for one in spans
    )
    created, fulfilled = "send orders.created", "send orders.fulfilled"
    assert edges == Counter(
        [
            ("", "place an order"),
            ("place an order", "send orders"),
            ("send orders", "process orders"),
            ("process orders", created),
            *((created, f"process {one}") for one in ("billing.on.send-invoice",)),
            *((created, f"process {one}") for one in ("billing.on.broken", "audit.on.record")),
            (created, "saga fulfil-order"),
            ("saga fulfil-order", "saga.start fulfil-order"),
            ("saga fulfil-order", "step parcel"),
            ("step parcel", "send saga.replies"),
            ("send saga.replies", "saga seal-parcel"),
            ("saga seal-parcel", "saga.start seal-parcel"),
            ("saga seal-parcel", "step seal"),
            ("step seal", "send packing"),
            ("send packing", "process packing"),
            ("saga fulfil-order", "step pack"),
            ("step pack", "send packing"),
            ("send packing", "process packing"),
            ("saga fulfil-order", fulfilled),
            (fulfilled, "process billing.on.collect"),
        ]
    )
    (line,) = running.lines('"event":"collected"')
    assert (trace_id, "fulfil-order", "orders.fulfilled") == (
        line["trace_id"],
        line["saga_name"],
        line["saga_message"],
    )
