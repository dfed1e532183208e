"""The shortest way to a finding: the same run with fewer sagas, and with fewer faults."""

import re
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from tests.simulation.chaos import Fault
from tests.simulation.plan import Plan
from tests.simulation.run import Finding, simulate

RUNS_MAX: Final = 600

T = TypeVar("T")
_ID: Final = re.compile(r"\S*\d\S*")


def shrink(found: Finding, make: Callable[..., Finding] = simulate) -> Finding:
    """Look for a smaller run that breaks one of the same rules, too.

    Args:
        found: Of a run that broke one.
        make: How that run was made; takes what `simulate` does.

    Returns:
        The smallest run that was found, with its trace.
    """
    tries, wanted = RUNS_MAX, rules_of(found)

    def fails(plan: Plan, faults: Sequence[Fault]) -> bool:
        nonlocal tries
        tries -= 1
        if tries < 0:
            return False
        run = make(found.seed, only=frozenset(faults), plan=plan)
        return not wanted.isdisjoint(rules_of(run))

    plan = found.plan
    # Faults first: a run with few of them hardly changes when a saga is left out.
    faults = _fewer(found.fired, lambda kept: fails(plan, kept))
    numbers = _fewer(
        sorted({start.number for start in plan.starts}),
        lambda kept: fails(_only(plan, kept), faults),
    )
    plan = _only(plan, numbers)
    cancels = _fewer(plan.cancels, lambda kept: fails(plan._replace(cancels=tuple(kept)), faults))
    plan = plan._replace(cancels=tuple(cancels))
    asks = _fewer(plan.asks, lambda kept: fails(plan._replace(asks=tuple(kept)), faults))
    plan = plan._replace(asks=tuple(asks))
    faults = _fewer(faults, lambda kept: fails(plan, kept))
    return make(found.seed, only=frozenset(faults), plan=plan, record=True)


def rules_of(run: Finding) -> set[str]:
    """Which rules a run broke, in the words of its problems without ids and numbers.

    A smaller run may break another one, for which the larger one would be no example.
    """
    return {_ID.sub("…", problem) for problem in run.problems}


def _only(plan: Plan, numbers: Sequence[int]) -> Plan:
    return plan._replace(
        starts=tuple(one for one in plan.starts if one.number in numbers),
        cancels=tuple(one for one in plan.cancels if one.number in numbers),
        asks=tuple(one for one in plan.asks if one.number in numbers),
    )


def _fewer(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> Sequence[T]:
    """A part of the items that still fails; of which no chunk, in the end no one, can be left out."""
    size = max(1, len(items) // 2)
    while items:
        position = 0
        while position < len(items):
            rest = [*items[:position], *items[position + size :]]
            if fails(rest):
                items = rest
            else:
                position += size
        if size == 1:
            break
        size = max(1, size // 2)
    return items
