"""A small world for the guide: sagas, their participants and a clock, all in memory.

The participants are plain functions by task name. What a function returns is its output; it may
raise `Reject`, `Fail` or any other exception, as in a worker.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from typing_extensions import override

from orchestrator.catalog import Catalog
from orchestrator.client import Client
from orchestrator.core.definition import Saga
from orchestrator.engine import Engine
from orchestrator.store.memory import MemoryStore
from orchestrator.tracing import SagaTracing
from orchestrator.transport.memory import MemoryBroker, MemoryTransport
from orchestrator.views import SagaView, StepView
from shared.claims import Claims
from shared.messages import (
    Accepted,
    Command,
    Failed,
    Outcome,
    Rejected,
    Reply,
    Request,
    Succeeded,
)
from tests.core.builders import T0
from workers.sdk import Later, Reject
from workers.sdk.outcome import failure_of, succeeded_with

Task = Callable[..., Any]
ROUNDS_MAX = 1_000


class _Broker(MemoryBroker):
    """One that may lose what it is given."""

    loses: Callable[[Command], bool] = staticmethod(lambda _: False)

    @override
    def put_command(self, command: Command) -> None:
        if not self.loses(command):
            super().put_command(command)


class Shop:
    """Sagas in memory.

    Args:
        sagas: What can be started.
        tasks: Participants by task name; a task that is not here gives no answer.
        claims: Where they and the sagas keep large payloads; None for nowhere.

    Attributes:
        client: Starts, operates and reads sagas.
        calls: Names of the tasks that ran, in order.
        now: The time; `wait` moves it.
    """

    def __init__(
        self, *sagas: Saga, tasks: Mapping[str, Task], claims: Claims | None = None
    ) -> None:
        self.now = T0
        self.calls: list[str] = []
        self.commands: list[Command] = []
        self._tasks = tasks
        self._claims = claims
        self._copies = 1
        self._broker = _Broker()
        self._transport = MemoryTransport(self._broker)
        self.store = MemoryStore()
        self.engine = Engine(
            store=self.store,
            transport=self._transport,
            catalog=Catalog(sagas),
            tracing=SagaTracing(system="memory", clock=lambda: self.now),
            clock=lambda: self.now,
            claims=claims,
        )
        self.client = Client(self.engine)

    def start(self, name: str, key: str | None = None, **fields: Any) -> str:
        """Start a saga, and let it get as far as it comes without waiting; returns its id."""
        saga_id = self.client.start(name, fields, key=key).row.saga_id
        self.settle()
        return saga_id

    def send(self, message: Request, task_id: str = "") -> None:
        """Let a message arrive from outside, as a plain Celery message would."""
        self._broker.send(message, task_id)
        self.settle()

    def wait(self, by: timedelta) -> None:
        """Let time pass, timer by timer."""
        until = self.now + by
        for _ in range(ROUNDS_MAX):
            self.settle()
            due = [row.wake_at for row in self._rows() if row.wake_at and row.wake_at <= until]
            if not due:
                break
            self.now = max(self.now, min(due))
            self.engine.tick(100)
        self.now = until
        self.settle()

    def every_message_twice(self) -> None:
        """From now on, whatever arrives at the orchestrator arrives twice."""
        self._copies = 2

    def view(self, saga_id: str) -> SagaView:
        """What `saga show` shows."""
        return self.client.view(saga_id)

    def lose(self, which: Callable[[Command], bool], times: int = 1) -> None:
        """From now on the first commands of a kind never arrive; sagas send each other such, too."""
        left = iter(range(times))
        self._broker.loses = lambda command: which(command) and next(left, None) is not None

    def status(self, saga_id: str) -> str:
        """Its status."""
        return self.client.row(saga_id).state.status.value

    def step(self, saga_id: str, name: str) -> StepView:
        """One step of it, as `saga show` shows it."""
        return next(one for one in self.view(saga_id).steps if one.name == name)

    def settle(self) -> None:
        """Participants work and messages arrive, until nothing is under way."""
        for _ in range(ROUNDS_MAX):
            for held in self._broker.take_commands():
                self._broker.settle_command(held)
                self._run(held.item)
            deliveries = self._transport.receive(100, 0)
            if not deliveries:
                return
            for _ in range(self._copies):
                self.engine.handle(deliveries)
            self._transport.acknowledge(deliveries)
        raise AssertionError("it never comes to rest")

    def _run(self, command: Command) -> None:
        self.commands.append(command)
        task = self._tasks.get(command.task)
        if task is None:
            return
        self.calls.append(command.task)
        outcome: Outcome
        try:
            result = task(**self._whole(command))
            outcome = Accepted() if isinstance(result, Later) else succeeded_with(result)
            outcome = self._checked_in(outcome, command.saga_id)
        except Reject as rejection:
            outcome = Rejected(failure=failure_of(rejection))
        except Exception as error:  # noqa: BLE001 - as in a worker: a failure is a value
            outcome = Failed(failure=failure_of(error))
        self._broker.send(
            Reply(
                saga_id=command.saga_id,
                step=command.step,
                direction=command.direction,
                attempt=command.attempt,
                outcome=outcome,
            )
        )

    def _whole(self, command: Command) -> dict[str, Any]:
        if self._claims is None:
            return command.payload
        whole: dict[str, Any] = self._claims.fetch(command.payload, command.saga_id)
        return whole

    def _checked_in(self, outcome: Outcome, saga_id: str) -> Outcome:
        if self._claims is None or not isinstance(outcome, Succeeded):
            return outcome
        kept = (self._claims.kept(one, saga_id, "It") for one in (outcome.output, outcome.undo))
        return Succeeded(output=next(kept), undo=next(kept))

    def _rows(self) -> list[Any]:
        return self.client.list(limit=1_000)  # type: ignore[return-value]
