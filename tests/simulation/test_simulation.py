"""A few hundred seeds on every run of the tests; ``make soak`` runs as many as you like."""

import os
import subprocess
import sys
from collections import Counter
from typing import get_args

from structlog.testing import capture_logs

from orchestrator.core.events import Event
from tests.simulation.chaos import CHANCES
from tests.simulation.run import Finding, simulate
from tests.simulation.shrink import shrink

SEEDS = range(120)
ELSEWHERE = {"room_awaited", "undo_refused"}
"""These sagas share no limits, and a sub-saga past its pivot that is to be undone is rare:
`test_limited`, `test_planted`."""


def told(run: Finding) -> str:
    """The seed and the shortest trace of a run that broke a rule."""
    short = shrink(run)
    lines = [*short.trace, *run.problems, f"again: python -m tests.simulation --seed {run.seed}"]
    return "\n".join(lines)


def test_every_rule_holds_whatever_goes_wrong() -> None:
    """Every kind of fault fires, every event and every ending is there, and no rule is broken."""
    fired: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    features: Counter[str] = Counter()
    conflicts = 0
    for seed in SEEDS:
        run = simulate(seed)
        assert not run.problems, told(run)
        fired.update(fault.kind for fault in run.fired)
        statuses.update(run.statuses)
        features.update(run.features)
        conflicts += run.conflicts
    assert not {*CHANCES} - {*fired}
    assert {"completed", "compensated", "stuck", "resolved"} <= {*statuses}
    events = {str(event.__struct_config__.tag) for event in get_args(Event)}
    assert {*events, "heartbeat", "publication", "sub-saga"} - {*features} <= ELSEWHERE
    assert conflicts


def test_a_run_can_be_made_again_in_another_process() -> None:
    """The order of a set, or a random id, would make another run of it."""
    here = "\n".join(simulate(1, record=True).trace)
    command = [sys.executable, "-m", "tests.simulation", "--seed", "1", "--whole"]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    there = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment, timeout=60
    )
    assert here
    assert here in there.stdout


def test_a_run_writes_no_log() -> None:
    """Or ``make soak`` would take three times as long, and hide what it reports among the lines."""
    with capture_logs() as lines:
        assert simulate(3).fired
    assert lines == []


def test_it_makes_no_difference_whether_all_is_written_as_json() -> None:
    """What makes it possible to leave that out in most runs."""
    for seed in range(5):
        plain, read = (simulate(seed, record=True, as_json=one) for one in (False, True))
        assert plain.trace == read.trace


def test_a_run_with_just_its_own_faults_is_the_same_run() -> None:
    """What makes it possible to leave some out."""
    first = simulate(11, record=True)
    again = simulate(11, record=True, plan=first.plan, only=frozenset(first.fired))
    assert first.trace == again.trace
