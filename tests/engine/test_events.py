"""Sagas that start on an event of the bus, and publish others."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import msgspec

from orchestrator.client import Client
from orchestrator.core.definition import Saga
from orchestrator.ports import Delivery
from orchestrator.transport.memory import InboundMessage
from shared import names
from shared.bus import Event
from shared.codec import task_body
from shared.messages import Undecodable
from tests.core.builders import TRACE
from tests.engine.test_engine import LINEAR, Bench


@contextmanager
def bench_of(definition: Saga) -> Iterator[Bench]:
    """An engine, closed after the block."""
    bench = Bench(definition)
    yield bench
    bench.engine.close()


class OrderCreated(Event, name="orders.created"):
    order_id: str


def event(event_id: str, name: str = "orders.created", **fields: object) -> InboundMessage:
    """An event of the bus, as it comes."""
    return InboundMessage(
        task=name,
        task_id=event_id,
        body=task_body(fields),
        headers={
            names.SAGA_EVENT_ID: event_id,
            names.SAGA_MESSAGE: name,
            names.TRACEPARENT: f"00-{TRACE.trace_id}-b7ad6b7169203331-01",
        },
    )


def test_an_event_starts_a_saga_once() -> None:
    """However often it is delivered; another event starts another."""
    with bench_of(msgspec.structs.replace(LINEAR, starts_on=OrderCreated)) as bench:
        for event_id, order_id in (("e-1", "o-1"), ("e-1", "o-1"), ("e-2", "o-1")):
            bench.broker.send_raw(event(event_id, order_id=order_id))
            bench.take()
        rows = [bench.store.load([one.saga_id])[one.saga_id] for one in bench.store.list_sagas()]
        assert ["e-1", "e-2"] == sorted(str(row.state.key) for row in rows)
        for row in rows:
            assert ({"order_id": "o-1"}, TRACE.trace_id, "b7ad6b7169203331") == (
                row.state.input,
                row.state.trace.trace_id,
                row.state.trace.parent_span_id,
            )
        assert [] == bench.store.dead_letters()


def test_an_event_that_starts_nothing_is_a_dead_letter() -> None:
    """One that no saga starts on, and one that does not fit the input."""
    with bench_of(msgspec.structs.replace(LINEAR, starts_on=OrderCreated)) as bench:
        bench.broker.send_raw(event("e-1", "orders.vanished", order_id="o-1"))
        bench.broker.send_raw(event("e-2", order_id=7))
        bench.take()
        reasons = [letter.reason for letter in bench.store.dead_letters()]
        assert ["No saga of this orchestrator starts on the event 'orders.vanished'."] == reasons[
            1:
        ]
        assert "order_id: expected `str`, got `int`" in reasons[0]
        assert [] == bench.store.list_sagas()


def test_what_a_saga_publishes_goes_through_the_outbox() -> None:
    """Committed with the decision, sent after it, and sent again after a crash in between."""
    publishing = msgspec.structs.replace(LINEAR, publishes={"started": OrderCreated})
    with bench_of(publishing) as bench:
        bench.broker.available = False
        saga_id = bench.start().row.saga_id
        assert ([], 2) == (bench.broker.events, bench.store.outbox_size())
        bench.broker.available = True
        bench.now += timedelta(minutes=1)
        assert 2 == bench.engine.republish(timedelta(seconds=5), 10)
        (sent,) = bench.broker.events
        assert (f"{saga_id}:started", "orders.created", {"order_id": "o-1"}) == (
            sent.id,
            sent.task,
            sent.payload,
        )


def test_an_event_that_did_not_fit_starts_its_saga_when_it_is_requeued() -> None:
    """Once the definition takes what the event says."""
    with bench_of(msgspec.structs.replace(LINEAR, starts_on=OrderCreated)) as bench:
        bench.engine.handle([Delivery(message=refused, task="orders.created", body=TEXT)])
        (letter,) = bench.store.dead_letters()
        Client(bench.engine).requeue(letter.dead_letter_id)
        (started,) = bench.store.list_sagas()
        assert f"dead-letter-{letter.dead_letter_id}" == started.key
        assert [] == bench.store.dead_letters()


TEXT = '[[], {"order_id": "o-1"}, {}]'
refused = Undecodable(
    reason="an older version could not read it", task="orders.created", body=TEXT
)
