"""Deletes what ended long ago, in batches, after it was archived.

    for each batch:  read → append to the archive, sync → delete → delete from the payload store

A crash in between leaves sagas that are in the archive and in the store; they are archived once
more by the next run. Nothing is ever deleted that is not in the archive. Or it leaves payloads of
sagas that are gone: `sweep` finds them.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from orchestrator.core.definition import Definition
from orchestrator.core.events import Recorded
from orchestrator.core.state import Status
from orchestrator.ports import SagaRow, Store
from shared import codec
from shared.claims import Claims
from shared.errors import ConfigurationError
from shared.tickets import CLAIM, MARK, tickets_in

BATCH_SAGAS_MAX: Final = 500
"""Sagas of one transaction: small enough that running sagas do not wait for it."""


LEFTOVERS_AGE_MIN: Final = timedelta(days=1)
"""A payload of a saga that does not exist may be of one that is about to begin: not so long."""


class Archived(msgspec.Struct, frozen=True, kw_only=True):
    """A saga in the archive: one line of JSON, readable without the store that it came from.

    Attributes:
        definition: What it ran on; None where the store had lost it.
        history: All of it; its fold is the state of `row`.
        payloads: What its tickets stand for, by what they call it (``$claim``).
    """

    saga_id: str
    definition: Definition | None
    row: SagaRow
    history: Sequence[Recorded]
    payloads: dict[str, msgspec.Raw] = {}


Archive = Callable[[Iterable[Archived]], None]


def archive_to(path: Path) -> Archive:
    """An archive in a file of JSON lines, which is appended to and is on the disk after each call."""

    def write(sagas: Iterable[Archived]) -> None:
        with path.open("ab") as file:
            file.writelines(codec.encode(saga) + b"\n" for saga in sagas)
            file.flush()
            os.fsync(file.fileno())

    return write


def purge(
    store: Store,
    before: datetime,
    *,
    name: str | None = None,
    statuses: Collection[Status] = (),
    archive: Archive | None = None,
    claims: Claims | None = None,
    batch_sagas_max: int = BATCH_SAGAS_MAX,
) -> Iterator[int]:
    """Delete final sagas whose last change was before `before`.

    Args:
        store: Where they are.
        before: Moment; aware.
        name: Only sagas of this name.
        statuses: Only these final statuses; empty for all.
        archive: Gets each batch before it is deleted.
        claims: Where their large payloads are.
        batch_sagas_max: Most sagas of one transaction.

    Yields:
        How many each batch deleted.

    Raises:
        ConfigurationError: A saga has payloads in a payload store, which are to be archived, and
            there is none here.
        DecodeError: A payload of one cannot be read, and not be archived.
        PayloadStoreUnavailable: The payload store cannot be reached.
    """
    keepers = frozenset(claims.store.sagas()) if claims else frozenset()
    while ids := store.ended(before, batch_sagas_max, name=name, statuses=statuses):
        if archive is not None:
            archive(_archived(store, ids, claims))
        deleted = store.delete(ids)
        if claims is not None:
            for saga_id in sorted(keepers & deleted):
                claims.store.delete(saga_id)
        if not deleted:  # somebody else purges as well
            return
        yield len(deleted)


def sweep(store: Store, claims: Claims, before: datetime) -> int:
    """Delete what the payload store has of sagas that do not exist; returns of how many.

    Such is left by a purge that was interrupted, a start that failed, an attempt that came late.
    The payload store must be that of this store alone.

    Args:
        store: Knows which sagas there are.
        claims: The payload store.
        before: What was written since is spared: its saga may be about to begin. Aware.
    """
    count = 0
    for ids in _batches(claims.store.sagas(), BATCH_SAGAS_MAX):
        for saga_id in sorted({*ids} - store.load(ids).keys()):
            newest = claims.store.newest(saga_id)
            if newest is None or newest < before:
                claims.store.delete(saga_id)
                count += 1
    return count


def _batches(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for first in range(0, len(ids), size):
        yield ids[first : first + size]


def _archived(store: Store, ids: Sequence[str], claims: Claims | None) -> Iterator[Archived]:
    """The sagas one by one, as they are written: their payloads may be large."""
    rows, histories = store.load(ids), store.history(ids)
    definitions: dict[tuple[str, int], Definition | None] = {}
    for saga_id in ids:
        row = rows.get(saga_id)
        if row is None:  # somebody else purges as well
            continue
        identity = row.state.name, row.state.version
        if identity not in definitions:
            definitions[identity] = store.definition(*identity)
        history = histories.get(saga_id, [])
        yield Archived(
            saga_id=saga_id,
            definition=definitions[identity],
            row=row,
            history=history,
            payloads=_payloads(saga_id, history, claims),
        )


def _payloads(
    saga_id: str, history: Sequence[Recorded], claims: Claims | None
) -> dict[str, msgspec.Raw]:
    raw = codec.encode(history)
    if MARK not in raw:
        return {}
    digests = sorted({one[CLAIM] for one in tickets_in(codec.decode(raw, Any))})
    if digests and claims is None:
        raise ConfigurationError(
            f"Saga {saga_id} has payloads in a payload store, and SAGA_CLAIM_CHECK_URL is not set.",
            hint="Set it as it is where the sagas run. What is not in the archive was not deleted.",
        )
    return {one: msgspec.Raw(claims.read(saga_id, one)) for one in digests} if claims else {}
