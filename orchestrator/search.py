"""Finds sagas by what they are doing: for lists, and for operators who act on many at once.

What the store has an index for (status, name, key) it looks up. The rest is in the state of a
saga: those that come into question are read page by page, newest first, until enough are found.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

import msgspec

from orchestrator.core.state import Phase, SagaState, Status, StepState
from orchestrator.ports import SagaRow, Store
from orchestrator.unreadable import readable

PAGE_SAGAS: Final = 200

_RETRYING: Final = frozenset({Phase.RETRYING, Phase.UNDO_RETRYING})
_AT: Final = frozenset(
    {
        Phase.RUNNING,
        Phase.RETRYING,
        Phase.REJECTED,
        Phase.FAILED,
        Phase.UNDOING,
        Phase.UNDO_RETRYING,
        Phase.UNDO_FAILED,
    }
)
"""Phases in which a saga is held up by a step, or turned back because of it."""


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which sagas are wanted; every field narrows, an empty one asks for nothing.

    Attributes:
        statuses: Only these.
        name: Name of the saga.
        key: Business key.
        step: The saga is at this step: it is in flight, waits for an attempt, or has gone wrong.
        error: Kind of a failure: why it turned back, or what the last attempt of a step said.
        attempts: A step that is at it, or waits for the next, has had at least so many attempts.
        retrying: A step waits for its next attempt.
        paused: An operator has paused it, or has not.
        unchanged_since: Its last change was before this moment.
    """

    statuses: tuple[Status, ...] = ()
    name: str | None = None
    key: str | None = None
    step: str = ""
    error: str = ""
    attempts: int = 0
    retrying: bool = False
    paused: bool | None = None
    unchanged_since: datetime | None = None

    @property
    def is_empty(self) -> bool:
        """Whether every saga fits."""
        return self == Filter()

    @property
    def looked_up(self) -> bool:
        """Whether the store answers it without reading a single saga."""
        return self == Filter(statuses=self.statuses, name=self.name, key=self.key)

    def fits(self, row: SagaRow) -> bool:
        """Whether a saga that the store has found fits the rest, and still its status."""
        state = row.state
        steps = [state.step(self.step)] if self.step else [*state.steps.values()]
        return (
            (not self.statuses or state.status in self.statuses)
            and (self.unchanged_since is None or row.updated_at < self.unchanged_since)
            and (self.paused is None or state.paused is self.paused)
            and (not self.step or steps[0].phase in _AT)
            and (not self.error or _has_error(state, steps, self.error))
            and (not self.retrying or any(one.phase in _RETRYING for one in steps))
            and (not self.attempts or any(_attempts(one) >= self.attempts for one in steps))
        )


def find(store: Store, wanted: Filter) -> Iterator[SagaRow]:
    """Sagas that fit, newest first."""
    older: tuple[datetime, str] | None = None
    while True:
        page = store.list_sagas(
            statuses=wanted.statuses,
            name=wanted.name,
            key=wanted.key,
            limit=PAGE_SAGAS,
            older=older,
        )
        rows, _ = readable(store, [one.saga_id for one in page])
        for one in page:
            row = rows.get(one.saga_id)
            # It may have moved on, or be gone, since the list was made.
            if row and wanted.fits(row):
                yield row
        if len(page) < PAGE_SAGAS:
            return
        older = page[-1].started_at, page[-1].saga_id


def _has_error(state: SagaState, steps: list[StepState], kind: str) -> bool:
    cause = state.cause.failure if state.cause else None
    failures = [one.failure for one in steps]
    return any(failure.kind == kind for failure in (cause, *failures) if failure)


def _attempts(step: StepState) -> int:
    if step.phase in {Phase.UNDOING, Phase.UNDO_RETRYING, Phase.UNDO_FAILED}:
        return step.undo_attempt
    return step.attempt if step.phase in _AT else 0
