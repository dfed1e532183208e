"""Limits that all sagas of a name share: which are in force, and how much room they leave.

The definition says what is allowed, and an operator may say otherwise (`Control`); that is read again
every second, so a definition without a limit costs no statement of its own. Who takes room and who
waits for it stands in the store, which has the last word: what is counted here only saves most of
the commits that it would refuse.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final

import msgspec

from orchestrator.catalog import Catalog
from orchestrator.core.definition import Definition
from orchestrator.core.limits import Limit, opens_at, starts_open
from orchestrator.core.machine import Decision
from orchestrator.core.plan import plan_of
from orchestrator.core.room import Room, Slot, begun_by, taken
from orchestrator.core.state import ACTIVE
from orchestrator.ports import NO_GATES, Control, Crowd, Gate, Rank, SagaRow, Store
from shared.clock import Clock

CONTROLS_FOR: Final = timedelta(seconds=1)
"""How old what is known of operators' controls may be."""

RECOUNT_AFTER: Final = timedelta(seconds=3)
"""Until every process knows of a new limit; then sagas that began before it are counted, too."""

BATCH_MAX: Final = 200
"""Most that one batch lets through a gate, and most of those who wait that are looked at."""


class Shares(msgspec.Struct, frozen=True, kw_only=True):
    """What a decision means for the room of others.

    Attributes:
        slots: All that the saga holds or waits for afterwards.
        begun: Attempts that begin with it, by step.
    """

    slots: tuple[Slot, ...]
    begun: Mapping[str, int]


NO_SHARES: Final = Shares(slots=(), begun={})
"""Of a saga that has no limits any more."""


class GateView(msgspec.Struct, frozen=True, kw_only=True):
    """A limit, and how much of it is used.

    Attributes:
        name: Name of the saga.
        step: Which step; empty for the saga itself.
        limit: What is in force.
        in_flight: What is in flight now.
        waiting: How many wait; counted up to `BATCH_MAX`.
        ahead: How many of them are in front of the saga that was asked for.
        opens_at: When the rate lets the next one begin, where it does not now.
        control: What an operator has said, if the limit is not that of the definition.
    """

    name: str
    step: str
    limit: Limit
    in_flight: int
    waiting: int
    ahead: int = 0
    opens_at: datetime | None = None
    control: Control | None = None


class Floor:
    """The room of one batch: what the store had, less what the batch has taken.

    Attributes:
        limits: Of all gates of the batch.
        freed: Gates that somebody waits at, and where the batch gives something back.
    """

    def __init__(
        self,
        limited: Mapping[tuple[str, int], Mapping[str, Limit]],
        crowds: Mapping[Gate, Crowd],
        now: datetime,
    ) -> None:
        self._limited = limited
        self.limits: dict[Gate, Limit] = {
            (name, step): limit
            for (name, _), limits in limited.items()
            for step, limit in limits.items()
        }
        self.freed: set[Gate] = set()
        self._waiting = {gate: set(crowd.waiting) for gate, crowd in crowds.items()}
        self._open = {gate: _open(limit, crowds[gate], now) for gate, limit in self.limits.items()}

    def room(self, definition: Definition, row: SagaRow | None, now: datetime) -> Room:
        """The room that a saga has; empty where it has no limits."""
        limits = self._limited.get((definition.name, definition.version))
        if not limits:
            return {}
        rank: Rank = (1, now, "") if row is None else _rank(row)
        return {step: self._room((definition.name, step), rank) for step in limits}

    def _room(self, gate: Gate, rank: Rank) -> int:
        open_ = self._open[gate]
        if open_ <= 0:
            return 0
        return open_ - sum(other < rank for other in self._waiting[gate])

    def shares(
        self, definition: Definition, row: SagaRow | None, decision: Decision, started_at: datetime
    ) -> Shares | None:
        """What a decision takes and gives back, which counts from now on; None without limits."""
        limits = self._limited.get((definition.name, definition.version))
        after = decision.state
        if after is None or limits is None:
            return None
        before = row.state if row else None
        held = taken(plan_of(definition, after), after, limits)
        waiting = sorted({closed for closed in decision.awaiting.values() if closed in limits})
        begun = begun_by(plan_of(definition, after), before, after, decision.events)
        had = Counter(
            slot.step
            for slot in (taken(plan_of(definition, before), before, limits) if before else ())
        )
        has = Counter(slot.step for slot in held)
        rank: Rank = (int(not after.backward), started_at, after.saga_id)
        for step in limits:
            gate = (definition.name, step)
            self._waiting[gate] = {one for one in self._waiting[gate] if one[2] != after.saga_id}
            if step in waiting:
                self._waiting[gate].add(rank)
            # What was given back may be taken within the batch; a rate is used up for good.
            rated = begun[step] if self.limits[gate].rate else 0
            self._open[gate] -= max(has[step] - had[step], rated)
            if has[step] < had[step] + begun[step] and self._waiting[gate]:
                self.freed.add(gate)
        return Shares(
            slots=(*held, *(Slot(step=step, run=step, waiting=True) for step in waiting)),
            begun={step: begun[step] for step in limits if begun[step]},
        )


class Rooms:
    """Knows which limits are in force.

    Args:
        store: Where operators' controls are, and who takes room.
        catalog: Knows the definitions.
        clock: Tells the time.
    """

    def __init__(self, *, store: Store, catalog: Catalog, clock: Clock) -> None:
        self._store = store
        self._catalog = catalog
        self._clock = clock
        self._read_at: datetime | None = None
        self._controls: dict[str, list[Control]] = {}
        self._limited: dict[tuple[str, int], Mapping[str, Limit]] = {}
        self._recount_at: dict[str, datetime] = {}
        self._pause_at: dict[str, datetime] = {}
        self._counted: dict[str, tuple[datetime, str]] = {}
        self._limited_before = True
        self._seen: dict[tuple[str, int], Definition] = {}
        self._in_force: dict[Gate, Limit] | None = None

    def floor(self, definitions: Iterable[Definition], now: datetime) -> Floor | None:
        """The room for sagas on these definitions; None where none of them has a limit."""
        self._refresh(now)
        limited: dict[tuple[str, int], Mapping[str, Limit]] = {}
        for one in definitions:
            if limits := self._limits_of(one):
                limited[one.name, one.version] = limits
        if not limited:
            return None
        gates = {(name, step) for (name, _), limits in limited.items() for step in limits}
        return Floor(limited, self._store.crowds(gates, BATCH_MAX), now)

    def limits_of(self, definition: Definition) -> Mapping[str, Limit]:
        """The limits in force for sagas on a definition, by step; the empty name is the saga."""
        self._refresh(self._clock())
        return self._limits_of(definition)

    def _limits_of(self, definition: Definition) -> Mapping[str, Limit]:
        """Those of the newest version hold for the older ones, too: they share the room."""
        identity = (definition.name, definition.version)
        known = self._limited.get(identity)
        if known is None:
            newest = self._catalog.find(definition.name)
            said = self._controls.get(definition.name, ())
            known = {
                **definition.limits,
                **(newest.definition.limits if newest else {}),
                **{control.step: control.limit for control in said if control.limit},
            }
            self._limited[identity] = known
            self._seen[identity] = definition
            self._in_force = None
        return known

    def gates(self) -> Mapping[Gate, Limit]:
        """Every limit in force that this process knows of."""
        self._refresh(self._clock())
        return self._gates() or NO_GATES

    def pause_of(self, name: str) -> Control | None:
        """The pause that all sagas of a name are under, if they are."""
        self._refresh(self._clock())
        return _pause_in(self._controls.get(name, ()))

    def view(self, gates: Mapping[Gate, Limit], row: SagaRow | None = None) -> list[GateView]:
        """How much of these limits is used, and where a saga stands among those who wait."""
        now = self._clock()
        crowds = self._store.crowds(gates.keys(), BATCH_MAX)
        said = {
            (one.name, one.step): one
            for controls in self._controls.values()
            for one in controls
            if one.limit is not None
        }
        rank = (0, now, "") if row is None else _rank(row)
        return [
            GateView(
                name=gate[0],
                step=gate[1],
                limit=limit,
                in_flight=crowds[gate].in_flight,
                waiting=len(crowds[gate].waiting),
                ahead=sum(other < rank for other in crowds[gate].waiting),
                opens_at=_opens_at(limit, crowds[gate], now),
                control=said.get(gate),
            )
            for gate, limit in sorted(gates.items())
        ]

    def pauses(self) -> list[Control]:
        """The names that are paused, with who said so, when and why."""
        self._refresh(self._clock())
        said = (one for controls in self._controls.values() for one in controls)
        return [one for one in said if one.limit is None]

    def to_pause(self, limit: int) -> tuple[Control | None, list[str]]:
        """Sagas that somebody started who did not know yet that their name is paused.

        Returns:
            The pause, and at most so many sagas that began after it; what it names is done then.
        """
        now = self._clock()
        for name, at in self._pause_at.items():
            if at <= now:
                del self._pause_at[name]
                control = self.pause_of(name)
                if control is None:
                    break
                found = self._store.list_sagas(statuses=ACTIVE, name=name, limit=limit)
                return control, [one.saga_id for one in found if one.started_at >= control.at]
        return None, []

    def to_admit(self, gates: Mapping[Gate, Limit]) -> tuple[list[str], datetime | None]:
        """Sagas that wait and have room now, and when the next one has, as far as a rate says so."""
        now = self._clock()
        found: dict[str, None] = {}
        opens: list[datetime] = []
        for gate, crowd in self._store.crowds(gates.keys(), BATCH_MAX).items():
            room = _open(gates[gate], crowd, now)
            found |= dict.fromkeys(saga_id for _, _, saga_id in crowd.waiting[: max(0, room)])
            at = _opens_at(gates[gate], crowd, now)
            if at is not None and crowd.waiting and room <= 0:
                opens.append(at)
        return [*found], min(opens, default=None)

    def keep(self, control: Control) -> None:
        """Keep what an operator says of a name; it is in force here at once."""
        self._store.put_control(control)
        self._read_at = None

    def drop(self, name: str, step: str, kind: str) -> Control | None:
        """Take back what an operator said of a name; returns what it was."""
        gone = self._store.drop_control(name, step, kind)
        self._read_at = None
        return gone

    def to_count(self, limit: int) -> list[str]:
        """Sagas whose slots may not be those of their state, `limit` at most."""
        now, gates = self._clock(), self.gates()
        for name, at in self._recount_at.items():
            if at <= now:
                return self._uncounted(name, limit)
        if not (gates or self._limited_before):
            return []  # most have no limits, and what nobody has written need not be looked for
        found = self._store.stray_slots(gates.keys(), limit)
        self._limited_before = bool(gates or found)
        return found

    def _uncounted(self, name: str, limit: int) -> list[str]:
        """The next page of the sagas that began before a limit of their name was known."""
        page = self._store.list_sagas(
            statuses=ACTIVE, name=name, limit=limit, older=self._counted.get(name)
        )
        if len(page) < limit:
            del self._recount_at[name]
            self._counted.pop(name, None)
        else:
            self._counted[name] = page[-1].started_at, page[-1].saga_id
        return [one.saga_id for one in page]

    def _gates(self) -> dict[Gate, Limit]:
        if self._in_force is None:
            definitions = {(one.name, one.version): one.definition for one in self._catalog}
            known = {**self._seen, **definitions}.values()
            limits = {(one.name, one.version): self._limits_of(one) for one in known}
            self._in_force = {
                (name, step): limit
                for (name, _), said in limits.items()
                for step, limit in said.items()
            }
        return self._in_force

    def _refresh(self, now: datetime) -> None:
        if self._read_at is not None and self._read_at <= now < self._read_at + CONTROLS_FOR:
            return
        before = None if self._read_at is None else self._gates()
        self._read_at = now
        controls: dict[str, list[Control]] = {}
        for control in self._store.controls():
            controls.setdefault(control.name, []).append(control)
        if before is not None and controls == self._controls:
            return
        paused = {name for name in controls if _pause_in(controls[name])}
        known = {name for name in self._controls if _pause_in(self._controls[name])}
        self._pause_at |= dict.fromkeys(paused - known, now + RECOUNT_AFTER)
        self._controls = controls
        self._limited, self._in_force = {}, None
        new = self._gates().keys() - (before or {}).keys()
        if before is None and new:
            # What was limited before this process began has been counted from the start.
            new = {gate for gate, crowd in self._store.crowds(new, 0).items() if not crowd.known}
        self._recount_at |= {name: now + RECOUNT_AFTER for name, _ in new}


def _open(limit: Limit, crowd: Crowd, now: datetime) -> int:
    room = [BATCH_MAX]
    if limit.in_flight is not None:
        room.append(limit.in_flight - crowd.in_flight)
    starts = starts_open(limit, crowd.free_at, now)
    return min(room if starts is None else [*room, starts])


def _opens_at(limit: Limit, crowd: Crowd, now: datetime) -> datetime | None:
    """When a rate that is used up lets the next one begin."""
    if not limit.rate or crowd.free_at is None:
        return None
    at = opens_at(limit, crowd.free_at)
    return at if at > now else None


def _rank(row: SagaRow) -> Rank:
    return int(not row.state.backward), row.started_at, row.saga_id


def _pause_in(controls: Iterable[Control]) -> Control | None:
    return next((one for one in controls if one.limit is None), None)
