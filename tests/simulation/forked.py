"""Forks that take over a sub-saga and are undone: among all that may happen they are too rare to meet."""

from datetime import timedelta
from random import Random
from typing import Any, Final

from orchestrator.core.definition import Input, Retry, Saga, Step, SubSaga
from tests.simulation.definitions import SUB_SAGAS, Items
from tests.simulation.plan import Ask, By, Fork, Plan, Start
from tests.simulation.run import Finding, simulate

SAGAS: Final = 12
CALM_AFTER_S: Final = 12.0


def nested(number: int) -> Saga:
    """A saga of a sub-saga and two steps, which do not try again: a fork is undone soon."""
    once, payload = Retry(attempts=1), {"order_id": Input("order_id"), "items": Input("items")}
    return Saga(
        name=f"nested-{number}",
        version=1,
        input=Items,
        steps=(
            Step(
                "below", SubSaga(f"sub-{number}"), payload=payload, timeout=timedelta(seconds=20)
            ),
            Step("s1", "service.s1", "service.undo-s1", retry=once),
            Step("s2", "service.s2", "service.undo-s2", retry=once),
        ),
    )


def a_plan(seed: int) -> Plan:
    """Sagas that are forked from behind their sub-saga, and their forks again."""
    random = Random(f"{seed}:forked")
    starts: list[Start] = []
    asks: list[Ask] = []
    for number in range(SAGAS):
        by: By = random.choice(("client-1", "client-2", "message"))
        at = random.random()
        saga = nested(random.randrange(SUB_SAGAS))
        starts.append(Start(number, at, saga, by, None, sampled=random.random() < 0.5))
        for _ in range(5):
            at += random.uniform(0.2, 2)
            fork = Fork(random.choice(("s1", "s2")), None)
            asks.append(Ask(number, at, "client-1" if by == "message" else by, fork))
    return Plan(tuple(sorted(starts, key=_at)), (), tuple(sorted(asks, key=_at)), CALM_AFTER_S)


def _at(item: Start | Ask) -> float:
    return item.at


def simulate_forked(seed: int, **options: Any) -> Finding:
    """Make one run of sagas that are forked; see `Run`."""
    return simulate(seed, **{"plan": a_plan(seed), **options})
