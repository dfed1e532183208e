"""The store in memory: the reference for the others, and fast enough to simulate with."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from threading import RLock
from typing import Any

import msgspec
from typing_extensions import override

from orchestrator.core.definition import Definition
from orchestrator.core.events import Event, Recorded
from orchestrator.core.limits import Limit
from orchestrator.core.state import ACTIVE, SagaState, Status
from orchestrator.ports import (
    NO_GATES,
    NOTHING_TRACED,
    UUID_LEAST,
    Change,
    Control,
    Crowd,
    DeadLetter,
    Gate,
    SagaRow,
    SagaSummary,
    Store,
    Survey,
    kept_for,
    summary_of,
)
from orchestrator.store import rows
from orchestrator.store.definitions import check_same
from orchestrator.store.memory_slots import MemorySlots
from shared.messages import Command


class Stored(msgspec.Struct):
    """A saga; what `MemoryStore.keep` makes of its state, its events and its commands."""

    row: SagaRow
    state: Any
    history: list[tuple[int, datetime, Any]]
    commands: dict[str, Any]


class _Unpublished(msgspec.Struct):
    handed_out_at: datetime
    saga_id: str
    command: Any
    committed_at: datetime


class MemoryStore(Store):
    """Sagas in dictionaries under one lock.

    Args:
        before_commit: Called by `commit` before anything is changed; what it raises ends the call
            with nothing committed.
        after_commit: Called when all is committed; what it raises leaves the caller not knowing.

    Attributes:
        keep: Makes what is kept: JSON, so that nobody shares a dict with the store and every
            value is read back. `read_state`, `read_event` and `read_command` read it.
    """

    keep: Callable[[SagaState | Event | Command], Any] = staticmethod(rows.to_json)
    read_state: Callable[[Any], SagaState] = staticmethod(rows.state_from)
    read_event: Callable[[Any], Event] = staticmethod(rows.event_from)
    read_command: Callable[[Any], Command] = staticmethod(rows.command_from)

    def __init__(
        self,
        *,
        before_commit: Callable[[], None] | None = None,
        after_commit: Callable[[], None] | None = None,
    ) -> None:
        self._lock = RLock()
        self._before_commit = before_commit
        self._after_commit = after_commit
        self._sagas: dict[str, Stored] = {}
        self._keys: dict[tuple[str, str | None], str] = {}
        self._kept: dict[str, str] = {}
        self._outbox: dict[str, _Unpublished] = {}
        self._slots = MemorySlots()
        self._controls: dict[tuple[str, str, str], Control] = {}
        self._definitions: dict[tuple[str, int], str] = {}
        self._dead_letters: list[DeadLetter] = []
        self._dead_letters_ever = 0

    @override
    def load(self, saga_ids: Collection[str]) -> dict[str, SagaRow]:
        with self._lock:
            # In the order asked for: the order of a set differs from one process to the next.
            return {id_: self._row(self._sagas[id_]) for id_ in saga_ids if id_ in self._sagas}

    @override
    def find_by_key(self, name: str, key: str) -> SagaRow | None:
        with self._lock:
            saga_id = self._keys.get((name, key))
            return self._row(self._sagas[saga_id]) if saga_id else None

    @override
    def find_by_trace(self, trace_id: str) -> list[SagaSummary]:
        with self._lock:
            found = [summary_of(saga.row) for saga in self._sagas.values()]
        return sorted((one for one in found if one.trace_id == trace_id), key=_age)

    @override
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
        with self._lock:
            if self._before_commit:
                self._before_commit()
            prepared = [(change, self._prepared(change)) for change in changes]
            refused = self._refused(changes, gates)
            if together and (refused or not all(self._fits(change) for change in changes)):
                return frozenset(change.row.saga_id for change in changes)
            for saga_id, due_at in traced.items():
                saga = self._sagas.get(saga_id)
                if saga and saga.row.trace_due_at == due_at:
                    saga.row = msgspec.structs.replace(saga.row, trace_due_at=None)
            conflicts = {
                change.row.saga_id
                for change, saga in prepared
                if change.row.saga_id in refused or not self._apply(change, saga)
            }
            for command_id in published:
                self._outbox.pop(command_id, None)
            for letter in dead_letters:
                self._dead_letters_ever += 1
                number = self._dead_letters_ever
                numbered = msgspec.structs.replace(letter, dead_letter_id=number)
                self._dead_letters.append(rows.printable(numbered))
            if self._after_commit:
                self._after_commit()
            return frozenset(conflicts)

    @override
    def due(self, now: datetime, limit: int) -> list[str]:
        with self._lock:
            waiting = [
                (saga.row.wake_at, id_)
                for id_, saga in self._sagas.items()
                if saga.row.wake_at and saga.row.wake_at <= now
            ]
        return [id_ for _, id_ in sorted(waiting)[:limit]]

    @override
    def claim_unpublished(self, before: datetime, now: datetime, limit: int) -> list[Command]:
        with self._lock:
            old = sorted(
                (item.handed_out_at, id_)
                for id_, item in self._outbox.items()
                if item.handed_out_at < before
            )
            claimed = [self._outbox[id_] for _, id_ in old[:limit]]
            for item in claimed:
                item.handed_out_at = now
            return [self.read_command(item.command) for item in claimed]

    @override
    def postpone(self, saga_ids: Collection[str], until: datetime) -> None:
        with self._lock:
            for saga in (self._sagas[id_] for id_ in set(saga_ids) & self._sagas.keys()):
                if not saga.row.state.status.final:
                    saga.row = msgspec.structs.replace(saga.row, wake_at=until)
            self._slots.stop_waiting(saga_ids)

    @override
    def ids_from(self, beginning: str, limit: int) -> list[str]:
        length = len(UUID_LEAST)
        with self._lock:
            found = [one for one in self._sagas if one.startswith(beginning)]
        return sorted(one for one in found if len(one) == length)[:limit]

    @override
    def claim_untraced(self, now: datetime, until: datetime, limit: int) -> list[str]:
        with self._lock:
            waiting = sorted(
                (saga.row.trace_due_at, id_)
                for id_, saga in self._sagas.items()
                if saga.row.trace_due_at and saga.row.trace_due_at <= now
            )
            claimed = [id_ for _, id_ in waiting[:limit]]
            for id_ in claimed:
                saga = self._sagas[id_]
                saga.row = msgspec.structs.replace(saga.row, trace_due_at=until)
            return claimed

    @override
    def history(self, saga_ids: Collection[str]) -> dict[str, list[Recorded]]:
        with self._lock:
            return {
                id_: [
                    Recorded(sequence=sequence, at=at, event=self.read_event(event))
                    for sequence, at, event in self._sagas[id_].history
                ]
                for id_ in set(saga_ids) & self._sagas.keys()
            }

    @override
    def list_sagas(
        self,
        *,
        statuses: Collection[Status] = (),
        name: str | None = None,
        key: str | None = None,
        limit: int = 50,
        older: tuple[datetime, str] | None = None,
    ) -> list[SagaSummary]:
        with self._lock:
            found = [summary_of(saga.row) for saga in self._sagas.values()]
        chosen = [
            one
            for one in found
            if (not statuses or one.status in statuses)
            and (older is None or _age(one) < older)
            and (name is None or one.name == name)
            and (key is None or one.key == key)
        ]
        return sorted(chosen, key=_age, reverse=True)[:limit]

    @override
    def count_by_status(self) -> dict[Status, int]:
        with self._lock:
            return dict(Counter(saga.row.state.status for saga in self._sagas.values()))

    @override
    def ended(
        self,
        before: datetime,
        limit: int,
        *,
        name: str | None = None,
        statuses: Collection[Status] = (),
    ) -> list[str]:
        with self._lock:
            found = [
                (row.updated_at, row.saga_id)
                for row in (saga.row for saga in self._sagas.values())
                if row.state.status.final
                and row.updated_at < before
                and row.trace_due_at is None
                and not self._is_kept(row.saga_id, before)
                and (name is None or row.state.name == name)
                and (not statuses or row.state.status in statuses)
            ]
        return [id_ for _, id_ in sorted(found)[:limit]]

    @override
    def delete(self, saga_ids: Collection[str]) -> frozenset[str]:
        with self._lock:
            gone = {
                id_: self._sagas.pop(id_)
                for id_ in set(saga_ids)
                if id_ in self._sagas
                and self._sagas[id_].row.state.status.final
                and not self._is_kept(id_)
            }
            self._kept = {id_: above for id_, above in self._kept.items() if id_ not in gone}
            for saga in gone.values():
                self._keys.pop((saga.row.state.name, saga.row.state.key), None)
            self._outbox = {
                id_: item for id_, item in self._outbox.items() if item.saga_id not in gone
            }
            return frozenset(gone)

    # Room within limits ----------------------------------------------------------------------

    @override
    def crowds(self, gates: Collection[Gate], waiting_max: int) -> dict[Gate, Crowd]:
        with self._lock:
            return self._slots.crowds(gates, waiting_max)

    @override
    def stray_slots(self, known: Collection[Gate], limit: int) -> list[str]:
        with self._lock:
            sequences = {saga_id: saga.row.sequence for saga_id, saga in self._sagas.items()}
            return self._slots.stray(sequences, known, limit)

    @override
    def controls(self) -> list[Control]:
        with self._lock:
            return [control for _, control in sorted(self._controls.items())]

    @override
    def put_control(self, control: Control) -> None:
        with self._lock:
            self._controls[control.name, control.step, control.kind] = control

    @override
    def drop_control(self, name: str, step: str, kind: str) -> Control | None:
        with self._lock:
            return self._controls.pop((name, step, kind), None)

    @override
    def put_definition(self, definition: Definition, now: datetime) -> None:
        with self._lock:
            identity = definition.name, definition.version
            check_same(
                self._definitions.setdefault(identity, rows.to_json(definition)), definition
            )

    @override
    def definition(self, name: str, version: int) -> Definition | None:
        with self._lock:
            stored = self._definitions.get((name, version))
        return rows.definition_from(stored) if stored else None

    @override
    def definitions(self) -> list[Definition]:
        with self._lock:
            return [
                rows.definition_from(stored) for _, stored in sorted(self._definitions.items())
            ]

    @override
    def dead_letters(self, limit: int = 50) -> list[DeadLetter]:
        with self._lock:
            return self._dead_letters[::-1][:limit]

    @override
    def dead_letter(self, dead_letter_id: int) -> DeadLetter | None:
        with self._lock:
            of_number = (one for one in self._dead_letters if one.dead_letter_id == dead_letter_id)
            return next(of_number, None)

    @override
    def drop_dead_letters(self, dead_letter_ids: Collection[int]) -> int:
        with self._lock:
            before = len(self._dead_letters)
            self._dead_letters = [
                one for one in self._dead_letters if one.dead_letter_id not in dead_letter_ids
            ]
            return before - len(self._dead_letters)

    @override
    def outbox_size(self) -> int:
        with self._lock:
            return len(self._outbox)

    @override
    def survey(self, late_before: datetime) -> Survey:
        with self._lock:
            names = {name for name, _ in self._definitions}
            timers = [saga.row.wake_at for saga in self._sagas.values() if saga.row.wake_at]
            found = Counter(
                (saga.row.state.name, saga.row.state.status) for saga in self._sagas.values()
            )
            return Survey(
                in_flight={
                    (name, status): found[name, status] for name in names for status in ACTIVE
                },
                timers_late=sum(due_at <= late_before for due_at in timers),
                timer_due_at=min(timers, default=None),
                outbox_size=len(self._outbox),
                outbox_since=min(
                    (item.committed_at for item in self._outbox.values()), default=None
                ),
                dead_letters=len(self._dead_letters),
                awaiting_room={gate: self._slots.waiting_at(gate) for gate in self._known_gates()},
                paused=frozenset(name for name, _, kind in self._controls if kind == "pause"),
            )

    def _known_gates(self) -> set[Gate]:
        said = {(name, step) for name, step, kind in self._controls if kind == "limit"}
        return {*self._slots.gates, *said}

    @override
    def check(self) -> None:
        """Nothing can be wrong."""

    @override
    def close(self) -> None:
        """Nothing is held."""

    def _refused(self, changes: Sequence[Change], gates: Mapping[Gate, Limit]) -> set[str]:
        """Ids of sagas whose changes begin more than there is room for."""
        if not gates:
            return set()
        fresh = [
            change
            for change in changes
            if change.expected_sequence
            == (saga.row.sequence if (saga := self._sagas.get(change.row.saga_id)) else 0)
        ]
        return self._slots.refused(fresh, gates)

    def _is_kept(self, saga_id: str, before: datetime | None = None) -> bool:
        """Whether the saga that it is kept for is active; with `before`, also until that is old."""
        above = self._sagas.get(self._kept.get(saga_id, ""))
        if above is None:
            return False
        row = above.row
        young = before is not None and (row.updated_at >= before or row.saga_id in self._kept)
        return young or not row.state.status.final

    def _fits(self, change: Change) -> bool:
        """Whether nobody else has changed the saga, or taken its business key."""
        row, state = change.row, change.row.state
        before = self._sagas.get(row.saga_id)
        if change.expected_sequence != (before.row.sequence if before else 0):
            return False
        return state.key is None or self._keys.get(_identity(state), row.saga_id) == row.saga_id

    def _apply(self, change: Change, after: Stored) -> bool:
        """Apply one change; False if someone else has changed the saga."""
        row, state = change.row, change.row.state
        before = self._sagas.get(row.saga_id)
        if not self._fits(change):
            return False
        if state.key is not None:
            self._keys[_identity(state)] = row.saga_id
        if before:
            after.history = [*before.history, *after.history]
        self._sagas[row.saga_id] = after
        if above := kept_for(change):
            self._kept[row.saga_id] = above
        self._slots.put(change)
        for command_id, command in after.commands.items():
            known = _Unpublished(change.sent_at, row.saga_id, command, change.sent_at)
            self._outbox.setdefault(command_id, known)
        return True

    def _prepared(self, change: Change) -> Stored:
        if not change.expected_sequence:
            rows.require_storable(change.row.saga_id, "The saga id")
            rows.require_storable(change.row.state.key, "The business key")
        return Stored(
            row=change.row,
            state=self.keep(change.row.state),
            history=[(one.sequence, one.at, self.keep(one.event)) for one in change.events],
            commands={command.id: self.keep(command) for command in change.commands},
        )

    def _row(self, saga: Stored) -> SagaRow:
        return msgspec.structs.replace(saga.row, state=self.read_state(saga.state))


def _identity(state: SagaState) -> tuple[str, str | None]:
    return state.name, state.key


def _age(summary: SagaSummary) -> tuple[datetime, str]:
    return summary.started_at, summary.saga_id
