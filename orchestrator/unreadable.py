"""Sagas that cannot be read: put aside, so that the others go on, and looked at again later.

A row may be damaged, or sealed with a key that was taken off the ring too early. Nothing is changed
in it but when it is looked at again: once the key is back, its saga goes on by itself.
"""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Final

import structlog

from orchestrator.core.definition import Definition
from orchestrator.ports import DeadLetter, SagaRow, Store
from shared.errors import DecodeError, UnknownSaga

READ_AGAIN: Final = timedelta(minutes=2)
"""How long a saga that cannot be read is left alone."""

MARKS_MAX: Final = 100
"""Sagas of which a process keeps a dead letter: where a key is gone it may be all of them."""

log = structlog.get_logger("orchestrator")


def readable(store: Store, saga_ids: Collection[str]) -> tuple[dict[str, SagaRow], dict[str, str]]:
    """The rows of these sagas that can be read, and of the others why not."""
    try:
        return store.load(saga_ids), {}
    except DecodeError:
        pass  # one of them: which one is found out below
    rows: dict[str, SagaRow] = {}
    unreadable: dict[str, str] = {}
    for saga_id in saga_ids:
        try:
            rows |= store.load([saga_id])
        except DecodeError as error:
            unreadable[saga_id] = str(error)
    return rows, unreadable


def usable(
    store: Store, definition_of: Callable[[SagaRow], object], saga_ids: Collection[str]
) -> tuple[dict[str, SagaRow], dict[str, str]]:
    """As `readable`, and with definitions that can be read, too.

    Args:
        store: Where the sagas are.
        definition_of: Gives the definition of a saga; raises `DecodeError` for one that cannot be
            read.
        saga_ids: Which sagas.
    """
    rows, unreadable = readable(store, saga_ids)
    for saga_id, row in [*rows.items()]:
        try:
            definition_of(row)
        except DecodeError as error:
            name = f"{row.state.name!r} version {row.state.version}"
            unreadable[saga_id] = f"Its definition {name} cannot be read: {error}"
            del rows[saga_id]
    return rows, unreadable


def row_of(store: Store, saga_id: str) -> SagaRow | None:
    """The row of a saga, if there is one.

    Raises:
        DecodeError: It cannot be read.
    """
    rows, unreadable = readable(store, [saga_id])
    if saga_id in unreadable:
        raise DecodeError(refusal(saga_id, unreadable[saga_id]), saga_id=saga_id)
    return rows.get(saga_id)


def known_row(store: Store, saga_id: str) -> SagaRow:
    """The row of a saga that somebody names.

    Raises:
        UnknownSaga: There is none.
        DecodeError: It cannot be read.
    """
    row = row_of(store, saga_id)
    if row is None:
        raise UnknownSaga(f"There is no saga {saga_id!r}.", hint="`saga list` shows them.")
    return row


class Aside:
    """What this process has put aside.

    Args:
        store: Where the sagas are.
        definition_of: Gives the definition of a saga.
    """

    def __init__(self, store: Store, definition_of: Callable[[SagaRow], Definition]) -> None:
        self._store = store
        self._definition_of = definition_of
        self._known: set[str] = set()
        self._letters: list[DeadLetter] = []

    def load(
        self, saga_ids: Collection[str], now: datetime
    ) -> tuple[dict[str, SagaRow], Mapping[str, str]]:
        """The sagas that can be read, with their definitions; of the others why not.

        Those are told of, and woken again when `READ_AGAIN` is over.
        """
        rows, unreadable = usable(self._store, self._definition_of, saga_ids)
        if unreadable:
            self._store.postpone(unreadable, now + READ_AGAIN)
            for saga_id, reason in unreadable.items():
                self._tell(saga_id, reason, now)
        if self._known and (healed := self._known & rows.keys()):
            self._known -= healed
            for saga_id in sorted(healed):
                log.info("saga.readable_again", saga_id=saga_id)
        return rows, unreadable

    def letters(self) -> list[DeadLetter]:
        """Dead letters that say what was put aside, each once."""
        letters, self._letters = self._letters, []
        return letters

    def _tell(self, saga_id: str, reason: str, now: datetime) -> None:
        log.error("saga.unreadable", saga_id=saga_id, reason=reason, again_at=now + READ_AGAIN)
        if saga_id in self._known:
            return
        if len(self._known) < MARKS_MAX:
            told = refusal(saga_id, reason)
            self._letters.append(
                DeadLetter(reason=told, task="", saga_id=saga_id, body="", at=now)
            )
        self._known.add(saga_id)


def refusal(saga_id: str, reason: str) -> str:
    """Why nothing can be done with a saga now."""
    minutes = READ_AGAIN // timedelta(minutes=1)
    return (
        f"Saga {saga_id} cannot be read, and is put aside; it is looked at again every {minutes} "
        f"minutes. {reason}"
    )
