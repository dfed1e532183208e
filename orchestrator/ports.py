"""What the shell needs from the world: a `Store` and a `Transport`.

Every adapter passes the same contract suite (`tests/contracts/`). All times are aware UTC
datetimes and are passed in: an adapter reads no clock of its own.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, Protocol

import msgspec

from orchestrator.core.definition import Definition
from orchestrator.core.events import (
    Recorded,
    SagaForked,
    SagaStarted,
    UndoRefused,
    UndoRequested,
)
from orchestrator.core.limits import Limit
from orchestrator.core.room import Slot
from orchestrator.core.state import SagaState, Status
from shared.messages import Command, Inbound

NOTHING_TRACED: Final[Mapping[str, datetime]] = MappingProxyType({})

Gate = tuple[str, str]
"""What a limit is about: the name of a saga, and of a step; an empty one is the saga itself."""

Rank = tuple[int, datetime, str]
"""Who waits in front: first what undoes (0, not 1), then by the start of the saga and its id."""

UUID_LEAST: Final = "00000000-0000-0000-0000-000000000000"
UUID_MOST: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"

NO_GATES: Final[Mapping[Gate, Limit]] = MappingProxyType({})
NOTHING_BEGUN: Final[Mapping[str, int]] = MappingProxyType({})


class SagaRow(msgspec.Struct, frozen=True, kw_only=True):
    """A saga as it is stored. The store indexes what it needs out of `state`.

    Attributes:
        sequence: Number of events in its history; the version for compare-and-set.
        state: The fold of its history.
        wake_at: When a timer is due, if one is set; None for a final saga.
        started_at: When it started.
        updated_at: When it last changed.
        trace_due_at: When its spans are exported again, unless the export is confirmed before.
    """

    sequence: int
    state: SagaState
    wake_at: datetime | None
    started_at: datetime
    updated_at: datetime
    trace_due_at: datetime | None = None

    @property
    def saga_id(self) -> str:
        """Id of the saga."""
        return self.state.saga_id


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One saga's part of a transaction.

    Attributes:
        row: The row after the change.
        expected_sequence: Its sequence before; 0 for a new saga.
        events: What happened, with the sequences from ``expected_sequence + 1`` on.
        commands: Go into the outbox, unless one of the same id is there already.
        slots: All that the saga holds or waits for afterwards; None where it has no limit, or where
            that has not changed.
        begun: How many attempts of each step that has a limit begin with it.
        decided_at: When the commands are handed out for the first time, where that is not when
            the saga last changed: to ask a sub-saga again is no change.
    """

    row: SagaRow
    expected_sequence: int
    events: tuple[Recorded, ...]
    commands: tuple[Command, ...]
    slots: tuple[Slot, ...] | None = None
    begun: Mapping[str, int] = NOTHING_BEGUN
    decided_at: datetime | None = None

    @property
    def sent_at(self) -> datetime:
        """When the commands are handed out for the first time."""
        return self.decided_at or self.row.updated_at


class Crowd(msgspec.Struct, frozen=True, kw_only=True):
    """Who is at a gate.

    Attributes:
        in_flight: Slots that are taken.
        free_at: When the rate's bucket is empty; None where it has not been used.
        waiting: The first ones that wait, in order, at most as many as were asked for.
        known: Somebody has asked for this gate's limit before.
    """

    in_flight: int = 0
    free_at: datetime | None = None
    waiting: tuple[Rank, ...] = ()
    known: bool = True


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator has said of all sagas of a name, until somebody takes it back.

    Attributes:
        name: Name of the saga.
        step: Which step; empty for the saga itself.
        limit: Instead of the one in the definition; None for a pause.
        reason: Why.
        by: Who.
        at: When.
    """

    name: str
    step: str = ""
    limit: Limit | None = None
    reason: str = ""
    by: str = ""
    at: datetime

    @property
    def kind(self) -> str:
        """``limit`` or ``pause``."""
        return "pause" if self.limit is None else "limit"


def kept_for(change: Change) -> str | None:
    """Id of the saga that may still want this one undone, so that it is kept; None without news.

    That is its parent, or the fork that took its effects over.
    """
    for recorded in reversed(change.events):
        match recorded.event:
            case SagaForked(to=heir):
                return heir
            case SagaStarted() | UndoRequested() | UndoRefused():
                return change.row.state.parent.saga_id if change.row.state.parent else None
            case _:
                pass
    return None


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message that nobody could act on.

    Attributes:
        dead_letter_id: Number in the order of arrival; 0 until it is stored.
        reason: What is wrong with it.
        task: Celery task name it came as; may be empty.
        saga_id: The saga it names, if it names one.
        body: What it held, as text.
        at: When it was put aside.
    """

    dead_letter_id: int = 0
    reason: str
    task: str
    saga_id: str | None
    body: str
    at: datetime


class SagaSummary(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a list of sagas shows; no state is decoded for it.

    Attributes:
        unreadable: Why it cannot be read, where that was asked for and is so.
    """

    saga_id: str
    name: str
    version: int
    key: str | None
    status: Status
    trace_id: str
    started_at: datetime
    updated_at: datetime
    wake_at: datetime | None
    unreadable: str = ""


def summary_of(row: SagaRow) -> SagaSummary:
    """The line of a list for a saga."""
    state = row.state
    return SagaSummary(
        saga_id=row.saga_id,
        name=state.name,
        version=state.version,
        key=state.key,
        status=state.status,
        trace_id=state.trace.trace_id,
        started_at=row.started_at,
        updated_at=row.updated_at,
        wake_at=row.wake_at,
    )


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """How the store is doing. A count that has reached 100,000 may be more.

    Attributes:
        in_flight: Sagas that have not ended, by name and status; zeros of known names included.
        timers_late: Sagas whose timer was due at the moment that was asked for.
        timer_due_at: When the oldest timer is or was due; None without any.
        outbox_size: Commands that may not have reached the broker.
        outbox_since: When the oldest of them was committed; None without any.
        dead_letters: Messages that nobody could act on.
        awaiting_room: How many wait for room, by gate; zeros where nobody does included.
        paused: Names that are paused as a whole.
    """

    in_flight: dict[tuple[str, Status], int]
    timers_late: int
    timer_due_at: datetime | None
    outbox_size: int
    outbox_since: datetime | None
    dead_letters: int
    awaiting_room: dict[Gate, int] = {}
    paused: frozenset[str] = frozenset()


class Store(Protocol):
    """Sagas, histories, outbox, definitions and dead letters.

    Every method may raise `shared.errors.UnavailableError`: the database cannot be reached or
    broke the connection, nothing of the call is committed (or nobody knows, for `commit`), and
    calling again later is right.
    """

    def load(self, saga_ids: Collection[str]) -> dict[str, SagaRow]:
        """The rows of these sagas; an unknown id is left out.

        Raises:
            DecodeError: One of them cannot be read.
        """

    def find_by_key(self, name: str, key: str) -> SagaRow | None:
        """The saga that has this business key."""

    def ids_from(self, beginning: str, limit: int) -> list[str]:
        """Ids that begin so, in order, of those that have the form of a UUID."""

    def find_by_trace(self, trace_id: str) -> list[SagaSummary]:
        """Sagas of a trace, oldest first."""

    def commit(
        self,
        changes: Sequence[Change],
        *,
        published: Collection[str] = (),
        dead_letters: Sequence[DeadLetter] = (),
        traced: Mapping[str, datetime] = NOTHING_TRACED,
        together: bool = False,
        gates: Mapping[Gate, Limit] = NO_GATES,
    ) -> frozenset[str]:
        """Commit all of it in one transaction, but for the sagas that someone else has changed.

        Args:
            changes: At most one for each saga.
            published: Ids of outbox rows that are deleted: they have reached the broker.
            dead_letters: Are kept.
            traced: Sagas whose spans have arrived, each with the `trace_due_at` that it had when
                they were exported. It is cleared, unless another export is due by now.
            together: All changes or none: where one saga was changed by someone else, nothing at
                all is committed, and all of them are returned.
            gates: The limits of what begins with the changes.

        Returns:
            Ids of sagas of which *nothing* was committed: their sequence was not the expected
            one, the id exists already, their business key is taken by another saga, or what they
            begin would be more than a limit allows.

        Raises:
            InputError: A new id or business key is empty, too long, or holds a character that no
                database stores.
        """

    def due(self, now: datetime, limit: int) -> list[str]:
        """Ids of active sagas whose `wake_at` has come, the longest overdue first."""

    def postpone(self, saga_ids: Collection[str], until: datetime) -> None:
        """Set the `wake_at` of active sagas, without reading them: they cannot be read now.

        Until they can, they do not wait for room either: nobody must stand behind them.
        """

    def claim_unpublished(self, before: datetime, now: datetime, limit: int) -> list[Command]:
        """Outbox rows last handed out before `before`, in any order; they now count as of `now`.

        Two callers at once get different rows. A row counts as handed out when it is committed.
        One that cannot be read is left out and told of in the log; it comes again, minutes later.
        """

    def claim_untraced(self, now: datetime, until: datetime, limit: int) -> list[str]:
        """Ids of sagas whose `trace_due_at` has come; it is set to `until`."""

    def history(self, saga_ids: Collection[str]) -> dict[str, list[Recorded]]:
        """Histories in order of sequence; an unknown id is left out."""

    def list_sagas(
        self,
        *,
        statuses: Collection[Status] = (),
        name: str | None = None,
        key: str | None = None,
        limit: int = 50,
        older: tuple[datetime, str] | None = None,
    ) -> list[SagaSummary]:
        """Newest first.

        Args:
            statuses: Only these; empty means all.
            name: Only sagas of this name.
            key: Only the sagas with this business key.
            limit: Most to give.
            older: Start and id of the last one of a page: only those that follow it.
        """

    def count_by_status(self) -> dict[Status, int]:
        """How many sagas there are of each status; statuses without any are left out."""

    def ended(
        self,
        before: datetime,
        limit: int,
        *,
        name: str | None = None,
        statuses: Collection[Status] = (),
    ) -> list[str]:
        """Ids of final sagas whose last change was before `before`, the longest ago first.

        A saga whose spans still wait for their export is left out, and so is one that is kept for
        another one that may still want it undone (`kept_for`): until that has ended, was last
        changed before `before`, and is itself kept for none that exists. An empty `statuses` means
        all final ones.
        """

    def delete(self, saga_ids: Collection[str]) -> frozenset[str]:
        """Delete sagas with their histories, all in one transaction.

        Not those that are active, or kept for one that is.

        Returns:
            Ids of those that were deleted: final ones that existed.
        """

    def crowds(self, gates: Collection[Gate], waiting_max: int) -> dict[Gate, Crowd]:
        """Who is at these gates, and the first of those who wait at each."""

    def stray_slots(self, known: Collection[Gate], limit: int) -> list[str]:
        """Ids of sagas whose slots are not of their present state, or at no gate that is known.

        Somebody who did not know of a limit has advanced them. Slots of sagas that are gone are
        deleted.
        """

    def controls(self) -> list[Control]:
        """What operators have said of names, by name and step."""

    def put_control(self, control: Control) -> None:
        """Keep what an operator says; it replaces what was said of the same before."""

    def drop_control(self, name: str, step: str, kind: str) -> Control | None:
        """Take it back; returns what it was, if there was any."""

    def put_definition(self, definition: Definition, now: datetime) -> None:
        """Keep a definition. The same one again is fine.

        Raises:
            DefinitionChanged: Another one is stored under this name and version; shows the
                difference.
        """

    def definition(self, name: str, version: int) -> Definition | None:
        """The stored definition."""

    def definitions(self) -> list[Definition]:
        """All stored definitions, by name and version."""

    def dead_letters(self, limit: int = 50) -> list[DeadLetter]:
        """Newest first."""

    def dead_letter(self, dead_letter_id: int) -> DeadLetter | None:
        """The dead letter of this number."""

    def drop_dead_letters(self, dead_letter_ids: Collection[int]) -> int:
        """Delete dead letters for good; returns how many there were."""

    def outbox_size(self) -> int:
        """Commands that may not have reached the broker."""

    def survey(self, late_before: datetime) -> Survey:
        """How the store is doing; cheap, whatever has finished or piled up.

        Args:
            late_before: A timer that was due by then counts as late.
        """

    def check(self) -> None:
        """Check that the database answers and has the schema of this version.

        Raises:
            UnavailableError: It does not answer.
            ConfigurationError: Its schema is older or newer; says how to upgrade.
        """

    def close(self) -> None:
        """Give connections back."""


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """An inbound message that is not acknowledged yet.

    Attributes:
        message: What it says, or `Undecodable`.
        task: Celery task name it came as.
        body: Its raw body as text, for a dead letter.
        receipt: What the transport needs to acknowledge it; opaque.
    """

    message: Inbound
    task: str
    body: str
    receipt: Any = None


class Transport(Protocol):
    """Commands out, messages in. At least once, in any order.

    Every method may raise `shared.errors.UnavailableError` and reconnects when it is called
    again.
    """

    def publish(self, commands: Sequence[Command]) -> None:
        """Send commands. When this returns, the broker has them all.

        Raises:
            UnavailableError: Some or all may not have been sent.
        """

    def receive(self, messages_max: int, timeout_seconds: float) -> list[Delivery]:
        """Block for the first message, then take what is already there.

        Args:
            messages_max: Most messages to take.
            timeout_seconds: How long to wait for the first one.

        Returns:
            Empty when the time ran out.
        """

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Settle messages for good. Without it they are delivered again, some time."""

    def interrupt(self) -> None:
        """Make a blocked `receive` of another thread return early. Never raises.

        Where none is blocked it ends the wait of the next one, which still takes what is there.
        """

    def close(self) -> None:
        """Close connections; messages that were not acknowledged go back to the queue."""
