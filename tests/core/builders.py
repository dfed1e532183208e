"""Sagas, states and messages for the tests of the core, in as few words as they need."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from orchestrator.core.definition import (
    NOTHING_TO_UNDO,
    Definition,
    Retry,
    Saga,
    Sleep,
    Step,
    WaitFor,
)
from orchestrator.core.events import Event, Trace
from orchestrator.core.machine import Decision, Message, Start, decide
from orchestrator.core.state import SagaState
from shared.ids import Direction
from shared.messages import (
    TASK_UNKNOWN,
    Accepted,
    Failed,
    Failure,
    Outcome,
    Rejected,
    Reply,
    Succeeded,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SAGA_ID = "0199c8a0-0000-7000-8000-000000000001"
TRACE = Trace(trace_id="0af7651916cd43dd8448eb211c80319c", root_span_id="b7ad6b7169203331")

FAILURE = Failure(kind="ConnectionError", message="no route to host")
FOR_GOOD = Failure(kind="ValueError", message="never", retryable=False)
REFUSAL = Failure(kind="sold_out", message="none left", retryable=False)
UNHEARD = Failure(kind=TASK_UNKNOWN, message="No worker knows the task.", retryable=False)


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Input of the sagas of the tests."""

    order_id: str = "o-1"


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """Input of sagas with a list."""

    order_id: str = "o-1"
    order_ids: tuple[str, ...] = ()


def step(name: str, **options: Any) -> Step:
    """A step with a compensation; ``compensation=None`` takes it away."""
    named: dict[str, Any] = {"action": f"service.{name}", "compensation": f"service.undo-{name}"}
    return Step(name, **{**named, **options})


def wait(name: str, work: WaitFor | Sleep, **options: Any) -> Step:
    """A step that waits, for a minute unless it says otherwise."""
    return Step(name, work, **{"timeout": timedelta(minutes=1), **options})


def saga(
    *steps: Step,
    deadline: timedelta | None = None,
    input: type[msgspec.Struct] = Order,  # noqa: A002 - as in Saga
) -> Saga:
    """A saga of these steps."""
    return Saga(name="test", version=1, input=input, steps=steps, deadline=deadline)


def linear(*names: str, deadline: timedelta | None = None, **options: Any) -> Definition:
    """A definition of steps in order that all have these options."""
    return saga(*(step(name, **options) for name in names), deadline=deadline).definition


def succeeded(
    name: str, attempt: int = 1, direction: Direction = "action", output: Any = None
) -> Reply:
    """A reply that says that it happened."""
    return _reply(name, attempt, direction, Succeeded(output=output, undo=output))


def rejected(name: str, attempt: int = 1, direction: Direction = "action") -> Reply:
    """A reply that says that nothing happened."""
    return _reply(name, attempt, direction, Rejected(failure=REFUSAL))


def unheard(name: str, attempt: int = 1) -> Reply:
    """A reply that says that no worker knows the task of an action."""
    return _reply(name, attempt, "action", Rejected(failure=UNHEARD))


def failed(
    name: str, attempt: int = 1, direction: Direction = "action", failure: Failure = FAILURE
) -> Reply:
    """A reply that says that nobody knows what happened."""
    return _reply(name, attempt, direction, Failed(failure=failure))


def accepted(name: str, attempt: int = 1, direction: Direction = "action") -> Reply:
    """A reply that says that the end will be told from elsewhere."""
    return _reply(name, attempt, direction, Accepted())


def _reply(name: str, attempt: int, direction: Direction, outcome: Outcome) -> Reply:
    return Reply(saga_id=SAGA_ID, step=name, direction=direction, attempt=attempt, outcome=outcome)


SECRET = "not random, but a test's"
START = Start(saga_id=SAGA_ID, input={"order_id": "o-1"}, trace=TRACE, secret=SECRET)
START_TWO = msgspec.structs.replace(START, input={"order_id": "o-1", "order_ids": ["o-1", "o-2"]})


class Run:
    """One saga that is told what arrives, and remembers what it decided.

    Attributes:
        state: State after the last message.
        events: Everything that happened.
        now: Time of the next message; tests move it by hand.
        last: The last decision.
    """

    def __init__(self, definition: Definition, *messages: Message, start: Start = START) -> None:
        self.definition = definition
        self.state: SagaState | None = None
        self.events: list[Event] = []
        self.now = T0
        self.last = Decision(state=None)
        self.tell(start, *messages)

    def tell(self, *messages: Message) -> Decision:
        """Let messages arrive, one after the other; returns the last decision."""
        for message in messages:
            self.last = decide(self.definition, self.state, message, self.now)
            self.state = self.last.state
            self.events += self.last.events
        return self.last

    def wait(self, wait: timedelta) -> None:
        """Let time pass."""
        self.now += wait

    @property
    def known(self) -> SagaState:
        """The state, which exists after the start."""
        assert self.state is not None
        return self.state

    @property
    def tags(self) -> list[str]:
        """What happened, as tags."""
        return tags(self.events)

    def phase(self, name: str) -> str:
        """Where a step stands."""
        return self.known.step(name).phase.value


def tags(events: Iterable[Event]) -> list[str]:
    """Tags of events, as they stand in the history."""
    return [str(event.__struct_config__.tag) for event in events]


def sent(decision: Decision) -> list[tuple[str, Direction, int]]:
    """Step, direction and attempt of the commands of a decision."""
    return [(command.step, command.direction, command.attempt) for command in decision.commands]


__all__ = [
    "FAILURE",
    "FOR_GOOD",
    "NOTHING_TO_UNDO",
    "REFUSAL",
    "SAGA_ID",
    "SECRET",
    "START",
    "START_TWO",
    "T0",
    "TRACE",
    "UNHEARD",
    "Order",
    "Orders",
    "Retry",
    "Run",
    "accepted",
    "failed",
    "linear",
    "rejected",
    "saga",
    "sent",
    "step",
    "succeeded",
    "tags",
    "unheard",
    "wait",
]
