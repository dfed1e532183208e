"""What is asked of sagas, and the changes that follow and will be one transaction."""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Final

import msgspec

from orchestrator.core.definition import Definition
from orchestrator.core.events import Recorded
from orchestrator.core.machine import Decision
from orchestrator.core.messages import Message
from orchestrator.ports import NOTHING_BEGUN, Change, Delivery, SagaRow
from orchestrator.rooms import Floor, Shares
from shared.claims import NO_PARTS

NOTHING_UNREADABLE: Final[Mapping[str, str]] = MappingProxyType({})


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A message for a saga.

    Attributes:
        delivery: How it came, when it came through the queue: if it is refused it goes to the
            dead letters.
        definition: Of a saga that this message begins.
        recount: Write its slots anew, whether anything follows or not.
        parts: Large values of a saga that begins, to be put into the payload store before.
    """

    saga_id: str
    message: Message
    delivery: Delivery | None = None
    definition: Definition | None = None
    recount: bool = False
    parts: Mapping[str, bytes] = NO_PARTS


class Batch:
    """Changes that will be one transaction: several messages may be about the same saga.

    Args:
        now: When they are decided.
        rows: The sagas as they are stored.
        floor: The room within their limits, where there are any.
        unreadable: Sagas that cannot be read now, and why.

    Attributes:
        before: The same rows, whatever is added.
        rows: The sagas as they will be.
        untraced: Ids of sagas of which an earlier export of spans is not confirmed.
    """

    def __init__(
        self,
        now: datetime,
        rows: dict[str, SagaRow],
        floor: Floor | None = None,
        unreadable: Mapping[str, str] = NOTHING_UNREADABLE,
    ) -> None:
        self.now = now
        self.floor = floor
        self.unreadable = unreadable
        self.before = dict(rows)
        self.rows = rows
        self.untraced: set[str] = set()
        self._changes: dict[str, Change] = {}

    def add(
        self,
        row: SagaRow | None,
        decision: Decision,
        trace_due_at: datetime | None,
        shares: Shares | None = None,
    ) -> None:
        """Add a decision about a saga whose row before it is `row`."""
        assert decision.state is not None  # noqa: S101 - the caller has looked
        saga_id = decision.state.saga_id
        sequence = row.sequence if row else 0
        # What is noted of a saga that has ended is no move of it, nor that a sub-saga is asked again.
        noted = row and row.state.status.final and decision.state.status.final
        events = tuple(
            Recorded(sequence=number, at=self.now, event=event)
            for number, event in enumerate(decision.events, start=sequence + 1)
        )
        asking = bool(row and decision.commands and not decision.events)
        if trace_due_at and row and row.trace_due_at == trace_due_at:
            # An export is confirmed by this time: two of one moment must not be taken for one.
            trace_due_at += datetime.resolution
        self.rows[saga_id] = SagaRow(
            sequence=events[-1].sequence if events else sequence,
            state=decision.state,
            wake_at=decision.wake_at,
            started_at=row.started_at if row else self.now,
            updated_at=row.updated_at if row and (noted or asking) else self.now,
            trace_due_at=trace_due_at or (row.trace_due_at if row else None),
        )
        earlier = self._changes.get(saga_id)
        self._changes[saga_id] = Change(
            row=self.rows[saga_id],
            expected_sequence=earlier.expected_sequence if earlier else sequence,
            events=(earlier.events if earlier else ()) + events,
            commands=(earlier.commands if earlier else ()) + decision.commands,
            slots=shares.slots if shares else None,
            begun=Counter(earlier.begun if earlier else ()) + Counter(shares.begun)
            if shares
            else NOTHING_BEGUN,
            decided_at=self.now,
        )

    def changes(self) -> tuple[Change, ...]:
        """One for each saga that changed."""
        return tuple(self._changes.values())
