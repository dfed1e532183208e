"""The processes: orchestrators, clients and participants, each as it is in the product."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import msgspec
from typing_extensions import override

from orchestrator.catalog import Catalog
from orchestrator.coordinator import Coordinator
from orchestrator.core.definition import Saga
from orchestrator.core.events import ForkedFrom, Trace
from orchestrator.core.messages import Resolve, Resume, RetryNow, Signal
from orchestrator.core.state import Status
from orchestrator.engine import Engine
from orchestrator.ports import Delivery
from orchestrator.tracing import SagaTracing
from orchestrator.transport.memory import Held
from shared.errors import KeyConflict, NotAllowed, UnavailableError, UnknownSaga
from shared.ids import derived_span_id
from shared.messages import (
    TASK_UNKNOWN,
    Accepted,
    CancelRequest,
    Command,
    CompleteRequest,
    Ended,
    Failed,
    Failure,
    HeartbeatRequest,
    Outcome,
    Rejected,
    Reply,
    SignalRequest,
    StartRequest,
    Succeeded,
)
from tests.simulation.barrier import Database
from tests.simulation.definitions import example_input
from tests.simulation.plan import Ask, Cancel, Fork, Start
from tests.simulation.world import (
    LATENCY_S,
    REDELIVERY_MAX_S,
    REPUBLISH_AFTER,
    RESTART_MAX_S,
    Process,
    SimulatedOutlet,
    SimulatedStore,
    SimulatedTransport,
    World,
)

SLOTS: Final = 3
SLOW_MAX_S: Final = 5.0
SIGNS_OF_LIFE: Final = 3
"""That a slow attempt gives."""
TRIES: Final = 4
BATCH_MAX: Final = 20

_UNHEARD: Final = Failure(kind=TASK_UNKNOWN, message="not deployed", retryable=False)
_OUTCOMES: Final[dict[str, Rejected | Failed]] = {
    "reject": Rejected(failure=Failure(kind="Refused", message="no", retryable=False)),
    "fail": Failed(failure=Failure(kind="Broken", message="no route to host")),
    "fail for good": Failed(failure=Failure(kind="Never", message="a bug", retryable=False)),
}


def _tell_nobody(_changes: Any, _letters: Any) -> None:
    """The log lines of what was committed: to write them took a good half of the time."""


class SimulatedTracing(SagaTracing):
    """The real tracing, its random ids derived."""

    @override
    def begin(self, request: StartRequest) -> Trace:
        trace = super().begin(request)
        return msgspec.structs.replace(
            trace, root_span_id=derived_span_id(request.traceparent, "root")
        )


class SimulatedEngine(Engine):
    """The real engine; it notes what it has handled."""

    transport: SimulatedTransport

    @override
    def handle(self, deliveries: Sequence[Delivery]) -> None:
        super().handle(deliveries)
        self.transport.handled.update([each.receipt for each in deliveries])

    @override
    def settle(self) -> None:
        self.transport.does("settle")
        super().settle()

    @override
    def republish(self, older_than: timedelta, limit: int) -> int:
        self.transport.does("republish")
        return super().republish(older_than, limit)

    @override
    def retrace(self, limit: int) -> int:
        self.transport.does("retrace")
        return super().retrace(limit)


class Forever:
    """Ends nothing; a wait takes its time in the world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def is_set(self) -> bool:
        """Whether it is to end."""
        return False

    def set(self) -> None:
        """Nobody does."""

    def wait(self, timeout: float) -> bool:
        """Let the others run."""
        self._world.scheduler.sleep(timeout)
        return False


class Plants(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is made of; a test that plants a bug puts its own in place."""

    database: type[Database] = Database
    store: type[SimulatedStore] = SimulatedStore
    engine: type[SimulatedEngine] = SimulatedEngine
    coordinator: type[Coordinator] = Coordinator
    tracing: type[SimulatedTracing] = SimulatedTracing


class EngineProcess(Process):
    """A process that has an engine."""

    def __init__(self, world: World, name: str, sagas: Sequence[Saga], plants: Plants) -> None:
        super().__init__(world, name)
        self._sagas = sagas
        self._plants = plants
        self._transport: SimulatedTransport | None = None
        self._engine: SimulatedEngine | None = None

    def make_engine(self) -> SimulatedEngine:
        """A new engine, that knows nothing but what is stored."""
        self._transport = SimulatedTransport(self)
        outlet = SimulatedOutlet(self)
        tracing = self._plants.tracing(system="memory", clock=self.clock, outlet=outlet)
        self._engine = self._plants.engine(
            store=self.world.store,
            transport=self._transport,
            catalog=Catalog(self._sagas),
            tracing=tracing,
            clock=self.clock,
            limits=self.world.limits,
            narrate=_tell_nobody,
        )
        return self._engine

    @override
    def lost(self) -> None:
        world, random = self.world, self.world.random
        if self._transport is not None:
            held = self._transport.held
            world.waiting.pop(self._transport, None)
            world.scheduler.later(
                random.uniform(0, REDELIVERY_MAX_S), lambda: world.broker.give_back(held)
            )
        self._engine = self._transport = None
        world.scheduler.later(random.uniform(0, RESTART_MAX_S), self.start)

    @override
    def has_chores(self) -> bool:
        engine = self._engine
        return engine is not None and bool(engine._outbox.published or engine._tracing._exported)

    def start(self) -> None:
        """Begin to run, for the first time or again."""
        raise NotImplementedError


class Orchestrator(EngineProcess):
    """`celery -A orchestrator worker`, with a supervisor that starts it again."""

    @override
    def start(self) -> None:
        self.spawn(self.name, self._run)

    def _run(self) -> None:
        try:
            engine = self.make_engine()
            engine.catalog.keep(engine.store, self.clock())
            self._plants.coordinator(
                engine,
                batch_messages_max=BATCH_MAX,
                republish_after=REPUBLISH_AFTER,
                # By it every saga's timing would hang on all others', and no trace could be cut.
                rest=timedelta(),
                stopping=Forever(self.world),
                monotonic=self.monotonic,
            ).run()
        except UnavailableError as error:
            self.world.note(f"ends: {error}")
            self.crash()


class Client(EngineProcess):
    """A program that starts and cancels sagas.

    Attributes:
        started: Numbers of the starts that were durable when the call returned.
    """

    def __init__(
        self,
        world: World,
        name: str,
        sagas: Sequence[Saga],
        plants: Plants,
        work: Sequence[Start | Cancel | Ask],
    ) -> None:
        super().__init__(world, name, sagas, plants)
        self._left = [*work]
        self._tries = 0
        self.started: dict[int, str] = {}
        self.done = not work

    @override
    def start(self) -> None:
        if not self.done:
            self.spawn(self.name, self._run)

    def _run(self) -> None:
        engine = self.make_engine()
        while self._left:
            item = self._left[0]
            if item.at > self.world.scheduler.now:
                self.world.scheduler.sleep(item.at - self.world.scheduler.now)
            # Taken before it is done: who starts a program again does not start its sagas again.
            self._left.pop(0)
            if isinstance(item, Start):
                self._start(engine, item)
            else:
                self._ask(engine, item)
        self.done = True

    def _start(self, engine: SimulatedEngine, start: Start) -> None:
        for _ in range(TRIES if start.key else 1):
            self._tries += 1
            asked = request(start, f"{self.name}-{self._tries}")
            try:
                (started,) = engine.start([asked])
            except UnavailableError:
                self.world.scheduler.sleep(0.5)
            else:
                self.started[start.number] = started.row.saga_id
                self._settle(engine)
                return

    def _ask(self, engine: SimulatedEngine, asked: Cancel | Ask) -> None:
        saga_id = self.started.get(asked.number, f"saga-{asked.number}")
        what = asked.what if isinstance(asked, Ask) else asked
        try:
            match what:
                case Cancel():
                    engine.cancel(saga_id, reason="changed my mind", by=self.name)
                case Signal(name=name, data=data):
                    engine.signal(saga_id, name, data, by=self.name)
                case Fork():
                    self._fork(engine, saga_id, asked.number, what)
                case _:
                    engine.operate(saga_id, what)
            self._settle(engine)
        except (NotAllowed, UnknownSaga, UnavailableError, KeyConflict) as error:
            self.world.note(f"cannot {type(what).__name__}: {type(error).__name__}")

    def _fork(self, engine: SimulatedEngine, saga_id: str, number: int, fork: Fork) -> None:
        forked = self.world.forked
        source = forked.get(number, saga_id)
        row = self.world.store.load([source]).get(source)
        if row is None:
            raise UnknownSaga(f"There is no saga {source!r}.")
        self._tries += 1
        new_id = f"fork-{number}-{self.name}-{self._tries}"
        asked = StartRequest(
            name=row.state.name,
            input=row.state.input,
            key=fork.key,
            saga_id=new_id,
            traceparent=_traceparent(new_id, sampled=row.state.trace.sampled),
        )
        what = ForkedFrom(saga_id=source, step=fork.step, by=self.name)
        forked[number] = engine.fork(what, asked).row.saga_id

    def _settle(self, engine: SimulatedEngine) -> None:
        try:
            engine.settle()
        except UnavailableError:
            self.world.note("cannot settle")


class Duty(EngineProcess):
    """Somebody who looks, at the end, after what is paused or stuck still.

    Attributes:
        tidies: Tries every third stuck saga once more, and resolves every third.
    """

    tidies = False

    @override
    def start(self) -> None:
        self.spawn(self.name, self._run)

    def _run(self) -> None:
        try:
            self._look_after(self.make_engine())
        except UnavailableError:
            # A saga that is paused still will bring them back.
            self.world.note("gives up")

    def _look_after(self, engine: SimulatedEngine) -> None:
        stuck = 0
        for saga_id, (row, _) in self.world.store.everything().items():
            if row.state.paused and not row.state.status.final:
                engine.operate(saga_id, Resume(by=self.name))
            if self.tidies and row.state.status is Status.STUCK:
                stuck += 1
                self._tidy(engine, saga_id, stuck)
        engine.settle()

    def _tidy(self, engine: SimulatedEngine, saga_id: str, number: int) -> None:
        try:
            if number % 3 == 0:
                engine.operate(saga_id, RetryNow(by=self.name))
            elif number % 3 == 1:
                engine.operate(saga_id, Resolve(by=self.name))
        except NotAllowed as error:
            self.world.note(f"{self.name} cannot: {error}")


def request(start: Start, who: str = "message") -> StartRequest:
    """A start as a message, its ids derived."""
    saga_id = f"saga-{start.number}" if who == "message" else f"saga-{start.number}-{who}"
    return StartRequest(
        name=start.saga.name,
        input=example_input(start.saga),
        key=start.key,
        saga_id=saga_id,
        traceparent=_traceparent(saga_id, sampled=start.sampled),
    )


def _traceparent(saga_id: str, *, sampled: bool) -> str:
    """The caller's trace."""
    trace_id, span_id = derived_span_id(saga_id, "trace") * 2, derived_span_id(saga_id, "caller")
    return f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}"


class Participant(Process):
    """A worker with the barrier; several attempts run at once."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._held: set[int] = set()
        self._number = 0
        self.up = True

    @property
    def free(self) -> bool:
        """Whether it can take a command."""
        return self.up and len(self._held) < SLOTS

    def take(self, held: Held[Command]) -> None:
        """Run an attempt."""
        self._number += 1
        self._held.add(held.receipt)
        latency = self.world.random.random() * LATENCY_S
        self.spawn(f"{self.name}/{self._number}", lambda: self._execute(held), latency)

    @override
    def lost(self) -> None:
        world, held = self.world, frozenset(self._held)
        self._held.clear()
        self.up = False
        world.scheduler.later(
            world.random.uniform(0, REDELIVERY_MAX_S),
            lambda: world.broker.participants_died(held),
        )
        world.scheduler.later(world.random.uniform(0, RESTART_MAX_S), self._restart)

    def _restart(self) -> None:
        self.up = True

    def _execute(self, held: Held[Command]) -> None:
        world, command = self.world, held.item
        world.io("begin a transaction")
        if self._is_unheard(command):
            outcome: Outcome = Rejected(failure=_UNHEARD)
        else:
            outcome = world.database.run(command, self._work)
        world.io("reply", holds=True)
        reply = Reply(
            saga_id=command.saga_id,
            step=command.step,
            direction=command.direction,
            attempt=command.attempt,
            outcome=outcome,
        )
        accepted = world.chaos.draw("accept")
        if accepted is not None and not isinstance(outcome, Accepted):
            reply = msgspec.structs.replace(reply, outcome=Accepted())
        if world.record:
            world.note(f"replies {type(reply.outcome).__name__} to {command.id}")
        world.send(reply)
        world.io("acknowledge a command")
        world.broker.settle_command(held)
        self._held.discard(held.receipt)
        if accepted is not None and not isinstance(outcome, Accepted):
            self._complete(command, outcome, accepted.force * SLOW_MAX_S)

    def _is_unheard(self, command: Command) -> bool:
        """Whether no worker knows the task yet: it is so for every copy of an attempt."""
        world = self.world
        if command.direction == "compensation":
            return False
        if (known := world.unheard.get(command.id)) is None:
            world.chaos.subject = command.saga_id
            known = world.unheard[command.id] = world.chaos.strikes("unknown task")
        return known

    def _complete(self, command: Command, outcome: Ended, wait_s: float) -> None:
        """Somebody else tells how an attempt has ended that was taken on."""
        world = self.world
        world.scheduler.sleep(wait_s)
        world.note(f"completes {command.id}: {type(outcome).__name__}")
        world.send(CompleteRequest(token=command.token, outcome=outcome), command.id)

    def _work(self, command: Command, undo: Any) -> Outcome:
        world, chaos = self.world, self.world.chaos
        world.io(command.task, holds=True)
        chaos.subject = command.saga_id
        if (slow := chaos.draw("slow")) is not None:
            takes = slow.force * SLOW_MAX_S
            world.note(f"{command.id} takes {takes:.1f} s")
            for _ in range(SIGNS_OF_LIFE):
                world.scheduler.sleep(takes / SIGNS_OF_LIFE)
                world.send(_alive(command))
            chaos.subject = command.saga_id
        forward = command.direction == "action"
        ill = chaos.draw("outcome") if forward else chaos.draw("outcome", "reject")
        if ill is not None:
            return _OUTCOMES[ill.kind]
        world.io("commit the step", holds=True)
        token = command.id
        return Succeeded(output={"done": token}, undo=token) if forward else Succeeded()


def _alive(command: Command) -> HeartbeatRequest:
    return HeartbeatRequest(
        saga_id=command.saga_id,
        step=command.step,
        direction=command.direction,
        attempt=command.attempt,
        progress="so far",
    )


def asked_by_message(asked: Cancel | Ask) -> CancelRequest | SignalRequest:
    """A cancel or a signal as a message."""
    saga_id = f"saga-{asked.number}"
    if isinstance(asked, Ask):
        assert isinstance(asked.what, Signal), "operators do not send messages"
        return SignalRequest(saga_id=saga_id, name=asked.what.name, data=asked.what.data)
    return CancelRequest(saga_id=saga_id, reason="changed my mind", by="somebody")
