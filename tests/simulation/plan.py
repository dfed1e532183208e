"""What people do in a run: which sagas are started and cancelled, by whom, and when."""

from collections.abc import Iterator
from random import Random
from typing import Literal, NamedTuple

from orchestrator.core.definition import Saga, WaitFor
from orchestrator.core.messages import (
    CompensateNow,
    Operator,
    Pause,
    Resolve,
    Resume,
    RetryNow,
    Signal,
    Skip,
)
from tests.simulation.chaos import Chaos
from tests.simulation.definitions import SIGNAL, choose

SAGAS_MAX = 32
DEFINITIONS_MAX = 4
STARTS_WITHIN_S = 3.0
CALM_AFTER_S = (6.0, 12.0, 25.0)

By = Literal["client-1", "client-2", "message"]
"""Who does something: a program, or a message from somewhere."""


class Start(NamedTuple):
    """Somebody starts a saga; with a key perhaps twice."""

    number: int
    at: float
    saga: Saga
    by: By
    key: str | None
    sampled: bool


class Cancel(NamedTuple):
    """Somebody cancels the saga of a start."""

    number: int
    at: float
    by: By


class Ask(NamedTuple):
    """An operator wants something of the saga of a start, or somebody gives it a signal."""

    number: int
    at: float
    by: By
    what: "Operator | Signal | Fork"


class Fork(NamedTuple):
    """Somebody forks the saga of a start, or the last fork of it, from a step of it."""

    step: str
    key: str | None


class Plan(NamedTuple):
    """What people do, in order of time, and from when on nothing goes wrong any more."""

    starts: tuple[Start, ...]
    cancels: tuple[Cancel, ...]
    asks: tuple[Ask, ...]
    calm_after: float


def make_plan(seed: int, chaos: Chaos) -> Plan:
    """The plan of a run."""
    random = Random(f"{seed}:plan")
    starts: list[Start] = []
    cancels: list[Cancel] = []
    asks: list[Ask] = []
    sagas = [choose(random) for _ in range(random.randint(1, DEFINITIONS_MAX))]
    for number in range(random.randint(1, SAGAS_MAX)):
        by: By = random.choice(("client-1", "client-2", "message"))
        key = f"key-{number}" if random.random() < 0.5 else None
        start = Start(
            number,
            random.uniform(0, STARTS_WITHIN_S),
            random.choice(sagas),
            by,
            key,
            random.random() < 0.5,
        )
        starts.append(start)
        chaos.subject = f"saga-{number}"
        if key and chaos.strikes("start twice"):
            other: By = "client-2" if by == "client-1" else "client-1"
            starts.append(start._replace(by=other))
        if (fault := chaos.draw("cancel")) is not None:
            at = start.at + fault.force**3 * CALM_AFTER_S[0]
            cancels.append(Cancel(number, at, random.choice(("client-1", "client-2", "message"))))
        if chaos.strikes("operate"):
            asks += _operations(random, start)
        if chaos.strikes("fork"):
            asks += _forks(random, start)
        if any(isinstance(step.action, WaitFor) for step in start.saga.steps):
            asks += _signals(random, start)
    return Plan(
        tuple(sorted(starts, key=_at)),
        tuple(sorted(cancels, key=_at)),
        tuple(sorted(asks, key=_at)),
        random.choice(CALM_AFTER_S),
    )


def _operations(random: Random, start: Start) -> Iterator[Ask]:
    """Things that operators do with a saga, whether they are allowed or not."""
    at = start.at
    for _ in range(random.randint(1, 6)):
        at += random.expovariate(2)  # most sagas end within the first second
        name = random.choice(start.saga.steps).name
        what: Operator = random.choice(
            (
                Pause(by="ada"),
                Resume(by="ada"),
                RetryNow(by="ada"),
                RetryNow(step=name, payload={"order_id": "o-1"}, by="ada"),
                Skip(step=name, by="ada"),
                Resolve(by="ada"),
                CompensateNow(by="ada"),
            )
        )
        yield Ask(start.number, at, random.choice(("client-1", "client-2")), what)


def _forks(random: Random, start: Start) -> Iterator[Ask]:
    """A few tries: most sagas have ended by then, and the first one that succeeds is forked again."""
    key = random.choice((None, f"fork-{start.number}"))
    at = start.at
    for _ in range(random.randint(1, 4)):
        at += random.expovariate(1)
        step = random.choice(start.saga.steps).name
        yield Ask(start.number, at, random.choice(("client-1", "client-2")), Fork(step, key))


def _signals(random: Random, start: Start) -> Iterator[Ask]:
    """None, one, or two that may say different things."""
    for _ in range(random.choice((0, 1, 1, 2))):
        what = Signal(name=SIGNAL, data={"approved": random.random() < 0.8}, by="ada")
        at = start.at + random.uniform(0, 4)
        yield Ask(start.number, at, random.choice(("client-1", "client-2", "message")), what)


def _at(item: Start | Cancel | Ask) -> float:
    return item.at
