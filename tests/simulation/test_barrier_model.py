"""The simulated participants' database says what the real barrier says."""

from pathlib import Path
from random import Random
from typing import Any, Literal

from shared.ids import Direction
from shared.messages import Command, Failed, Failure, Outcome, Rejected, Succeeded
from tests.core.builders import T0
from tests.simulation.barrier import Database
from tests.simulation.scheduler import Scheduler
from workers.sdk.barrier import Barrier
from workers.sdk.command import StepCommand
from workers.sdk.outcome import Reject

SEQUENCES = 60
DELIVERIES = 7

Choice = Literal["succeed", "reject", "fail"]


def real(barrier: Barrier, command: StepCommand, choice: Choice) -> tuple[str, bool]:
    """What the real one answers, and whether the work was done for good."""
    worked = False

    def work(connection: Any, undo: Any) -> Succeeded:
        nonlocal worked
        if choice == "reject":
            raise Reject("no")
        if choice == "fail":
            raise RuntimeError
        worked = True
        return Succeeded()

    try:
        return type(barrier.run(command, work).outcome).__name__, worked
    except RuntimeError:
        return "Failed", False
    except Reject:
        return "Failed", False  # of a compensation: the runner calls it a failure


def simulated(database: Database, command: Command, choice: Choice) -> tuple[str, bool]:
    """The same of the simulated one."""
    before = len(database.ledger.effects.get((command.saga_id, command.step), []))

    def work(one: Command, undo: Any) -> Outcome:
        failure = Failure(kind="no")
        if choice == "reject" and one.direction == "action":
            return Rejected(failure=failure)
        return Succeeded() if choice == "succeed" else Failed(failure=failure)

    outcome = database.run(command, work)
    after = len(database.ledger.effects.get((command.saga_id, command.step), []))
    return type(outcome).__name__, after > before


def test_both_give_the_same_verdicts(tmp_path: Path) -> None:
    """Any actions and compensations of one step, in any order, ending in any way."""
    barrier = Barrier(f"sqlite:///{tmp_path / 'barrier.db'}")
    barrier.create_tables()
    database = Database(Scheduler())
    random = Random(1)
    seen = set()
    for number in range(SEQUENCES):
        told = []
        for attempt in range(1, DELIVERIES + 1):
            direction: Direction = random.choice(("action", "action", "compensation"))
            choice: Choice = random.choice(("succeed", "succeed", "reject", "fail"))
            command = Command(
                id=f"{number}:{attempt}",
                saga_id=f"saga-{number}",
                saga_name="test",
                saga_version=1,
                step="a",
                direction=direction,
                attempt=attempt,
                task="t",
                queue="q",
                payload={},
                deadline_at=T0,
                traceparent="",
            )
            step = StepCommand(
                saga_id=command.saga_id, step="a", direction=direction, attempt=attempt
            )
            told.append((direction, choice))
            one = real(barrier, step, choice)
            assert one == simulated(database, command, choice), told
            seen.add((direction, *one))
    barrier.engine.dispose()
    assert len(seen) >= 6
    assert database.ledger.problems == []
