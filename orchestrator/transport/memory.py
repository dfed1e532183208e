"""A broker in memory that loses, duplicates, delays and reorders, on a seed.

The same seed and the same calls give the same faults. Nothing here sleeps, reads a clock or starts
a thread: time passes when `MemoryBroker.advance` is called.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from heapq import heappop, heappush
from random import Random
from typing import Any, Generic, TypeVar

import msgspec
from typing_extensions import override

from orchestrator.ports import Delivery
from orchestrator.transport.task_message import delivery
from shared.codec import INBOUND_TASKS, task_body
from shared.envelope import CONTENT_TYPE
from shared.errors import UnavailableError
from shared.ids import command_id
from shared.messages import Command, Reply, Request
from shared.names import REPLIES_QUEUE, TRACEPARENT

T = TypeVar("T")


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """How often what goes wrong; each chance is from 0 to 1 and counts for each message.

    Attributes:
        lose: The message is gone, though its sender was told that all is well.
        duplicate: It arrives twice.
        delay: It arrives later, by up to `delay_max`.
        reorder: It overtakes the messages before it.
        refuse: The broker is away for one call of `publish` or `receive`; of a refused `publish`
            a part may have arrived.
        delay_max: Longest delay.
    """

    lose: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0
    reorder: float = 0.0
    refuse: float = 0.0
    delay_max: timedelta = timedelta(seconds=60)


_Fires = Callable[[str, float], bool]


class Held(msgspec.Struct, Generic[T], frozen=True):
    """A message that somebody took and has not settled."""

    receipt: int
    item: T


class Queue(Generic[T]):
    """One queue with faults; times are seconds since the broker began.

    Args:
        random: Decides how hard a fault strikes.
        faults: How often.
        fires: Says whether one strikes now.
    """

    def __init__(self, random: Random, faults: Faults, fires: "_Fires") -> None:
        self.faults = faults
        self._random = random
        self._chance_fires = fires
        self._ready: deque[T] = deque()
        self._later: list[tuple[float, int, T]] = []
        self._held: dict[int, T] = {}
        self._number = 0

    def put(self, item: T, now: float) -> None:
        """Deliver a message, with faults."""
        if self._fires("lose"):
            return
        for _ in range(2 if self._fires("duplicate") else 1):
            if self._fires("delay"):
                wait = self._random.uniform(0, self.faults.delay_max.total_seconds())
                self._number += 1
                heappush(self._later, (now + wait, self._number, item))
            elif self._ready and self._fires("reorder"):
                self._ready.insert(self._random.randrange(len(self._ready)), item)
            else:
                self._ready.append(item)

    def take(self, most: int) -> list[Held[T]]:
        """The oldest messages; they are held until they are settled or given back."""
        taken: list[Held[T]] = []
        while self._ready and len(taken) < most:
            self._number += 1
            self._held[self._number] = self._ready.popleft()
            taken.append(Held(self._number, self._held[self._number]))
        return taken

    def settle(self, receipt: int) -> None:
        """Forget a message for good; one that went back in between stays in the queue."""
        self._held.pop(receipt, None)

    def give_back(self, receipts: Iterable[int]) -> None:
        """Put held messages back to the front, the oldest first."""
        back = [self._held.pop(receipt) for receipt in sorted(receipts) if receipt in self._held]
        self._ready.extendleft(reversed(back))

    def held(self) -> list[int]:
        """Receipts of all held messages."""
        return list(self._held)

    def due(self, now: float) -> None:
        """Deliver what was delayed until now."""
        while self._later and self._later[0][0] <= now:
            self._ready.append(heappop(self._later)[2])

    def next_due(self) -> float | None:
        """When the next delayed message comes."""
        return self._later[0][0] if self._later else None

    @property
    def pending(self) -> int:
        """Messages that are ready, delayed or held."""
        return len(self._ready) + len(self._later) + len(self._held)

    @property
    def ready(self) -> int:
        """Messages that can be taken now."""
        return len(self._ready)

    def _fires(self, fault: str) -> bool:
        # Drawn for every message, so that a fault switched off does not shift the others.
        return self._chance_fires(fault, getattr(self.faults, fault))


class InboundMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A task message on its way to the orchestrator."""

    task: str
    task_id: str
    body: bytes
    content_type: str = CONTENT_TYPE
    headers: dict[str, Any] = {}


class MemoryBroker:
    """Both queues of a saga: commands to the participants, and messages to the orchestrators.

    Attributes:
        faults_fired: How often each fault happened.
        available: While False, every call of a transport raises `UnavailableError`.
    """

    def __init__(
        self,
        random: Random | None = None,
        faults: Faults | None = None,
        *,
        fires: Callable[[str, float], bool] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Make an empty broker.

        Args:
            random: Source of the faults; by default one with a fixed seed.
            faults: What goes wrong, and how often; by default nothing.
            fires: Asked with the name of a fault and its chance whether it happens now; by
                default `random` decides.
            clock: Tells the seconds, if time passes by itself; `advance` does nothing then.
        """
        self.faults_fired: Counter[str] = Counter()
        self.available = True
        self._random = random or Random(0)
        self._faults = faults or Faults()
        self._chance_fires = fires or self._by_chance
        self._advanced = 0.0
        self._clock = clock or (lambda: self._advanced)
        self.events: list[Command] = []
        self._commands: Queue[Command] = self._queue()
        self._inbound: Queue[InboundMessage] = self._queue()

    def advance(self, by: timedelta) -> None:
        """Let time pass: delayed messages arrive."""
        self._advanced += by.total_seconds()
        self.deliver_due()

    def deliver_due(self) -> None:
        """Let the delayed messages arrive whose time has come."""
        now = self._clock()
        self._commands.due(now)
        self._inbound.due(now)

    def next_due(self) -> float | None:
        """When the next delayed message arrives, in seconds; None when none is under way."""
        commands, inbound = self._commands.next_due(), self._inbound.next_due()
        if commands is None or inbound is None:
            return inbound if commands is None else commands
        return min(commands, inbound)

    def next_arrival(self) -> timedelta | None:
        """How long until the next delayed message arrives; None when none is under way."""
        due = self.next_due()
        return None if due is None else timedelta(seconds=due - self._clock())

    def calm(self) -> None:
        """No faults from now on; messages that are delayed still come late."""
        self._faults = self._commands.faults = self._inbound.faults = Faults()

    @property
    def pending(self) -> int:
        """Messages that are ready, delayed or held, in both directions."""
        return self._commands.pending + self._inbound.pending

    @property
    def commands_ready(self) -> int:
        """Commands that can be taken now."""
        return self._commands.ready

    @property
    def inbound_ready(self) -> int:
        """Messages that an orchestrator can take now."""
        return self._inbound.ready

    # The participants' side ------------------------------------------------------------------

    def take_commands(self, most: int = 1_000) -> list[Held[Command]]:
        """Commands that have arrived; they come back unless they are settled."""
        return self._commands.take(most)

    def settle_command(self, held: Held[Command]) -> None:
        """The participant has sent its reply."""
        self._commands.settle(held.receipt)

    def participants_died(self, receipts: Iterable[int] | None = None) -> None:
        """What participants hold goes back: all of them, or those with these receipts."""
        self._commands.give_back(self._commands.held() if receipts is None else receipts)

    def send(self, message: Request, task_id: str = "") -> None:
        """Send a message to the orchestrators.

        Args:
            message: What it says.
            task_id: Its Celery task id; a reply's is derived where it is missing.
        """
        if isinstance(message, Reply) and not task_id:
            task_id = command_id(message.saga_id, message.step, message.direction, message.attempt)
        task = INBOUND_TASKS[type(message)]
        self.send_raw(InboundMessage(task=task, task_id=task_id, body=task_body(message)))

    def send_raw(self, message: InboundMessage) -> None:
        """Send anything to the orchestrators."""
        self._inbound.put(message, self._clock())

    # The orchestrators' side -----------------------------------------------------------------

    def check_available(self) -> None:
        """Be away, when it is time for that.

        Raises:
            UnavailableError: The broker is away for this call.
        """
        refused = self._fires("refuse", self._faults.refuse)
        if refused or not self.available:
            raise UnavailableError("The broker in memory cannot be used: it is away.")

    def put_command(self, command: Command) -> None:
        """Deliver a command; what one saga tells another comes back to the orchestrators.

        An event is kept for whoever looks: nobody subscribes in memory.
        """
        if command.is_event:
            self.events.append(command)
        elif command.queue == REPLIES_QUEUE:
            body = task_body(command.payload)
            headers = {TRACEPARENT: command.traceparent}
            message = InboundMessage(
                task=command.task, task_id=command.id, body=body, headers=headers
            )
            self.send_raw(message)
        else:
            self._commands.put(command, self._clock())

    def put_some(self, commands: Sequence[Command]) -> None:
        """Deliver the first few of them, as a broker does that dies in the middle."""
        for command in commands[: self._random.randint(0, len(commands))]:
            self.put_command(command)

    def take_inbound(self, most: int) -> list[Held[InboundMessage]]:
        """Messages for an orchestrator; they come back unless they are settled."""
        return self._inbound.take(most)

    def settle_inbound(self, receipt: int) -> None:
        """An orchestrator has committed what the message asked for."""
        self._inbound.settle(receipt)

    def give_back(self, receipts: Iterable[int]) -> None:
        """An orchestrator that held these messages is gone; what it settled stays settled."""
        self._inbound.give_back(receipts)

    def _queue(self) -> Queue[Any]:
        return Queue(self._random, self._faults, self._fires)

    def _fires(self, fault: str, chance: float) -> bool:
        fires = self._chance_fires(fault, chance)
        if fires:
            self.faults_fired[fault] += 1
        return fires

    def _by_chance(self, _fault: str, chance: float) -> bool:
        return self._random.random() < chance


class MemoryTransport:
    """`orchestrator.ports.Transport` on a `MemoryBroker`.

    `receive` never waits: when there is nothing, its caller advances the broker's time.
    """

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        """Connect to a broker; by default to a new one without faults."""
        self.broker = broker or MemoryBroker()
        self._held: set[int] = set()

    def publish(self, commands: Sequence[Command]) -> None:
        """Send commands.

        Raises:
            UnavailableError: The broker is away; some of them may have arrived.
        """
        try:
            self.broker.check_available()
        except UnavailableError:
            if self.broker.available:
                self.broker.put_some(commands)
            raise
        for command in commands:
            self.broker.put_command(command)

    def receive(self, messages_max: int, timeout_seconds: float) -> list[Delivery]:
        """Take what is there; see `orchestrator.ports.Transport.receive`.

        Raises:
            UnavailableError: The broker is away.
        """
        self.broker.check_available()
        taken = self.broker.take_inbound(messages_max)
        self._held.update(held.receipt for held in taken)
        return [self.read(held) for held in taken]

    def read(self, held: Held[InboundMessage]) -> Delivery:
        """What a message says."""
        return delivery(
            headers={"task": held.item.task, "id": held.item.task_id, **held.item.headers},
            content_type=held.item.content_type,
            body=held.item.body,
            receipt=held.receipt,
        )

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Settle messages.

        Raises:
            UnavailableError: The broker is away; nothing is settled.
        """
        self.broker.check_available()
        for each in deliveries:
            self.broker.settle_inbound(each.receipt)
            self._held.discard(each.receipt)

    def interrupt(self) -> None:
        """Nothing to interrupt: `receive` never waits."""

    def close(self) -> None:
        """Give back what was not acknowledged; a killed orchestrator does the same, later."""
        self.broker.give_back(self._held)
        self._held = set()

    @override
    def __repr__(self) -> str:
        return f"MemoryTransport({self.broker.pending} messages)"
