"""Finds sagas by what they are doing: for lists, and for operators who act on many at once.

What the store has an index for (status, name, key) it looks up. The rest is in the state of a
saga: those that come into question are read page by page, newest first, until enough are found.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cache
from typing import Final, NamedTuple

import msgspec

from orchestrator.core.definition import Definition
from orchestrator.core.state import ACTIVE, FINAL, Phase, SagaState, Status, StepState
from orchestrator.ports import SagaRow, SagaSummary, Store, summary_of
from orchestrator.unreadable import readable, usable
from shared.errors import InputError
from shared.guessing import guess

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

_OF_STEPS: Final = ("step", "error", "attempts", "retrying", "paused")

Older = tuple[datetime, str]
"""A place in a list, newest first: when the last saga before it started, and its id."""


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
        unreadable: It cannot be read. What its steps are doing is not known then, so that it goes
            with what the store has beside the state: status, name, key and last change.

    Raises:
        InputError: `unreadable` stands beside something else.
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
    unreadable: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be answered."""
        if not self.unreadable:
            return
        wrong = [name for name in _OF_STEPS if getattr(self, name)]
        if wrong:
            raise InputError(
                f"What sagas that cannot be read are doing is not known: {wrong[0]} does not go "
                "with unreadable.",
                hint="Status, name, key and the time of the last change do.",
            )

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


class Found(NamedTuple):
    """Sagas of a list, newest first.

    Attributes:
        sagas: Them.
        older: Where the list goes on; None at its end.
    """

    sagas: list[SagaSummary]
    older: Older | None


def find(store: Store, wanted: Filter, older: Older | None = None) -> Iterator[SagaRow]:
    """Sagas that fit, newest first; what cannot be read fits nothing."""
    for page in _pages(store, wanted, PAGE_SAGAS, older):
        yield from _fitting(store, wanted, page)


def summaries(
    store: Store,
    wanted: Filter,
    *,
    limit: int,
    older: Older | None = None,
    looked_at_max: int | None = None,
) -> Found:
    """Sagas that fit as a list shows them, newest first.

    Args:
        store: Where they are.
        wanted: Which.
        limit: Most that are found.
        older: Where an earlier list has ended.
        looked_at_max: Most that are read to find them: there may be fewer then, and yet more to
            come. None for any number.
    """
    found: list[SagaSummary] = []
    looked_at = 0
    size = limit if wanted.looked_up else PAGE_SAGAS
    for page in _pages(store, wanted, size, older):
        if wanted.looked_up:
            fits = page
        elif wanted.unreadable:
            fits = _unreadable(store, wanted, page)
        else:
            fits = [summary_of(row) for row in _fitting(store, wanted, page)]
        found += fits[: limit - len(found)]
        looked_at += len(page)
        if len(found) == limit:
            return Found(found, _place(found[-1]))
        if looked_at_max is not None and looked_at >= looked_at_max and len(page) == size:
            return Found(found, _place(page[-1]))
    return Found(found, None)


def statuses_of(given: Sequence[str]) -> list[Status]:
    """The statuses that people name: singly, as `active` or `final`, several with commas.

    Raises:
        InputError: There is none of that name; names the nearest.
    """
    groups = {"active": ACTIVE, "final": FINAL}
    known = {one.value: one for one in Status}
    found: list[Status] = []
    for text in (part.strip() for value in given for part in value.split(",")):
        if text in groups:
            found += sorted(groups[text])
        elif text in known:
            found.append(known[text])
        else:
            every = [*known, *groups]
            raise InputError(
                f"There is no status {text!r}. {guess(text, every, most=1)}".rstrip(),
                hint=f"One of {', '.join(every)}.",
            )
    return found


def _pages(
    store: Store, wanted: Filter, size: int, older: Older | None
) -> Iterator[list[SagaSummary]]:
    """What comes into question, by what the store has an index for."""
    while True:
        page = store.list_sagas(
            statuses=wanted.statuses, name=wanted.name, key=wanted.key, limit=size, older=older
        )
        yield [*page]
        if len(page) < size:
            return
        older = _place(page[-1])


def _fitting(store: Store, wanted: Filter, page: Sequence[SagaSummary]) -> Iterator[SagaRow]:
    rows, _ = readable(store, [one.saga_id for one in page])
    for one in page:
        row = rows.get(one.saga_id)
        # It may have moved on, or be gone, since the list was made.
        if row and wanted.fits(row):
            yield row


def _unreadable(store: Store, wanted: Filter, page: Sequence[SagaSummary]) -> list[SagaSummary]:
    @cache
    def pinned(name: str, version: int) -> Definition | None:
        return store.definition(name, version)

    since = wanted.unchanged_since
    asked = [one for one in page if since is None or one.updated_at < since]
    saga_ids = [one.saga_id for one in asked]
    _, reasons = usable(store, lambda row: pinned(row.state.name, row.state.version), saga_ids)
    return [
        msgspec.structs.replace(one, unreadable=reasons[one.saga_id])
        for one in asked
        if one.saga_id in reasons
    ]


def _place(one: SagaSummary) -> Older:
    return one.started_at, one.saga_id


def _has_error(state: SagaState, steps: list[StepState], kind: str) -> bool:
    cause = state.cause.failure if state.cause else None
    failures = [one.failure for one in steps]
    return any(failure.kind == kind for failure in (cause, *failures) if failure)


def _attempts(step: StepState) -> int:
    if step.phase in {Phase.UNDOING, Phase.UNDO_RETRYING, Phase.UNDO_FAILED}:
        return step.undo_attempt
    return step.attempt if step.phase in _AT else 0
