"""Everything that a definition can say, over real processes: parallel, waiting and nested."""

import json
import sqlite3
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from celery import Celery
from celery.beat import Scheduler
from celery.schedules import schedule

from orchestrator.bootstrap import make_client
from orchestrator.core.events import StepDispatched
from orchestrator.core.state import Phase
from shared import names as wire
from shared.clock import utc_now
from shared.ids import sub_saga_id
from tests.faults.stack import ENDED_WITHIN, MakeStack, Stack
from tests.faults.trip_app import HELD, TOKENS
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
    command = stack.run("start", "book-trip", "--json", "--input", json.dumps(given))
    assert command.returncode == 0, command.stderr
    saga_id: str = json.loads(command.stdout)["saga_id"]
    stack.client.complete(token_of(stack, saga_id), {"cab": 7})
    await_phase(stack, saga_id, "approval", Phase.RUNNING)
    return saga_id


def book(stack: Stack, not_before: datetime | None = None) -> str:
    """Start a trip from this process."""
    given = {"hotels": ["Ritz"], "price": 60}
    return stack.client.start("book-trip", given, not_before=not_before).row.saga_id


def token_of(stack: Stack, saga_id: str) -> str:
    """The token of the car, as soon as it was ordered."""
    token = stack.home / TOKENS / saga_id
    wait_until(token.exists, timeout=30, what="the order of a car")
    return token.read_text()


def await_phase(stack: Stack, saga_id: str, step: str, phase: Phase) -> None:
    """Wait until a step stands there."""

    def stands() -> bool:
        return stack.client.row(saga_id).state.step(step).phase is phase

    wait_until(stands, timeout=30, what=f"{step} {phase}")


def beat_twice(stack: Stack, key: str) -> None:
    """What Celery beat does when an entry is due, and two of them run by mistake."""
    entry = {
        "task": wire.START_TASK,
        "schedule": schedule(timedelta(hours=1)),
        "kwargs": {"name": "pay-trip", "input": {"amount": 3}, "key": key},
        "options": {"queue": wire.REPLIES_QUEUE},
    }
    with Celery("beat", broker=stack.settings.broker_url, set_as_current=False) as app:
        app.conf.beat_schedule = {"hourly": entry}
        scheduler = Scheduler(app, lazy=True)
        scheduler.merge_inplace(app.conf.beat_schedule)
        for due in [*scheduler.schedule.values()] * 2:
            scheduler.apply_async(due, advance=False)


def start_next_version(stack: Stack) -> str:
    """Start a saga from code that has a newer version than the orchestrator's."""
    newer = stack.settings.model_copy(update={"definitions": ("tests.faults.trip_next",)})
    client = make_client(newer)
    try:
        return client.start("pay-trip", {"amount": 2}).row.saga_id
    finally:
        client.close()


class Others:
    """Trips that other things happen to, beside the two of the test; all on one stack."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.begins_at = utc_now() + timedelta(milliseconds=500)
        self.given_up, self.no_cab = book(stack), book(stack, self.begins_at)
        self.newer = start_next_version(stack)
        beat_twice(stack, "tonight")

    def move_on(self) -> None:
        """A cab that cannot be had, and a traveller who gives up while the manager is asked."""
        client = self.stack.client
        client.fail(token_of(self.stack, self.no_cab), "NoCab", "all taken", retryable=False)
        client.complete(token_of(self.stack, self.given_up), {"cab": 8})
        await_phase(self.stack, self.given_up, "approval", Phase.RUNNING)
        client.compensate(self.given_up, reason="changed my mind", by="ada")

    def check(self) -> None:
        """Undone for their reasons; begun when they should; each on the version it started with."""
        client = self.stack.client
        for saga_id, why in ((self.given_up, "Cancelled"), (self.no_cab, "NoCab")):
            state = client.wait(saga_id, ENDED_WITHIN).state
            assert state.status == "compensated"
            assert state.cause is not None
            assert state.cause.failure is not None
            assert state.cause.failure.kind == why
            assert booked(self.stack.home, saga_id) == set()
        history = client.story(self.no_cab)[2]
        begun = [one.at for one in history if isinstance(one.event, StepDispatched)]
        assert self.begins_at <= min(begun)
        newer = client.wait(self.newer, ENDED_WITHIN).state
        assert (newer.version, newer.status, {*newer.steps}) == (2, "completed", {"charge"})
        (nightly,) = client.list(key="tonight")
        state = client.wait(nightly.saga_id, ENDED_WITHIN).state
        assert (state.version, state.status, {*state.steps}) == (
            1,
            "completed",
            {"charge", "mail"},
        )


def travel(stack: Stack, trip: str) -> None:
    """Hold a trip back and let it go on, and look at it while its tickets are printed."""
    client = stack.client
    await_phase(stack, trip, "approval", Phase.SUCCEEDED)
    assert client.row(trip).state.step("cool-off").phase is Phase.PENDING
    client.resume(trip, reason="it is over", by="ada")

    def progress() -> object:
        (tickets,) = (one for one in client.view(trip).steps if one.name == "tickets")
        return tickets.progress

    wait_until(lambda: progress() == {"printed": 1}, timeout=30, what="a sign of life")
    assert "printed" in stack.run("show", trip).stdout
    (stack.home / HELD).unlink()


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

        (stack.home / HELD).touch()
        good, bad = begin(stack, price=2_000), begin(stack, price=50)
        others = Others(stack)
        stack.client.pause(good, reason="a strike", by="ada")
        # As another service would do it.
        app = Celery(broker=stack.settings.broker_url, set_as_current=False)
        yes = {"saga_id": good, "name": "approved", "data": {"approved": True}, "by": "ada"}
        app.send_task("saga.signal", kwargs=yes, queue="saga.replies")
        app.close()
        stack.client.approve(bad, "approved", approved=False, comment="too dear", by="ada")
        others.move_on()
        travel(stack, good)

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
        others.check()
        assert stack.client.dead_letters() == []
        stack.stop()

        for saga_id in (good, bad):
            trace_id = stack.client.row(saga_id).state.trace.trace_id
            assert_one_tree(receiver.spans(trace_id), trace_id)
        names = {span.name for span in receiver.spans(row.state.trace.trace_id)}
        assert {"step hotels[2]", "step approval", "step cool-off", "saga pay-trip"} <= names
