"""Limits that sagas share, as the engine keeps them: never exceeded, fair, and given back for certain."""

from collections import Counter
from contextlib import suppress
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.catalog import Catalog
from orchestrator.core.definition import Input, Item, Limit, Saga
from orchestrator.core.events import SagaPaused
from orchestrator.core.messages import Pause, Resume, RetryNow
from orchestrator.core.plan import plan_of
from orchestrator.core.room import taken
from orchestrator.core.state import Status
from orchestrator.engine import Engine
from orchestrator.ports import Control, Gate
from orchestrator.replay import replay
from orchestrator.store.memory import MemoryStore
from orchestrator.tracing import SagaTracing
from orchestrator.transport.memory import MemoryBroker, MemoryTransport
from shared.errors import NotAllowed
from shared.messages import (
    Command,
    Failed,
    Outcome,
    Rejected,
    Reply,
    StartRequest,
    Succeeded,
)
from tests.core.builders import FAILURE, REFUSAL, T0, Orders, Retry, saga, step
from tests.simulation.run import silence

ONE = Limit(in_flight=1)
TWO = Limit(in_flight=2)


class Town:
    """Sagas that share limits, two orchestrators, and participants that answer when they are told."""

    def __init__(self, *sagas: Saga) -> None:
        self.now = T0
        self.store = MemoryStore()
        self.broker = MemoryBroker()
        self.sagas = sagas
        self.engines = [self.engine() for _ in range(2)]
        self.flying: list[Command] = []
        self.started: list[str] = []

    def engine(self, *sagas: Saga) -> Engine:
        """One more process."""
        return Engine(
            store=self.store,
            transport=MemoryTransport(self.broker),
            catalog=Catalog(sagas or self.sagas),
            tracing=SagaTracing(system="memory", clock=self.clock),
            clock=self.clock,
        )

    def clock(self) -> datetime:
        """The time of the test; no two decisions are made at one instant."""
        self.now += timedelta(microseconds=1)
        return self.now

    def start(self, *, name: str = "test", orders: int = 0, by: int = 0) -> str:
        """Start a saga, a millisecond after the last one."""
        self.now += timedelta(milliseconds=1)
        given = {"order_ids": [f"o-{number}" for number in range(orders)]}
        number = len(self.started)
        request = StartRequest(name=name, input=given, saga_id=f"saga-{number:03}")
        self.engines[by].start([request])
        self.started.append(f"saga-{number:03}")
        self.collect()
        return self.started[-1]

    def collect(self) -> list[Command]:
        """Take what has been sent."""
        taken_now = self.broker.take_commands()
        for held in taken_now:
            self.broker.settle_command(held)
        self.flying += [held.item for held in taken_now]
        return [held.item for held in taken_now]

    def answer(
        self, saga_id: str = "", step: str = "", outcome: Outcome | None = None, by: int = 0
    ) -> list[Command]:
        """Answer the first command that fits; returns what was sent thereupon."""
        found = next(
            one
            for one in self.flying
            if one.saga_id.startswith(saga_id) and one.step.startswith(step)
        )
        return self.reply(found, outcome or Succeeded(), by)

    def reply(self, command: Command, outcome: Outcome, by: int = 0) -> list[Command]:
        """Answer a command."""
        self.flying.remove(command)
        self.broker.send(
            Reply(
                saga_id=command.saga_id,
                step=command.step,
                direction=command.direction,
                attempt=command.attempt,
                outcome=outcome,
            ),
            "",
        )
        self.take(by)
        return self.collect()

    def take(self, by: int = 0) -> None:
        """Handle what is there as one batch."""
        engine = self.engines[by]
        deliveries = engine.transport.receive(100, 0)
        engine.handle(deliveries)
        engine.transport.acknowledge(deliveries)

    def wait(self, seconds: float, by: int = 0) -> list[Command]:
        """Let time pass, and an orchestrator look."""
        self.now += timedelta(seconds=seconds)
        self.engines[by].tick(1000)
        self.engines[by].audit(1000)
        self.engines[by].admit()
        return self.collect()

    def held(self) -> Counter[Gate]:
        """The slots that follow from the states alone."""
        found: Counter[Gate] = Counter()
        for saga_id in self.started:
            row = self.store.load([saga_id])[saga_id]
            definition = self.engines[0].definition_of(row)
            limits = self.engines[0].rooms.limits_of(definition)
            slots = taken(plan_of(definition, row.state), row.state, limits)
            found.update((row.state.name, slot.step) for slot in slots)
        return found

    def stored(self, *gates: Gate) -> dict[Gate, int]:
        """The slots that the store has."""
        return {gate: one.in_flight for gate, one in self.store.crowds(gates, 0).items()}

    def charged(self) -> list[str]:
        """Whose charge is in flight, in the order in which they were sent."""
        return [one.saga_id for one in self.flying if one.step == "charge"]


def charging(limit: Limit | None = TWO, **options: object) -> Saga:
    """A saga with one step that is limited."""
    charge = step("charge", limit=limit, **options)
    return saga(step("reserve"), charge, step("send"), input=Orders)


def test_no_more_attempts_are_in_flight_than_the_limit_of_their_step_allows() -> None:
    """The others wait, and say so; each that ends lets the next one in at once."""
    town = Town(charging())
    sagas = [town.start() for _ in range(5)]
    for saga_id in sagas:
        town.answer(saga_id)
    assert town.charged() == sagas[:2]
    waiting = town.store.load([sagas[2]])[sagas[2]]
    assert (waiting.state.awaited, waiting.wake_at) == (("charge",), None)
    sent = town.answer(sagas[1], "charge")
    assert [(one.saga_id, one.step) for one in sent] == [(sagas[1], "send"), (sagas[2], "charge")]
    town.answer(sagas[0], "charge", Rejected(failure=REFUSAL))
    assert town.charged() == [sagas[2], sagas[3]]


def test_no_more_sagas_are_in_flight_than_the_limit_of_their_name_allows() -> None:
    """From their first attempt to their end; the oldest is the next, also when others come later."""
    town = Town(
        Saga(name="test", version=1, input=Orders, steps=(step("a"), step("b")), limit=ONE)
    )
    first, second, third = (town.start() for _ in range(3))
    town.answer(first, "a")
    assert [one.saga_id for one in town.flying] == [first]
    town.start()
    town.answer(first, "b")
    assert [one.saga_id for one in town.flying] == [second]
    town.engines[1].cancel(second, reason="r", by="ada")
    town.answer(second, "a")
    assert [(one.saga_id, one.direction) for one in town.flying] == [(second, "compensation")]
    town.answer(second, "a")
    assert [one.saga_id for one in town.flying] == [third]


def test_the_oldest_saga_is_first_whenever_it_came_to_wait() -> None:
    """And what undoes is before what goes forward."""
    town = Town(charging(ONE))
    old, middle, young, last = (town.start() for _ in range(4))
    for saga_id in (last, young, middle, old):
        town.answer(saga_id, "reserve")
    assert town.charged() == [last]
    town.answer(last, "charge")
    town.answer(old, "charge")
    assert town.charged() == [middle]
    # The last one turns back: the undo of its charge waits, but not behind those that go on.
    town.answer(last, "send", Rejected(failure=REFUSAL))
    town.answer(middle, "charge")
    assert [(one.saga_id, one.direction) for one in town.flying if one.step == "charge"] == [
        (last, "compensation")
    ]


def test_one_name_does_not_delay_another() -> None:
    """However many wait."""
    other = Saga(name="other", version=1, input=Orders, steps=(step("charge", limit=ONE),))
    town = Town(charging(ONE), other)
    for saga_id in [town.start() for _ in range(20)]:
        town.answer(saga_id, "reserve")
    quick = town.start(name="other")
    assert town.charged()[-1] == quick


def test_a_retry_waits_for_room_and_wakes_nobody_meanwhile() -> None:
    """Its timer is over; it is let in when it is its turn."""
    town = Town(charging(ONE, retry=Retry(attempts=2)))
    first, second = (town.start() for _ in range(2))
    for saga_id in (first, second):
        town.answer(saga_id, "reserve")
    town.answer(first, "charge", Failed(failure=FAILURE))
    assert town.charged() == [second]
    assert town.wait(10) == []
    assert town.store.load([first])[first].wake_at is None
    assert town.store.due(town.now + timedelta(seconds=1), 10) == []
    assert [one.attempt for one in town.answer(second, "charge") if one.step == "charge"] == [2]


@pytest.mark.parametrize("how", ["timeout", "cancel", "pause"])
def test_a_slot_is_free_whatever_became_of_who_had_it_or_waited(how: str) -> None:
    """An attempt without an answer, a saga that is cancelled or paused while it waits."""
    town = Town(charging(ONE, retry=Retry(attempts=1)))
    first, second, third = (town.start() for _ in range(3))
    for saga_id in (first, second, third):
        town.answer(saga_id, "reserve")
    if how == "timeout":
        town.flying = [one for one in town.flying if one.saga_id != first]
        town.wait(31, by=1)
        assert (second, "action") in [(one.saga_id, one.direction) for one in town.flying] or (
            town.charged() == [first]
        )
    elif how == "cancel":
        town.engines[1].cancel(second, reason="r", by="ada")
        town.answer(first, "charge")
        assert town.charged() == [third]
    else:
        town.engines[1].operate(second, Pause(reason="r", by="ada"))
        town.answer(first, "charge")
        assert town.charged() == [third]
        town.engines[1].operate(second, Resume(reason="r", by="ada"))
        town.answer(third, "charge")
        assert town.charged() == [second]


def test_a_list_takes_one_slot_for_each_item() -> None:
    """Of one saga and of several."""
    pack = step(
        "pack", each=Input("order_ids"), payload={"order": Item()}, limit=Limit(in_flight=3)
    )
    town = Town(saga(pack, input=Orders))
    first, second = town.start(orders=5), town.start(orders=2)
    assert Counter(one.saga_id for one in town.flying) == {first: 3}
    for _ in range(5):
        town.answer(first, "pack")
    assert Counter(one.saga_id for one in town.flying) == {second: 2}
    history = [one.event for one in town.store.history([first])[first]]
    assert len(history) < 20


def test_a_rate_lets_them_begin_one_after_the_other() -> None:
    """The coordinator is told when to look again."""
    limited = Saga(
        name="test", version=1, input=Orders, steps=(step("a"),), limit=Limit(rate="10/s")
    )
    town = Town(limited)
    for _ in range(4):
        town.start()
    assert len(town.flying) == 1
    wait = town.engines[0].admit()
    assert wait is not None
    assert timedelta(0) < wait <= timedelta(milliseconds=105)
    town.now += wait
    town.engines[1].admit()
    assert len(town.collect()) == 1


def test_an_operator_sets_a_limit_while_sagas_run_and_lifts_it_again() -> None:
    """Those that are in flight count as soon as everybody knows; then the rest goes on at once."""
    town = Town(charging(limit=None))
    sagas = [town.start() for _ in range(6)]
    for saga_id in sagas[:3]:
        town.answer(saga_id, "reserve")
    said = Control(name="test", step="charge", limit=TWO, by="ada", at=town.now)
    town.store.put_control(said)
    town.wait(2)
    town.wait(3)
    assert town.stored(("test", "charge")) == {("test", "charge"): 3}
    for saga_id in sagas[3:]:
        town.answer(saga_id, "reserve", by=1)
    town.answer(sagas[0], "charge")
    assert town.charged() == sagas[1:3]
    town.store.drop_control("test", "charge", "limit")
    town.wait(2)
    town.wait(6)
    assert town.charged() == sagas[1:]
    assert town.stored(("test", "charge")) == {("test", "charge"): 0}


def test_what_a_process_that_knows_of_no_limit_leaves_behind_is_put_right() -> None:
    """It has older code: it advances a saga and says nothing of its slots."""
    town = Town(charging(ONE))
    first, second = (town.start() for _ in range(2))
    for saga_id in (first, second):
        town.answer(saga_id, "reserve")
    town.engines.append(town.engine(charging(limit=None)))
    # As a version of the product reads it that has no limits.
    town.engines[2].catalog._pinned["test", 1] = charging(limit=None).definition
    town.answer(first, "charge", by=2)
    assert town.charged() == []
    town.wait(1)
    assert town.charged() == [second]


def test_sagas_of_a_name_that_is_paused_begin_nothing_when_they_start() -> None:
    """Until it is resumed; who paused it and why stands in their history."""
    other = Saga(name="other", version=1, input=Orders, steps=(step("charge"),))
    town = Town(charging(), other)
    running = town.start()
    town.engines[1].rooms.keep(Control(name="test", reason="audit", by="ada", at=town.now))
    early = town.start()  # the other process does not know of it yet
    assert [one.saga_id for one in town.flying] == [running, early]
    paused = town.start(by=1)
    town.start(name="other", by=1)
    assert [one.saga_id for one in town.flying][2:] == ["saga-003"]
    history = town.store.history([paused])[paused]
    assert [one.event for one in history[1:]] == [SagaPaused(reason="audit", by="ada")]
    row = town.store.load([paused])[paused]
    assert replay(town.sagas[0].definition, history, row.state).same
    # What began before everybody knew is paused afterwards; what was there before is not touched.
    town.wait(2)
    town.wait(3.5)
    states = [town.store.load([one])[one].state.paused for one in (running, early, paused)]
    assert states == [False, True, True]
    town.engines[0].rooms.drop("test", "", "pause")
    town.start()
    assert town.flying[-1].saga_id == town.started[-1]


OUTCOMES: tuple[Outcome, ...] = (
    Succeeded(),
    Succeeded(),
    Failed(failure=FAILURE),
    Rejected(failure=REFUSAL),
)


GATES = (("test", ""), ("test", "charge"), ("test", "send"), ("other", "charge"))


class Storm(Town):
    """Two names, limits at both levels, branches and a list."""

    def __init__(self, saga_limit: int, step_limit: int) -> None:
        once = Retry(attempts=2)
        pack = step("pack", each=Input("order_ids"), payload={"o": Item()}, after=(), retry=once)
        shared = Saga(
            name="test",
            version=1,
            input=Orders,
            limit=Limit(in_flight=saga_limit),
            steps=(
                step("charge", after=(), retry=once, limit=Limit(in_flight=step_limit)),
                pack,
                step("send", after=("charge", "pack"), limit=Limit(in_flight=1, rate="100/s")),
            ),
        )
        other = Saga(name="other", version=1, input=Orders, steps=(step("charge", limit=ONE),))
        super().__init__(shared, other)
        self.most = dict(zip(GATES, (saga_limit, step_limit, 1, 1), strict=True))

    def check(self) -> None:
        """What the store has follows from the states, and is within the limits."""
        held = self.held()
        assert self.stored(*GATES) == {gate: held[gate] for gate in GATES}
        for gate, limit in self.most.items():
            assert held[gate] <= limit, gate

    def move(self, what: int, which: int, by: int) -> None:
        """Something happens."""
        match what:
            case 0 | 1:
                self.start(name="test" if which % 5 else "other", orders=which % 3, by=by)
            case 2 | 3 if self.flying:
                command = self.flying[which % len(self.flying)]
                self.reply(command, OUTCOMES[which % len(OUTCOMES)], by)
            case 4 if self.flying:
                del self.flying[which % len(self.flying)]
            case 5 if self.started:
                self.interfere(self.started[which % len(self.started)], which % 3, by)
            case _:
                self.wait(which, by)

    def interfere(self, saga_id: str, what: int, by: int) -> None:
        """Somebody cancels, pauses or resumes a saga, which may not allow it."""
        with suppress(NotAllowed):
            if what:
                asked = Pause(by="ada") if what == 1 else Resume(by="ada")
                self.engines[by].operate(saga_id, asked)
            else:
                self.engines[by].cancel(saga_id, reason="r", by="ada")
        self.collect()

    def finish(self) -> None:
        """From now on everything succeeds, until every saga has ended."""
        for saga_id in self.started:
            self.interfere(saga_id, 2, 0)
        for _ in range(400):
            if self.flying:
                self.reply(self.flying[0], Succeeded())
            else:
                self.wait(40)
            self.check()
            rows = self.store.load(self.started).values()
            if all(row.state.status.final for row in rows):
                return
            for row in rows:  # a compensation was refused, too: once more
                if row.state.status is Status.STUCK:
                    self.engines[1].operate(row.saga_id, RetryNow(by="ada"))
            self.collect()
        raise AssertionError(f"they never end: {self.flying}")


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 30), st.integers(0, 1)), max_size=60),
)
def test_whatever_happens_no_limit_is_exceeded_and_every_saga_ends(
    saga_limit: int, step_limit: int, moves: list[tuple[int, int, int]]
) -> None:
    """Starts, answers, lost messages, cancels, pauses and timers, by two orchestrators."""
    with silence():
        storm = Storm(saga_limit, step_limit)
        for move in moves:
            storm.move(*move)
            storm.check()
        storm.finish()
    for row in storm.store.load(storm.started).values():
        definition = storm.engines[0].definition_of(row)
        history = storm.store.history([row.saga_id])[row.saga_id]
        result = replay(definition, history, row.state)
        assert result.same, result.differences
    assert storm.stored(*GATES) == dict.fromkeys(GATES, 0)
    assert storm.store.stray_slots(GATES, 10) == []
