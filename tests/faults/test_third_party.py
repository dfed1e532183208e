"""A collector that nobody here wrote understands our spans, and passes on right trees."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from orchestrator.core.state import Phase, Status
from shared import faults
from shared.faults import FAULT_VARIABLE
from shared.ids import sub_saga_id
from shared.telemetry import setup
from shared.telemetry.config import tracing_config
from tests.faults.stack import CELERY, ENDED_WITHIN, MakeStack, Stack
from tests.faults.test_traces import SAGAS, start
from tests.faults.trip_app import TOKENS
from tests.servers.fixtures import missing
from tests.servers.otlp import OtlpReceiver, ReceivedSpan
from tests.servers.process import ServerMissingError
from tests.servers.rotel import Rotel
from tests.servers.spantree import assert_one_tree, draw
from tests.waiting import wait_until

FAST = {"OTEL_SDK_DISABLED": "false", "OTEL_BSP_SCHEDULE_DELAY": "100"}
DEFINITIONS = "tests.faults.trip,orchestrator.sagas"
KILLED = f"{faults.AFTER_COMMIT}@inventory.reserve"


class Told(NamedTuple):
    """A saga, and what has to be seen of it.

    Attributes:
        sent: Its attempts, sub-sagas that are called included.
        done: Those of them that a participant has worked on.
        starter: Service of who started it.
        below: Sub-sagas in the same trace.
    """

    saga_id: str
    trace_id: str
    name: str
    status: str
    sent: int
    done: int
    starter: str = "test"
    below: tuple[str, ...] = ()


class Agency:
    """Starts sagas from this process, does to them what people do, and says what has to be seen."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.client = stack.client

    def start(self, name: str, given: dict[str, Any], status: str, sent: int, **more: Any) -> Told:
        """Start a saga."""
        row = self.client.start(name, given).row
        told = Told(row.saga_id, row.state.trace.trace_id, name, status, sent, sent)
        return told._replace(**more)

    def order(self, status: str, sent: int, **given: Any) -> Told:
        """Start an order."""
        return self.start("place-order", {"order_id": "o", **given}, status, sent)

    def phase(self, told: Told, step: str) -> Phase:
        """Where a step stands."""
        return self.client.row(told.saga_id).state.step(step).phase

    def await_phase(self, told: Told, step: str, phase: Phase) -> None:
        """Wait until a step stands there."""
        wait_until(lambda: self.phase(told, step) is phase, timeout=30, what=f"{step} {phase}")

    def cancel_while_in_flight(self, told: Told) -> None:
        """Change one's mind while the card is being charged."""
        self.await_phase(told, "charge-payment", Phase.RUNNING)
        self.client.cancel(told.saga_id, reason="changed my mind", by="ada")

    def put_right(self, told: Told) -> None:
        """Give a saga that is stuck what it needs."""
        row = self.client.wait(told.saga_id, ENDED_WITHIN)
        assert row.state.status is Status.STUCK
        exported = lambda: self.client.row(told.saga_id).trace_due_at is None  # noqa: E731 - short
        wait_until(exported, timeout=30, what="the trace of what is stuck")
        payload = {"order_id": "o", "email": "ada@example.com"}
        self.client.retry(
            told.saga_id, "notify-customer", payload=payload, reason="a typing error", by="ada"
        )

    def resolve(self, told: Told) -> None:
        """End a saga that is stuck: the customer was told by telephone."""
        row = self.client.wait(told.saga_id, ENDED_WITHIN)
        assert row.state.status is Status.STUCK
        self.client.resolve(told.saga_id, reason="told by telephone", by="ada")

    def approve(self, told: Told) -> None:
        """Complete the order of a car, and approve the trip."""
        token = self.stack.home / TOKENS / told.saga_id
        wait_until(token.exists, timeout=30, what="the order of a car")
        self.client.complete(token.read_text(), {"cab": 7})
        self.await_phase(told, "approval", Phase.RUNNING)
        self.client.approve(told.saga_id, "approved", by="ada")


@contextmanager
def telemetry(stack: Stack, environment: dict[str, str]) -> Iterator[None]:
    """The telemetry of this process, for the spans of who starts sagas."""
    config = tracing_config("test", home=stack.home, environ={**environment, **FAST})
    setup.start("test", config)
    try:
        yield
    finally:
        setup.shutdown()


def test_rotel_receives_whole_trees(
    make_stack: MakeStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The orchestrator and the command speak HTTP to it, the participants gRPC; of each saga one tree."""
    monkeypatch.setenv("SAGA_DEFINITIONS", DEFINITIONS)
    with OtlpReceiver("grpc") as receiver:
        try:
            collector = Rotel(tmp_path, receiver)
        except ServerMissingError as error:
            missing(str(error))
        with collector:
            http, grpc = (collector.environment(one) for one in ("http", "grpc"))
            stack = make_stack(**http, **FAST, SAGA_DEFINITIONS=DEFINITIONS)
            stack.participants(**grpc, **{FAULT_VARIABLE: KILLED})
            travel = ["-A", "tests.faults.trip_app", "worker", "-Q", "travel", "-P", "solo"]
            stack._start("travel", [*CELERY, *travel], grpc)
            stack.orchestrator()
            with telemetry(stack, http):
                told = everything(Agency(stack))
            for one in told:
                row = stack.client.wait(one.saga_id, ENDED_WITHIN)
                assert one.status == row.state.status.value, row.state.cause
            stack.stop()
            receiver.wait_for(lambda spans: all(is_whole(one, latest(spans)) for one in told))
        received = receiver.spans()
    for one in told:
        assert_right(one, latest(received))
    assert_linked(told, latest(received))
    assert {one.trace_id for one in told} == {span.trace_id for span in received}
    # A span changes only where a saga had got stuck before: its root, and the step. The same one may
    # come again: a collector that is not answered in time sends it anew.
    changed = {
        span.span_id
        for span in received
        if any(span.span_id == other.span_id and span != other for other in received)
    }
    assert {"saga place-order", "step notify-customer", "send notifications"} >= {
        span.name for span in latest(received) if span.span_id in changed
    }


def everything(agency: Agency) -> list[Told]:
    """Sagas of every kind, each as far as people have to move it."""
    killed = agency.order("completed", 5)
    trip = agency.start(
        *("book-trip", {"hotels": ["Ritz", "Savoy", "Adlon"], "price": 2_000}, "completed", 9),
        done=8,
    )
    trip = trip._replace(below=(sub_saga_id(trip.saga_id, "pay", 1),))
    linked = agency.start("pay-by-link", {"amount": 1}, "completed", 1, done=0)
    wait_until(agency.stack.fired, timeout=30, what="the death of a participant")
    by_command = [
        Told(one["saga_id"], one["trace_id"], "place-order", status, sent, sent, "saga-cli")
        for one, (_, status, sent) in zip(start(agency.stack), SAGAS, strict=True)
    ]
    cancelled = agency.order(
        "compensated", 4, delay_in="payment.charge", delay_seconds=1, order_id="c"
    )
    resumed = agency.order("completed", 6, email="nobody")
    resolved = agency.order("resolved", 5, email="nobody")
    agency.cancel_while_in_flight(cancelled)
    agency.approve(trip)
    agency.put_right(resumed)
    agency.resolve(resolved)
    row = agency.client.wait(sub_saga_id(linked.saga_id, "pay", 1), ENDED_WITHIN)
    below = Told(
        row.saga_id, row.state.trace.trace_id, "pay-trip", "completed", 2, 2, "orchestrator"
    )
    return [killed, trip, linked, below, cancelled, resumed, resolved, *by_command]


def latest(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
    """Each span once: one that comes again, since its saga went on, takes the place of the first."""
    by_id: dict[str, ReceivedSpan] = {}
    for span in spans:
        known = by_id.get(span.span_id)
        by_id[span.span_id] = span if known is None or span.end_ns >= known.end_ns else known
    return [*by_id.values()]


def is_whole(told: Told, spans: list[ReceivedSpan]) -> bool:
    """Whether all spans of a saga have come."""
    mine = [span for span in spans if span.trace_id == told.trace_id]
    ended = {span.attributes.get("saga.status") for span in mine}
    return attempts(mine) == (told.sent, told.done) and told.status in ended


def attempts(spans: list[ReceivedSpan]) -> tuple[int, int]:
    """How many were sent, and how many of them worked on: a command may come twice."""
    kinds = Counter(span.kind for span in spans)
    return kinds["producer"], len({one.parent_id for one in spans if one.kind == "consumer"})


def assert_right(told: Told, spans: list[ReceivedSpan]) -> None:
    """One tree, with true times, and everything in it says which saga it belongs to."""
    mine = [span for span in spans if span.trace_id == told.trace_id]
    root = assert_one_tree(mine, told.trace_id)
    assert (f"saga {told.name}", told.status) == (root.name, root.attributes["saga.status"])
    assert (told.sent, told.done) == attempts(mine), draw(mine)
    wrong = {
        one.attributes["saga.outcome"]
        for one in mine
        if one.status == "error" and one.kind == "consumer"
    }
    assert wrong <= {"rejected", "failed"}, draw(mine)
    services = {"orchestrator", told.starter, *(["workers"] if told.name == "place-order" else [])}
    services |= {"travel"} if told.done and told.name != "place-order" else set()
    assert services == {span.service for span in mine}
    assert {told.saga_id, *told.below} == {span.attributes["saga.id"] for span in mine}
    assert all(root.start_ns <= span.start_ns <= span.end_ns for span in mine)
    by_id = {span.span_id: span for span in mine}
    undone = [span for span in mine if span.name.startswith("compensate ")]
    assert bool(undone) == (told.status == "compensated")
    assert [f"step {span.name.partition(' ')[2]}" for span in undone] == [
        by_id[span.links[0].span_id].name for span in undone
    ]


def assert_linked(told: list[Told], spans: list[ReceivedSpan]) -> None:
    """A sub-saga with a trace of its own, and its step: each leads to the other."""
    above = next(one for one in told if one.name == "pay-by-link")
    below = next(one for one in told if one.name == "pay-trip")
    by_id = {span.span_id: span for span in spans}
    step = next(one for one in spans if (one.trace_id, one.name) == (above.trace_id, "step pay"))
    root = by_id[step.links[0].span_id]
    assert (root.trace_id, root.name) == (below.trace_id, "saga pay-trip")
    sent = by_id[root.links[0].span_id]
    assert (sent.trace_id, sent.parent_id) == (above.trace_id, step.span_id)
    assert below.saga_id == step.attributes["saga.child.id"]
    assert above.saga_id == root.attributes["saga.parent.id"]
