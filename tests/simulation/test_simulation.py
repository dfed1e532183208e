"""A few hundred seeds on every run of the tests; ``make soak`` runs as many as you like."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.simulation.chaos import CHANCES
from tests.simulation.run import Finding, simulate
from tests.simulation.shrink import shrink

SEEDS = range(300)
PARTS = 6


def told(run: Finding) -> str:
    """The seed and the shortest trace of a run that broke a rule."""
    short = shrink(run)
    lines = [*short.trace, *run.problems, f"again: python -m tests.simulation --seed {run.seed}"]
    return "\n".join(lines)


@pytest.mark.parametrize("part", range(PARTS))
def test_every_rule_holds_whatever_goes_wrong(part: int) -> None:
    """Crashes, lost and doubled messages, conflicts, clocks that jump: see `chaos.CHANCES`."""
    for seed in SEEDS[part::PARTS]:
        run = simulate(seed)
        assert not run.problems, told(run)


def test_every_kind_of_fault_fires_and_every_ending_is_reached() -> None:
    """A simulation in which nothing happens proves nothing."""
    fired: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    conflicts = 0
    for seed in SEEDS[:60]:
        run = simulate(seed)
        fired.update(fault.kind for fault in run.fired)
        statuses.update(run.statuses)
        conflicts += run.conflicts
    assert not {*CHANCES} - {*fired}
    assert {"completed", "compensated", "stuck"} <= {*statuses}
    assert conflicts


def test_a_run_can_be_made_again_in_another_process() -> None:
    """The order of a set, or a random id, would make another run of it."""
    here = "\n".join(simulate(7, record=True).trace)
    command = [sys.executable, "-m", "tests.simulation", "--seed", "7", "--whole"]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    there = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment, timeout=60
    )
    assert here
    assert here in there.stdout


def test_a_run_with_just_its_own_faults_is_the_same_run() -> None:
    """What makes it possible to leave some out."""
    first = simulate(11, record=True)
    again = simulate(11, record=True, plan=first.plan, only=frozenset(first.fired))
    assert first.trace == again.trace
