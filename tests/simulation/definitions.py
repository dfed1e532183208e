"""What is simulated: random definitions in random graphs, and the example of the product."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import cache
from random import Random
from typing import Any, Final

import msgspec

from orchestrator.core import eventing
from orchestrator.core.definition import (
    NOTHING_TO_UNDO,
    Input,
    Item,
    Output,
    Retry,
    Saga,
    Sleep,
    Step,
    SubSaga,
    WaitFor,
)
from orchestrator.core.event_terms import FromSaga, Publish
from orchestrator.core.references import eq
from orchestrator.sagas import PLACE_ORDER
from shared.backoff import Backoff
from shared.contract import Event

SUB_SAGAS: Final = 6
WITH_PIVOT: Final = 3
"""So many more have a pivot: who is past it cannot be undone."""

SIGNAL: Final = "go"
KINDS: Final = 400
"""Different random definitions; a seed chooses among them, since making one is slow."""


class Happened(Event, name="simulated.happened"):
    """Something of which a saga tells."""

    saga_id: str
    why: str | None = None


class Items(msgspec.Struct, frozen=True):
    """Input of the random ones."""

    order_id: str
    items: list[str]


def choose(random: Random) -> Saga:
    """A definition: one time in five the example, else a random one."""
    return PLACE_ORDER if random.random() < 0.2 else random_saga(random.randrange(KINDS))


def example_input(saga: Saga) -> dict[str, Any]:
    """Input for a definition."""
    return {"order_id": "o-1"} if saga is PLACE_ORDER else {"order_id": "o-1", "items": ["x", "y"]}


def below(sagas: Iterable[Saga]) -> tuple[Saga, ...]:
    """The sagas that are steps of these."""
    names = {
        step.action.name
        for saga in sagas
        for step in saga.steps
        if isinstance(step.action, SubSaga)
    }
    numbers = range(SUB_SAGAS + WITH_PIVOT)
    return tuple(_sub_saga(number) for number in numbers if f"sub-{number}" in names)


@cache
def _sub_saga(number: int) -> Saga:
    """One or two steps that can be undone; and then perhaps a pivot, and one step after it."""
    random = Random(f"sub-saga:{number}")
    size = random.choice((1, 2))
    pivot = size if number >= SUB_SAGAS else None
    steps = tuple(
        Step(
            f"s{index}",
            f"below.s{index}",
            f"below.undo-s{index}" if index < size else random.choice((None, NOTHING_TO_UNDO)),
            pivot=index == pivot,
            retry=_retry(random, beyond=index > size),
            compensation_retry=_retry(random, beyond=True),
            timeout=timedelta(seconds=random.choice((0.5, 1, 2))),
        )
        for index in range(size if pivot is None else size + 2)
    )
    return Saga(name=f"sub-{number}", version=1, input=Items, steps=steps)


@cache
def random_saga(number: int) -> Saga:
    """One to six steps; every step is before or after the pivot, if there is one."""
    random = Random(f"definition:{number}")
    size = random.choice((1, 2, 2, 3, 3, 3, 4, 4, 5, 6))
    pivot = random.randrange(size) if random.random() < 0.5 else None
    linear = random.random() < 0.3
    steps: list[Step] = []
    for index in range(size):
        beyond = pivot is not None and index > pivot
        pool = [
            f"s{other}" for other in range(pivot if pivot is not None and beyond else 0, index)
        ]
        after = _after(random, pool, index, pivot, linear=linear)
        undos: list[Any] = [f"service.undo-s{index}"] * 4 + [NOTHING_TO_UNDO]
        if beyond or index == pivot:
            undos += [None, None]
        payload = {"order_id": "o-1"} if not after else {"earlier": Output(after[0], default=None)}
        steps.append(
            Step(
                f"s{index}",
                f"service.s{index}",
                random.choice(undos),
                after=after,
                pivot=index == pivot,
                retry=_retry(random, beyond=beyond),
                compensation_retry=_retry(random, beyond=random.random() < 0.7),
                timeout=timedelta(seconds=random.choice((0.5, 1, 2, 4))),
                payload=payload if random.random() < 0.5 else None,
            )
        )
        if index != pivot and not beyond:
            steps[-1] = _other_work(random, steps[-1])
            if random.random() < 0.1:
                wanted = eq(Input("order_id"), random.choice(("o-1", "o-2")))
                steps[-1] = msgspec.structs.replace(steps[-1], when=wanted)
    steps = [_undo_of(step, steps) for step in steps]
    random.shuffle(steps)
    deadline = random.choice((None, None, 2, 5, 15))
    return Saga(
        name=f"random-{number}",
        version=1,
        input=Items,
        steps=tuple(steps),
        deadline=None if deadline is None else timedelta(seconds=deadline),
        publishes=_publishes(random, steps) if random.random() < 0.4 else {},
    )


def _undo_of(step: Step, steps: Sequence[Step]) -> Step:
    """The same step; one whose saga has a pivot need not be undone, unless it is the last one."""
    action = step.action
    pivoted = isinstance(action, SubSaga) and int(action.name.removeprefix("sub-")) >= SUB_SAGAS
    if pivoted and any(step.name in (other.after or ()) for other in steps):
        return msgspec.structs.replace(step, compensation=NOTHING_TO_UNDO)
    return step


def _publishes(random: Random, steps: Sequence[Step]) -> dict[str, Any]:
    """An event at some milestones."""
    some = [eventing.succeeded(step.name) for step in steps if random.random() < 0.3]
    told = Publish(Happened, {"saga_id": FromSaga("saga_id"), "why": FromSaga("error_message")})
    return dict.fromkeys(("started", "completed", "compensated", "stuck", *some), told)


def _other_work(random: Random, step: Step) -> Step:
    """The same step; or one that waits, is a saga, or runs for each item of a list."""
    kind = random.random()
    if kind < 0.07:
        lasts = timedelta(seconds=random.choice((0.1, 1.0)))
        wait = {"action": Sleep(lasts=lasts), "compensation": None, "payload": None}
        return msgspec.structs.replace(step, **wait, timeout=None)
    if kind < 0.15:
        sub_saga = SubSaga(f"sub-{random.randrange(SUB_SAGAS + WITH_PIVOT)}")
        timeout = timedelta(seconds=random.choice((4, 20)))
        payload = {"order_id": Input("order_id"), "items": Input("items")}
        return msgspec.structs.replace(
            step, action=sub_saga, compensation=None, payload=payload, timeout=timeout
        )
    if kind < 0.22:
        return msgspec.structs.replace(step, each=Input("items"), payload={"item": Item()})
    if kind < 0.34:
        approval = WaitFor(
            SIGNAL,
            approval=random.random() < 0.5,
            otherwise=random.choice(("reject", "fail", "default")),
        )
        timeout = timedelta(seconds=random.choice((1, 3)))
        return msgspec.structs.replace(
            step, action=approval, compensation=None, payload=None, timeout=timeout
        )
    return step


def _after(
    random: Random, pool: list[str], index: int, pivot: int | None, *, linear: bool
) -> tuple[str, ...]:
    if linear:
        return (pool[-1],) if pool else ()
    if index == pivot:
        return tuple(pool)
    after = tuple(name for name in pool if random.random() < 0.4)
    beyond = pivot is not None and index > pivot
    return after or ((f"s{pivot}",) if beyond else ())


def _retry(random: Random, *, beyond: bool) -> Retry:
    backoff = Backoff(
        wait_first=timedelta(seconds=random.choice((0.0, 0.1, 0.5))),
        wait_max=timedelta(seconds=random.choice((0.5, 2.0))),
    )
    attempts = random.choice((None, None, 3, 6)) if beyond else random.choice((1, 2, 3))
    never_on = ("Broken",) if random.random() < 0.1 else ()
    return Retry(attempts=attempts, backoff=backoff, never_on=never_on)
