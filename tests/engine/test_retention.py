from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from orchestrator.core.state import FINAL, Status, fold
from orchestrator.retention import Archived, archive_to, purge
from orchestrator.store.memory import MemoryStore
from tests.cli.stories import Story
from tests.engine.trips import Story as Trip
from workers.sdk import Later

WEEK = timedelta(days=7)


def ended(store: MemoryStore) -> set[str]:
    """Ids of the sagas that are final."""
    return {one.saga_id for one in store.list_sagas(statuses=FINAL)}


def all_traced(store: MemoryStore, ids: Sequence[str]) -> None:
    """As if the spans of these sagas had been exported."""
    due = {one: row.trace_due_at for one, row in store.load(ids).items() if row.trace_due_at}
    store.commit((), traced=due)


@pytest.fixture
def story() -> Story:
    """A saga that was undone, in a store of its own."""
    story = Story()
    story.succeeds("flight")
    story.rejects("hotel")
    story.succeeds("flight", direction="compensation")
    assert isinstance(story.engine.store, MemoryStore)
    all_traced(story.engine.store, [story.saga_id])
    return story


def test_what_is_deleted_is_in_the_archive_before(story: Story, tmp_path: Path) -> None:
    """One line a saga, with the definition and a history that folds to its state."""
    store = story.engine.store
    row = store.load([story.saga_id])[story.saga_id]
    file = tmp_path / "archive.jsonl"
    assert list(purge(store, story.now + WEEK, archive=archive_to(file))) == [1]
    (line,) = file.read_bytes().splitlines()
    archived = msgspec.json.decode(line, type=Archived)
    assert archived.row == row
    assert archived.definition is not None
    assert archived.definition.name == "trip"
    assert fold(one.event for one in archived.history) == row.state
    assert store.load([story.saga_id]) == {}


def test_nothing_is_deleted_that_could_not_be_archived(story: Story, tmp_path: Path) -> None:
    """The disk may be full: the sagas stay, and the error is the caller's."""
    with pytest.raises(OSError, match="missing"):
        list(
            purge(
                story.engine.store,
                story.now + WEEK,
                archive=archive_to(tmp_path / "missing" / "a"),
            )
        )
    assert story.saga_id in story.engine.store.load([story.saga_id])


def test_a_crash_between_archive_and_deletion_archives_twice(story: Story) -> None:
    """At least once, never not at all."""
    lines: list[str] = []

    def dies(sagas: Iterable[Archived]) -> None:
        lines.extend(one.saga_id for one in sagas)
        raise KeyboardInterrupt

    def keeps(sagas: Iterable[Archived]) -> None:
        lines.extend(one.saga_id for one in sagas)

    store = story.engine.store
    with pytest.raises(KeyboardInterrupt):
        list(purge(store, story.now + WEEK, archive=dies))
    assert list(purge(store, story.now + WEEK, archive=keeps)) == [1]
    assert lines == [story.saga_id] * 2


def test_batches_end_with_the_last_saga() -> None:
    """Each is a transaction of its own; active sagas and later ends are left alone."""
    story = Story()
    inputs = ({"order_id": f"o-{number}"} for number in range(4))
    ids = [story.saga_id, *(story.client.start("trip", one).row.saga_id for one in inputs)]
    for saga_id in ids[1:]:
        story.client.cancel(saga_id, reason="test")
    store = story.engine.store
    assert isinstance(store, MemoryStore)
    for saga_id in ids[1:]:
        story.saga_id = saga_id
        story.rejects("flight")
    all_traced(store, ids)
    assert ended(store) == {*ids[1:]}
    assert list(purge(store, story.now - WEEK)) == []
    assert list(purge(store, story.now + WEEK, statuses=[Status.COMPLETED])) == []
    assert list(purge(store, story.now + WEEK, name="other")) == []
    assert list(purge(store, story.now + WEEK, batch_sagas_max=3)) == [3, 1]
    assert set(store.load(ids)) == {ids[0]}


def test_a_sub_saga_is_not_deleted_while_its_parent_may_undo_it() -> None:
    """However long ago it has ended; with its parent it goes."""
    story = Trip(mail_send=lambda **_: Later())
    above, below = story.start()
    store = story.shop.store
    all_traced(store, [below])
    assert story.statuses(above, below) == ["running", "completed"]
    assert list(purge(store, story.shop.now + WEEK)) == []
    story.shop.client.cancel(above, reason="rain", by="ada")
    story.shop.wait(timedelta(minutes=10))
    assert story.statuses(above, below) == ["compensated", "compensated"]
    assert story.stands == set()
    all_traced(store, [above, below])
    assert list(purge(store, story.shop.now - WEEK)) == []
    assert list(purge(store, story.shop.now + WEEK)) == [2]
