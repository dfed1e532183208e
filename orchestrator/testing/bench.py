"""One saga in memory: the real engine, fake participants, and a clock that somebody moves."""

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from orchestrator import journal
from orchestrator.catalog import Catalog
from orchestrator.client import Client
from orchestrator.core.definition import Definition, Saga, WaitFor
from orchestrator.core.events import Event
from orchestrator.core.state import Phase, SagaState, Status
from orchestrator.core.timers import wake_at
from orchestrator.engine import Engine
from orchestrator.ports import Change, DeadLetter, SagaSummary
from orchestrator.store.memory import MemoryStore
from orchestrator.testing.answers import Answer
from orchestrator.testing.examples import example_input, example_outputs, example_signals
from orchestrator.testing.participants import Function, Participants
from orchestrator.tracing import SagaTracing
from orchestrator.transport.memory import MemoryBroker, MemoryTransport
from orchestrator.views import SagaView
from shared.errors import SagaError
from shared.ids import Direction
from shared.messages import Command, Ended, Reply

BEGIN: Final = datetime(2030, 1, 1, tzinfo=UTC)
STEPS_MAX: Final = 10_000
"""Messages and timers after which a run counts as endless."""
TIMERS_MAX: Final = 1_000
MESSAGES_MAX: Final = 1_000
SAGAS_MAX: Final = 1_000
"""Of one run: the saga, and those that are steps of it."""


class Bench:
    """A saga that runs as far as it is driven.

    Nothing happens by itself. `deliver` lets a participant take the next command, `move` lets time
    pass, and `run` does both until nothing is left to do.

    Args:
        saga: Its definition.
        input: Fields of its input; for those that are missing something is made up.
        outputs: What the actions of steps return; by default something that has every path that
            another step refers to.
        participants: Functions that do the work of tasks, by task name.
        also: Other definitions that it may start.
        at: When it starts.
        signals: What the signals say that steps wait for, by name; `run` sends them. By default
            approvals are given, and other signals come without data, or with what fits their
            type. None sends nothing.

    Attributes:
        now: The time.
        saga_id: Id of the saga.
        client: The real client, for signals, cancels and what operators do.
        participants: The fakes, and what has happened in their world.
        waiting: Commands that nobody has taken yet.
        log: The log lines that tell what the orchestrator has decided: ``event``, ``log_level``,
            and the keys that they have in a log file.
    """

    def __init__(
        self,
        saga: Saga,
        input: Mapping[str, Any] | None = None,  # noqa: A002 - the field's name everywhere
        *,
        outputs: Mapping[str, Any] | None = None,
        participants: Mapping[str, Function] | None = None,
        also: Sequence[Saga] = (),
        at: datetime = BEGIN,
        signals: Mapping[str, Any] | None = None,
    ) -> None:
        self.now = at
        self.definition: Definition = saga.definition
        made_up = {**example_outputs(self.definition), **(outputs or {})}
        self.participants = Participants(made_up, participants)
        self.waiting: list[Command] = []
        self.log: list[dict[str, Any]] = []
        self._signals = signals if signals is not None else example_signals(self.definition)
        self._late: list[tuple[datetime, int, Reply]] = []
        self._number = 0
        self._nested = bool(also)
        self._broker = MemoryBroker()
        self._store = MemoryStore()
        self._engine = Engine(
            store=self._store,
            transport=MemoryTransport(self._broker),
            catalog=Catalog([saga, *also]),
            tracing=SagaTracing(system="memory", clock=lambda: self.now),
            clock=lambda: self.now,
            narrate=self._note,
        )
        self.client = Client(self._engine)
        checked = example_input(saga, input or {})
        self.saga_id = self.client.start(saga.name, checked).row.saga_id
        self._collect()

    # What can be seen -----------------------------------------------------------------------

    @property
    def state(self) -> SagaState:
        """Its state."""
        return self._store.load([self.saga_id])[self.saga_id].state

    @property
    def status(self) -> Status:
        """What it is doing."""
        return self.state.status

    @property
    def view(self) -> SagaView:
        """The saga as `saga show` shows it."""
        return self.client.view(self.saga_id)

    @property
    def history(self) -> tuple[Event, ...]:
        """Everything that happened."""
        return tuple(one.event for one in self._store.history([self.saga_id])[self.saga_id])

    def phase(self, step: str) -> Phase:
        """Where a step stands."""
        return self.state.step(step).phase

    @property
    def done(self) -> tuple[str, ...]:
        """Steps whose effect stands in the world, in the order in which they were done."""
        undone = self.undone
        done = self._effects("action")
        return tuple(name for name in done if name not in undone)

    @property
    def undone(self) -> tuple[str, ...]:
        """Steps that were undone in the world, in that order."""
        return self._effects("compensation")

    def family(self) -> list[tuple[Definition, SagaState]]:
        """The saga and all that were started for its steps, each with what it runs on."""
        ids = [one.saga_id for one in self._store.list_sagas(limit=SAGAS_MAX)]
        rows = self._store.load(ids).values()
        return [(self._engine.definition_of(row), row.state) for row in rows]

    # What can be done -----------------------------------------------------------------------

    def deliver(self, command: Command | None = None) -> bool:
        """Let a participant take a command and answer it; by default the one that waits longest.

        Returns:
            False when none waits.
        """
        if command is None:
            if not self.waiting:
                return False
            command = self.waiting.pop(0)
        elif command in self.waiting:
            self.waiting.remove(command)
        answer = self.participants.answer_to(command)
        for _ in range(answer.copies):
            self._answer(command, answer)
        return True

    def send(self, *replies: Reply) -> None:
        """Let replies arrive at the orchestrator, now."""
        for reply in replies:
            self._broker.send(reply)
        self._collect()

    def move(self, by: timedelta) -> None:
        """Let time pass: late replies arrive and timers fire, each at its own time."""
        until = self.now + by
        while (at := self._next_at()) is not None and at <= until:
            self._pass(at)
        self.now = max(self.now, until)

    def run(self) -> Status:
        """Deliver commands and let time pass until nothing is left to do.

        Returns:
            Its status: final, stuck, or a status in which it waits for somebody.

        Raises:
            SagaError: It goes on for ever.
        """
        for _ in range(STEPS_MAX):
            if self.deliver() or self._signal():
                continue
            at = self._next_at()
            if at is None:
                return self.status
            self._pass(at)
        raise SagaError(
            f"The saga goes on after {STEPS_MAX} messages and timers.",
            hint="Does a script fail for ever, at a step that is retried for ever?",
        )

    def run_until_command(self) -> bool:
        """Let time pass until a command waits; False when none will."""
        for _ in range(STEPS_MAX):
            at = self._next_at()
            if self.waiting or (at is None and not self._signal()):
                break
            if at is not None:
                self._pass(at)
        return bool(self.waiting)

    def tick_at(self, at: datetime) -> None:
        """Let it be a certain time at once: nothing has happened in between."""
        self._pass(at)

    def reply_to(self, command: Command, outcome: Ended) -> Reply:
        """The reply to a command."""
        return Reply(
            saga_id=command.saga_id,
            step=command.step,
            direction=command.direction,
            attempt=command.attempt,
            outcome=outcome,
        )

    def cancel(self, reason: str = "cancelled by a test") -> None:
        """Ask that it be undone.

        Raises:
            NotAllowed: It is past its pivot, or has ended.
        """
        self.client.cancel(self.saga_id, reason=reason)
        self._collect()

    def tell(self, act: Callable[[Client], object]) -> None:
        """Do something with the client: ``bench.tell(lambda client: client.pause(...))``."""
        act(self.client)
        self._collect()

    # Small parts ----------------------------------------------------------------------------

    def _answer(self, command: Command, answer: Answer) -> None:
        outcome = self.participants.take(command, answer)
        if not answer.replied:
            return
        reply = self.reply_to(command, outcome)
        if answer.late is None:
            self.send(reply)
            return
        self._number += 1
        heapq.heappush(self._late, (command.deadline_at + answer.late, self._number, reply))

    def _next_at(self) -> datetime | None:
        sagas = self._store.list_sagas(limit=SAGAS_MAX)
        times = [at for one in sagas if (at := self._wake_at(one)) is not None]
        times += [self._late[0][0]] if self._late else []
        return min(times, default=None)

    def _wake_at(self, saga: SagaSummary) -> datetime | None:
        """When a saga moves by itself; to ask its sub-sagas again moves nothing: nothing is lost."""
        if saga.wake_at is None or not self._nested:
            return saga.wake_at
        row = self._store.load([saga.saga_id])[saga.saga_id]
        state = msgspec.structs.replace(row.state, inquiries={})
        return wake_at(self._engine.definition_of(row), state)

    def _pass(self, at: datetime) -> None:
        self.now = max(self.now, at)
        if self._late and self._late[0][0] <= self.now:
            self.send(heapq.heappop(self._late)[2])
            return
        self._engine.tick(TIMERS_MAX)
        self._collect()

    def _signal(self) -> bool:
        """Send a signal that a step waits for; whether there was one."""
        for planned in self.definition.steps:
            work = planned.action
            if (
                isinstance(work, WaitFor)
                and work.signal in self._signals
                and work.signal not in self.state.signals
                and self.phase(planned.name) is Phase.RUNNING
            ):
                data = self._signals[work.signal]
                self.client.signal(self.saga_id, work.signal, data, by="a test")
                self._collect()
                return True
        return False

    def _effects(self, direction: Direction) -> tuple[str, ...]:
        return tuple(
            one.step
            for one in self.participants.effects
            if (one.saga_id, one.direction) == (self.saga_id, direction)
        )

    def _collect(self) -> None:
        """Let arrive what replies, and what sagas say to each other; take what goes out."""
        while self._broker.inbound_ready:
            deliveries = self._engine.transport.receive(MESSAGES_MAX, 0)
            self._engine.handle(deliveries)
            self._engine.transport.acknowledge(deliveries)
        self._engine.settle()
        for held in self._broker.take_commands():
            self._broker.settle_command(held)
            self.waiting.append(held.item)

    def _note(self, changes: Iterable[Change], letters: Iterable[DeadLetter]) -> None:
        for level, event, fields in journal.lines(changes, letters):
            self.log.append({"event": event, "log_level": level, **fields})
