"""One run: one seed, one world, until everything has ended."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple
from unittest.mock import patch

from orchestrator import coordinator, engine, metrics, outbox
from orchestrator.core.events import tag_of
from orchestrator.core.state import Status
from shared.messages import Reply
from tests.simulation.actors import (
    Client,
    Duty,
    Orchestrator,
    Participant,
    Plants,
    asked_by_message,
    request,
)
from tests.simulation.chaos import Chaos, Fault
from tests.simulation.definitions import below
from tests.simulation.plan import Ask, Cancel, Plan, Start, make_plan
from tests.simulation.rules import broken_rules, held_up
from tests.simulation.scheduler import Endless
from tests.simulation.world import LATENCY_S, NEVER, World

AS_JSON_EVERY: Final = 16
STALE_MAX: Final = 12
"""Old messages that come once more when all is over."""


class Finding(NamedTuple):
    """How a run went.

    Attributes:
        plan: What people did.
        fired: What went wrong.
        problems: The rules that were broken; empty when all is well.
        statuses: How the sagas ended.
        held: How many of those that have neither ended nor are stuck wait for a sub-saga, or for
            the room, of one that is stuck, or waits itself: they go on when somebody has looked
            after that.
        features: How often what happened, from the histories and the broker.
        trace: What happened, where that was recorded.
    """

    seed: int
    plan: Plan
    sagas: int
    statuses: Counter[Status]
    held: int
    features: Counter[str]
    fired: list[Fault]
    problems: list[str]
    conflicts: int
    trace: list[str]


class Run:
    """A run that can be made again with a part of its faults, or of its plan.

    Args:
        seed: Decides everything that `only` and `plan` leave open.
        only: The faults that fire.
        plan: What people do.
        plants: Bugs, for tests of the simulation itself.
        record: Whether to keep the trace.
        as_json: See `World`; by default every `AS_JSON_EVERY`-th run.
    """

    def __init__(
        self,
        seed: int,
        *,
        only: frozenset[Fault] | None = None,
        plan: Plan | None = None,
        plants: Plants | None = None,
        record: bool = False,
        as_json: bool | None = None,
    ) -> None:
        plants = plants or Plants()
        chaos = Chaos(seed, only)
        planned = make_plan(seed, chaos)
        self.seed = seed
        self.plan = plan or planned
        self.world = World(
            seed,
            chaos,
            record=record,
            as_json=seed % AS_JSON_EVERY == 0 if as_json is None else as_json,
            store=plants.store,
            database=plants.database,
        )
        started = {start.saga.name: start.saga for start in self.plan.starts}
        self.sagas = (*started.values(), *below(started.values()))
        self._orchestrators = [
            Orchestrator(self.world, f"orchestrator-{n}", self.sagas, plants) for n in (1, 2)
        ]
        self._participants = [Participant(self.world, f"participant-{n}") for n in (1, 2)]
        work: list[Start | Cancel | Ask] = [
            *self.plan.starts,
            *self.plan.cancels,
            *self.plan.asks,
        ]
        work.sort(key=lambda item: item.at)
        self._clients = [
            Client(self.world, by, self.sagas, plants, [one for one in work if one.by == by])
            for by in ("client-1", "client-2")
        ]
        self._duty = Duty(self.world, "duty", self.sagas, plants)
        self._rest: tuple[int, bool] | None = None
        self._by_message = [one for one in work if one.by == "message"]
        self._messages_left = len(self._by_message)

    def go(self) -> Finding:
        """Run it to its end."""
        problems: list[str] = []
        world = self.world
        try:
            for process in (*self._orchestrators, *self._clients):
                process.start()
            for item in self._by_message:
                world.scheduler.later(item.at, lambda item=item: self._send(item))  # type: ignore[misc]  # a default binds it
            world.scheduler.later(self.plan.calm_after, self._calm)
            self._go_on()
            self._tidy()
            self._go_on()
            self._stale()
            self._go_on()
        except Endless as endless:
            problems.append(str(endless))
        except Exception as error:  # noqa: BLE001 - whatever the product raises is a finding
            problems.append(f"{type(error).__name__}: {error}")
        finally:
            world.scheduler.close()
        definitions = {(one.name, one.version): one.definition for one in self.sagas}
        problems += broken_rules(world, definitions)
        for client in self._clients:
            known = {one.saga_id for one in world.store.list_sagas(limit=1000)}
            problems += [
                f"{saga_id} was durable, and is gone"
                for saga_id in client.started.values()
                if saga_id not in known
            ]
        statuses = world.store.count_by_status()
        rows = {saga_id: row for saga_id, (row, _) in world.store.everything().items()}
        held = [one for one in held_up(rows) if rows[one].state.status is not Status.STUCK]
        return Finding(
            self.seed,
            self.plan,
            sum(statuses.values()),
            Counter(statuses),
            len(held),
            self._features(),
            world.chaos.fired,
            problems,
            world.store.conflicts,
            world.trace,
        )

    def _features(self) -> Counter[str]:
        """What has been drawn in this run: every event, by its name, and what leaves none."""
        world = self.world
        everything = world.store.everything().values()
        features = Counter([tag_of(one.event) for _, history in everything for one in history])
        features["publication"] = len(world.broker.events)
        features["heartbeat"] = len(world.store.beaten)
        features["sub-saga"] = sum(row.state.parent is not None for row, _ in everything)
        return features

    def _go_on(self) -> None:
        """Until nothing is left to do."""
        scheduler = self.world.scheduler
        while not self._over():
            self._hand_out()
            if scheduler.idle:
                if self._paused() and self.world.chaos.calm:
                    self._duty.start()
                    continue
                raise Endless("nothing will ever happen again, and not all has ended")
            scheduler.step()

    def _over(self) -> bool:
        world = self.world
        if not world.store.moving <= world.store.asking:
            return False  # as mostly: asked for after every step
        return (
            not self._messages_left
            and not world.broker.pending
            and all(client.done for client in self._clients)
            and all(actor.ended for actor in self._duty.actors)
            and self._at_rest()
        )

    def _paused(self) -> bool:
        """Whether somebody has paused a saga and forgotten it."""
        everything = self.world.store.everything()
        moving = self.world.store.moving
        return any(
            row.state.paused for saga_id, (row, _) in everything.items() if saga_id in moving
        )

    def _at_rest(self) -> bool:
        """Whether nothing in the store will change, however long one waits."""
        store = self.world.store
        if not store.moving and min(store.dues()) == NEVER:
            return True
        # Looked at once for each state of the store.
        looked_at = (store.commits, self.world.chaos.calm)
        if looked_at == self._rest:
            return False
        self._rest = looked_at
        # What waits for a sub-saga that is stuck asks for ever, stuck itself or not: it is somebody
        # else's turn.
        rows = {saga_id: row for saga_id, (row, _) in store.everything().items()}
        held = held_up(rows, paused=True)
        waits = (
            store.moving <= held
            and all(store.only_asks(rows[one].state) for one in held if rows[one].wake_at)
            and min(store.look_when_due(but=held)) == NEVER
        )
        if waits and self._paused():
            if self.world.chaos.calm:
                self._duty.start()
            return False
        return waits

    def _hand_out(self) -> None:
        """Messages go to whoever waits for one."""
        world = self.world
        if world.waiting and world.broker.inbound_ready:
            chosen = world.random.choice([*world.waiting])
            actor = world.waiting.pop(chosen)
            world.scheduler.wake(actor, world.random.random() * LATENCY_S)
        while world.broker.commands_ready:
            free = [one for one in self._participants if one.free]
            if not free:
                return
            (held,) = world.broker.take_commands(1)
            free[int(world.random.random() * len(free))].take(held)

    def _send(self, item: Start | Cancel | Ask) -> None:
        self._messages_left -= 1
        if isinstance(item, Start):
            self.world.send(request(item), task_id=f"start-{item.number}")
        else:
            self.world.send(asked_by_message(item), task_id=f"{item.number}")

    def _calm(self) -> None:
        """From here on nothing goes wrong any more."""
        self.world.note("--- calm ---")
        self.world.chaos.calm = True
        for process in (*self._orchestrators, *self._clients, *self._participants, self._duty):
            process.offset_s = 0.0

    def _tidy(self) -> None:
        """Somebody looks after what is stuck, in every second run."""
        self._duty.tidies = self.world.random.choice((True, False))
        if self._duty.tidies:
            self._duty.start()

    def _stale(self) -> None:
        """Old messages come once more, when all is over."""
        world = self.world
        for message in world.random.sample(world.sent, min(STALE_MAX, len(world.sent))):
            if isinstance(message, Reply):
                world.broker.send(message)
            else:
                world.broker.put_command(message)


def _nothing(*_: Any, **__: Any) -> None:
    """What is done with a line of the log, or a measurement, that nobody reads."""


class _Silent:
    """A log that nobody reads."""

    debug = info = warning = error = staticmethod(_nothing)


@contextmanager
def silence() -> Iterator[None]:
    """The product writes no log lines and counts nothing: a tenth of the time went into that."""
    with (
        patch.object(metrics, "committed", _nothing),
        patch.object(engine, "log", _Silent()),
        patch.object(outbox, "log", _Silent()),
        patch.object(coordinator, "log", _Silent()),
    ):
        yield


def simulate(seed: int, **options: Any) -> Finding:
    """Make one run; see `Run`."""
    with silence():
        run = Run(seed, **options)
        found = run.go()
    run.world.forget()
    return found
