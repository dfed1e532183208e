"""A saga that cannot be read is put aside: the others go on, and so does it once it can be."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs
from typing_extensions import override

from orchestrator.catalog import Catalog
from orchestrator.client import Client
from orchestrator.core.definition import Limit, Saga, SubSaga
from orchestrator.core.definition import Step as AnyStep
from orchestrator.core.state import Status
from orchestrator.engine import Engine
from orchestrator.search import Filter
from orchestrator.store.opening import open_store
from orchestrator.store.sql import SqlStore
from orchestrator.tracing import SagaTracing
from orchestrator.transport.memory import MemoryBroker, MemoryTransport
from orchestrator.unreadable import READ_AGAIN
from shared.errors import DecodeError, UnavailableError
from shared.ids import sub_saga_id
from shared.messages import Command, Ended, Rejected, Reply, Succeeded
from tests.core.builders import REFUSAL, T0, Order, saga, step

FINAL = (Status.COMPLETED, Status.COMPENSATED, Status.RESOLVED)
DAMAGED = '{"saga_id": 7'
TABLES = {
    "saga": ("id", "state"),
    "saga_event": ("saga_id", "data"),
    "saga_outbox": ("saga_id", "command"),
    "saga_definition": ("name", "document"),
}


class Transport(MemoryTransport):
    """One whose broker may be away."""

    away = False

    @override
    def publish(self, commands: Sequence[Command]) -> None:
        if self.away:
            raise UnavailableError("It is away.")
        super().publish(commands)


class Town:
    """Two sagas of three steps, one orchestrator, and somebody who damages rows."""

    def __init__(self, store: SqlStore) -> None:
        self.store = store
        self.now = T0
        self.broker = MemoryBroker()
        self.transport = Transport(self.broker)
        parent = Saga(
            name="parent", version=1, input=Order, steps=(AnyStep("c", SubSaga("test")),)
        )
        one = Limit(in_flight=1)
        narrow = Saga(
            name="narrow", version=1, input=Order, steps=(step("only", limit=one),), limit=one
        )
        self.engine = Engine(
            store=store,
            transport=self.transport,
            catalog=Catalog([saga(step("a"), step("b")), parent, narrow]),
            tracing=SagaTracing(system="memory", clock=self.clock),
            clock=self.clock,
        )
        self.client = Client(self.engine)
        self.bad, self.good = (self.start() for _ in range(2))

    def start(self) -> str:
        """Start a saga."""
        return self.client.start("test", {}).row.saga_id

    def clock(self) -> datetime:
        """The time, which tests move by hand."""
        return self.now

    def text(self, table: str, saga_id: str, text: str | None = None) -> str:
        """Exchange what a row holds; returns what it was."""
        key, column = TABLES[table]
        with self.store.database.writing() as connection:
            known: Any = (
                connection.execute(
                    sa.text(f"SELECT {column} FROM {table} WHERE {key} = :id"),
                    {"id": saga_id},
                )
                .scalars()
                .first()
            )
            if text is not None:
                connection.execute(
                    sa.text(f"UPDATE {table} SET {column} = :text WHERE {key} = :id"),
                    {"id": saga_id, "text": text},
                )
        return str(known)

    def answer(self, step: str, outcome: Ended) -> None:
        """Both sagas are told how a step has ended, in one batch; the damaged one first."""
        for saga_id in (self.bad, self.good):
            reply = Reply(
                saga_id=saga_id, step=step, direction="action", attempt=1, outcome=outcome
            )
            self.broker.send(reply)
        self.handle()

    def tell(self, saga_id: str, step: str, outcome: Ended) -> None:
        """A saga is told how a step has ended."""
        self.broker.send(
            Reply(saga_id=saga_id, step=step, direction="action", attempt=1, outcome=outcome)
        )
        self.handle()

    def sent(self, saga_id: str) -> int:
        """How many steps of a saga have begun."""
        return len(self.client.row(saga_id).state.steps)

    def handle(self) -> None:
        """Take what is there."""
        self.engine.handle(self.engine.transport.receive(10, 0))

    def status(self, saga_id: str) -> str:
        """Its status."""
        return self.client.row(saga_id).state.status.value


@pytest.fixture(params=["sqlite", "postgresql"])
def town(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Town]:
    """On both databases."""
    url = f"sqlite:///{tmp_path}/saga.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    store = open_store(url, create=True)
    yield Town(store)
    store.close()


def test_a_damaged_saga_holds_up_nobody_and_goes_on_when_it_is_mended(town: Town) -> None:
    """It is told of, is left alone for a while, and needs nobody but who mends the row."""
    whole = town.text("saga", town.bad, DAMAGED)
    with capture_logs() as logs:
        town.answer("a", Succeeded())
        town.answer("b", Succeeded())
    assert town.status(town.good) == "completed"
    (first, *_) = (one for one in logs if one["event"] == "saga.unreadable")
    assert first["saga_id"] == town.bad
    assert "A stored value cannot be read" in first["reason"]

    # Whoever asks is told which one it is; what was for it is kept.
    with pytest.raises(DecodeError, match=f"Saga {town.bad} cannot be read, and is put aside"):
        town.client.row(town.bad)
    with pytest.raises(DecodeError, match=f"Saga {town.bad} cannot be read"):
        town.client.cancel(town.bad, reason="no longer")
    with pytest.raises(DecodeError, match=f"Saga {town.bad} cannot be read, and is put aside"):
        town.client.fork(town.bad, "a", reason="why not")
    letters = town.client.dead_letters()
    assert {one.saga_id for one in letters} == {town.bad}
    assert sorted(one.task for one in letters) == ["", "saga.reply", "saga.reply"]
    assert [one.saga_id for one in town.client.find(Filter(step="b"))] == []
    (listed,) = town.client.summaries(Filter(unreadable=True)).sagas
    assert (listed.saga_id, listed.status, listed.key) == (town.bad, "running", None)
    assert "A stored value cannot be read" in listed.unreadable
    assert town.client.summaries(Filter(name="test", unreadable=True)).sagas == [listed]
    others = Filter(name="parent", unreadable=True), Filter(statuses=FINAL, unreadable=True)
    assert [town.client.summaries(one).sagas for one in others] == [[], []]
    assert town.client.summaries(Filter(unreadable=True, unchanged_since=T0)).sagas == []

    # Not again and again: the others are looked at before it.
    assert town.engine.tick(10) == 0
    town.now += READ_AGAIN
    assert town.engine.tick(10) == 1
    assert len(town.client.dead_letters()) == 3
    town.text("saga", town.bad, whole)
    town.now += READ_AGAIN
    with capture_logs() as logs:
        assert town.engine.tick(10) == 1
    assert [one["saga_id"] for one in logs if one["event"] == "saga.readable_again"] == [town.bad]
    row = town.client.row(town.bad)
    assert row.state.step("a").phase.value == "retrying"  # it timed out meanwhile
    assert town.client.summaries(Filter(unreadable=True)).sagas == []


def test_a_definition_that_cannot_be_read_makes_its_sagas_unreadable(town: Town) -> None:
    """They are found, with which one it is."""
    town.client.start("parent", {})
    town.text("saga_definition", "test", DAMAGED)
    found = town.client.summaries(Filter(unreadable=True)).sagas
    assert {one.saga_id for one in found} == {town.bad, town.good}
    assert "Its definition 'test' version 1 cannot be read" in found[0].unreadable


def test_a_damaged_command_holds_up_no_other_one(town: Town) -> None:
    """It stays where it is, and is sent when it can be read."""
    town.transport.away = True
    bad, good = town.start(), town.start()
    town.transport.away = False
    whole = town.text("saga_outbox", bad, DAMAGED)
    town.now += timedelta(seconds=10)
    with capture_logs() as logs:
        assert town.engine.republish(timedelta(seconds=5), 10) == 1
        assert town.engine.republish(timedelta(seconds=0), 10) == 0
    (told,) = (one for one in logs if one["event"] == "outbox.unreadable")
    assert (told["saga_id"], told["command_id"]) == (bad, f"{bad}:a:action:1")
    town.text("saga_outbox", bad, whole)
    town.now += timedelta(minutes=3)
    town.engine.republish(timedelta(seconds=5), 10)
    sent = {held.item.saga_id for held in town.broker.take_commands()}
    assert {bad, good} <= sent


def test_a_damaged_history_costs_a_trace_and_nothing_else(town: Town) -> None:
    """The others are exported, and the sagas end as they should."""
    town.text("saga_event", town.bad, DAMAGED)
    with capture_logs() as logs:
        for saga_id in (town.bad, town.good):
            town.client.cancel(saga_id, reason="no longer")
        town.answer("a", Rejected(failure=REFUSAL))
        town.now += timedelta(minutes=1)
        town.engine.retrace(10)
    assert {town.status(one) for one in (town.bad, town.good)} == {"compensated"}
    told = [one["saga_id"] for one in logs if one["event"] == "saga.history_unreadable"]
    assert told == [town.bad, town.bad]


def test_a_damaged_sub_saga_is_asked_again(town: Town) -> None:
    """Its parent waits, and its orchestrator goes on."""
    parent = town.client.start("parent", {}).row.saga_id
    town.handle()
    child = sub_saga_id(parent, "c", 1)
    town.text("saga", child, DAMAGED)
    with capture_logs() as logs:
        town.now += timedelta(minutes=2)
        town.engine.tick(10)
        town.handle()
    told = [one for one in logs if one["event"] == "saga.unreadable"]
    assert {one["saga_id"] for one in told} == {child}
    assert len(told) >= 2  # by its timer, and by its parent
    assert town.status(parent) == "running"


def test_a_damaged_saga_that_waits_for_room_stands_in_front_of_nobody(town: Town) -> None:
    """Once it can be read it waits again, and is let in."""
    first, bad, last = (town.client.start("narrow", {}).row.saga_id for _ in range(3))
    whole = town.text("saga", bad, DAMAGED)
    town.tell(first, "only", Succeeded())
    town.engine.admit()
    town.engine.admit()
    assert (town.status(first), town.sent(last)) == ("completed", 1)
    town.text("saga", bad, whole)
    town.tell(last, "only", Succeeded())
    town.now += READ_AGAIN
    town.engine.tick(10)
    town.engine.admit()
    assert town.sent(bad) == 1
