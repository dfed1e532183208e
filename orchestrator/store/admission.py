"""Which changes of a transaction have room for what they begin; the same for every store. Pure."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

import msgspec

from orchestrator.core.limits import Limit, free_after, starts_open
from orchestrator.ports import Change, Gate


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """What has room.

    Attributes:
        changes: In the order in which they were given.
        free_at: Until when rates are used up now, where something of them was used.
    """

    changes: list[Change]
    free_at: dict[Gate, datetime]


def asked_of(changes: Collection[Change], gates: Mapping[Gate, Limit]) -> frozenset[Gate]:
    """The gates through which something begins."""
    return frozenset(gate for change in changes for gate in begun(change) if gate in gates)


def admit(
    changes: Sequence[Change],
    gates: Mapping[Gate, Limit],
    *,
    free_at: Mapping[Gate, datetime | None],
    taken: Counter[Gate],
    taken_by: Counter[tuple[str, Gate]],
) -> Admitted:
    """Let in what fits.

    Args:
        changes: That would be committed.
        gates: The limits of what begins with them.
        free_at: Until when the rate of each gate that is asked for is used up.
        taken: Slots at these gates.
        taken_by: Those of the sagas of the changes, by id.
    """
    taken, starts = taken.copy(), Counter[Gate]()
    now = max(change.row.updated_at for change in changes)
    admitted = set()
    # First what only gives back: what the others take is counted with that.
    for change in sorted(changes, key=lambda one: bool(one.begun)):
        saga_id, more = change.row.saga_id, _held(change)
        more.subtract({gate: taken_by[saga_id, gate] for gate in free_at})
        new = begun(change)
        if all(
            _fits(gates[gate], taken[gate] + more[gate])
            and _in_time(gates[gate], free_at[gate], now, starts[gate] + new[gate])
            for gate in free_at
            if new[gate]
        ):
            admitted.add(saga_id)
            taken.update(more)
            starts.update(new)
    return Admitted(
        changes=[change for change in changes if change.row.saga_id in admitted],
        free_at={
            gate: free_after(gates[gate], at, now, starts[gate])
            for gate, at in free_at.items()
            if starts[gate] and gates[gate].rate
        },
    )


def begun(change: Change) -> Counter[Gate]:
    """What begins with a change, at each gate."""
    name = change.row.state.name
    return Counter({(name, step): count for step, count in change.begun.items()})


def _held(change: Change) -> Counter[Gate]:
    name = change.row.state.name
    return Counter((name, slot.step) for slot in change.slots or () if not slot.waiting)


def _fits(limit: Limit, taken: int) -> bool:
    return limit.in_flight is None or taken <= limit.in_flight


def _in_time(limit: Limit, free_at: datetime | None, now: datetime, starts: int) -> bool:
    room = starts_open(limit, free_at, now)
    return room is None or starts <= room
