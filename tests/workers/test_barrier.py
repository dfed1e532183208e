import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from shared.errors import ConfigurationError
from shared.messages import Accepted, Rejected, Succeeded
from tests.waiting import wait_until
from tests.workers.stand_in import command
from workers.sdk.barrier import Barrier, Verdict, Work, saga_barrier
from workers.sdk.outcome import Fail, Reject

metadata = sa.MetaData()
effects = sa.Table(
    "effect",
    metadata,
    sa.Column("effect_id", sa.Integer, sa.Identity(), primary_key=True),
    sa.Column("what", sa.String(100), nullable=False),
)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/service.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def barrier(database: str) -> Iterator[Barrier]:
    """A barrier with its tables."""
    made = Barrier(database)
    made.create_tables(metadata)
    yield made
    made.engine.dispose()


def booking(what: str, output: Any = None) -> Work:
    """A step that leaves one effect behind."""

    def work(connection: sa.Connection, undo: Any) -> Succeeded:
        connection.execute(effects.insert().values(what=what))
        return Succeeded(output=output, undo=output)

    return work


def rejecting(connection: sa.Connection, undo: Any) -> Succeeded:
    """A step that does something and then says no."""
    connection.execute(effects.insert().values(what="rejected"))
    raise Reject("CardDeclined", "no")


def failing(connection: sa.Connection, undo: Any) -> Succeeded:
    """A step that does something and then breaks."""
    connection.execute(effects.insert().values(what="failed"))
    raise ConnectionError("gone")


def untouchable(connection: sa.Connection, undo: Any) -> Succeeded:
    """A step that must not be called."""
    raise AssertionError("the barrier let it through")


def booked(barrier: Barrier) -> list[str]:
    """The effects that stand, in order."""
    with barrier.engine.connect() as connection:
        query = sa.select(effects.c.what).order_by(effects.c.effect_id)
        return list(connection.execute(query).scalars())


def rows(barrier: Barrier) -> int:
    """Rows of the barrier."""
    with barrier.engine.connect() as connection:
        return connection.execute(
            sa.select(sa.func.count()).select_from(saga_barrier)
        ).scalar_one()


def test_a_database_without_the_table_says_how_it_is_made(database: str) -> None:
    """It is the first mistake of whoever writes a participant."""
    barrier = Barrier(database)
    with pytest.raises(ConfigurationError, match=r"no table saga_barrier.*create_tables"):
        barrier.run(command(), untouchable)
    barrier.engine.dispose()


def test_duplicate_of_a_success_gets_the_stored_outcome(barrier: Barrier) -> None:
    """The second delivery of an action, whatever its attempt, is answered without running it."""
    first = barrier.run(command(), booking("charge", {"id": 7}))
    second = barrier.run(command(attempt=2), untouchable)
    assert Verdict(Succeeded(output={"id": 7}, undo={"id": 7})) == first
    assert Verdict(first.outcome, "duplicate") == second
    assert booked(barrier) == ["charge"]


def test_rejection_is_stored_and_its_work_is_not(barrier: Barrier) -> None:
    """A duplicate of a rejected action is rejected too, though by now it might succeed."""
    first = barrier.run(command(), rejecting)
    second = barrier.run(command(), untouchable)
    assert isinstance(first.outcome, Rejected)
    assert first.outcome.failure.kind == "CardDeclined"
    assert Verdict(first.outcome, "duplicate") == second
    assert booked(barrier) == []


def test_failure_leaves_nothing_and_the_next_attempt_runs(barrier: Barrier) -> None:
    """A failed attempt is rolled back with its record, so that a retry is a fresh start."""
    with pytest.raises(ConnectionError):
        barrier.run(command(), failing)
    assert booked(barrier) == []
    assert rows(barrier) == 0
    barrier.run(command(attempt=2), booking("charge"))
    assert booked(barrier) == ["charge"]


def test_compensation_first_undoes_nothing_and_shuts_the_door(barrier: Barrier) -> None:
    """A compensation without its action succeeds, and the action that arrives later is refused."""
    undone = barrier.run(command("compensation"), untouchable)
    late = barrier.run(command(), untouchable)
    assert Verdict(Succeeded(), "nothing_to_undo") == undone
    assert isinstance(late.outcome, Rejected)
    assert late.outcome.failure.kind == "CompensatedBefore"


def test_compensation_of_a_success_runs_once_with_its_undo_data(barrier: Barrier) -> None:
    """The undo data comes from the stored outcome; a second copy of the compensation does nothing."""
    given: list[Any] = []

    def refund(connection: sa.Connection, undo: Any) -> Succeeded | Accepted:
        given.append(undo)
        return booking("refund", "done")(connection, undo)

    barrier.run(command(), booking("charge", {"id": 7}))
    first = barrier.run(command("compensation"), refund)
    second = barrier.run(command("compensation", attempt=2), untouchable)
    assert given == [{"id": 7}]
    assert Verdict(first.outcome, "duplicate") == second
    assert booked(barrier) == ["charge", "refund"]


def test_compensation_in_a_fork_finds_the_effect_of_the_saga_that_did_it(barrier: Barrier) -> None:
    """Once for both of them, and a late copy of the action finds it undone."""
    barrier.run(command(saga_id="old"), booking("charge", {"id": 7}))
    fork = msgspec.structs.replace(command("compensation", saga_id="fork"), origin_id="old")
    assert fork.idempotency_key == "old:pay:compensation"
    first = barrier.run(fork, booking("refund"))
    second = barrier.run(command("compensation", saga_id="old"), untouchable)
    late = barrier.run(command(saga_id="old", attempt=2), untouchable)
    assert (first.note, second.note, late.note) == ("", "duplicate", "duplicate")
    assert booked(barrier) == ["charge", "refund"]


def test_compensation_of_a_rejection_undoes_nothing(barrier: Barrier) -> None:
    """Where the action said no there is nothing to undo."""
    barrier.run(command(), rejecting)
    undone = barrier.run(command("compensation"), untouchable)
    assert Verdict(Succeeded(), "nothing_to_undo") == undone


def test_compensation_after_a_failure_undoes_nothing(barrier: Barrier) -> None:
    """A failed action was rolled back, so its compensation finds nothing, and leaves a tombstone."""
    with pytest.raises(ConnectionError):
        barrier.run(command(), failing)
    undone = barrier.run(command("compensation"), untouchable)
    late = barrier.run(command(), untouchable)
    assert undone.note == "nothing_to_undo"
    assert isinstance(late.outcome, Rejected)


def test_compensation_that_fails_can_be_tried_again(barrier: Barrier) -> None:
    """A failed compensation leaves neither its work nor its record."""
    barrier.run(command(), booking("charge"))
    with pytest.raises(ConnectionError):
        barrier.run(command("compensation"), failing)
    barrier.run(command("compensation", attempt=2), booking("refund"))
    assert booked(barrier) == ["charge", "refund"]


@pytest.mark.parametrize("error", [Reject("No"), Fail("Broken", retryable=False)])
def test_compensation_cannot_be_refused(barrier: Barrier, error: Exception) -> None:
    """What a compensation raises is not stored: it did not undo anything."""

    def refuse(connection: sa.Connection, undo: Any) -> Succeeded:
        raise error

    barrier.run(command(), booking("charge"))
    with pytest.raises(type(error)):
        barrier.run(command("compensation"), refuse)
    barrier.run(command("compensation", attempt=2), booking("refund"))
    assert booked(barrier) == ["charge", "refund"]


def test_action_after_its_compensation_stays_done_and_undone(barrier: Barrier) -> None:
    """A late duplicate of an action that was undone does not happen again."""
    barrier.run(command(), booking("charge"))
    barrier.run(command("compensation"), booking("refund"))
    late = barrier.run(command(attempt=2), untouchable)
    assert late.note == "duplicate"
    assert booked(barrier) == ["charge", "refund"]


def test_steps_and_sagas_do_not_meet(barrier: Barrier) -> None:
    """The record of one step says nothing about another step or another saga."""
    barrier.run(command(), booking("one"))
    barrier.run(command(step="ship"), booking("two"))
    barrier.run(command(saga_id="saga-2"), booking("three"))
    assert booked(barrier) == ["one", "two", "three"]


class Overlap:
    """Two copies of a step: the second begins while the first is inside of its work."""

    def __init__(self) -> None:
        self.inside = threading.Event()
        self.go_on = threading.Event()

    def first(self, then: Work) -> Work:
        """Work that waits in the middle."""

        def work(connection: sa.Connection, undo: Any) -> Succeeded | Accepted:
            self.inside.set()
            assert self.go_on.wait(20)
            return then(connection, undo)

        return work

    def run(
        self, database: str, first: Callable[[Barrier], Verdict], second: Callable[[Barrier], Any]
    ) -> tuple[Any, Any]:
        """Run both; the first goes on once the second is on its way."""
        one, other = Barrier(database), Barrier(database)
        try:
            with ThreadPoolExecutor(2) as pool:
                winner = pool.submit(first, one)
                assert self.inside.wait(20)
                loser = pool.submit(second, other)
                wait_until(loser.running)
                assert not loser.done()
                self.go_on.set()
                error = winner.exception(20)
                return error or winner.result(), loser.result(20)
        finally:
            self.go_on.set()
            one.engine.dispose()
            other.engine.dispose()


def test_concurrent_duplicate_waits_and_gets_the_outcome(barrier: Barrier, database: str) -> None:
    """Of two copies at the same time one works; the other waits, and says what the first said."""
    overlap = Overlap()
    first, second = overlap.run(
        database,
        lambda one: one.run(command(), overlap.first(booking("charge", 7))),
        lambda other: other.run(command(), untouchable),
    )
    assert Verdict(first.outcome, "duplicate") == second
    assert booked(barrier) == ["charge"]


def test_concurrent_duplicate_of_a_failure_takes_over(barrier: Barrier, database: str) -> None:
    """When the first copy breaks, the one that waited does the work."""
    overlap = Overlap()
    first, second = overlap.run(
        database,
        lambda one: one.run(command(), overlap.first(failing)),
        lambda other: other.run(command(), booking("charge")),
    )
    assert isinstance(first, ConnectionError)
    assert second.note == ""
    assert booked(barrier) == ["charge"]


def test_compensation_waits_for_an_action_in_progress(barrier: Barrier, database: str) -> None:
    """A compensation that overtakes a slow action undoes it, and does not take it for missing."""
    overlap = Overlap()
    _, second = overlap.run(
        database,
        lambda one: one.run(command(), overlap.first(booking("charge", 7))),
        lambda other: other.run(command("compensation"), booking("refund")),
    )
    assert second.note == ""
    assert booked(barrier) == ["charge", "refund"]


def test_action_waits_for_a_compensation_in_progress(barrier: Barrier, database: str) -> None:
    """An action that arrives while its compensation runs is a duplicate, not a new effect."""
    overlap = Overlap()
    barrier.run(command(), booking("charge"))
    _, second = overlap.run(
        database,
        lambda one: one.run(command("compensation"), overlap.first(booking("refund"))),
        lambda other: other.run(command(attempt=2), untouchable),
    )
    assert second.note == "duplicate"
    assert booked(barrier) == ["charge", "refund"]


def in_processes(count: int, code: str, database: str) -> list[int]:
    """Run code in several processes at once; returns their exit codes."""
    prologue = (
        "import os, sys\n"
        "from tests.workers.test_barrier import *\n"
        "barrier = Barrier(sys.argv[1])\n"
        "sys.stdout.write('ready\\n'); sys.stdout.flush(); sys.stdin.readline()\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", prologue + code, database],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:  # all are at the line: off they go
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    codes = []
    for process in processes:
        process.communicate()
        codes.append(process.returncode)
    return codes


def test_duplicates_in_several_processes_have_one_effect(barrier: Barrier, database: str) -> None:
    """Four processes with a copy each leave one effect, and all report success."""
    code = "[barrier.run(command(step=str(n)), booking(str(n))) for n in range(20)]"
    assert in_processes(4, code, database) == [0] * 4
    assert [str(n) for n in range(20)] == sorted(booked(barrier), key=int)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_retries_of_a_rejection_race_in_several_processes(barrier: Barrier, database: str) -> None:
    """Four copies of a retry have one effect; where undos come, too, it is undone or never done."""
    steps = [f"{kind}{number}" for kind in ("again", "undone") for number in range(20)]
    for name in steps:
        barrier.run(command(step=name), rejecting)
    code = f"""
for name in {steps}:
    def retry():
        told = barrier.run(command(step=name, attempt=2), booking('do ' + name)).outcome
        assert isinstance(told, Succeeded) or name.startswith('undone'), told
    def undo():
        told = barrier.run(command('compensation', step=name), booking('undo ' + name)).outcome
        assert isinstance(told, Succeeded), told
    both = [retry, undo] if name.startswith('undone') else [retry]
    for act in both[:: 1 if os.getpid() % 2 else -1]:
        act()
"""
    assert in_processes(4, code, database) == [0] * 4
    effects = booked(barrier)
    assert len(effects) == len({*effects})
    done, undone = (
        {one.removeprefix(what) for one in effects if one.startswith(what)}
        for what in ("do ", "undo ")
    )
    assert {name for name in steps if name.startswith("again")} | undone == done


def test_tables_are_created_by_several_processes_at_once(database: str) -> None:
    """Services that start together do not trip over each other's CREATE TABLE."""
    assert in_processes(4, "barrier.create_tables(metadata)", database) == [0] * 4
    barrier = Barrier(database)
    barrier.create_tables(metadata)
    assert rows(barrier) == 0
    barrier.engine.dispose()


def test_killed_in_the_middle_leaves_nothing(barrier: Barrier, database: str) -> None:
    """SIGKILL between the work and its commit: the next delivery does the work, once."""
    code = (
        "def work(connection, undo):\n"
        "    booking('charge')(connection, undo)\n"
        "    os.kill(os.getpid(), 9)\n"
        "barrier.run(command(), work)\n"
    )
    assert in_processes(1, code, database) == [-9]
    assert barrier.run(command(), booking("charge")).note == ""
    assert booked(barrier) == ["charge"]


def test_step_that_commits_by_itself_is_not_taken_for_undone(barrier: Barrier) -> None:
    """A function that commits and then breaks may have happened: it is undone, and not repeated."""

    def commits(connection: sa.Connection, undo: Any) -> Succeeded:
        connection.execute(effects.insert().values(what="charge"))
        root = connection.get_transaction()
        assert root is not None
        root.commit()
        raise ConnectionError

    with pytest.raises(Exception, match=r".*"):
        barrier.run(command(), commits)
    with pytest.raises(Fail, match="CommittedByItself"):
        barrier.run(command(attempt=2), untouchable)
    barrier.run(command("compensation"), booking("refund"))
    assert booked(barrier) == ["charge", "refund"]


def test_engine_of_the_application_is_used_as_it_is(tmp_path: Path) -> None:
    """An application's own engine that begins its transactions by itself works too."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/own.db")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    barrier = Barrier(engine)
    barrier.create_tables(metadata)
    barrier.run(command(), booking("charge"))
    assert booked(barrier) == ["charge"]
    assert engine is barrier.engine
    engine.dispose()


def test_other_databases_are_refused() -> None:
    """A database whose locks nobody has tried is refused by name."""
    engine = sa.create_mock_engine("mysql://", lambda *_: None)
    engine_like: Any = sa.Engine.__new__(sa.Engine)
    engine_like.dialect = engine.dialect
    with pytest.raises(ConfigurationError, match="not mysql"):
        Barrier(engine_like)


def test_forked_child_does_not_use_its_parents_connections(
    barrier: Barrier, database: str
) -> None:
    """A connection pool that was used before a fork is empty in the child and whole in the parent."""
    code = (
        "barrier.run(command(step='parent'), booking('parent'))\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os._exit(0 if barrier.engine.pool.checkedin() == 0\n"
        "        and barrier.run(command(step='child'), booking('child')) else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "barrier.run(command(step='again'), booking('again'))\n"
    )
    assert in_processes(1, code, database) == [0]
    assert booked(barrier) == ["parent", "child", "again"]


def accepting(connection: sa.Connection, undo: Any) -> Accepted:
    """A step whose work goes on elsewhere."""
    connection.execute(effects.insert().values(what="ordered"))
    return Accepted()


def test_later_attempt_of_a_rejected_action_runs(barrier: Barrier) -> None:
    """An operator has asked for it, perhaps with another payload; duplicates are told apart."""
    barrier.run(command(), rejecting)
    second = barrier.run(command(attempt=2), booking("charge", {"id": 7}))
    assert Succeeded(output={"id": 7}, undo={"id": 7}) == second.outcome
    for attempt in (1, 2, 3):
        again = barrier.run(command(attempt=attempt), untouchable)
        assert Verdict(second.outcome, "duplicate") == again
    assert booked(barrier) == ["charge"]


def test_later_attempt_that_breaks_leaves_the_rejection(barrier: Barrier) -> None:
    """Its transaction is rolled back: a third attempt may run, a duplicate of the first may not."""
    barrier.run(command(), rejecting)
    with pytest.raises(ConnectionError):
        barrier.run(command(attempt=2), failing)
    assert barrier.run(command(), untouchable).note == "duplicate"
    barrier.run(command(attempt=3), booking("charge"))
    assert booked(barrier) == ["charge"]


def test_compensation_of_a_rejection_shuts_the_door(barrier: Barrier) -> None:
    """An attempt that comes after it must not happen."""
    barrier.run(command(), rejecting)
    undone = barrier.run(command("compensation"), untouchable)
    assert Verdict(Succeeded(), "nothing_to_undo") == undone
    late = barrier.run(command(attempt=2), untouchable)
    assert isinstance(late.outcome, Rejected)
    assert late.outcome.failure.kind == "CompensatedBefore"


def test_work_elsewhere_is_begun_anew_by_a_later_attempt_only(barrier: Barrier) -> None:
    """And by none after its compensation, which runs, since something may have happened."""
    assert barrier.run(command(), accepting).outcome == Accepted()
    assert barrier.run(command(), untouchable) == Verdict(Accepted(), "duplicate")
    barrier.run(command(attempt=2), accepting)
    assert booked(barrier) == ["ordered", "ordered"]
    barrier.run(command("compensation"), booking("undone"))
    assert isinstance(barrier.run(command(attempt=3), untouchable).outcome, Rejected)
    assert booked(barrier) == ["ordered", "ordered", "undone"]
