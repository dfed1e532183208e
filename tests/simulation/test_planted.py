"""The simulation can fail: each of these bugs is found, and told in a few lines."""

from ast import literal_eval
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from random import Random
from typing import Any

import msgspec
import pytest
from typing_extensions import override

from orchestrator.batch import Batch
from orchestrator.coordinator import Coordinator
from orchestrator.core import between
from orchestrator.core.definition import Definition, SubSaga
from orchestrator.core.events import ForkedFrom, Recorded, StepTimedOut
from orchestrator.core.forking import ForkPlan
from orchestrator.core.limits import Limit, Limits
from orchestrator.ports import (
    NO_GATES,
    NOTHING_TRACED,
    Change,
    DeadLetter,
    Delivery,
    Gate,
    SagaRow,
)
from orchestrator.store.memory import MemoryStore
from shared.ids import derived_span_id
from shared.messages import Command, Outcome, Reply, Succeeded, UndoRequest
from tests.simulation.actors import Plants, SimulatedEngine, SimulatedTracing
from tests.simulation.barrier import Database, Key, Work, doer_of
from tests.simulation.definitions import KINDS, SUB_SAGAS, WITH_PIVOT, random_saga
from tests.simulation.forked import simulate_forked
from tests.simulation.limited import WatchedStore, simulate_limited
from tests.simulation.plan import Cancel, Plan, Start
from tests.simulation.run import Finding, simulate
from tests.simulation.shrink import rules_of, shrink
from tests.simulation.world import SimulatedStore

SEEDS_MAX = 150


class PublishesFirst(SimulatedEngine):
    """Sends commands before they are committed."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        commit = self._loop._commit

        def publish_first(
            batch: Batch, letters: Sequence[DeadLetter], *, together: bool = False
        ) -> frozenset[str]:
            self._outbox.publish([it for one in batch.changes() for it in one.commands])
            return commit(batch, letters, together=together)

        self._loop._commit = publish_first  # type: ignore[method-assign]


class AcknowledgesFirst(Coordinator):
    """Settles messages before their consequences are committed."""

    @override
    def _handle(self, deliveries: list[Delivery]) -> None:
        self._broker.attempt(lambda: self._engine.transport.acknowledge(deliveries))
        self._store.attempt(lambda: self._engine.handle(deliveries))


class ForgetsTombstones(Database):
    """A compensation that finds nothing to undo does not keep the action from coming later."""

    @override
    def _compensation(self, transaction: Any, command: Command, work: Work) -> Outcome:
        if (doer_of(command), command.step, "action") in self.rows:
            return super()._compensation(transaction, command, work)
        transaction.commit(command, worked=False)
        return Succeeded()


class LetsDuplicatesThrough(Database):
    """Looks whether an action was done before, but does not insert before it works."""

    @override
    def _action(self, transaction: Any, command: Command, work: Work) -> Outcome:
        key: Key = (doer_of(command), command.step, "action")
        if key in self.rows:
            return super()._action(transaction, command, work)
        outcome = work(command, None)
        if isinstance(outcome, Succeeded):
            transaction.put(key, outcome)
            transaction.commit(command, worked=True)
        return outcome


class ForgetsOrigins(Database):
    """A participant that undoes in the name of the fork what another saga has done."""

    @override
    def run(self, command: Command, work: Work) -> Outcome:
        return super().run(msgspec.structs.replace(command, origin_id=""), work)


class KeepsWhatItGives(SimulatedEngine):
    """A fork copies what was done, and the old saga goes on thinking that it is its own."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        plan = self._forks._plan

        def take_nothing(fork: ForkedFrom, old: SagaRow) -> ForkPlan:
            return msgspec.structs.replace(plan(fork, old), taken=())

        self._forks._plan = take_nothing  # type: ignore[method-assign]


class AnswersForks(SimulatedEngine):
    """A sub-saga that a fork wants undone says that it is, and stands."""

    @override
    def handle(self, deliveries: Sequence[Delivery]) -> None:
        super().handle([one for one in deliveries if not self._is_of_a_fork(one.message)])
        self.transport.handled.update([each.receipt for each in deliveries])

    def _is_of_a_fork(self, message: Any) -> bool:
        if not isinstance(message, UndoRequest) or not message.attempt:
            return False
        asks, row = message.start.parent, MemoryStore.load(self.store, [message.saga_id])  # type: ignore[arg-type]  # it is one
        known = row[message.saga_id].state.parent if row else None
        if asks is None or known is None or asks.saga_id == known.saga_id:
            return False
        self.transport.broker.send(
            Reply(
                saga_id=asks.saga_id,
                step=asks.step,
                direction="compensation",
                attempt=message.attempt,
                outcome=Succeeded(),
            )
        )
        return True


class LetsEverybodyIn(WatchedStore):
    """A store that takes what a process wants, however many others were let in meanwhile."""

    @override
    def _refused(self, changes: Sequence[Change], gates: Mapping[Gate, Limit]) -> set[str]:
        super()._refused(changes, gates)
        return set()


class Unlimited(SimulatedEngine):
    """Knows no limit of the history."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**{**parts, "limits": Limits()})


class PlantedStore(SimulatedStore):
    """A store that does something to what it is given."""

    @override
    def commit(
        self,
        changes: Sequence[Change],
        *,
        published: Collection[str] = (),
        dead_letters: Sequence[DeadLetter] = (),
        traced: Mapping[str, datetime] = NOTHING_TRACED,
        together: bool = False,
        gates: Mapping[Gate, Limit] = NO_GATES,
    ) -> frozenset[str]:
        return super().commit(
            [self.spoilt(change) for change in changes],
            published=published,
            dead_letters=dead_letters,
            traced=traced,
            together=together,
            gates=gates,
        )

    def spoilt(self, change: Change) -> Change:
        """What is stored instead."""
        raise NotImplementedError


class LosesTimers(PlantedStore):
    """After a time-out nobody wakes the saga any more."""

    @override
    def spoilt(self, change: Change) -> Change:
        if not any(isinstance(one.event, StepTimedOut) for one in change.events):
            return change
        row = msgspec.structs.replace(change.row, wake_at=None)
        return msgspec.structs.replace(change, row=row)


class LosesEvents(PlantedStore):
    """The history of a large change lacks its last event."""

    @override
    def spoilt(self, change: Change) -> Change:
        return msgspec.structs.replace(change, events=change.events[:3])


class LosesUpdates(SimulatedStore):
    """The last writer wins: the sequence is not compared."""

    @override
    def _apply(self, change: Change, after: Any) -> bool:
        before = self._sagas.get(change.row.saga_id)
        sequence = before.row.sequence if before else 0
        return super()._apply(msgspec.structs.replace(change, expected_sequence=sequence), after)


class OneRootEach(SimulatedTracing):
    """Every export gives the root span a new id."""

    exports = 0

    @override
    def ended(
        self,
        definition: Definition,
        row: SagaRow,
        history: Sequence[Recorded],
        *,
        whole: bool = False,
    ) -> None:
        OneRootEach.exports += 1
        root = derived_span_id("export", OneRootEach.exports)
        trace = msgspec.structs.replace(row.state.trace, root_span_id=root)
        state = msgspec.structs.replace(row.state, trace=trace)
        super().ended(definition, msgspec.structs.replace(row, state=state), history, whole=whole)


def first_finding(
    plants: Plants, problem: str, make: Callable[..., Finding] = simulate, first: int = 0
) -> Finding:
    """The first run that breaks this rule, of those from a seed on."""
    for seed in range(first, first + SEEDS_MAX):
        run = make(seed, plants=plants)
        if any(problem in one for one in run.problems):
            return run
    raise AssertionError(f"{SEEDS_MAX} runs did not find it")


@pytest.mark.parametrize(
    "plants, problem",
    [
        (Plants(engine=PublishesFirst), "is published and not committed"),
        (Plants(coordinator=AcknowledgesFirst), "acknowledged before its commit"),
        (Plants(database=ForgetsTombstones), "happened after its compensation had won"),
        (Plants(database=LetsDuplicatesThrough), "happened 2 times"),
        (Plants(store=LosesTimers), "nothing will ever happen again"),
        (Plants(store=LosesEvents), "not the fold of its history"),
        (Plants(store=LosesUpdates), "the history has a gap"),
        (Plants(tracing=OneRootEach), "a root span with another id"),
        (Plants(database=ForgetsOrigins), "was done 1 and undone 0 times"),
        (Plants(engine=Unlimited), "something begins after"),
    ],
    ids=[
        "publish first",
        "acknowledge first",
        "no tombstone",
        "no insert",
        "lost timer",
        "lost event",
        "lost update",
        "many roots",
        "no origin",
        "no limit",
    ],
)
def test_a_planted_bug_is_found(plants: Plants, problem: str) -> None:
    """Within a few runs, and by the rule that it breaks."""
    assert first_finding(plants, problem)


@pytest.mark.parametrize(
    "plants, problem",
    [
        (Plants(engine=KeepsWhatItGives), "belongs to fork-"),
        (Plants(engine=AnswersForks), "is undone, but not below, which it copied"),
    ],
    ids=["two owners", "no undo"],
)
def test_a_planted_bug_of_forks_is_found(plants: Plants, problem: str) -> None:
    """What a fork takes over belongs to it alone, and it is the fork that undoes it."""
    assert first_finding(plants, problem, simulate_forked)


def test_a_planted_bug_of_limits_is_found() -> None:
    """More in flight than a limit allows."""
    assert first_finding(
        Plants(store=LetsEverybodyIn), ", stored Crowd(", simulate_limited, first=20
    )


def cancelled_at_the_end(seed: int) -> Plan:
    """Sagas whose last step is a saga with a pivot, each cancelled while it runs."""
    random = Random(f"{seed}:cancelled")
    pivoted = {f"sub-{SUB_SAGAS + number}" for number in range(WITH_PIVOT)}
    sagas = [
        saga
        for saga in map(random_saga, range(KINDS))
        for step in saga.steps
        if isinstance(step.action, SubSaga)
        and step.action.name in pivoted
        and step.compensation is None
    ]
    starts = [
        Start(number, random.random(), random.choice(sagas), "client-1", None, sampled=True)
        for number in range(12)
    ]
    cancels = [Cancel(one.number, one.at + random.uniform(0, 0.2), "client-2") for one in starts]
    return Plan(tuple(sorted(starts, key=_at)), tuple(sorted(cancels, key=_at)), (), 12.0)


def _at(item: Start | Cancel) -> float:
    return item.at


def test_a_sub_saga_past_its_pivot_that_counts_as_undone_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has to refuse when its parent, which was cancelled, wants it undone."""
    plans = [(seed, cancelled_at_the_end(seed)) for seed in range(5)]
    runs = [simulate(seed, plan=plan) for seed, plan in plans]
    assert not any(run.problems for run in runs)
    assert sum(run.features["undo_refused"] for run in runs)
    monkeypatch.setattr(between, "_past_pivot", lambda _reason: Succeeded())
    problems = [one for seed, plan in plans for one in simulate(seed, plan=plan).problems]
    assert any("stands, though the saga that it is a step of is undone" in one for one in problems)


def test_a_finding_is_told_by_the_shortest_trace() -> None:
    """It shows how the rule was broken, and nothing can be left out; some get short indeed.

    A run that needs the stall of a process needs all that this process has done before, too.
    """
    make = partial(simulate, plants=Plants(database=ForgetsTombstones))
    found = [run for seed in range(20) if (run := make(seed)).problems]
    assert len(found) >= 3
    for long in sorted(found, key=lambda run: len(run.fired)):
        short = shrink(long, make)
        assert rules_of(short) & rules_of(long)
        whole = make(long.seed, record=True)
        assert len(short.trace) < len(whole.trace)
        (saga_id, step), what = broken_step(short)
        told = [line for line in short.trace if f"replies Succeeded to {saga_id}:{step}:" in line]
        directions = [line.split(":")[-2] for line in told]
        assert {"action", "compensation"} <= {*directions}, what
        small = short.sagas <= 6 < long.sagas and len(short.fired) <= 3 < len(long.fired)
        if small and len(short.trace) < len(whole.trace) // 4:
            again = make(long.seed, only=frozenset(short.fired), plan=short.plan, record=True)
            assert (again.trace, again.problems) == (short.trace, short.problems)
            for fault in short.fired:
                fewer = make(long.seed, only=frozenset(short.fired) - {fault}, plan=short.plan)
                assert not rules_of(fewer) & rules_of(long)
            return
    raise AssertionError("none of them got short")


def broken_step(run: Finding) -> tuple[tuple[str, str], str]:
    """The step whose action came after its compensation, and what is said of it."""
    what = next(one for one in run.problems if "after its compensation had won" in one)
    saga_id, step = literal_eval(what[: what.index(")") + 1])
    return (saga_id, step), what
