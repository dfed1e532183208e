from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import msgspec
import pytest

from orchestrator.batch import Batch
from orchestrator.catalog import Catalog
from orchestrator.core.definition import Definition, Saga, WaitFor
from orchestrator.core.events import DeadlineExceeded, Recorded, SagaPaused, StepTimedOut
from orchestrator.core.limits import Limits
from orchestrator.core.machine import NO_LIMITS
from orchestrator.core.messages import Pause, Resolve, Resume, RetryNow
from orchestrator.core.state import Status
from orchestrator.engine import Engine
from orchestrator.loop import CONFLICTS_MAX, TRACE_RETRY
from orchestrator.ports import Change, Delivery, SagaRow
from orchestrator.starts import Started
from orchestrator.store.memory import MemoryStore
from orchestrator.tracing import RETRACE_FOR, SagaTracing
from orchestrator.transport.memory import InboundMessage, MemoryBroker, MemoryTransport
from shared import names
from shared.errors import (
    InputError,
    KeyConflict,
    NotAllowed,
    PayloadTooLarge,
    SagaError,
    UnavailableError,
    UnknownSaga,
)
from shared.messages import (
    CancelRequest,
    Command,
    CompleteRequest,
    HeartbeatRequest,
    Reply,
    Request,
    SignalRequest,
    StartRequest,
    Succeeded,
)
from shared.telemetry import setup
from shared.telemetry.spans import SpanRecord
from shared.tokens import token_of
from tests.core.builders import (
    FOR_GOOD,
    SAGA_ID,
    T0,
    Run,
    accepted,
    failed,
    linear,
    rejected,
    saga,
    step,
    succeeded,
    tags,
    wait,
)

LINEAR = saga(step("a"), step("b"))
PARALLEL = saga(step("a", after=()), step("b", after=()), step("c", after=("a", "b")))
WITH_PIVOT = saga(
    step("a"), step("b", compensation=None, pivot=True), step("c", compensation=None)
)
PAYLOAD_BYTES_MAX = 2_000


class Bench:
    """An engine, with its clock and both ends of its broker in hand."""

    def __init__(
        self,
        definition: Saga = LINEAR,
        store: MemoryStore | None = None,
        broker: MemoryBroker | None = None,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self.now = T0
        self.store = store or MemoryStore()
        self.broker = broker or MemoryBroker()
        self.transport = MemoryTransport(self.broker)
        self.engine = Engine(
            store=self.store,
            transport=self.transport,
            catalog=Catalog([definition]),
            tracing=SagaTracing(system="memory", clock=self.clock),
            clock=self.clock,
            payload_bytes_max=PAYLOAD_BYTES_MAX,
            limits=limits,
        )

    def clock(self) -> datetime:
        """The time of the test."""
        return self.now

    def start(self, order_id: str = "o-1", key: str | None = None) -> Started:
        """Start one saga."""
        (started,) = self.engine.start([request(order_id, key)])
        return started

    def sent(self) -> list[Command]:
        """Commands that have arrived since the last call."""
        taken = self.broker.take_commands()
        for held in taken:
            self.broker.settle_command(held)
        return [held.item for held in taken]

    def arrive(self, *messages: Request, task_id: str = "") -> None:
        """Let messages come in one batch."""
        for message in messages:
            self.broker.send(message, task_id)
        self.take()

    def take(self) -> None:
        """Handle what is there as one batch."""
        deliveries = self.transport.receive(100, 0)
        self.engine.handle(deliveries)
        self.transport.acknowledge(deliveries)

    def happened(self, saga_id: str) -> list[str]:
        """Tags of a saga's history, which has no gap."""
        history = self.store.history([saga_id])[saga_id]
        assert [one.sequence for one in history] == list(range(1, len(history) + 1))
        return tags(one.event for one in history)

    def status(self, saga_id: str) -> Status:
        """Status of a saga."""
        return self.store.load([saga_id])[saga_id].state.status


BenchMaker = Callable[..., Bench]


@pytest.fixture
def make_bench() -> Iterator[BenchMaker]:
    """Make engines, and close them after the test."""
    made: list[Bench] = []

    def make(
        definition: Saga = LINEAR,
        store: MemoryStore | None = None,
        broker: MemoryBroker | None = None,
    ) -> Bench:
        made.append(Bench(definition, store, broker))
        return made[-1]

    yield make
    for bench in made:
        bench.engine.close()


@pytest.fixture
def bench(make_bench: BenchMaker) -> Bench:
    """An engine that knows a saga of two steps."""
    return make_bench()


def request(order_id: str = "o-1", key: str | None = None) -> StartRequest:
    """Asks for a saga."""
    return StartRequest(name="test", input={"order_id": order_id}, key=key)


def of(saga_id: str, reply: Reply) -> Reply:
    """A reply to that saga."""
    return msgspec.structs.replace(reply, saga_id=saga_id)


def delivered(reply: Reply) -> Delivery:
    """A reply as it comes from a transport."""
    return Delivery(message=reply, task=names.REPLY_TASK, body="{}")


# Starts ---------------------------------------------------------------------------------------


def test_a_start_is_durable_and_sends_the_first_command(bench: Bench) -> None:
    """The outbox row is deleted once it has reached the broker."""
    started = bench.start()
    saga_id = started.row.saga_id
    assert (started.created, started.published) == (True, True)
    assert bench.store.load([saga_id]) == {saga_id: started.row}
    assert [command.id for command in bench.sent()] == [f"{saga_id}:a:action:1"]
    assert bench.store.outbox_size() == 1
    bench.engine.settle()
    assert bench.store.outbox_size() == 0


def test_a_key_starts_one_saga(bench: Bench) -> None:
    """The second start gives the first one's saga and sends nothing."""
    first, second = bench.start(key="k"), bench.start(key="k")
    assert (first.created, second.created) == (True, False)
    assert second.row == first.row
    assert len(bench.sent()) == 1
    assert len(bench.store.list_sagas()) == 1


def test_a_key_with_other_input_is_refused(bench: Bench) -> None:
    """Nothing of the call is stored, and the error names the saga that has the key."""
    first = bench.start("o-1", key="k")
    bench.sent()
    with pytest.raises(KeyConflict) as caught:
        bench.engine.start([request("other"), request("o-2", key="k")])
    assert caught.value.saga_id == first.row.saga_id
    assert [one.saga_id for one in bench.store.list_sagas()] == [first.row.saga_id]
    assert bench.sent() == []


@pytest.mark.parametrize(
    "wrong, error",
    [
        (StartRequest(name="test", input={"order_id": 5}), InputError),
        (StartRequest(name="test", input={"unknown": "x"}), InputError),
        (request("x" * PAYLOAD_BYTES_MAX), PayloadTooLarge),
        (StartRequest(name="tset", input={}), UnknownSaga),
    ],
    ids=["type", "field", "size", "name"],
)
def test_a_wrong_start_stores_nothing(
    bench: Bench, wrong: StartRequest, error: type[SagaError]
) -> None:
    """Not even the right ones beside it."""
    with pytest.raises(error):
        bench.engine.start([request(), wrong])
    assert bench.store.list_sagas() == []
    assert bench.store.outbox_size() == 0
    assert bench.sent() == []


def test_of_two_starts_at_once_with_one_key_both_get_the_same_saga(
    make_bench: BenchMaker,
) -> None:
    """The one that loses the race looks up who has won."""
    to_race = ["k"]
    won: list[Started] = []

    def rival_starts() -> None:
        if to_race:
            won.append(rival.start(key=to_race.pop()))

    store, broker = MemoryStore(before_commit=rival_starts), MemoryBroker()
    mine, rival = make_bench(store=store, broker=broker), make_bench(store=store, broker=broker)
    lost = mine.start(key="k")
    assert (lost.created, won[0].created) == (False, True)
    assert lost.row == won[0].row
    assert len(mine.sent()) == 1


def test_a_start_that_comes_twice_as_a_message_starts_once(bench: Bench) -> None:
    """Its id is derived from the message's."""
    bench.arrive(request(), task_id="task-1")
    bench.arrive(request(), task_id="task-1")
    assert len(bench.store.list_sagas()) == 1
    assert len(bench.sent()) == 1
    assert bench.store.dead_letters() == []


def test_a_wrong_start_that_comes_as_a_message_is_put_aside(bench: Bench) -> None:
    """With the field that is wrong; what came with it goes on."""
    saga_id = bench.start().row.saga_id
    wrong = StartRequest(name="test", input={"order_id": 5})
    bench.arrive(wrong, of(saga_id, succeeded("a")), task_id="task-1")
    (letter,) = bench.store.dead_letters()
    assert "order_id" in letter.reason
    assert letter.task == names.START_TASK
    assert "step_succeeded" in bench.happened(saga_id)


# Outbox ---------------------------------------------------------------------------------------


def test_a_publish_that_fails_leaves_the_commands_in_the_outbox(bench: Bench) -> None:
    """They are sent again, when they are old enough, with the same ids."""
    bench.broker.available = False
    started = bench.start()
    assert (started.created, started.published) == (True, False)
    bench.engine.settle()
    assert bench.store.outbox_size() == 1
    bench.broker.available = True
    assert bench.engine.republish(timedelta(seconds=5), 10) == 0
    bench.now += timedelta(seconds=6)
    assert bench.engine.republish(timedelta(seconds=5), 10) == 1
    assert [one.id for one in bench.sent()] == [f"{started.row.saga_id}:a:action:1"]
    bench.engine.settle()
    assert bench.store.outbox_size() == 0


def test_what_a_crash_left_is_sent_by_another_engine(make_bench: BenchMaker) -> None:
    """Published but not settled: it goes out twice, with the same id."""
    store, broker = MemoryStore(), MemoryBroker()
    crashed, other = make_bench(store=store, broker=broker), make_bench(store=store, broker=broker)
    crashed.start()
    (first,) = crashed.sent()
    other.now += timedelta(seconds=6)
    assert other.engine.republish(timedelta(seconds=5), 10) == 1
    assert other.sent() == [first]
    assert other.engine.republish(timedelta(seconds=5), 10) == 0


def test_a_participant_never_begins_before_what_was_sent_to_it(
    make_bench: BenchMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash left it published: sent again later, it keeps the time of the decision."""
    store, broker = MemoryStore(), MemoryBroker()
    crashed, other = make_bench(store=store, broker=broker), make_bench(store=store, broker=broker)
    started = crashed.start()
    other.now += timedelta(seconds=6)
    assert other.engine.republish(timedelta(seconds=5), 10) == 1
    exported: list[SpanRecord] = []
    monkeypatch.setattr(setup, "emit", exported.extend)
    other.arrive(of(started.row.saga_id, rejected("a")))
    (send,) = (span for span in exported if span.kind == "producer")
    assert (send.start, send.end) == (T0, T0)


def test_a_commit_that_fails_forgets_no_published_command(make_bench: BenchMaker) -> None:
    """The next commit deletes it from the outbox."""
    broken = False

    def fail() -> None:
        if broken:
            raise UnavailableError("away")

    bench = make_bench(store=MemoryStore(before_commit=fail))
    saga_id = bench.start().row.saga_id
    broken = True
    with pytest.raises(UnavailableError):
        bench.arrive(of(saga_id, succeeded("a")))
    broken = False
    bench.engine.settle()
    assert bench.store.outbox_size() == 0


# Replies --------------------------------------------------------------------------------------


def test_replies_carry_a_saga_to_its_end(bench: Bench) -> None:
    """Step by step, each command once."""
    saga_id = bench.start().row.saga_id
    bench.arrive(of(saga_id, succeeded("a")))
    bench.arrive(of(saga_id, succeeded("b")))
    assert bench.status(saga_id) is Status.COMPLETED
    assert [one.step for one in bench.sent()] == ["a", "b"]


def test_replies_of_one_saga_in_one_batch_are_one_change(make_bench: BenchMaker) -> None:
    """The second is decided on what the first one led to."""
    commits: list[None] = []
    bench = make_bench(PARALLEL, MemoryStore(before_commit=lambda: commits.append(None)))
    saga_id = bench.start().row.saga_id
    commits.clear()
    bench.arrive(of(saga_id, succeeded("a")), of(saga_id, succeeded("b")))
    assert len(commits) == 1
    assert bench.happened(saga_id)[-3:] == ["step_succeeded", "step_succeeded", "step_dispatched"]
    assert [one.step for one in bench.sent()] == ["a", "b", "c"]


def test_a_conflict_is_decided_anew(make_bench: BenchMaker) -> None:
    """Another engine is faster with the other reply: what needs both is sent once."""
    pending: list[Delivery] = []

    def rival_acts() -> None:
        if pending:
            rival.engine.handle([pending.pop()])

    store, broker = MemoryStore(before_commit=rival_acts), MemoryBroker()
    mine = make_bench(PARALLEL, store, broker)
    rival = make_bench(PARALLEL, store, broker)
    saga_id = mine.start().row.saga_id
    mine.sent()
    pending.append(delivered(of(saga_id, succeeded("b", output="theirs"))))
    mine.engine.handle([delivered(of(saga_id, succeeded("a", output="mine")))])
    assert pending == []
    state = store.load([saga_id])[saga_id].state
    assert (state.step("a").output, state.step("b").output) == ("mine", "theirs")
    assert [one.step for one in mine.sent()] == ["c"]
    assert mine.happened(saga_id).count("step_succeeded") == 2


def test_conflicts_without_end_are_an_error(make_bench: BenchMaker) -> None:
    """It tries that often and no more; nothing of it is committed."""
    saga_ids: list[str] = []
    inside: list[int] = []

    def somebody_is_always_faster() -> None:
        if not saga_ids or (inside and inside[-1]):
            return
        inside.append(1)
        row = store.load(saga_ids)[saga_ids[0]]
        event = Recorded(sequence=row.sequence + 1, at=T0, event=DeadlineExceeded())
        newer = msgspec.structs.replace(row, sequence=row.sequence + 1)
        store.commit(
            [Change(row=newer, expected_sequence=row.sequence, events=(event,), commands=())]
        )
        inside.append(0)

    store = MemoryStore(before_commit=somebody_is_always_faster)
    bench = make_bench(store=store)
    saga_id = bench.start().row.saga_id
    saga_ids.append(saga_id)
    with pytest.raises(UnavailableError, match=str(CONFLICTS_MAX)):
        bench.engine.handle([delivered(of(saga_id, succeeded("a")))])
    assert inside.count(1) == CONFLICTS_MAX
    assert "step_succeeded" not in bench.happened(saga_id)


def test_a_duplicate_reply_changes_nothing(bench: Bench) -> None:
    """No event, no command, no dead letter: it is normal."""
    saga_id = bench.start().row.saga_id
    bench.arrive(of(saga_id, succeeded("a")))
    row, happened = bench.store.load([saga_id]), bench.happened(saga_id)
    bench.sent()
    bench.arrive(of(saga_id, succeeded("a")), of(saga_id, succeeded("a")))
    assert (bench.store.load([saga_id]), bench.happened(saga_id)) == (row, happened)
    assert bench.sent() == []
    assert bench.store.dead_letters() == []


def test_what_nobody_can_act_on_is_put_aside_and_blocks_nothing(bench: Bench) -> None:
    """An unknown saga, an attempt that was never sent, an unknown step, an unreadable body."""
    saga_id = bench.start().row.saga_id
    bench.broker.send_raw(InboundMessage(task=names.REPLY_TASK, task_id="x", body=b"{"))
    bench.arrive(
        of("nobody", succeeded("a")),
        of(saga_id, succeeded("a", attempt=2)),
        of(saga_id, succeeded("z")),
        of(saga_id, succeeded("a")),
    )
    letters = {one.saga_id or "unreadable": one for one in bench.store.dead_letters()}
    assert len(bench.store.dead_letters()) == 4
    assert letters.keys() == {"nobody", saga_id, "unreadable"}
    assert "'nobody'" in letters["nobody"].reason
    assert letters["nobody"].task == names.REPLY_TASK
    assert "nobody" in letters["nobody"].body
    assert bench.happened(saga_id)[-2:] == ["step_succeeded", "step_dispatched"]
    assert bench.transport.receive(10, 0) == []


def test_a_reply_that_is_too_large_fails_its_step_for_good(bench: Bench) -> None:
    """Its output could not be passed on; what it left is undone."""
    saga_id = bench.start().row.saga_id
    bench.arrive(of(saga_id, succeeded("a", output="x" * PAYLOAD_BYTES_MAX)))
    cause = bench.store.load([saga_id])[saga_id].state.cause
    assert cause is not None
    assert cause.failure is not None
    assert cause.failure.kind == "ResultTooLarge"
    assert [one.direction for one in bench.sent()] == ["action", "compensation"]


def test_output_and_undo_data_may_each_be_as_large_as_the_limit(bench: Bench) -> None:
    """A participant counts them one by one: both together are over the limit, and all right."""
    saga_id = bench.start().row.saga_id
    bench.arrive(of(saga_id, succeeded("a", output="x" * (PAYLOAD_BYTES_MAX - 2))))
    assert bench.happened(saga_id)[-2:] == ["step_succeeded", "step_dispatched"]


# Cancel ---------------------------------------------------------------------------------------


def test_a_cancelled_saga_is_undone(bench: Bench) -> None:
    """The request is a stored fact at once; what succeeded is undone."""
    saga_id = bench.start().row.saga_id
    bench.arrive(of(saga_id, succeeded("a")))
    row = bench.engine.cancel(saga_id, reason="changed my mind", by="me")
    assert row == bench.store.load([saga_id])[saga_id]
    assert "cancel_requested" in bench.happened(saga_id)
    bench.arrive(of(saga_id, rejected("b")))
    bench.arrive(of(saga_id, succeeded("a", direction="compensation")))
    assert bench.status(saga_id) is Status.COMPENSATED


def test_a_cancel_past_the_pivot_is_refused(make_bench: BenchMaker) -> None:
    """To the caller with the reason, and as a message with a dead letter; nothing changes."""
    bench = make_bench(WITH_PIVOT)
    saga_id = bench.start().row.saga_id
    bench.arrive(of(saga_id, succeeded("a")))
    bench.arrive(of(saga_id, succeeded("b")))
    before = bench.store.load([saga_id]), bench.happened(saga_id)
    with pytest.raises(NotAllowed, match="past its pivot 'b'"):
        bench.engine.cancel(saga_id, reason="late", by="me")
    bench.arrive(CancelRequest(saga_id=saga_id, reason="late", by="me"))
    (letter,) = bench.store.dead_letters()
    assert "past its pivot" in letter.reason
    assert (bench.store.load([saga_id]), bench.happened(saga_id)) == before


def test_a_cancel_that_the_pivot_overtakes_is_refused(make_bench: BenchMaker) -> None:
    """Nobody is told that a cancel is stored which is not."""
    overtaking: list[Delivery] = []

    def pivot_succeeds() -> None:
        if overtaking:
            rival.engine.handle([overtaking.pop()])

    store, broker = MemoryStore(before_commit=pivot_succeeds), MemoryBroker()
    mine = make_bench(WITH_PIVOT, store, broker)
    rival = make_bench(WITH_PIVOT, store, broker)
    saga_id = mine.start().row.saga_id
    mine.arrive(of(saga_id, succeeded("a")))
    overtaking.append(delivered(of(saga_id, succeeded("b"))))
    with pytest.raises(NotAllowed, match="past its pivot 'b'"):
        mine.engine.cancel(saga_id, reason="late", by="me")
    assert "cancel_requested" not in mine.happened(saga_id)


def test_a_second_cancel_changes_nothing(bench: Bench) -> None:
    """It is not refused: the saga is being undone, as asked."""
    saga_id = bench.start().row.saga_id
    first = bench.engine.cancel(saga_id, reason="changed my mind", by="me")
    assert bench.engine.cancel(saga_id, reason="really", by="me") == first


def test_a_cancel_of_an_unknown_saga_is_refused(bench: Bench) -> None:
    """With its id."""
    with pytest.raises(UnknownSaga, match="nobody"):
        bench.engine.cancel("nobody", reason="", by="")


# Timers ---------------------------------------------------------------------------------------


def test_a_tick_times_out_what_is_due_and_sends_the_next_attempt(bench: Bench) -> None:
    """Not a moment before it is due; the wait before the next attempt is a timer, too."""
    saga_id = bench.start().row.saga_id
    bench.sent()
    bench.now += timedelta(seconds=30) - timedelta(microseconds=1)
    assert bench.engine.tick(10) == 0
    bench.now += timedelta(microseconds=1)
    assert bench.engine.tick(10) == 1
    timed_out = bench.store.history([saga_id])[saga_id][-1].event
    assert isinstance(timed_out, StepTimedOut)
    assert bench.sent() == []
    assert timed_out.retry_at is not None
    assert bench.store.load([saga_id])[saga_id].wake_at == timed_out.retry_at
    bench.now = timed_out.retry_at
    assert bench.engine.tick(10) == 1
    assert [one.id for one in bench.sent()] == [f"{saga_id}:a:action:2"]
    assert bench.engine.tick(10) == 0


def test_a_tick_takes_no_more_than_its_limit(bench: Bench) -> None:
    """The others are woken by the next one."""
    for number in range(3):
        bench.start(f"o-{number}")
    bench.now += timedelta(seconds=30)
    assert [bench.engine.tick(2) for _ in range(3)] == [2, 1, 0]


# Traces ---------------------------------------------------------------------------------------


def test_a_failure_is_exported_again_until_it_is_not_worth_it(bench: Bench) -> None:
    """Nobody confirms the export here; after an hour it is given up."""
    saga_id = bench.start().row.saga_id
    bench.arrive(of(saga_id, rejected("a")))
    assert bench.status(saga_id) is Status.COMPENSATED
    assert bench.engine.retrace(10) == 0
    bench.now += TRACE_RETRY
    assert [bench.engine.retrace(10) for _ in range(2)] == [1, 0]
    assert bench.store.load([saga_id])[saga_id].trace_due_at == bench.now + TRACE_RETRY
    bench.now += RETRACE_FOR
    assert bench.engine.retrace(10) == 1
    assert bench.store.load([saga_id])[saga_id].trace_due_at is None


def test_a_saga_that_moves_on_is_exported_at_its_end_and_not_before(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nobody knows yet whether what was exported when it got stuck has arrived."""
    exported: list[tuple[str, bool]] = []

    def ended(_: Definition, row: SagaRow, history: object, *, whole: bool = False) -> None:
        exported.append((row.state.status.value, whole))

    monkeypatch.setattr(bench.engine._loop._tracing, "ended", ended)
    saga_id = bench.start().row.saga_id
    broken = failed("a", direction="compensation", failure=FOR_GOOD)
    bench.arrive(of(saga_id, succeeded("a")))
    bench.arrive(of(saga_id, rejected("b")))
    bench.arrive(of(saga_id, broken))
    bench.now += timedelta(seconds=1)
    bench.engine.operate(saga_id, RetryNow(reason="mended"))
    assert exported == [("stuck", False)]
    bench.arrive(of(saga_id, succeeded("a", 2, direction="compensation")))
    assert exported == [("stuck", False), ("compensated", True)]


def test_a_success_that_is_not_sampled_has_no_trace_to_export(bench: Bench) -> None:
    """Only failures are reconstructed."""
    saga_id = bench.start().row.saga_id
    bench.arrive(of(saga_id, succeeded("a")))
    bench.arrive(of(saga_id, succeeded("b")))
    assert bench.store.load([saga_id])[saga_id].trace_due_at is None


@pytest.mark.parametrize("at_once", [True, False], ids=["as it is resumed", "later"])
def test_a_full_history_that_is_resumed_and_completes_has_a_trace_of_the_end(
    *, at_once: bool
) -> None:
    """Though it was not sampled, and nothing else went wrong: it was stuck."""
    bench = Bench(limits=Limits(events_max=4))
    saga_id = bench.start().row.saga_id
    bench.arrive(of(saga_id, succeeded("a")))
    bench.arrive(of(saga_id, failed("b")))
    wake_at = bench.store.load([saga_id])[saga_id].wake_at
    assert wake_at is not None
    bench.now = wake_at
    bench.engine.tick(1)
    row = bench.store.load([saga_id])[saga_id]
    assert (row.state.full, row.trace_due_at) == (True, bench.now + TRACE_RETRY)
    bench.engine.store.commit((), traced={saga_id: bench.now + TRACE_RETRY})
    assert bench.store.load([saga_id])[saga_id].trace_due_at is None
    if at_once:  # the failed attempt has succeeded after all
        bench.arrive(of(saga_id, succeeded("b")))
        bench.engine.operate(saga_id, Resume())
    else:
        bench.engine._loop._limits = NO_LIMITS
        bench.engine.operate(saga_id, Resume())
        bench.arrive(of(saga_id, succeeded("b", 2)))
    row = bench.store.load([saga_id])[saga_id]
    assert (row.state.status, row.state.cause) == (Status.COMPLETED, None)
    assert row.trace_due_at == bench.now + TRACE_RETRY


# Operators ------------------------------------------------------------------------------------


def test_what_an_operator_does_is_a_stored_fact_with_its_reason(bench: Bench) -> None:
    """Pause holds the next step back, resume sends it."""
    saga_id = bench.start().row.saga_id
    bench.sent()
    paused = bench.engine.operate(saga_id, Pause(reason="stock take", by="ada"))
    assert paused.events == (SagaPaused(reason="stock take", by="ada"),)
    bench.arrive(of(saga_id, succeeded("a")))
    assert bench.sent() == []
    resumed = bench.engine.operate(saga_id, Resume(reason="done", by="ada"))
    assert [command.step for command in resumed.commands] == ["b"]
    assert bench.store.load([saga_id])[saga_id] == resumed.row
    assert [command.step for command in bench.sent()] == ["b"]


def test_an_operator_is_told_when_commands_wait_for_the_broker(bench: Bench) -> None:
    """What was decided is stored, and goes out later."""
    saga_id = bench.start().row.saga_id
    paused = bench.engine.operate(saga_id, Pause(reason="stock take"))
    bench.arrive(of(saga_id, succeeded("a")))
    bench.sent()
    bench.broker.available = False
    resumed = bench.engine.operate(saga_id, Resume(reason="done"))
    assert (paused.published, resumed.published) == (True, False)
    bench.broker.available = True
    bench.now += timedelta(seconds=6)
    assert bench.engine.republish(timedelta(seconds=5), 10) == 1
    assert bench.sent() == list(resumed.commands)


def test_a_dry_run_says_what_would_follow_and_stores_nothing(bench: Bench) -> None:
    """The same events and commands as the real thing."""
    saga_id = bench.start().row.saga_id
    bench.arrive(of(saga_id, failed("a")))
    bench.sent()
    before = bench.store.load([saga_id])
    tried = bench.engine.operate(saga_id, RetryNow(reason="now"), dry_run=True)
    assert bench.store.load([saga_id]) == before
    assert bench.sent() == []
    assert tried.dry_run
    done = bench.engine.operate(saga_id, RetryNow(reason="now"))
    assert (done.row, done.events, done.commands) == (tried.row, tried.events, tried.commands)


@pytest.mark.parametrize("dry_run", [False, True])
def test_what_an_operator_may_not_do_is_refused_with_the_reason(
    bench: Bench, dry_run: bool
) -> None:
    """Dry or not."""
    saga_id = bench.start().row.saga_id
    with pytest.raises(NotAllowed, match=r"cannot be resolved\. The saga is running"):
        bench.engine.operate(saga_id, Resolve(reason="why"), dry_run=dry_run)
    with pytest.raises(UnknownSaga):
        bench.engine.operate("nobody", Pause(), dry_run=dry_run)
    large = RetryNow(step="a", payload={"x": "y" * PAYLOAD_BYTES_MAX})
    with pytest.raises(PayloadTooLarge, match="edited payload"):
        bench.engine.operate(saga_id, large, dry_run=dry_run)


def test_a_pause_twice_is_fine_and_changes_nothing(bench: Bench) -> None:
    """The row is the one that it was."""
    saga_id = bench.start().row.saga_id
    first = bench.engine.operate(saga_id, Pause(by="ada"))
    second = bench.engine.operate(saga_id, Pause(by="bob"))
    assert (second.row, second.events) == (first.row, ())


# Waiting --------------------------------------------------------------------------------------

PATIENT = saga(step("a"), wait("w", WaitFor("ok", approval=True)))


def test_a_signal_comes_through_the_queue_and_from_a_client(make_bench: BenchMaker) -> None:
    """The first one counts, whichever way it came."""
    bench = make_bench(PATIENT)
    saga_id = bench.start().row.saga_id
    yes = SignalRequest(saga_id=saga_id, name="ok", data={"approved": True}, by="ada")
    bench.arrive(yes, yes, of(saga_id, succeeded("a")))
    assert bench.status(saga_id) is Status.COMPLETED
    other = bench.start("o-2").row.saga_id
    told = bench.engine.signal(other, "ok", {"approved": True}, by="ada")
    assert tags(told.events) == ["signal_received"]
    assert bench.engine.signal(other, "ok", {"approved": False}, by="bob").events == ()
    assert bench.store.dead_letters() == []


def test_a_signal_that_nobody_can_take_is_a_dead_letter(make_bench: BenchMaker) -> None:
    """With the reason, as for every message; a client gets an error."""
    bench = make_bench(PATIENT)
    saga_id = bench.start().row.saga_id
    bench.arrive(
        SignalRequest(saga_id=saga_id, name="no"),
        SignalRequest(saga_id=saga_id, name="ok", data="x" * PAYLOAD_BYTES_MAX),
    )
    reasons = " ".join(letter.reason for letter in bench.store.dead_letters())
    assert "waits for no signal 'no'" in reasons
    assert "The data of the signal is" in reasons
    with pytest.raises(NotAllowed, match="waits for no signal 'no'"):
        bench.engine.signal(saga_id, "no", None, by="ada")


def test_a_step_is_completed_by_its_token(bench: Bench) -> None:
    """Through the queue or by a client; late or again it changes nothing."""
    saga_id = bench.start().row.saga_id
    (first,) = bench.sent()
    bench.arrive(of(saga_id, accepted("a")))
    done = CompleteRequest(token=first.token, outcome=Succeeded(output={"id": 1}))
    bench.arrive(done, done)
    (second,) = bench.sent()
    told = bench.engine.complete(second.token, Succeeded())
    assert told.row.state.status is Status.COMPLETED
    assert bench.engine.complete(first.token, Succeeded(output={"id": 2})).events == ()
    assert bench.store.dead_letters() == []


def test_a_wrong_token_is_a_dead_letter(bench: Bench) -> None:
    """One that is none, and one of another saga's secret."""
    saga_id = bench.start().row.saga_id
    forged = token_of("guessed", saga_id, "a", "action", 1)
    bench.arrive(
        CompleteRequest(token="nonsense", outcome=Succeeded()),
        CompleteRequest(token=forged, outcome=Succeeded()),
    )
    reasons = [letter.reason for letter in bench.store.dead_letters()]
    assert any("not a token of a step" in reason for reason in reasons)
    assert any("not one of this saga" in reason for reason in reasons)
    with pytest.raises(NotAllowed, match="not one of this saga"):
        bench.engine.complete(forged, Succeeded())


def test_a_heartbeat_moves_the_timer_and_leaves_no_event(bench: Bench) -> None:
    """The row has the progress; the history does not grow."""
    saga_id = bench.start().row.saga_id
    before = bench.store.load([saga_id])[saga_id]
    bench.now += timedelta(seconds=20)
    beat = HeartbeatRequest(
        saga_id=saga_id, step="a", direction="action", attempt=1, progress={"done": 3}
    )
    bench.arrive(beat, msgspec.structs.replace(beat, progress="too soon"))
    row = bench.store.load([saga_id])[saga_id]
    assert (row.sequence, row.wake_at) == (before.sequence, bench.now + timedelta(seconds=30))
    assert row.state.beats["a"].progress == {"done": 3}
    bench.now += timedelta(seconds=20)
    large = msgspec.structs.replace(beat, progress="x" * 5_000)
    bench.arrive(large)
    assert bench.store.load([saga_id])[saga_id].state.beats["a"].progress is None
    bench.arrive(of(saga_id, succeeded("a")))
    assert bench.store.load([saga_id])[saga_id].state.beats == {}
    assert bench.happened(saga_id).count("step_dispatched") == 2


def test_a_saga_starts_at_a_given_time(bench: Bench) -> None:
    """It is durable at once, and sends its first command then."""
    at = bench.now + timedelta(hours=1)
    (started,) = bench.engine.start([msgspec.structs.replace(request(), not_before=at)])
    assert (started.row.wake_at, bench.sent()) == (at, [])
    bench.now = at
    bench.engine.tick(10)
    assert [command.step for command in bench.sent()] == ["a"]


def test_two_exports_of_one_moment_are_told_apart() -> None:
    """That the first one has arrived must not count as the arrival of the second."""
    run = Run(linear("a"))
    due_at = T0 + TRACE_RETRY
    first = Batch(T0, {})
    first.add(None, run.last, due_at)
    row = first.rows[SAGA_ID]
    second = Batch(T0, {SAGA_ID: row})
    second.add(row, run.tell(succeeded("a")), due_at)
    assert row.trace_due_at == due_at
    assert second.rows[SAGA_ID].trace_due_at not in {due_at, None}
