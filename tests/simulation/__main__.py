"""Simulate many seeds and report: ``python -m tests.simulation --seeds 100000``.

Some seeds are run again and again, with sagas that share limits, and with ones that are forked. ``--seed
N`` makes one run again and prints all that happened, ``--kind limits`` and ``--kind forks`` those others.
The exit code is 1 when a rule was broken; the seed and the shortest trace are printed then.
"""

import argparse
import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

from tests.simulation.chaos import CHANCES
from tests.simulation.forked import simulate_forked
from tests.simulation.limited import simulate_limited
from tests.simulation.run import Finding, simulate
from tests.simulation.shrink import shrink

CHUNK = 25
"""Runs that a process is given at a time: with larger ones the last process works alone for long."""

ALL_KINDS_EVERY = 100
"""One seed in so many makes a run of every kind; one of limits takes three times as long, some longer."""

KINDS: Mapping[str, Callable[..., Finding]] = {
    "anything": simulate,
    "limits": simulate_limited,
    "forks": simulate_forked,
}

SHOWN_MAX = 3
REPORT_EVERY_S = 20.0
OBJECTS_UNTIL_COLLECTED = 50_000
"""A run lets go of nearly all by itself (`World.forget`): looking for more took a tenth of the time."""


class Total(NamedTuple):
    """What some runs came to."""

    runs: Counter[str]
    sagas: int
    statuses: Counter[str]
    held: int
    features: Counter[str]
    fired: Counter[str]
    conflicts: int
    broken: list["Made"]


class Made(NamedTuple):
    """What it takes to make a run again."""

    seed: int
    kind: str

    def make(self, **options: Any) -> Finding:
        """Make it."""
        return KINDS[self.kind](self.seed, **options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2_000, help="how many runs")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="make this run again and show its trace")
    parser.add_argument("--kind", choices=KINDS, default="anything", help="with --seed: which run")
    parser.add_argument("--whole", action="store_true", help="do not shorten the trace")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    if given.seed is not None:
        return _again(Made(given.seed, given.kind), whole=given.whole)
    began = time.monotonic()
    total = _nothing()
    said = began
    for part in _totals(given.first, given.seeds, given.processes):
        total = _sum(total, part)
        if time.monotonic() - said > REPORT_EVERY_S:
            said = time.monotonic()
            rate = total.sagas / (said - began)
            print(
                f"{total.runs.total()} runs, {rate:.0f} sagas/s, {len(total.broken)} broken",
                flush=True,
            )
    _report(total, time.monotonic() - began, given.processes)
    for made in total.broken[:SHOWN_MAX]:
        print()
        _again(made, whole=given.whole)
    return 1 if total.broken else 0


def _totals(first: int, seeds: int, processes: int) -> Iterator[Total]:
    ends = [*range(first, first + seeds, CHUNK), first + seeds]
    chunks = [*pairwise(ends)]
    if processes == 1:
        yield from map(_some, chunks)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(_some, chunks)


def _some(bounds: tuple[int, int]) -> Total:
    if not gc.get_freeze_count():
        gc.set_threshold(OBJECTS_UNTIL_COLLECTED)
        gc.freeze()  # what has been imported stays: it need not be looked at again
    total = _nothing()
    for seed in range(*bounds):
        for kind in KINDS if seed % ALL_KINDS_EVERY == 0 else ("anything",):
            total = _sum(total, _one(Made(seed, kind)))
    return total


def _nothing() -> Total:
    return Total(Counter(), 0, Counter(), 0, Counter(), Counter(), 0, [])


def _one(made: Made) -> Total:
    run = made.make()
    statuses = Counter({status.value: count for status, count in run.statuses.items()})
    fired = Counter(fault.kind for fault in run.fired)
    return Total(
        Counter({made.kind: 1}),
        run.sagas,
        statuses,
        run.held,
        run.features,
        fired,
        run.conflicts,
        [made] if run.problems else [],
    )


def _sum(one: Total, other: Total) -> Total:
    one.runs.update(other.runs)
    one.statuses.update(other.statuses)
    one.features.update(other.features)
    one.fired.update(other.fired)
    return Total(
        one.runs,
        one.sagas + other.sagas,
        one.statuses,
        one.held + other.held,
        one.features,
        one.fired,
        one.conflicts + other.conflicts,
        one.broken + other.broken,
    )


def _report(total: Total, seconds: float, processes: int) -> None:
    per_second = total.sagas / seconds
    print(f"runs        {total.runs.total()}: {_counted(total.runs)}")
    print(f"sagas       {total.sagas}: {_counted(total.statuses)}")
    if total.held:
        print(f"held up     {total.held} of them wait for one that is stuck")
    print(f"rate        {per_second:.0f} sagas/s in {processes} processes, {seconds:.1f} s")
    print(f"conflicts   {total.conflicts}")
    print(f"features    {_counted(total.features)}")
    print(f"faults      {sum(total.fired.values())}: {_counted(total.fired)}")
    never = sorted({*CHANCES} - {*total.fired})
    if never:
        print(f"never fired {', '.join(never)}")
    print(f"violations  {len(total.broken)}")


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def _again(made: Made, *, whole: bool) -> int:
    """Make a run again and show it, as short as it gets where it broke a rule."""
    run = made.make(record=True)
    everything = len(run.fired)
    if run.problems and not whole:
        run = shrink(run, lambda _seed, **options: made.make(**options))
    print(f"seed {made.seed}: {run.sagas} sagas, {len(run.fired)} of {everything} faults")
    for line in run.trace:
        print(line)
    for problem in run.problems:
        print(f"BROKEN: {problem}")
    print(f"again: python -m tests.simulation --seed {made.seed} --kind {made.kind}")
    return 1 if run.problems else 0


if __name__ == "__main__":
    sys.exit(main())
