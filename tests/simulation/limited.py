"""Limits that sagas share, with crashes between any two calls: never exceeded, and nobody is forgotten."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from random import Random
from typing import Any, Final

import msgspec
from typing_extensions import override

from orchestrator.core.definition import Limit, Saga, Step, SubSaga
from orchestrator.core.limits import Limit as AnyLimit
from orchestrator.core.limits import Limits
from orchestrator.core.plan import plan_of
from orchestrator.core.room import taken
from orchestrator.core.state import Status
from orchestrator.ports import (
    NO_GATES,
    NOTHING_TRACED,
    Change,
    Crowd,
    DeadLetter,
    Gate,
)
from orchestrator.store.memory import MemoryStore
from tests.simulation.actors import Plants
from tests.simulation.definitions import KINDS, random_saga
from tests.simulation.plan import By, Cancel, Plan, Start
from tests.simulation.rules import held_up
from tests.simulation.run import Finding, Run, silence
from tests.simulation.world import Dues, SimulatedStore

SAGAS: Final = 12
WITHIN_S: Final = 2.0
CALM_AFTER_S: Final = 12.0


def limited(number: int) -> Saga:
    """A random definition that lets some sagas, and one attempt of each task, be in flight.

    Not fewer: those that get stuck keep their place, and nobody resolves them here.
    """
    saga = random_saga(number)

    def with_limit(step: Step) -> Step:
        called = isinstance(step.action, str | SubSaga)
        return msgspec.structs.replace(step, limit=Limit(in_flight=1) if called else None)

    steps = tuple(map(with_limit, saga.steps))
    return msgspec.structs.replace(
        saga, name=f"limited-{number}", steps=steps, limit=Limit(in_flight=5)
    )


def a_plan(seed: int) -> Plan:
    """Sagas of two names, all of them soon after another; some are cancelled while they wait."""
    random = Random(f"{seed}:limited")
    sagas = [limited(random.randrange(KINDS)) for _ in range(2)]
    starts: list[Start] = []
    cancels: list[Cancel] = []
    for number in range(SAGAS):
        by: By = random.choice(("client-1", "client-2", "message"))
        at, saga = random.uniform(0, WITHIN_S), random.choice(sagas)
        starts.append(Start(number, at, saga, by, None, sampled=random.random() < 0.5))
        if random.random() < 0.2:
            cancels.append(Cancel(number, at + random.uniform(0, 2 * WITHIN_S), by))
    return Plan(tuple(sorted(starts, key=_at)), tuple(sorted(cancels, key=_at)), (), CALM_AFTER_S)


def _at(item: Start | Cancel) -> float:
    return item.at


class WatchedStore(SimulatedStore):
    """A store that looks after each commit whether a limit is exceeded."""

    @override
    def crowds(self, gates: Collection[Gate], waiting_max: int) -> dict[Gate, Crowd]:
        self._reads("crowds")
        return super().crowds(gates, waiting_max)

    @override
    def commit(
        self,
        changes: Sequence[Change],
        *,
        published: Collection[str] = (),
        dead_letters: Sequence[DeadLetter] = (),
        traced: Mapping[str, datetime] = NOTHING_TRACED,
        together: bool = False,
        gates: Mapping[Gate, AnyLimit] = NO_GATES,
    ) -> frozenset[str]:
        try:
            return super().commit(
                changes,
                published=published,
                dead_letters=dead_letters,
                traced=traced,
                together=together,
                gates=gates,
            )
        finally:
            self._look(gates)

    def _look(self, gates: Mapping[Gate, AnyLimit]) -> None:
        rows = MemoryStore.load(self, [*self._sagas])
        held: Counter[Gate] = Counter()
        for row in rows.values():
            definition = self.definition(row.state.name, row.state.version)
            assert definition is not None
            slots = taken(plan_of(definition, row.state), row.state, definition.limits)
            held.update((definition.name, slot.step) for slot in slots)
        crowds = MemoryStore.crowds(self, gates, 1)
        for gate, limit in gates.items():
            if crowds[gate].in_flight != held[gate] or held[gate] > (limit.in_flight or 0):
                self._world.problems.append(f"{held[gate]} at {gate}, stored {crowds[gate]}")

    @override
    def look_when_due(self, but: Collection[str] = ()) -> Dues:
        # Whoever waits for room has no timer: the orchestrators look again and again.
        waits = any(slot.waiting for held in self._slots.held.values() for slot in held.slots)
        dues = super().look_when_due(but)
        return dues._replace(timers=0.0) if waits else dues


def blocked(store: SimulatedStore) -> set[str]:
    """Sagas that wait for room which one has that is stuck, or waits for a sub-saga that is."""
    rows = {saga_id: row for saga_id, (row, _) in store.everything().items()}
    still = held_up(rows) | {one for one in rows if rows[one].state.status is Status.STUCK}
    places: dict[Gate, set[str]] = {}
    waiting: list[tuple[str, Gate]] = []
    for saga_id, held in store._slots.held.items():
        for slot in held.slots:
            gate = (held.name, slot.step)
            if slot.waiting:
                waiting.append((saga_id, gate))
            else:
                places.setdefault(gate, set()).add(saga_id)
    found = {saga_id for saga_id, gate in waiting if places.get(gate, set()) & still}
    return found - still


def problems_of(finding: Finding, excused: set[str]) -> Iterator[str]:
    """What is wrong, but for that sagas wait for ever that are excused."""
    for problem in finding.problems:
        goes_on = problem.startswith("it goes on") and excused
        if not goes_on and problem.partition(":")[0] not in excused:
            yield problem


def _slot_problems(finding: Finding, store: SimulatedStore) -> Iterator[str]:
    """Only those that are stuck, or wait for one that is, may have a place at the end."""
    left = [one for one in store._slots.held.values() if one.slots]
    active = sum(count for status, count in finding.statuses.items() if not status.final)
    if len(left) > active:
        yield f"{len(left)} sagas have places, and {active} have not ended: {left}"


def simulate_limited(seed: int, **options: Any) -> Finding:
    """Make one run of sagas that share limits; see `Run`."""
    with silence():
        run = Run(seed, **{"plan": a_plan(seed), "plants": Plants(store=WatchedStore), **options})
        run.world.limits = Limits()  # whose history is full keeps its place, too
        finding = run.go()
    kept = run.world.store
    excused = blocked(kept)
    problems = [*problems_of(finding, excused), *_slot_problems(finding, kept)]
    run.world.forget()
    return finding._replace(problems=problems, held=finding.held + len(excused))
