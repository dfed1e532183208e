"""The participants' database: the barrier of `workers.sdk.barrier`, as rows in a dictionary.

A second transaction waits at the insert for the first one's end, as in PostgreSQL. A test compares
it with the real one, verdict by verdict. Beside it stands the ledger: what really happened.
"""

from collections.abc import Callable
from typing import Any, Final

from shared.ids import Direction
from shared.messages import Command, Failure, Outcome, Rejected, Succeeded
from tests.simulation.scheduler import Actor, Scheduler
from workers.sdk.barrier import COMPENSATED_BEFORE, Tombstone

Key = tuple[str, str, Direction]
Work = Callable[[Command, Any], Outcome]

REFUSAL: Final = Failure(
    kind=COMPENSATED_BEFORE,
    message="The compensation of this step came first.",
    retryable=False,
)


def doer_of(command: Command) -> str:
    """The saga whose effect it is about: a fork undoes what another one has done."""
    return command.origin_id or command.saga_id


class Ledger:
    """What happened in the world, for each step of each saga.

    Attributes:
        effects: ``do`` and ``undo``, in the order in which they were committed.
        problems: What must not happen, and did.
    """

    def __init__(self) -> None:
        self.effects: dict[tuple[str, str], list[str]] = {}
        self.problems: list[str] = []
        self._compensated: set[tuple[str, str]] = set()
        self._undone: list[tuple[str, str]] = []

    def committed(self, command: Command, *, worked: bool) -> None:
        """A transaction of a participant ended well."""
        step = (doer_of(command), command.step)
        if command.direction == "compensation":
            self._compensated.add(step)
            if worked:
                self._undone.append((command.saga_id, command.step))
        elif worked and step in self._compensated:
            self.problems.append(f"{step}: its action happened after its compensation had won")
        if worked:
            self.effects.setdefault(step, []).append(
                "do" if command.direction == "action" else "undo"
            )

    def undone(self, saga_id: str) -> list[str]:
        """Steps that a saga has undone, in that order; a fork also those of the saga before it."""
        return [step for saga, step in self._undone if saga == saga_id]

    def count(self, saga_id: str, step: str, effect: str) -> int:
        """How often something was done or undone."""
        return self.effects.get((saga_id, step), []).count(effect)


class Database:
    """Rows that survive a crash, and locks that do not."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.rows: dict[Key, Succeeded | Rejected | Tombstone] = {}
        self.attempts: dict[Key, int] = {}
        self.ledger = Ledger()
        self._scheduler = scheduler
        self._locks: dict[Key, list[Actor]] = {}

    def run(self, command: Command, work: Work) -> Outcome:
        """Do a step unless it was done before, in one transaction with the record of it."""
        transaction = _Transaction(self)
        try:
            if command.direction == "action":
                return self._action(transaction, command, work)
            return self._compensation(transaction, command, work)
        finally:
            transaction.end()

    def _action(self, transaction: "_Transaction", command: Command, work: Work) -> Outcome:
        key: Key = (doer_of(command), command.step, "action")
        if not transaction.claim(key):
            match self.stored(key):
                case Tombstone():
                    return Rejected(failure=REFUSAL)
                case Rejected() if self.attempts[key] < command.attempt:
                    transaction.take_over(key)  # asked for after that attempt had ended
                case known:
                    return known
        outcome = work(command, None)
        if isinstance(outcome, Succeeded | Rejected):
            transaction.put(key, outcome)
            self.attempts[key] = command.attempt
            transaction.commit(command, worked=isinstance(outcome, Succeeded))
        return outcome

    def _compensation(self, transaction: "_Transaction", command: Command, work: Work) -> Outcome:
        own: Key = (doer_of(command), command.step, "compensation")
        if not transaction.claim(own):
            return self.rows[own]  # type: ignore[return-value]  # only successes are kept
        action: Key = (doer_of(command), command.step, "action")
        if transaction.claim(action):
            transaction.put(action, Tombstone())
            transaction.put(own, Succeeded())
            transaction.commit(command, worked=False)
            return Succeeded()
        undo = None
        match self.rows[action]:
            case Rejected() | Tombstone():
                transaction.put(action, Tombstone())
                transaction.put(own, Succeeded())
                transaction.commit(command, worked=False)
                return Succeeded()
            case Succeeded(undo=undo):
                outcome = work(command, undo)
                if isinstance(outcome, Succeeded):
                    transaction.put(own, outcome)
                    transaction.commit(command, worked=True)
                return outcome

    def stored(self, key: Key) -> Succeeded | Rejected | Tombstone:
        """What a row says."""
        return self.rows[key]

    def wait_for(self, key: Key) -> None:
        """Wait while another transaction has inserted the row and not ended."""
        while key in self._locks:
            assert self._scheduler.current is not None
            self._locks[key].append(self._scheduler.current)
            self._scheduler.park()

    def lock(self, key: Key) -> None:
        """A transaction has inserted the row."""
        self._locks[key] = []

    def unlock(self, key: Key) -> None:
        """Its transaction has ended."""
        for actor in self._locks.pop(key):
            if not actor.ended:
                self._scheduler.wake(actor)


class _Transaction:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._inserted: list[Key] = []
        self._rows: dict[Key, Succeeded | Rejected | Tombstone] = {}

    def claim(self, key: Key) -> bool:
        self._database.wait_for(key)
        if key in self._database.rows:
            return False
        self._database.lock(key)
        self._inserted.append(key)
        return True

    def take_over(self, key: Key) -> None:
        """Hold a row that exists, to write it anew."""
        self._database.lock(key)
        self._inserted.append(key)

    def put(self, key: Key, value: Succeeded | Rejected | Tombstone) -> None:
        self._rows[key] = value

    def commit(self, command: Command, *, worked: bool) -> None:
        self._database.rows.update(self._rows)
        self._database.ledger.committed(command, worked=worked)

    def end(self) -> None:
        for key in self._inserted:
            self._database.unlock(key)
        self._inserted.clear()
