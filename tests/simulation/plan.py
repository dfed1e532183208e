"""What people do in a run: which sagas are started and cancelled, by whom, and when."""

from random import Random
from typing import Literal, NamedTuple

from orchestrator.core.definition import Saga
from tests.simulation.chaos import Chaos
from tests.simulation.definitions import choose

SAGAS_MAX = 24
DEFINITIONS_MAX = 4
STARTS_WITHIN_S = 3.0
CALM_AFTER_S = (6.0, 12.0, 25.0)


class Start(NamedTuple):
    """Somebody starts a saga; with a key perhaps twice."""

    number: int
    at: float
    saga: Saga
    by: Literal["client-1", "client-2", "message"]
    key: str | None
    sampled: bool


class Cancel(NamedTuple):
    """Somebody cancels the saga of a start."""

    number: int
    at: float
    by: Literal["client-1", "client-2", "message"]


class Plan(NamedTuple):
    """What people do, in order of time, and from when on nothing goes wrong any more."""

    starts: tuple[Start, ...]
    cancels: tuple[Cancel, ...]
    calm_after: float


def make_plan(seed: int, chaos: Chaos) -> Plan:
    """The plan of a run."""
    random = Random(f"{seed}:plan")
    starts: list[Start] = []
    cancels: list[Cancel] = []
    sagas = [choose(random) for _ in range(random.randint(1, DEFINITIONS_MAX))]
    for number in range(random.randint(1, SAGAS_MAX)):
        by = random.choice(("client-1", "client-2", "message"))
        key = f"key-{number}" if random.random() < 0.5 else None
        start = Start(
            number,
            random.uniform(0, STARTS_WITHIN_S),
            random.choice(sagas),
            by,  # type: ignore[arg-type]  # one of the literals above
            key,
            random.random() < 0.5,
        )
        starts.append(start)
        chaos.subject = f"saga-{number}"
        if key and chaos.strikes("start twice"):
            other = "client-2" if by == "client-1" else "client-1"
            starts.append(start._replace(by=other))  # type: ignore[arg-type]  # likewise
        force = chaos.draw("cancel")
        if force is not None:
            at = start.at + force * CALM_AFTER_S[0]
            cancels.append(Cancel(number, at, random.choice(("client-1", "client-2", "message"))))
    return Plan(
        tuple(sorted(starts, key=_at)),
        tuple(sorted(cancels, key=_at)),
        random.choice(CALM_AFTER_S),
    )


def _at(item: Start | Cancel) -> float:
    return item.at
