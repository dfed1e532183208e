"""Everything that a definition can say, over real processes: parallel, waiting and nested."""

import json
import sqlite3
from pathlib import Path

import pytest
from celery import Celery

from orchestrator.core.state import Phase
from shared.ids import sub_saga_id
from tests.faults.stack import ENDED_WITHIN, MakeStack, Stack
from tests.faults.trip_app import TOKENS
from tests.servers.otlp import OtlpReceiver
from tests.servers.spantree import assert_one_tree
from tests.waiting import wait_until


def booked(home: Path, saga_id: str) -> set[str]:
    """What stands of a trip, in the books of the travel agency."""
    with sqlite3.connect(home / "travel.db") as books:
        found = books.execute("SELECT what FROM booking WHERE saga_id = ?", (saga_id,))
        return {what for (what,) in found}


def begin(stack: Stack, *, price: int) -> str:
    """Start a trip, and complete its car by token as soon as it was ordered."""
    given = {"hotels": ["Ritz", "Savoy", "Adlon"], "price": price}
    command = stack.saga("start", "book-trip", "--json", "--input", json.dumps(given))
    out, err = command.communicate(timeout=60)
    assert command.returncode == 0, err
    saga_id: str = json.loads(out)["saga_id"]
    token = stack.home / TOKENS / saga_id
    wait_until(token.exists, timeout=30, what="the order of a car")
    stack.client.complete(token.read_text(), {"cab": 7})

    def asked() -> bool:
        return stack.client.row(saga_id).state.step("approval").phase is Phase.RUNNING

    wait_until(asked, timeout=30, what="the approval")
    return saga_id


def test_a_trip_uses_everything_that_a_definition_can_say(
    make_stack: MakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list, a condition, work that goes on elsewhere, an approval, a sleep, a sub-saga: one tree."""
    monkeypatch.setenv("SAGA_DEFINITIONS", "tests.faults.trip")
    with OtlpReceiver("http") as receiver:
        stack = make_stack(
            **receiver.environment,
            OTEL_SDK_DISABLED="false",
            OTEL_BSP_SCHEDULE_DELAY="100",
            SAGA_DEFINITIONS="tests.faults.trip",
        )
        stack.orchestrator()
        worker = ["-m", "celery", "-A", "tests.faults.trip_app", "worker", "-Q", "travel"]
        stack._start("travel", [*worker, "-c", "2"], {})

        good, bad = begin(stack, price=2_000), begin(stack, price=50)
        # As another service would do it.
        app = Celery(broker=stack.settings.broker_url, set_as_current=False)
        yes = {"saga_id": good, "name": "approved", "data": {"approved": True}, "by": "ada"}
        app.send_task("saga.signal", kwargs=yes, queue="saga.replies")
        app.close()
        stack.client.approve(bad, "approved", approved=False, comment="too dear", by="ada")

        row = stack.client.wait(good, ENDED_WITHIN)
        assert row.state.status == "completed", row.state.cause
        assert row.state.step("tickets").output == "payment and cab 7"
        assert booked(stack.home, good) == {"Ritz", "Savoy", "Adlon", "car", "insurance"}
        below = sub_saga_id(good, "pay", 1)
        assert booked(stack.home, below) == {"payment"}

        undone = stack.client.wait(bad, ENDED_WITHIN)
        assert undone.state.status == "compensated"
        assert undone.state.step("insurance").phase is Phase.SKIPPED
        assert booked(stack.home, bad) == set()
        assert stack.client.dead_letters() == []
        stack.stop()

        for saga_id in (good, bad):
            trace_id = stack.client.row(saga_id).state.trace.trace_id
            assert_one_tree(receiver.spans(trace_id), trace_id)
        names = {span.name for span in receiver.spans(row.state.trace.trace_id)}
        assert {"step hotels[2]", "step approval", "step cool-off", "saga pay-trip"} <= names
