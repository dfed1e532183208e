"""What every `orchestrator.ports.Store` does, whatever it is made of.

A subclass gives the fixture `opener`: a function that opens one more store on the same data.
"""

import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from orchestrator.core.definition import Definition
from orchestrator.core.events import (
    CancelRequested,
    CompensationRequested,
    CompensationStarted,
    DeadlineExceeded,
    Event,
    HistoryFull,
    Origin,
    Recorded,
    RetryRequested,
    RoomAwaited,
    SagaCompensated,
    SagaCompleted,
    SagaForked,
    SagaPaused,
    SagaResolved,
    SagaResumed,
    SagaStarted,
    SagaStuck,
    SignalReceived,
    StepAccepted,
    StepCopied,
    StepDispatched,
    StepExpanded,
    StepFailed,
    StepRecalled,
    StepRejected,
    StepSkipped,
    StepSucceeded,
    StepTimedOut,
    SubSagaBegan,
    TaskUnknown,
    Trace,
    UndoRefused,
    UndoRequested,
    tag_of,
)
from orchestrator.core.state import (
    FINAL,
    Beat,
    Cause,
    CauseKind,
    Phase,
    SagaState,
    Status,
    StepState,
)
from orchestrator.ports import Change, DeadLetter, SagaRow, Store, Survey
from orchestrator.store.rows import IDENTITY_BYTES_MAX
from shared.errors import DefinitionChanged, InputError
from shared.ids import command_id
from shared.messages import Command, Execution, Failure, Parent
from tests.core.builders import linear

T0 = datetime(2026, 1, 1, 12, 0, 0, 123_457, tzinfo=UTC)
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACE = Trace(
    trace_id=TRACE_ID,
    root_span_id="b7ad6b7169203331",
    parent_span_id="00f067aa0ba902b7",
    sampled=False,
    tracestate="vendor=1",
)
TEXT = "Zürich 東京 \U0001f69a \\u0000 '; DROP TABLE saga; -- \" % :x \n"
"""What breaks a query that is put together by hand, or a column of the wrong encoding."""
FAILURE = Failure(kind="sold_out", message=TEXT, retryable=False, traceback="Traceback\n  ...")
EXECUTION = Execution(worker="w@host", started_at=T0, ended_at=T0 + timedelta(microseconds=1))

Opener = Callable[[], Store]


def started(saga_id: str, **changes: Any) -> SagaStarted:
    """The first event of a saga."""
    event = SagaStarted(
        saga_id=saga_id,
        name="test",
        version=1,
        input={"order_id": "o-1"},
        key=None,
        deadline_at=None,
        trace=TRACE,
    )
    return msgspec.structs.replace(event, **changes)


EVENTS: tuple[Event, ...] = (
    started("every-event", input={"a": [1, 2.5, None, True, {"b": TEXT}]}, deadline_at=T0),
    StepDispatched(step="a", direction="action", attempt=1, due_at=T0),
    StepFailed(
        step="a",
        direction="action",
        attempt=1,
        failure=FAILURE,
        retry_at=T0 + timedelta(seconds=1),
        execution=EXECUTION,
    ),
    StepTimedOut(step="a", direction="action", attempt=2, retry_at=T0),
    StepSucceeded(
        step="a",
        direction="action",
        attempt=3,
        output={"big": 2**53 + 1, "text": TEXT},
        undo=[1],
        execution=EXECUTION,
    ),
    StepRejected(step="b", attempt=1, failure=FAILURE, execution=EXECUTION),
    TaskUnknown(step="b", attempt=1, failure=FAILURE, execution=EXECUTION),
    CancelRequested(reason=TEXT, by="me"),
    DeadlineExceeded(),
    CompensationStarted(),
    SagaStuck(step="a", direction="compensation"),
    StepAccepted(step="a", direction="action", attempt=1, due_at=T0, execution=EXECUTION),
    StepExpanded(step="a", items=3),
    StepCopied(
        step="b",
        origin=Origin(saga_id="old", link="00-1-2-01"),
        attempt=2,
        success=1,
        output={"text": TEXT},
        undo=[1],
        payload={"a": TEXT},
        by_hand=True,
    ),
    SagaForked(to="new", step="c", steps=("a", "b"), reason=TEXT, by="me"),
    StepRecalled(step="a", attempt=1, reason=TEXT),
    SubSagaBegan(step="a", attempt=1),
    UndoRequested(attempt=1, reason=TEXT),
    UndoRefused(attempt=2, reason=TEXT),
    SignalReceived(name="ok", data={"approved": True, "comment": TEXT}, by="me"),
    HistoryFull(events_max=100),
    RoomAwaited(step="a", direction="compensation"),
    SagaPaused(reason=TEXT, by="me"),
    SagaResumed(reason=TEXT, by="me"),
    RetryRequested(
        step="a", direction="action", due_at=T0, payload={"a": [1]}, reason=TEXT, by="me"
    ),
    StepSkipped(step="a", direction="compensation", output={"a": TEXT}, reason=TEXT, by="me"),
    CompensationRequested(step="a", reason=TEXT, by="me"),
    SagaResolved(reason=TEXT, by="me"),
    SagaCompleted(),
    SagaCompensated(),
)


def row(saga_id: str, sequence: int = 1, **changes: Any) -> SagaRow:
    """A row; fields of the state may be given among those of the row."""
    of_state = {name: changes.pop(name) for name in list(changes) if name in _STATE_FIELDS}
    state = SagaState(
        saga_id=saga_id, name="test", version=1, input={"order_id": "o-1"}, trace=TRACE
    )
    made = SagaRow(
        sequence=sequence,
        state=msgspec.structs.replace(state, **of_state),
        wake_at=None,
        started_at=T0,
        updated_at=T0,
    )
    return msgspec.structs.replace(made, **changes)


_STATE_FIELDS = frozenset(SagaState.__struct_fields__)


def command(saga_id: str, attempt: int = 1, **changes: Any) -> Command:
    """A command of a saga."""
    made = Command(
        id=command_id(saga_id, "a", "action", attempt),
        saga_id=saga_id,
        saga_name="test",
        saga_version=1,
        step="a",
        direction="action",
        attempt=attempt,
        task="service.a",
        queue="service",
        payload={"text": TEXT},
        deadline_at=T0 + timedelta(seconds=30),
        traceparent=f"00-{TRACE_ID}-b7ad6b7169203331-01",
        tracestate="vendor=1",
    )
    return msgspec.structs.replace(made, **changes)


def change(new: SagaRow, events: Iterable[Event] = (), commands: Iterable[Command] = ()) -> Change:
    """A change to a row, whose sequence follows from the number of events."""
    happened = tuple(events) or (
        (started(new.saga_id),) if new.sequence == 1 else (DeadlineExceeded(),)
    )
    before = new.sequence - len(happened)
    return Change(
        row=new,
        expected_sequence=before,
        events=tuple(
            Recorded(sequence=number, at=new.updated_at, event=event)
            for number, event in enumerate(happened, start=before + 1)
        ),
        commands=tuple(commands),
    )


def put(store: Store, *rows: SagaRow) -> None:
    """Begin these sagas."""
    assert store.commit([change(one) for one in rows]) == frozenset()


def letter(reason: str, **changes: Any) -> DeadLetter:
    """A dead letter."""
    made = DeadLetter(reason=reason, task="saga.reply", saga_id="s", body=TEXT, at=T0)
    return msgspec.structs.replace(made, **changes)


def seconds(number: float) -> timedelta:
    """So long."""
    return timedelta(seconds=number)


class StoreContract:
    """Of every store."""

    @pytest.fixture
    def store(self, opener: Opener) -> Store:
        """One store."""
        return opener()

    # Values ----------------------------------------------------------------------------------

    def test_there_is_an_example_of_every_event(self) -> None:
        """Else the round trip below proves less than it says."""
        assert {type(event) for event in EVENTS} == set(Event.__args__)

    def test_every_type_of_event_comes_back_as_it_was(self, opener: Opener) -> None:
        """In order of sequence, with its instant to the microsecond, read by another store."""
        made = change(row("every-event", len(EVENTS), name="events"), EVENTS)
        assert opener().commit([made]) == frozenset()
        other = opener()
        assert other.history(["every-event", "unknown"]) == {"every-event": list(made.events)}

    def test_a_row_comes_back_as_it_was(self, opener: Opener) -> None:
        """Every field, with every field of the state."""
        made = row(
            "s",
            name="a-name",
            version=7,
            key=TEXT,
            input={"text": TEXT, "list": [1, None]},
            deadline_at=T0 + seconds(9),
            status=Status.STUCK,
            steps={
                "a": StepState(
                    phase=Phase.UNDOING,
                    attempt=2,
                    undo_attempt=1,
                    due_at=T0,
                    success=1,
                    output={"x": 1},
                    undo="u",
                    failure=FAILURE,
                    stuck=True,
                )
            },
            cause=Cause(kind=CauseKind.REJECTED, step="a", failure=FAILURE),
            backward=True,
            wake_at=T0 + seconds(1),
            started_at=T0 + seconds(2),
            updated_at=T0 + seconds(3),
            trace_due_at=T0 + seconds(4),
        )
        put(opener(), made)
        assert opener().load(["s", "unknown"]) == {"s": made}

    def test_every_status_can_be_stored(self, store: Store) -> None:
        """With no status forgotten by a check of the database."""
        put(store, *(row(status.value, status=status) for status in Status))
        loaded = store.load([status.value for status in Status])
        assert {id_: one.state.status.value for id_, one in loaded.items()} == {
            status.value: status.value for status in Status
        }
        assert store.count_by_status() == dict.fromkeys(Status, 1)

    def test_a_nul_in_an_output_is_kept(self, store: Store) -> None:
        """A participant may answer with one; PostgreSQL has no text that holds it."""
        nul = {"text": "before\0after", "\0": ["\0"]}
        event = StepSucceeded(step="a", direction="action", attempt=1, output=nul, undo=nul)
        steps = {"a": StepState(phase=Phase.SUCCEEDED, success=1, output=nul)}
        sent = command("s", payload=nul)
        made = change(row("s", 2, steps=steps), [started("s", input=nul), event], [sent])
        assert store.commit([made]) == frozenset()
        assert store.history(["s"])["s"] == list(made.events)
        assert store.load(["s"])["s"] == made.row
        assert store.claim_unpublished(T0 + seconds(1), T0 + seconds(1), 10) == [sent]

    def test_an_id_that_no_database_holds_names_nothing(self, store: Store) -> None:
        """And does not break the query of the ids beside it."""
        put(store, row("s"))
        assert store.load(["s", "\0", "\ud800"]).keys() == {"s"}
        assert store.history(["s", "\0", "\ud800"]).keys() == {"s"}
        assert store.find_by_key("test", "\0") is None

    @pytest.mark.parametrize(
        "text", ["a\0b", "\ud800", "", "".join(map(chr, range(0x4E00, 0x4E00 + 900)))]
    )
    @pytest.mark.parametrize("field", ["id", "key"])
    def test_a_saga_with_such_an_id_or_key_is_refused(
        self, store: Store, text: str, field: str
    ) -> None:
        """With an error that is about the message, not about the database."""
        made = row(text) if field == "id" else row("s", key=text)
        with pytest.raises(InputError):
            store.commit([change(made)])
        assert store.list_sagas() == []

    def test_the_longest_id_and_key_are_taken(self, store: Store) -> None:
        """By every index: what it refuses would look as if the database were away."""
        long = "".join(map(chr, range(0x4E00, 0x4E00 + IDENTITY_BYTES_MAX // 3)))
        store.commit([change(row(long, key=long), commands=[command(long)])])
        found = store.find_by_key("test", long)
        assert found is not None
        assert found.saga_id == long

    def test_nothing_asked_is_nothing_found(self, store: Store) -> None:
        """Empty collections are questions, too."""
        assert (store.load([]), store.history([])) == ({}, {})
        assert store.commit([]) == frozenset()

    # Compare and set -------------------------------------------------------------------------

    def test_a_saga_grows_with_the_expected_sequence(self, store: Store) -> None:
        """Its row is the last one, its history all of it."""
        put(store, row("s"))
        second = change(
            row("s", 3, status=Status.STUCK), [CompensationStarted(), DeadlineExceeded()]
        )
        assert store.commit([second]) == frozenset()
        assert store.load(["s"]) == {"s": second.row}
        assert [one.sequence for one in store.history(["s"])["s"]] == [1, 2, 3]

    def test_a_conflict_leaves_nothing_of_that_saga_and_the_rest_commits(
        self, store: Store
    ) -> None:
        """Whether the expected sequence is too low or too high, or the saga does not exist."""
        put(store, row("low"), row("high"), row("good"))
        assert store.commit([change(row("low", 2))]) == frozenset()
        before = store.load(["low", "high"]), store.history(["low", "high"])
        changes = [
            change(row("low", 2, status=Status.STUCK), commands=[command("low")]),
            change(row("good", 2), commands=[command("good")]),
            change(row("high", 3), commands=[command("high")]),
            change(row("missing", 2), commands=[command("missing")]),
            change(row("new"), commands=[command("new")]),
        ]
        assert store.commit(changes, dead_letters=[letter("kept")]) == {"low", "high", "missing"}
        assert (store.load(["low", "high"]), store.history(["low", "high"])) == before
        assert (store.load(["missing"]), store.history(["missing"])) == ({}, {})
        assert [len(store.history([id_])[id_]) for id_ in ("good", "new")] == [2, 1]
        outbox = store.claim_unpublished(T0 + seconds(1), T0 + seconds(1), 10)
        assert {one.saga_id for one in outbox} == {"good", "new"}
        assert [one.reason for one in store.dead_letters()] == ["kept"]

    def test_a_change_without_events_is_stored_for_the_expected_sequence_only(
        self, store: Store
    ) -> None:
        """A sign of life: the row is new, its sequence and history are not."""
        store.commit([change(row("s"))])
        beat = Beat(at=T0, due_at=T0 + timedelta(minutes=1), progress={"done": 1})
        alive = row("s", wake_at=T0 + timedelta(minutes=1), beats={"a": beat})
        told = Change(row=alive, expected_sequence=1, events=(), commands=())
        assert store.commit([told]) == frozenset()
        assert store.load(["s"])["s"] == alive
        assert len(store.history(["s"])["s"]) == 1
        late = msgspec.structs.replace(told, expected_sequence=2)
        assert store.commit([late]) == {"s"}

    @pytest.mark.parametrize("lost", ["sequence", "id", "key"])
    def test_what_belongs_together_commits_whole_or_not_at_all(
        self, store: Store, lost: str
    ) -> None:
        """Whichever of the sagas somebody else was faster with."""
        put(store, row("old"), row("taken", key="k"))
        store.commit([], dead_letters=[letter("earlier")])
        new = {"id": row("taken"), "key": row("new", key="k")}.get(lost, row("new"))
        old = row("old", 3 if lost == "sequence" else 2)
        changes = [change(old, commands=[command("old")]), change(new, commands=[command("new")])]
        ids = {one.row.saga_id for one in changes}
        before = store.load(["old", "taken"]), store.history(["old", "taken"])
        assert ids == store.commit(changes, dead_letters=[letter("x")], together=True)
        assert before == (store.load(["old", "taken", "new"]), store.history(["old", "taken"]))
        assert (store.outbox_size(), len(store.dead_letters())) == (0, 1)
        put_right = [change(row("old", 2)), change(row("new", key="other"))]
        assert frozenset() == store.commit(put_right, together=True)
        assert {"old": 2, "new": 1} == {
            saga_id: one.sequence for saga_id, one in store.load(["old", "new"]).items()
        }

    def test_a_command_without_a_change_is_sent_when_it_is_asked(self, store: Store) -> None:
        """A sub-saga is asked again: its parent has not changed."""
        store.commit([change(row("s"), commands=[command("s")])])
        later, again = T0 + timedelta(hours=1), command("s", id="s:a:action:1:again:1")
        asked = Change(
            row=row("s"), expected_sequence=1, events=(), commands=(again,), decided_at=later
        )
        assert store.commit([asked], published=[command("s").id]) == frozenset()
        assert store.load(["s"])["s"].updated_at == T0
        assert store.claim_unpublished(later, later, 10) == []
        assert store.claim_unpublished(later + seconds(1), later, 10) == [again]

    def test_a_command_that_is_in_the_outbox_stays_as_it_is(self, store: Store) -> None:
        """Two orchestrators may ask at once, and no event makes the second one lose."""
        asking = [command("s", id="again"), command("s", id="other")]
        begin = change(row("s"), commands=asking[:1])
        asked = Change(
            row=row("s"),
            expected_sequence=1,
            events=(),
            commands=tuple(asking),
            decided_at=T0 + timedelta(hours=1),
        )
        assert store.commit([begin]) == store.commit([asked]) == frozenset()
        assert store.outbox_size() == 2
        assert store.claim_unpublished(T0 + seconds(1), T0, 10) == asking[:1]

    def test_an_id_that_exists_is_a_conflict(self, store: Store) -> None:
        """A second start with the same id changes nothing."""
        put(store, row("s", input={"first": True}))
        twin = change(row("s", input={"first": False}), commands=[command("s")])
        assert store.commit([twin, change(row("t"))]) == {"s"}
        assert store.load(["s"])["s"].state.input == {"first": True}
        assert len(store.history(["s"])["s"]) == 1
        assert store.outbox_size() == 0
        assert store.load(["t"]).keys() == {"t"}

    def test_a_key_that_is_taken_is_a_conflict(self, store: Store) -> None:
        """Also between two of one batch; another name may have the same key."""
        put(store, row("first", key="k"))
        changes = [
            change(row("second", key="k"), commands=[command("second")]),
            change(row("other-name", name="other", key="k")),
            change(row("other-key", key="K")),
            change(row("no-key")),
            change(row("no-key-either")),
        ]
        assert store.commit(changes) == {"second"}
        assert (store.load(["second"]), store.history(["second"])) == ({}, {})
        assert store.outbox_size() == 0
        twins = [change(row("t1", key="twin")), change(row("t2", key="twin"))]
        (lost,) = store.commit(twins)
        assert store.load(["t1", "t2"]).keys() == {"t1", "t2"} - {lost}

    def test_find_by_key_finds_name_and_key(self, store: Store) -> None:
        """Both have to fit, to the letter."""
        mine = row("mine", key=TEXT)
        put(store, mine, row("other", name="other", key="k"), row("keyless"))
        assert store.find_by_key("test", TEXT) == mine
        assert store.find_by_key("test", "k") is None
        assert store.find_by_key("test", TEXT.upper()) is None

    def test_of_two_stores_exactly_one_wins_each_sequence(self, opener: Opener) -> None:
        """Two threads race for the same sagas; every history is whole, and made by winners."""
        sagas, rounds = [f"s{number}" for number in range(5)], 20
        put(opener(), *map(row, sagas))
        won: dict[str, list[tuple[str, int]]] = {"x": [], "y": []}
        failed: list[BaseException] = []
        together = threading.Barrier(2, timeout=30)

        def race(me: str, ids: list[str]) -> None:
            try:
                store = opener()
                for sequence in range(2, 2 + rounds):
                    together.wait()
                    changes = [
                        change(
                            row(id_, sequence, input={"by": me}),
                            [CancelRequested(reason="", by=me)],
                            [command(id_, sequence, step=me)],
                        )
                        for id_ in ids
                    ]
                    lost = store.commit(changes)
                    won[me] += [(id_, sequence) for id_ in ids if id_ not in lost]
            except BaseException as error:
                failed.append(error)
                together.abort()
                raise

        # In opposite orders: a database that locks rows must not end in a deadlock.
        threads = [
            threading.Thread(target=race, args=("x", sagas)),
            threading.Thread(target=race, args=("y", sagas[::-1])),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert not failed
        expected = sorted((id_, number) for id_ in sagas for number in range(2, 2 + rounds))
        assert sorted(won["x"] + won["y"]) == expected
        store = opener()
        for id_, history in store.history(sagas).items():
            assert [one.sequence for one in history] == list(range(1, 2 + rounds))
            for one in history[1:]:
                assert isinstance(one.event, CancelRequested)
                assert (id_, one.sequence) in won[one.event.by]
        assert store.outbox_size() == len(expected)

    def test_of_two_starts_with_one_key_exactly_one_wins(self, opener: Opener) -> None:
        """Two threads, two stores, one transaction each."""
        together = threading.Barrier(2, timeout=30)
        lost: dict[str, frozenset[str]] = {}

        def start(saga_id: str, store: Store) -> None:
            together.wait()
            changes = [change(row(saga_id, key="k")), change(row(f"{saga_id}-too"))]
            lost[saga_id] = store.commit(changes)

        threads = [threading.Thread(target=start, args=(id_, opener())) for id_ in ("x", "y")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert sorted(lost.values(), key=len) in (
            [frozenset(), frozenset({"x"})],
            [frozenset(), frozenset({"y"})],
        )
        winner = opener().find_by_key("test", "k")
        assert winner is not None
        assert lost[winner.saga_id] == frozenset()
        assert opener().load(["x-too", "y-too"]).keys() == {"x-too", "y-too"}

    # Timers ----------------------------------------------------------------------------------

    def test_due_gives_the_longest_overdue_first(self, store: Store) -> None:
        """Up to now and no further, and no more than asked for."""
        put(
            store,
            row("now", wake_at=T0),
            row("later", wake_at=T0 + timedelta(microseconds=1)),
            row("oldest", wake_at=T0 - seconds(60)),
            row("never"),
            row("old", wake_at=T0 - seconds(1)),
        )
        assert store.due(T0, 10) == ["oldest", "old", "now"]
        assert store.due(T0, 2) == ["oldest", "old"]
        assert store.due(T0 - seconds(61), 10) == []

    def test_a_timer_that_was_moved_or_taken_away_is_not_due(self, store: Store) -> None:
        """The row alone decides."""
        put(store, row("moved", wake_at=T0), row("ended", wake_at=T0), row("same", wake_at=T0))
        changes = [
            change(row("moved", 2, wake_at=T0 + seconds(5))),
            change(row("ended", 2, status=Status.COMPLETED)),
        ]
        assert store.commit(changes) == frozenset()
        assert store.due(T0, 10) == ["same"]
        assert store.due(T0 + seconds(5), 10) == ["same", "moved"]

    def test_ids_are_found_by_their_beginning(self, store: Store) -> None:
        """In order; other ids than those that we make are not looked for."""
        made = [f"0199c8a{number}-0000-7000-8000-00000000000{number}" for number in (2, 0, 1)]
        others = ["0199c8a0", "0199c8a0-0000-7000-8000-0000000000001", "saga-1"]
        store.commit([change(row(one)) for one in (*made, *others)])
        assert store.ids_from("0199c8", 10) == sorted(made)
        assert store.ids_from("0199c8", 2) == sorted(made)[:2]
        assert store.ids_from("0199c8a1-00", 10) == [made[2]]
        for none in ("0199c9", "saga-1", "no\0id"):
            assert store.ids_from(none, 10) == []

    def test_a_saga_that_cannot_be_read_is_woken_later(self, store: Store) -> None:
        """Its sequence stays; one that has ended is never woken."""
        store.commit(
            [
                change(row("due", wake_at=T0)),
                change(row("sleeps")),
                change(row("ended", status=Status.COMPLETED)),
            ]
        )
        store.postpone(["due", "sleeps", "ended", "unknown", "no\0id"], T0 + seconds(60))
        assert store.due(T0 + seconds(59), 10) == []
        assert sorted(store.due(T0 + seconds(60), 10)) == ["due", "sleeps"]
        assert store.commit([change(row("due", 2))]) == frozenset()

    # Outbox ----------------------------------------------------------------------------------

    def test_commands_are_in_the_outbox_until_they_are_published(self, store: Store) -> None:
        """As they were; publishing unknown ones is no mistake."""
        sent = [command("s", 1), command("s", 2)]
        assert store.commit([change(row("s"), commands=sent)]) == frozenset()
        assert store.outbox_size() == 2
        later = T0 + seconds(60)
        assert sorted(store.claim_unpublished(later, later, 10), key=_attempt) == sent
        store.commit((), published=[sent[0].id, "unknown"])
        assert store.outbox_size() == 1
        assert store.claim_unpublished(later + seconds(1), later, 10) == sent[1:]

    def test_published_is_deleted_with_the_changes_of_the_same_call(self, store: Store) -> None:
        """One transaction does both, also where a saga conflicts."""
        first = command("s")
        store.commit([change(row("s"), commands=[first])])
        assert store.commit([change(row("s", 5))], published=[first.id]) == {"s"}
        assert store.outbox_size() == 0

    def test_only_what_was_handed_out_long_ago_is_claimed(self, store: Store) -> None:
        """A row counts as handed out when it is committed, and again when it is claimed."""
        store.commit([change(row("s"), commands=[command("s")])])
        now = T0 + seconds(60)
        assert store.claim_unpublished(T0, now, 10) == []
        assert len(store.claim_unpublished(T0 + timedelta(microseconds=1), now, 10)) == 1
        assert store.claim_unpublished(now, now + seconds(1), 10) == []
        assert len(store.claim_unpublished(now + seconds(1), now + seconds(2), 10)) == 1

    def test_a_claim_takes_the_oldest_up_to_its_limit(self, store: Store) -> None:
        """The next one takes others."""
        for age in (3, 1, 2, 0):
            made = row(f"s{age}", updated_at=T0 - seconds(age))
            store.commit([change(made, commands=[command(f"s{age}")])])
        before, now = T0 + seconds(1), T0 + seconds(60)
        first = {one.saga_id for one in store.claim_unpublished(before, now, 2)}
        assert first == {"s3", "s2"}
        assert {one.saga_id for one in store.claim_unpublished(before, now, 2)} == {"s1", "s0"}
        assert store.claim_unpublished(before, now, 2) == []

    def test_two_callers_at_once_claim_different_rows(self, opener: Opener) -> None:
        """Together they get all of them, each once."""
        count = 200
        sent = [command("s", number) for number in range(1, count + 1)]
        opener().commit([change(row("s"), commands=sent)])
        together = threading.Barrier(2, timeout=30)
        claimed: list[str] = []

        def claim(store: Store) -> None:
            together.wait()
            while some := store.claim_unpublished(T0 + seconds(1), T0 + seconds(60), 7):
                claimed.extend(one.id for one in some)

        threads = [threading.Thread(target=claim, args=(opener(),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        # A caller skips what another one is taking; what both left is there for the next one.
        claim_rest = opener().claim_unpublished(T0 + seconds(1), T0 + seconds(60), count)
        claimed += [one.id for one in claim_rest]
        assert sorted(claimed) == sorted(one.id for one in sent)

    # Traces ----------------------------------------------------------------------------------

    def test_an_export_that_is_due_is_claimed_until_later(self, store: Store) -> None:
        """The longest due first, no more than asked for; then they are due again."""
        put(
            store,
            row("b", trace_due_at=T0),
            row("a", trace_due_at=T0 - seconds(1)),
            row("c", trace_due_at=T0 + timedelta(microseconds=1)),
            row("none"),
        )
        until = T0 + seconds(30)
        assert set(store.claim_untraced(T0, until, 1)) == {"a"}
        assert set(store.claim_untraced(T0, until, 10)) == {"b"}
        assert store.claim_untraced(T0, until, 10) == []
        assert set(store.claim_untraced(until, until + seconds(30), 10)) == {"a", "b", "c"}
        assert store.load(["a"])["a"].trace_due_at == until + seconds(30)

    def test_what_was_traced_is_not_due_again(self, store: Store) -> None:
        """Clearing it is no change of the saga: its sequence and the rest stay."""
        put(store, row("done", trace_due_at=T0), row("waits", trace_due_at=T0))
        store.commit((), traced={"done": T0, "unknown": T0})
        assert store.claim_untraced(T0, T0 + seconds(30), 10) == ["waits"]
        assert store.load(["done"])["done"] == row("done")
        assert store.commit([change(row("done", 2))]) == frozenset()

    def test_an_older_export_says_nothing_of_a_newer_one(self, store: Store) -> None:
        """A saga got stuck, was exported, and ended before that export was confirmed."""
        put(store, row("a", trace_due_at=T0))
        store.commit([change(row("a", 2, trace_due_at=T0 + seconds(5)))])
        store.commit((), traced={"a": T0})
        assert store.load(["a"])["a"].trace_due_at == T0 + seconds(5)
        store.commit((), traced={"a": T0 + seconds(5)})
        assert store.load(["a"])["a"].trace_due_at is None

    # Lists -----------------------------------------------------------------------------------

    def test_a_list_is_newest_first_and_limited(self, store: Store) -> None:
        """By their start; of the same instant the larger id first."""
        put(
            store,
            row("b", started_at=T0),
            row("c", started_at=T0 - seconds(5)),
            row("d", started_at=T0 + seconds(5), status=Status.COMPLETED),
            row("a", started_at=T0),
        )
        assert _ids(store.list_sagas()) == ["d", "b", "a", "c"]
        assert _ids(store.list_sagas(limit=2)) == ["d", "b"]

    def test_a_list_is_read_page_by_page(self, store: Store) -> None:
        """Each page begins after the last saga of the one before, also among equal starts."""
        put(store, *(row(f"s-{number}", started_at=T0) for number in range(3)))
        put(store, row("older", started_at=T0 - timedelta(hours=1), status=Status.STUCK))
        pages: list[list[str]] = []
        older: tuple[datetime, str] | None = None
        while page := store.list_sagas(limit=2, older=older):
            pages.append([one.saga_id for one in page])
            older = page[-1].started_at, page[-1].saga_id
        assert pages == [["s-2", "s-1"], ["s-0", "older"]]
        assert store.list_sagas(statuses=[Status.RUNNING], older=(T0, "s-0")) == []

    def test_a_list_holds_what_was_asked_for(self, store: Store) -> None:
        """By status, name and key, together and alone."""
        put(
            store,
            row("1", key="k", started_at=T0),
            row("2", name="other", key="k", status=Status.STUCK, started_at=T0 + seconds(2)),
            row("3", status=Status.STUCK, started_at=T0 + seconds(3)),
            row("4", status=Status.COMPLETED, started_at=T0 + seconds(4)),
        )
        stuck_or_done = {Status.STUCK, Status.COMPLETED}
        assert _ids(store.list_sagas(statuses=[Status.STUCK])) == ["3", "2"]
        assert _ids(store.list_sagas(statuses=stuck_or_done)) == ["4", "3", "2"]
        assert _ids(store.list_sagas(statuses=stuck_or_done, limit=2)) == ["4", "3"]
        assert _ids(store.list_sagas(name="test")) == ["4", "3", "1"]
        assert _ids(store.list_sagas(key="k")) == ["2", "1"]
        assert _ids(store.list_sagas(name="test", key="k")) == ["1"]
        assert _ids(store.list_sagas(name="test", statuses=[Status.STUCK])) == ["3"]
        assert store.list_sagas(statuses=[Status.RESOLVED]) == []

    def test_a_summary_says_what_the_row_says(self, store: Store) -> None:
        """Field by field."""
        made = row("s", name="n", version=2, key="k", wake_at=T0, updated_at=T0 + seconds(1))
        put(store, made)
        (summary,) = store.list_sagas()
        assert msgspec.structs.asdict(summary) == {
            "saga_id": "s",
            "name": "n",
            "version": 2,
            "key": "k",
            "status": Status.RUNNING,
            "trace_id": TRACE_ID,
            "started_at": T0,
            "updated_at": T0 + seconds(1),
            "wake_at": T0,
            "unreadable": "",
        }

    def test_sagas_are_counted_by_status(self, store: Store) -> None:
        """Those without any are left out."""
        assert store.count_by_status() == {}
        put(store, row("a"), row("b"), *(row(one.value, status=one) for one in FINAL))
        assert store.count_by_status() == {Status.RUNNING: 2, **dict.fromkeys(FINAL, 1)}
        store.commit([change(row("a", 2, status=Status.STUCK))])
        assert store.count_by_status()[Status.RUNNING] == 1
        assert store.count_by_status()[Status.STUCK] == 1

    def test_the_sagas_of_a_trace_are_oldest_first(self, store: Store) -> None:
        """And no others."""
        other = msgspec.structs.replace(TRACE, trace_id="f" * 32)
        put(
            store,
            row("new", started_at=T0 + seconds(1)),
            row("old", started_at=T0 - seconds(1)),
            row("other", trace=other),
        )
        assert _ids(store.find_by_trace(TRACE_ID)) == ["old", "new"]
        assert store.find_by_trace("0" * 32) == []

    # Dead letters ----------------------------------------------------------------------------

    def test_what_ended_before_is_found_the_oldest_first(self, store: Store) -> None:
        """Up to the limit, by name and status; neither active ones nor those yet to be traced."""
        sagas = (
            (Status.COMPLETED, "test"),
            (Status.RUNNING, "test"),
            (Status.COMPENSATED, "other"),
            (Status.STUCK, "test"),
            (Status.RESOLVED, "test"),
            (Status.COMPLETED, "test"),
        )
        for number, (status, name) in enumerate(sagas):
            at = T0 - timedelta(hours=number)
            put(store, row(f"s-{number}", updated_at=at, status=status, name=name))
        untraced = row("s-6", status=Status.COMPLETED, updated_at=T0 - timedelta(hours=9))
        store.commit([change(msgspec.structs.replace(untraced, trace_due_at=T0))])
        assert store.ended(T0, 10) == ["s-5", "s-4", "s-2"]
        assert store.ended(T0 + timedelta(microseconds=1), 2) == ["s-5", "s-4"]
        assert store.ended(T0 + timedelta(microseconds=1), 10)[-1] == "s-0"
        assert store.ended(T0, 10, name="other") == ["s-2"]
        assert store.ended(T0, 10, name="\0") == []
        wanted = (Status.COMPLETED, Status.COMPENSATED)
        assert store.ended(T0, 10, statuses=wanted) == ["s-5", "s-2"]

    def test_a_deleted_saga_leaves_nothing(self, store: Store) -> None:
        """Neither history nor outbox nor key; and an active one is not deleted."""
        gone = row("gone", status=Status.COMPLETED, key="k")
        active = row("active", key="a")
        store.commit([change(gone, commands=[command("gone", 1)]), change(active)])
        assert store.delete(["gone", "active", "unknown", "\0"]) == {"gone"}
        assert set(store.load(["gone", "active"])) == {"active"}
        assert set(store.history(["gone", "active"])) == {"active"}
        assert (store.outbox_size(), store.find_by_key("test", "k")) == (0, None)
        assert store.delete([]) == frozenset()
        assert store.commit([change(row("next", key="k"))]) == frozenset()

    def test_a_sub_saga_is_kept_until_its_parent_is_old(self, store: Store) -> None:
        """Until then it may have to be undone; one whose parent is gone is kept for nobody."""
        done, hour = Status.COMPLETED, timedelta(hours=1)

        def below(saga_id: str, parent: str) -> SagaRow:
            made = Parent(saga_id=parent, step="a", attempt=1)
            return row(saga_id, parent=made, status=done, updated_at=T0 - 9 * hour)

        put(store, row("top"), below("mid", "top"), below("low", "mid"), below("lost", "gone"))
        assert store.ended(T0, 10) == ["lost"]
        assert store.delete(["mid", "lost"]) == {"lost"}
        store.commit([change(row("top", 2, status=done, updated_at=T0))])
        assert store.ended(T0, 10) == []
        late = T0 + hour
        assert store.ended(late, 10) == ["mid", "top"]
        assert store.delete(["mid", "top"]) == {"mid", "top"}
        assert store.ended(late, 10, name="test") == ["low"]
        assert store.delete(["low"]) == {"low"}

    def test_what_a_fork_took_over_is_kept_for_the_fork(self, store: Store) -> None:
        """It may undo sub-sagas of the saga that it was forked from."""
        done, at = Status.COMPLETED, T0 - timedelta(hours=9)
        parent = Parent(saga_id="old", step="a", attempt=1)
        put(store, row("old", status=done, updated_at=at))
        put(store, row("low", status=done, updated_at=at, parent=parent))
        assert set(store.ended(T0, 10)) == {"old", "low"}
        forked = change(
            row("old", 2, status=done, updated_at=at), [SagaForked(to="new", step="b")]
        )
        assert store.commit([forked, change(row("new"))], together=True) == frozenset()
        assert store.ended(T0, 10) == []
        assert store.delete(["old"]) == frozenset()
        ours = Parent(saga_id="new", step="a", attempt=1)
        asked = change(
            row("low", 2, status=done, updated_at=at, parent=ours),
            [UndoRequested(attempt=1, parent=ours)],
        )
        store.commit([asked])
        store.commit([change(row("new", 2, status=done, updated_at=at))])
        assert set(store.ended(T0, 10)) == {"old", "low", "new"}

    def test_dead_letters_are_newest_first(self, store: Store) -> None:
        """Numbered in the order of arrival, also within one call."""
        store.commit((), dead_letters=[letter("one"), letter("two", saga_id=None)])
        store.commit((), dead_letters=[letter("three", task="")])
        kept = store.dead_letters()
        assert [one.reason for one in kept] == ["three", "two", "one"]
        numbers = [one.dead_letter_id for one in kept]
        assert numbers == sorted(set(numbers), reverse=True)
        assert numbers[-1] > 0
        expected = letter("two", saga_id=None, dead_letter_id=numbers[1])
        assert kept[1] == expected
        assert [one.reason for one in store.dead_letters(limit=2)] == ["three", "two"]

    def test_a_dead_letter_has_a_number(self, store: Store) -> None:
        """By which it is found, and dropped."""
        store.commit((), dead_letters=[letter("a"), letter("b"), letter("c")])
        third, second, first = store.dead_letters()
        assert store.dead_letter(second.dead_letter_id) == second
        dropped = store.drop_dead_letters([first.dead_letter_id, second.dead_letter_id, 10_000])
        assert (dropped, store.dead_letters()) == (2, [third])
        assert store.dead_letter(first.dead_letter_id) is None
        assert store.drop_dead_letters([]) == 0

    def test_a_dead_letter_may_hold_anything(self, store: Store) -> None:
        """What no database stores is escaped: it must not come back for ever."""
        store.commit((), dead_letters=[letter("a\0b", saga_id="\0", task="\ud800", body="\0x")])
        (kept,) = store.dead_letters()
        assert (kept.reason, kept.saga_id, kept.body) == ("a\\x00b", "\\x00", "\\x00x")
        assert kept.task == "\\ud800"

    # Definitions -----------------------------------------------------------------------------

    def test_definitions_come_back_by_name_and_version(self, opener: Opener) -> None:
        """Versions in order of number, not of text."""
        store = opener()
        made = [_named("b", 1), _named("a", 10), _named("a", 2)]
        for definition in made:
            store.put_definition(definition, T0)
        other = opener()
        assert other.definitions() == [made[2], made[1], made[0]]
        assert other.definition("a", 10) == made[1]
        assert other.definition("a", 1) is None
        assert other.definition("c", 1) is None

    def test_the_same_definition_again_is_fine(self, opener: Opener) -> None:
        """Every process that starts keeps its definitions."""
        opener().put_definition(_named("a", 1), T0)
        opener().put_definition(_named("a", 1), T0 + seconds(1))
        assert opener().definitions() == [_named("a", 1)]

    def test_a_changed_definition_is_refused_and_shows_the_difference(self, store: Store) -> None:
        """The stored one stays."""
        kept, changed = linear("a", "b"), linear("a", "b", timeout=timedelta(seconds=5))
        store.put_definition(kept, T0)
        with pytest.raises(DefinitionChanged) as caught:
            store.put_definition(changed, T0)
        assert "steps.a.timeout: PT30S -> PT5S" in str(caught.value)
        assert caught.value.problems == (
            "steps.a.timeout: PT30S -> PT5S",
            "steps.b.timeout: PT30S -> PT5S",
        )
        assert store.definitions() == [kept]

    def test_of_two_definitions_at_once_the_other_is_refused(self, opener: Opener) -> None:
        """Two processes start with different code: one of them must hear it."""
        together = threading.Barrier(2, timeout=30)
        offered = [linear("a"), linear("a", "b")]
        refused: list[Definition] = []

        def keep(definition: Definition, store: Store) -> None:
            together.wait()
            try:
                store.put_definition(definition, T0)
            except DefinitionChanged:
                refused.append(definition)

        threads = [threading.Thread(target=keep, args=(one, opener())) for one in offered]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert len(refused) == 1
        assert opener().definitions() == [one for one in offered if one not in refused]

    # Life ------------------------------------------------------------------------------------

    def test_an_empty_store_has_nothing_to_survey(self, store: Store) -> None:
        """No saga, no timer, no command, no letter."""
        assert store.survey(T0) == Survey(
            in_flight={},
            timers_late=0,
            timer_due_at=None,
            outbox_size=0,
            outbox_since=None,
            dead_letters=0,
        )

    def test_a_survey_says_how_the_store_is_doing(self, store: Store) -> None:
        """Known names with zeros, late timers, and the oldest command, however often it was tried."""
        store.put_definition(_named("test", 1), T0)
        put(
            store,
            row("s1", wake_at=T0 + seconds(1)),
            row("s2", wake_at=T0 + seconds(9)),
            row("s3", status=Status.STUCK),
            row("s4", status=Status.COMPLETED),
        )
        store.commit(
            [change(row("s5", updated_at=T0 + seconds(3)), commands=[command("s5")])],
            dead_letters=[letter("one"), letter("two")],
        )
        store.commit([change(row("s6", updated_at=T0 + seconds(4)), commands=[command("s6")])])
        assert len(store.claim_unpublished(T0 + seconds(60), T0 + seconds(60), 10)) == 2
        assert store.survey(T0 + seconds(5)) == Survey(
            in_flight={
                ("test", Status.RUNNING): 4,
                ("test", Status.COMPENSATING): 0,
                ("test", Status.STUCK): 1,
            },
            timers_late=1,
            timer_due_at=T0 + seconds(1),
            outbox_size=2,
            outbox_since=T0 + seconds(3),
            dead_letters=2,
        )

    def test_a_store_in_order_passes_its_check(self, store: Store) -> None:
        """It says nothing."""
        store.check()

    def test_the_events_are_told_apart_by_their_tags(self) -> None:
        """Two events with one tag would be read back as each other."""
        assert len({tag_of(event) for event in EVENTS}) == len(EVENTS)


def _named(name: str, version: int) -> Definition:
    return msgspec.structs.replace(linear("a"), name=name, version=version)


def _attempt(sent: Command) -> int:
    return sent.attempt


def _ids(summaries: Iterable[Any]) -> list[str]:
    return [one.saga_id for one in summaries]
