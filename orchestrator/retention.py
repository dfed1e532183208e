"""Deletes what ended long ago, in batches, after it was archived.

    for each batch:  read → append to the archive, sync → delete

A crash in between leaves sagas that are in the archive and in the store; they are archived once
more by the next run. Nothing is ever deleted that is not in the archive.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from orchestrator.core.definition import Definition
from orchestrator.core.events import Recorded
from orchestrator.core.state import Status
from orchestrator.ports import SagaRow, Store
from shared import codec

BATCH_SAGAS_MAX: Final = 500
"""Sagas of one transaction: small enough that running sagas do not wait for it."""


class Archived(msgspec.Struct, frozen=True, kw_only=True):
    """A saga in the archive: one line of JSON, readable without the store that it came from.

    Attributes:
        definition: What it ran on; None where the store had lost it.
        history: All of it; its fold is the state of `row`.
    """

    saga_id: str
    definition: Definition | None
    row: SagaRow
    history: Sequence[Recorded]


Archive = Callable[[Sequence[Archived]], None]


def archive_to(path: Path) -> Archive:
    """An archive in a file of JSON lines, which is appended to and is on the disk after each call."""

    def write(sagas: Sequence[Archived]) -> None:
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
    batch_sagas_max: int = BATCH_SAGAS_MAX,
) -> Iterator[int]:
    """Delete final sagas whose last change was before `before`.

    Args:
        store: Where they are.
        before: Moment; aware.
        name: Only sagas of this name.
        statuses: Only these final statuses; empty for all.
        archive: Gets each batch before it is deleted.
        batch_sagas_max: Most sagas of one transaction.

    Yields:
        How many each batch deleted.
    """
    while ids := store.ended(before, batch_sagas_max, name=name, statuses=statuses):
        if archive is not None:
            archive(_archived(store, ids))
        deleted = store.delete(ids)
        if not deleted:  # somebody else purges as well
            return
        yield len(deleted)


def _archived(store: Store, ids: Sequence[str]) -> list[Archived]:
    rows, histories = store.load(ids), store.history(ids)
    definitions: dict[tuple[str, int], Definition | None] = {}
    found = []
    for saga_id in ids:
        row = rows.get(saga_id)
        if row is None:  # somebody else purges as well
            continue
        identity = row.state.name, row.state.version
        if identity not in definitions:
            definitions[identity] = store.definition(*identity)
        found.append(
            Archived(
                saga_id=saga_id,
                definition=definitions[identity],
                row=row,
                history=histories.get(saga_id, []),
            )
        )
    return found
