"""What all actors share: the clock, the network, the databases, and what goes wrong at each call."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from heapq import heappush
from random import Random
from typing import Any, Final, NamedTuple

import msgspec
from typing_extensions import override

from orchestrator.coordinator import RETRACE_INTERVAL, SETTLE_INTERVAL, SWEEP_INTERVAL
from orchestrator.core.definition import Definition
from orchestrator.core.events import Recorded, about, tag_of
from orchestrator.core.limits import Limit, Limits
from orchestrator.core.state import SagaState, Status
from orchestrator.core.timers import wake_at
from orchestrator.ports import (
    NO_GATES,
    NOTHING_TRACED,
    Change,
    DeadLetter,
    Delivery,
    Gate,
    SagaRow,
)
from orchestrator.store.memory import MemoryStore, Stored
from orchestrator.transport.memory import (
    Faults,
    Held,
    InboundMessage,
    MemoryBroker,
    MemoryTransport,
    Queue,
)
from shared.errors import UnavailableError
from shared.messages import Command, Reply, Request, Succeeded
from shared.names import REPLY_TASK
from shared.telemetry.names import SAGA_STATUS
from shared.telemetry.spans import ExportedSpan, SpanRecord
from tests.core.builders import T0
from tests.simulation.barrier import Database
from tests.simulation.chaos import Chaos, Fault
from tests.simulation.scheduler import Actor, Scheduler

PAUSE_MAX_S: Final = 0.03
STALL_MAX_S: Final = 12.0
RESTART_MAX_S: Final = 3.0
REDELIVERY_MAX_S: Final = 6.0
JUMP_MAX_S: Final = 120.0
LATENCY_S: Final = 0.002
EXPORT_S: Final = 0.2
_MOVING: Final = {Status.RUNNING, Status.COMPENSATING}
DELAY_MAX_S: Final = 8.0
AT_ONCE: Final = 0.3
CHORES_S: Final = {
    "settle": SETTLE_INTERVAL.total_seconds(),
    "republish": SWEEP_INTERVAL.total_seconds(),
    "retrace": RETRACE_INTERVAL.total_seconds(),
}
REPUBLISH_AFTER: Final = timedelta(seconds=5)


class World:
    """One run's world.

    Args:
        seed: Of the run.
        chaos: What goes wrong.
        record: Whether the trace is kept.
        as_json: Whether the store keeps JSON, and replies travel as JSON. It makes no difference,
            since all of it is frozen or plain, and takes a sixth of the time: few runs do it.
        store: The orchestrators' store.
        database: The participants' database.

    Attributes:
        problems: Rules that were broken, as they happened.
        sent: Commands and replies.
        successes: Steps whose success an orchestrator was told.
        trace: What happened, a line each.
    """

    def __init__(
        self,
        seed: int,
        chaos: Chaos,
        *,
        record: bool,
        as_json: bool,
        store: "type[SimulatedStore]",
        database: type[Database],
    ) -> None:
        self.chaos = chaos
        self.as_json = as_json
        self.random = Random(f"{seed}:schedule")
        self.scheduler = Scheduler()
        self.broker = SimulatedBroker(self, as_json=as_json)
        self.store = store(self)
        self.database = database(self.scheduler)
        self.spans: dict[str, dict[str, SpanRecord]] = {}
        self.statuses: dict[str, set[Any]] = {}
        """What the root spans that arrived said of their sagas, by span id."""
        self.problems: list[str] = []
        self.sent: list[Reply | Command] = []
        self.successes: set[tuple[str, str]] = set()
        self.unheard: dict[str, bool] = {}
        """Attempts that have been delivered: whether no worker knew their task."""
        self.waiting: dict[SimulatedTransport, Actor] = {}
        """Who waits for a message."""
        self.forked: dict[int, str] = {}
        """The last fork of the saga of a start, by its number."""
        self.limits = Limits()
        if (small := chaos.draw("small history")) is not None:
            self.limits = Limits(events_max=int(4 + small.force * 16))
        self.record = record
        self.trace: list[str] = []

    def io(self, call: str, *, holds: bool = False) -> None:
        """A process is about to make a call: here it can die, or lose its turn.

        Args:
            call: What it calls.
            holds: It has read, locked or promised something that others may race for: only then
                does it make a difference who is next, and only then does it pause.
        """
        actor = self.scheduler.current
        if actor is None or self.chaos.calm:
            return
        process: Process = actor.owner
        self.chaos.subject = process.name
        fault = self.chaos.draw("call") if holds else self.chaos.draw("call", "pause")
        if fault is None:
            return
        if fault.kind == "crash":
            self.note(f"dies before: {call}")
            process.crash()
        elif fault.kind == "pause":
            self.scheduler.sleep(fault.force * PAUSE_MAX_S)
        else:
            self.note(f"stalls for {fault.force * STALL_MAX_S:.1f} s before: {call}")
            self.scheduler.sleep(fault.force * STALL_MAX_S)
        self.chaos.subject = process.name

    def reconsider(self) -> None:
        """The store has changed: who waits may have to look earlier."""
        for transport, actor in self.waiting.items():
            transport.reconsider(actor)

    def send(self, message: Request, task_id: str = "") -> None:
        """Send a message to the orchestrators; a success that is not lost has to be known."""
        self.chaos.subject = getattr(message, "saga_id", None) or task_id
        lost = self.broker.lost
        self.broker.send(message, task_id)
        arrived = self.broker.lost == lost
        if isinstance(message, Reply):
            self.sent.append(message)
            succeeded = isinstance(message.outcome, Succeeded)
            if arrived and succeeded and message.direction == "action":
                self.successes.add((message.saga_id, message.step))

    def forget(self) -> None:
        """Let go of everything: it hangs together in cycles, and to find them takes its time."""
        for part in (self.store, self.broker, self.database, self.scheduler, self):
            vars(part).clear()

    def note(self, text: str) -> None:
        """Write a line into the trace."""
        if self.record:
            actor = self.scheduler.current
            self.trace.append(
                f"{self.scheduler.now:9.3f}  {actor.name if actor else '':<15} {text}"
            )


class Process:
    """Something that can die, with all that it has not stored.

    Attributes:
        offset_s: How wrong its clock is.
        life: How often it has been started.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.offset_s = 0.0
        self.life = 0
        self.actors: list[Actor] = []
        self._seconds = 0.0
        self._time = T0

    def clock(self) -> datetime:
        """The time, as this process sees it."""
        seconds = self.world.scheduler.now + self.offset_s
        if seconds != self._seconds:  # asked again and again at one moment
            self._seconds, self._time = seconds, T0 + timedelta(seconds=seconds)
        return self._time

    def monotonic(self) -> float:
        """Seconds; no clock jumps here."""
        return self.world.scheduler.now

    def spawn(self, name: str, body: Callable[[], None], after: float = 0.0) -> Actor:
        """Let something run in this process."""
        actor = self.world.scheduler.spawn(name, body, owner=self, after=after)
        self.actors = [one for one in self.actors if not one.ended]
        self.actors.append(actor)
        return actor

    def crash(self) -> None:
        """Die, all of it; called from one of its own actors."""
        self.life += 1
        for actor in self.actors:
            if not actor.ended:
                self.world.scheduler.kill(actor)
        self.actors = []
        self.lost()
        self.world.scheduler.kill_current()

    def lost(self) -> None:
        """What others notice of its death."""

    def has_chores(self) -> bool:
        """Whether it wants to settle something soon, whatever is due in the store."""
        return False


class PlainReply(InboundMessage, frozen=True, kw_only=True):
    """A reply that nobody has to read."""

    reply: Reply


class SimulatedQueue(Queue[Any]):
    """A queue in memory; a delayed message is an entry of the scheduler."""

    def __init__(self, world: World) -> None:
        super().__init__(world.random, Faults(), lambda _kind, _chance: False)
        self.lost = 0
        self._world = world

    @override
    def put(self, item: Any, now: float) -> None:
        fault = self._world.chaos.draw("message") if self._ready else self._draw("reorder")
        if fault is None:
            self._ready.append(item)
        elif fault.kind == "lose":
            self.lost += 1
        elif fault.kind == "duplicate":
            for _ in range(2):
                self._deliver(item, now, self._draw("lose", "duplicate", "reorder"))
        else:
            self._deliver(item, now, fault)

    def _draw(self, *impossible: str) -> Fault | None:
        return self._world.chaos.draw("message", *impossible)

    def _deliver(self, item: Any, now: float, fault: Fault | None) -> None:
        if fault is None:
            self._ready.append(item)
        elif fault.kind == "delay":
            wait = fault.force * DELAY_MAX_S
            self._number += 1
            heappush(self._later, (now + wait, self._number, item))
            self._world.scheduler.later(wait, lambda: self.due(self._world.scheduler.now))
        else:
            self._ready.insert(self._random.randrange(len(self._ready)), item)


class SimulatedBroker(MemoryBroker):
    """The broker in memory.

    Args:
        world: Where it is.
        as_json: Whether replies travel as JSON.
    """

    def __init__(self, world: World, *, as_json: bool) -> None:
        self._world = world
        self._as_json = as_json
        self._lossy: list[SimulatedQueue] = []
        super().__init__(
            world.random,
            fires=lambda kind, _chance: world.chaos.strikes(kind),
            clock=lambda: world.scheduler.now,
        )

    @property
    def lost(self) -> int:
        """How many messages to the orchestrators were lost."""
        return self._lossy[1].lost

    @override
    def _queue(self) -> SimulatedQueue:
        queue = SimulatedQueue(self._world)
        self._lossy.append(queue)  # the commands', and then the one to the orchestrators
        return queue

    @override
    def send(self, message: Request, task_id: str = "") -> None:
        if self._as_json or not isinstance(message, Reply):
            super().send(message, task_id)
        else:
            self.send_raw(PlainReply(task=REPLY_TASK, task_id=task_id, body=b"", reply=message))


class Dues(NamedTuple):
    """When what a store holds is due, in seconds since the beginning; infinite for nothing."""

    timers: float
    traces: float
    outbox: float


NEVER: Final = float("inf")


def _earliest(times: Sequence[datetime]) -> float:
    return (min(times) - T0).total_seconds() if times else NEVER


class SimulatedStore(MemoryStore):
    """The store in memory, with faults, and a memory of what it has promised."""

    def __init__(self, world: World) -> None:
        super().__init__()
        if not world.as_json:
            self.keep = self.read_state = self.read_event = self.read_command = _same
        self._world = world
        self._plain = not world.as_json
        self.sent: set[str] = set()
        """Ids of commands that are committed."""
        self.moving: set[str] = set()
        """Ids of sagas that neither have ended nor are stuck."""
        self.asking: set[str] = set()
        """Ids of sagas that ask their sub-sagas how they ended, or are paused."""
        self.commits = 0
        self.conflicts = 0
        self.beaten: list[str] = []
        """Sagas with signs of life, which leave no event: an id for each."""
        self._dues: Dues | None = None
        self._everything: tuple[int, dict[str, tuple[SagaRow, list[Recorded]]]] | None = None
        self._definitions_kept: dict[tuple[str, int], Definition] = {}

    @override
    def load(self, saga_ids: Collection[str]) -> dict[str, SagaRow]:
        self._reads("load")
        return super().load(saga_ids)

    @override
    def find_by_key(self, name: str, key: str) -> SagaRow | None:
        self._reads("find by key", holds=True)
        return super().find_by_key(name, key)

    @override
    def history(self, saga_ids: Collection[str]) -> dict[str, list[Recorded]]:
        self._reads("history", holds=True)
        return super().history(saga_ids)

    @override
    def due(self, now: datetime, limit: int) -> list[str]:
        self._reads("due")
        return super().due(now, limit) if self._due_by(now) else []

    @override
    def put_definition(self, definition: Definition, now: datetime) -> None:
        self._reads("put definition")
        identity = (definition.name, definition.version)
        if self._definitions_kept.get(identity) is not definition:
            super().put_definition(definition, now)
            self._definitions_kept[identity] = definition

    @override
    def claim_unpublished(self, before: datetime, now: datetime, limit: int) -> list[Command]:
        self._reads("claim unpublished")
        if not self._due_by(now):
            return []
        self._dues = None
        return super().claim_unpublished(before, now, limit)

    @override
    def claim_untraced(self, now: datetime, until: datetime, limit: int) -> list[str]:
        self._reads("claim untraced")
        if not self._due_by(now):
            return []
        self._dues = None
        return super().claim_untraced(now, until, limit)

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
        world = self._world
        world.io("commit", holds=True)
        fault = world.chaos.draw("commit")
        if fault and fault.kind == "fail before commit":
            world.note("the store breaks, nothing is committed")
            raise UnavailableError("The simulated store is away.")
        conflicts = super().commit(
            changes,
            published=published,
            dead_letters=dead_letters,
            traced=traced,
            together=together,
            gates=gates,
        )
        self._dues = None
        self.commits += 1
        for change in changes:
            if change.row.saga_id in conflicts:
                self.conflicts += 1
                world.note(f"conflict on {change.row.saga_id}")
                continue
            self.sent.update(command.id for command in change.commands)
            if not (change.events or change.commands):
                self.beaten.append(change.row.saga_id)
            if change.row.state.status in _MOVING:
                self.moving.add(change.row.saga_id)
            else:
                self.moving.discard(change.row.saga_id)
            if change.row.state.inquiries or change.row.state.paused:
                self.asking.add(change.row.saga_id)
            else:
                self.asking.discard(change.row.saga_id)
            if world.record:
                world.note(f"commits {change.row.saga_id}: {_in_words(change.events)}")
        world.reconsider()
        if fault and fault.kind == "fail after commit":
            world.note("the store breaks, all is committed")
            raise UnavailableError("The simulated store is away.")
        return conflicts

    def dues(self) -> "Dues":
        """When something in here is due."""
        if self._dues is None:
            self._dues = self.look_when_due()
        return self._dues

    def _due_by(self, now: datetime) -> bool:
        """Whether anything at all can be due then: mostly nothing is, and that is known."""
        return min(self.dues()) <= (now - T0).total_seconds()

    def only_asks(self, state: SagaState) -> bool:
        """Whether a saga does nothing by itself any more but ask its sub-sagas again."""
        definition = MemoryStore.definition(self, state.name, state.version)
        assert definition is not None
        return wake_at(definition, msgspec.structs.replace(state, inquiries={})) is None

    def look_when_due(self, but: Collection[str] = ()) -> "Dues":
        """As `dues`, leaving the timers of some sagas out."""
        rows = [saga.row for saga in self._sagas.values()]
        return Dues(
            _earliest([row.wake_at for row in rows if row.wake_at and row.saga_id not in but]),
            _earliest([row.trace_due_at for row in rows if row.trace_due_at]),
            _earliest([item.handed_out_at for item in self._outbox.values()])
            + REPUBLISH_AFTER.total_seconds(),
        )

    def everything(self) -> dict[str, tuple[SagaRow, list[Recorded]]]:
        """Every saga with its history; do not change it."""
        if self._everything is None or self._everything[0] != self.commits:
            ids = sorted(self._sagas)
            rows, histories = MemoryStore.load(self, ids), MemoryStore.history(self, ids)
            found = {one: (rows[one], histories[one]) for one in ids}
            self._everything = (self.commits, found)
        return self._everything[1]

    @override
    def definition(self, name: str, version: int) -> Definition | None:
        kept = self._definitions_kept.get((name, version)) if self._plain else None
        return kept or super().definition(name, version)

    @override
    def _prepared(self, change: Change) -> Any:
        if not self._plain:
            return super()._prepared(change)
        history = [(one.sequence, one.at, one.event) for one in change.events]
        commands = {command.id: command for command in change.commands}
        return Stored(change.row, change.row.state, history, commands)

    @override
    def _row(self, saga: Any) -> SagaRow:
        return saga.row if self._plain else super()._row(saga)

    def _reads(self, call: str, *, holds: bool = False) -> None:
        self._world.io(call, holds=holds)
        if self._world.chaos.strikes("fail to read"):
            self._world.note(f"the store breaks: {call}")
            raise UnavailableError("The simulated store is away.")


class SimulatedTransport(MemoryTransport):
    """A process's connection to the broker.

    Attributes:
        handled: Receipts of messages whose consequences are committed.
        done_at: When its process last did each of its chores.
    """

    def __init__(self, process: Process) -> None:
        super().__init__(process.world.broker)
        self._process = process
        self._world = process.world
        self.handled: set[int] = set()
        self.done_at = dict.fromkeys(CHORES_S, 0.0)
        self._lag = 0.0
        self._until_at_least = 0.0
        self._parked_until = 0.0

    @property
    def held(self) -> frozenset[int]:
        """Receipts of messages that would go back."""
        return frozenset(self._held)

    @override
    def publish(self, commands: Sequence[Command]) -> None:
        world = self._world
        world.io("publish", holds=True)
        for command in commands:
            world.chaos.subject = command.saga_id
            if world.record:
                world.note(f"sends {command.id}")
            world.sent.append(command)
            if command.id not in world.store.sent:
                world.problems.append(f"{command.id} is published and not committed")
        super().publish(commands)

    @override
    def receive(self, messages_max: int, timeout_seconds: float) -> list[Delivery]:
        world, scheduler = self._world, self._world.scheduler
        world.io("receive")
        if (jump := world.chaos.draw("clock jump")) is not None:
            self._process.offset_s += (2 * jump.force - 1) * JUMP_MAX_S
            world.note(f"its clock is off by {self._process.offset_s:.1f} s now")
        self._until_at_least = scheduler.now + timeout_seconds
        # It looks every 200 ms, and so does the other one; at times both at the same moment.
        drawn = world.random.random()
        self._lag = 0.0 if drawn < AT_ONCE else drawn * timeout_seconds
        while True:
            # Without a look at a queue that is known to be empty.
            deliveries = super().receive(messages_max, 0) if world.broker.inbound_ready else []
            if deliveries:
                if world.record:
                    for each in deliveries:
                        world.note(f"receives {_message_in_words(each)}")
                return deliveries
            until = self._parked_until = self._until()
            left = until - scheduler.now
            if left <= 0:
                return []
            assert scheduler.current is not None
            world.waiting[self] = scheduler.current
            scheduler.park(None if left == NEVER else left)
            world.waiting.pop(self, None)

    @override
    def read(self, held: Held[InboundMessage]) -> Delivery:
        item = held.item
        if isinstance(item, PlainReply):
            return Delivery(message=item.reply, task=item.task, body="", receipt=held.receipt)
        return super().read(held)

    def does(self, chore: str) -> None:
        """Its process does one of its chores."""
        self.done_at[chore] = self._world.scheduler.now

    def reconsider(self, waiting: Actor) -> None:
        """The store has changed under a process that waits: it may have to look earlier."""
        until = self._until()
        if until not in {self._parked_until, NEVER}:
            self._parked_until = until
            self._world.scheduler.wake(waiting, max(0.0, until - self._world.scheduler.now))

    @override
    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        self._world.io("acknowledge")
        for each in deliveries:
            if each.receipt not in self.handled:
                what = _message_in_words(each)
                self._world.problems.append(f"acknowledged before its commit: {what}")
        try:
            super().acknowledge(deliveries)
        except UnavailableError:
            # As a broker does that has lost the connection: it delivers them again, some time.
            receipts = frozenset(each.receipt for each in deliveries)
            self._held -= receipts
            wait = self._world.random.uniform(0, REDELIVERY_MAX_S)
            self._world.scheduler.later(wait, lambda: self.broker.give_back(receipts))
            raise

    def _until(self) -> float:
        # While nothing can be due, or its turn has not come, there is no need to look every 200 ms.
        dues, ahead, done_at = self._world.store.dues(), self._process.offset_s, self.done_at
        until = min(
            dues.timers - ahead + self._lag,
            max(dues.traces - ahead, done_at["retrace"] + CHORES_S["retrace"]),
            max(dues.outbox - ahead, done_at["republish"] + CHORES_S["republish"]),
        )
        if self._process.has_chores():
            until = min(until, done_at["settle"] + CHORES_S["settle"])
        return max(self._until_at_least, until)


class SimulatedOutlet:
    """A process's telemetry: what it has not handed over dies with it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._callback: Callable[[Sequence[ExportedSpan]], None] | None = None

    def should_sample(
        self, trace_id: str, parent_sampled: bool | None = None, *, name: str = ""
    ) -> bool:
        """As the caller says."""
        return bool(parent_sampled)

    def emit(self, records: Iterable[SpanRecord]) -> None:
        """Hand spans over, a little later."""
        batch = [record for record in records if record.sampled]
        if not batch:
            return
        self._process.world.chaos.subject = self._process.name
        if self._process.world.chaos.strikes("lost export"):
            self._process.world.note(f"loses the span {batch[-1].name} {_status(batch)}")
            return
        life = self._process.life
        self._process.world.scheduler.later(EXPORT_S, lambda: self._arrive(batch, life))

    def on_exported(
        self, callback: Callable[[Sequence[ExportedSpan]], None]
    ) -> Callable[[], None]:
        """Say what has arrived."""
        self._callback = callback
        return lambda: None

    def _arrive(self, batch: list[SpanRecord], life: int) -> None:
        world = self._process.world
        if self._process.life != life:
            return
        world.note(f"the span {batch[-1].name} of {self._process.name} arrives {_status(batch)}")
        for record in batch:
            spans = world.spans.setdefault(record.trace_id, {})
            spans[record.span_id] = record
            world.statuses.setdefault(record.span_id, set()).add(
                record.attributes.get(SAGA_STATUS)
            )
        if self._callback:
            self._callback([ExportedSpan(r.trace_id, r.span_id, r.name, r.end) for r in batch])


def _same(value: Any) -> Any:
    return value


def _status(batch: Sequence[SpanRecord]) -> str:
    return str(batch[-1].attributes.get(SAGA_STATUS, ""))


def _in_words(events: Sequence[Recorded]) -> str:
    words = []
    for recorded in events:
        subject = about(recorded.event)
        where = "" if subject is None else f" {subject[0]} ({subject[1]} {subject[2]})"
        words.append(tag_of(recorded.event) + where)
    return ", ".join(words)


def _message_in_words(delivery: Delivery) -> str:
    message: Any = delivery.message
    outcome = getattr(message, "outcome", None)
    words = [type(message).__name__, getattr(message, "saga_id", "") or ""]
    words += [str(getattr(message, name, "")) for name in ("step", "direction", "attempt")]
    words.append(type(outcome).__name__ if outcome else "")
    return " ".join(filter(None, words))
