"""Slots in memory: who takes room within a limit, who waits for it, and what there is room for."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

import msgspec

from orchestrator.core.limits import Limit
from orchestrator.core.room import Slot
from orchestrator.ports import Change, Crowd, Gate, Rank
from orchestrator.store import admission


class Held(msgspec.Struct, frozen=True):
    """Slots of a saga, as they were written."""

    name: str
    slots: tuple[Slot, ...]
    rank: Rank
    sequence: int

    def taken_at(self, gate: Gate) -> int:
        """How many are taken at a gate."""
        return sum((self.name, one.step) == gate and not one.waiting for one in self.slots)

    def waits_at(self, gate: Gate) -> bool:
        """Whether one waits there."""
        return any((self.name, one.step) == gate and one.waiting for one in self.slots)


class MemorySlots:
    """Slots in dictionaries, which the store locks.

    Attributes:
        held: By the id of their saga.
    """

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}
        self._free_at: dict[Gate, datetime | None] = {}

    @property
    def gates(self) -> Collection[Gate]:
        """Where anybody ever had room."""
        return self._free_at.keys()

    def put(self, change: Change) -> None:
        """Write the slots of a saga; those that it had before are gone."""
        row, state = change.row, change.row.state
        if change.slots:
            rank = (int(not state.backward), row.started_at, row.saga_id)
            self.held[row.saga_id] = Held(state.name, change.slots, rank, row.sequence)
        elif change.slots is not None:
            self.held.pop(row.saga_id, None)

    def stop_waiting(self, saga_ids: Collection[str]) -> None:
        """Take these sagas out of those who wait; what they have taken they keep."""
        for saga_id in set(saga_ids) & self.held.keys():
            held = self.held[saga_id]
            taken = tuple(slot for slot in held.slots if not slot.waiting)
            self.held[saga_id] = msgspec.structs.replace(held, slots=taken)

    def crowds(self, gates: Collection[Gate], waiting_max: int) -> dict[Gate, Crowd]:
        """Who is at these gates; see `Store.crowds`."""
        held = self.held.values()
        return {
            gate: Crowd(
                in_flight=sum(one.taken_at(gate) for one in held),
                free_at=self._free_at.get(gate),
                waiting=tuple(sorted(one.rank for one in held if one.waits_at(gate)))[
                    :waiting_max
                ],
                known=gate in self._free_at,
            )
            for gate in gates
        }

    def waiting_at(self, gate: Gate) -> int:
        """How many sagas wait there."""
        return sum(one.waits_at(gate) for one in self.held.values())

    def stray(
        self, sequences: Mapping[str, int], known: Collection[Gate], limit: int
    ) -> list[str]:
        """Sagas with slots that are not those of their state; see `Store.stray_slots`.

        Args:
            sequences: Of the sagas that there are; the slots of others are deleted.
            known: Gates with a limit.
            limit: Most ids.
        """
        for saga_id in self.held.keys() - sequences.keys():
            del self.held[saga_id]
        stray = [
            saga_id
            for saga_id, held in self.held.items()
            if held.sequence != sequences[saga_id]
            or any((held.name, slot.step) not in known for slot in held.slots)
        ]
        return sorted(stray)[:limit]

    def refused(self, changes: Sequence[Change], gates: Mapping[Gate, Limit]) -> set[str]:
        """Ids of sagas whose changes begin more than there is room for; the others' rates are used up."""
        asked = admission.asked_of(changes, gates)
        if not asked:
            return set()
        held = self.held.values()
        let_in = admission.admit(
            changes,
            gates,
            free_at={gate: self._free_at.setdefault(gate, None) for gate in asked},
            taken=Counter({gate: sum(one.taken_at(gate) for one in held) for gate in asked}),
            taken_by=Counter(
                {
                    (saga_id, gate): one.taken_at(gate)
                    for saga_id, one in self.held.items()
                    for gate in asked
                }
            ),
        )
        self._free_at |= let_in.free_at
        kept = {change.row.saga_id for change in let_in.changes}
        return {change.row.saga_id for change in changes} - kept
