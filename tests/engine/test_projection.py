from collections.abc import Iterable
from datetime import timedelta

import msgspec
import pytest

from orchestrator.core.definition import Definition, WaitFor
from orchestrator.core.events import Event, Recorded
from orchestrator.core.machine import decide
from orchestrator.core.messages import (
    Cancel,
    Complete,
    Message,
    Pause,
    Resume,
    RetryNow,
    Signal,
    Skip,
    Start,
    Tick,
)
from orchestrator.core.state import SagaState, Status
from orchestrator.projection import project, send_span_id, step_span_id
from shared.ids import command_id
from shared.messages import Execution, Rejected, Reply, Succeeded
from shared.telemetry import names
from shared.telemetry.spans import SpanRecord
from shared.tokens import proof_of
from tests.core.builders import (
    FOR_GOOD,
    REFUSAL,
    SAGA_ID,
    SECRET,
    START,
    T0,
    TRACE,
    Retry,
    accepted,
    failed,
    linear,
    rejected,
    saga,
    step,
    succeeded,
    wait,
)

SECOND = timedelta(seconds=1)
UNSAMPLED = msgspec.structs.replace(
    START, trace=msgspec.structs.replace(TRACE, sampled=False, tracestate="vendor=1")
)


class Story:
    """A saga whose messages arrive one second apart; a `Tick` comes when the saga wants it."""

    def __init__(self, definition: Definition, *messages: Message) -> None:
        self.definition = definition
        self.state: SagaState | None = None
        self.history: list[Recorded] = []
        self._now = T0
        self._wake_at = T0
        self.begin = START
        self.messages = messages

    def play(self, begin: Start = START) -> "Story":
        """Let it all happen."""
        for message in (begin, *self.messages):
            self._now = self._wake_at if isinstance(message, Tick) else self._now
            decision = decide(self.definition, self.state, message, self._now)
            self.state = decision.state
            self._wake_at = decision.wake_at or self._now
            self._record(decision.events)
            self._now += SECOND
        return self

    def _record(self, events: Iterable[Event]) -> None:
        for event in events:
            sequence = len(self.history) + 1
            self.history.append(Recorded(sequence=sequence, at=self._now, event=event))

    def spans(self) -> list[SpanRecord]:
        """The projection."""
        assert self.state is not None
        return project(self.definition, self.state, self.history, system="redis", sent={})

    @property
    def status(self) -> Status:
        """How it ended."""
        assert self.state is not None
        return self.state.status


def ran(reply: Reply, seconds: float = 0.5) -> Reply:
    """A reply of a participant that said when it ran, and so has exported its own span."""
    execution = Execution(worker="w", started_at=T0, ended_at=T0 + seconds * SECOND)
    return msgspec.structs.replace(reply, execution=execution)


def completed() -> Story:
    """Two steps that succeed."""
    return Story(linear("a", "b"), ran(succeeded("a")), ran(succeeded("b")))


def compensated() -> Story:
    """The third step is refused, the others are undone."""
    return Story(
        linear("a", "b", "c"),
        ran(succeeded("a")),
        ran(succeeded("b")),
        ran(rejected("c")),
        ran(succeeded("b", direction="compensation")),
        ran(succeeded("a", direction="compensation")),
    )


def retried() -> Story:
    """The first attempt fails, the second one succeeds."""
    return Story(linear("a"), ran(failed("a")), Tick(), ran(succeeded("a", attempt=2)))


def timed_out() -> Story:
    """Nobody answers; the only attempt is undone."""
    return Story(
        linear("a", retry=Retry(attempts=1)),
        Tick(),
        ran(succeeded("a", direction="compensation")),
    )


def cancelled() -> Story:
    """Somebody changes their mind while the second step runs."""
    return Story(
        linear("a", "b"),
        ran(succeeded("a")),
        Cancel(reason="changed my mind", by="me"),
        ran(rejected("b")),
        ran(succeeded("a", direction="compensation")),
    )


def stuck() -> Story:
    """The compensation of the first step gives up."""
    return Story(
        linear("a", "b"),
        ran(succeeded("a")),
        ran(rejected("b")),
        ran(failed("a", direction="compensation", failure=FOR_GOOD)),
    )


STORIES = {
    "completed": (completed, Status.COMPLETED),
    "compensated": (compensated, Status.COMPENSATED),
    "retried": (retried, Status.COMPLETED),
    "timed_out": (timed_out, Status.COMPENSATED),
    "cancelled": (cancelled, Status.COMPENSATED),
    "stuck": (stuck, Status.STUCK),
}
ALL = pytest.mark.parametrize("name", STORIES)


def by_name(spans: Iterable[SpanRecord]) -> dict[str, SpanRecord]:
    """The last span of each name."""
    return {span.name: span for span in spans}


def only(spans: Iterable[SpanRecord], name: str) -> SpanRecord:
    """The one span of that name."""
    (found,) = (span for span in spans if span.name == name)
    return found


@pytest.mark.parametrize("begin", [START, UNSAMPLED], ids=["sampled", "unsampled"])
@ALL
def test_a_history_is_one_tree(name: str, begin: Start) -> None:
    """One root, which comes first; every parent is there; ids are unique; nothing ends early."""
    make, status = STORIES[name]
    story = make().play(begin)
    assert story.status is status
    spans = story.spans()
    ids = [span.span_id for span in spans]
    assert len(set(ids)) == len(ids)
    assert [span.span_id for span in spans if span.parent_span_id is None] == ids[:1]
    assert ids[0] == begin.trace.root_span_id
    assert {span.parent_span_id for span in spans[1:]} <= set(ids)
    assert {span.trace_id for span in spans} == {begin.trace.trace_id}
    assert {span.tracestate for span in spans} == {begin.trace.tracestate}
    assert all(span.start <= span.end and span.sampled for span in spans)


@ALL
def test_projecting_twice_gives_the_same_spans(name: str) -> None:
    """A collector that gets both has each once."""
    story = STORIES[name][0]().play()
    assert story.spans() == story.spans()
    assert STORIES[name][0]().play().spans() == story.spans()


@ALL
def test_the_root_says_which_saga_and_how_it_ended(name: str) -> None:
    """From the first event to the last; a saga that completed has no error."""
    make, status = STORIES[name]
    story = make().play()
    root = story.spans()[0]
    assert (root.name, root.start, root.end) == ("saga test", T0, story.history[-1].at)
    assert root.attributes == {
        names.SAGA_ID: SAGA_ID,
        names.SAGA_NAME: "test",
        names.SAGA_VERSION: 1,
        names.SAGA_STATUS: status.value,
    }
    assert (root.error is None) is (status is Status.COMPLETED)


def test_a_completed_saga_has_a_step_and_a_send_for_each_step() -> None:
    """The process spans are the participants' own; no error anywhere."""
    spans = completed().play().spans()
    assert [span.name for span in spans] == [
        "saga test",
        "step a",
        "send service",
        "step b",
        "send service",
    ]
    first = command_id(SAGA_ID, "a", "action", 1)
    assert (spans[1].span_id, spans[1].parent_span_id) == (
        step_span_id(SAGA_ID, "a", "action"),
        spans[0].span_id,
    )
    assert (spans[2].span_id, spans[2].parent_span_id, spans[2].kind) == (
        send_span_id(first),
        spans[1].span_id,
        "producer",
    )
    assert spans[2].attributes[names.MESSAGING_MESSAGE_ID] == first
    assert spans[2].attributes[names.MESSAGING_SYSTEM] == "redis"
    assert (spans[1].start, spans[1].end) == (T0, T0 + SECOND)
    assert (spans[3].start, spans[3].end) == (T0 + SECOND, T0 + 2 * SECOND)
    assert [span.error for span in spans] == [None] * 5


def test_the_send_span_is_the_one_that_the_command_names() -> None:
    """The participant's span hangs below it."""
    story = completed().play()
    first = decide(story.definition, None, START, T0).commands[0]
    assert first.traceparent.split("-")[2] == story.spans()[2].span_id


def test_a_compensation_is_linked_to_what_it_undoes() -> None:
    """The link leads to the action's span of the same trace; actions have none."""
    spans = compensated().play().spans()
    steps = {span.span_id: span for span in spans}
    undone = {
        span.name: [steps[link.span_id].name for link in span.links]
        for span in spans
        if span.name.startswith(("step", "compensate"))
    }
    assert undone == {
        "step a": [],
        "step b": [],
        "step c": [],
        "compensate b": ["step b"],
        "compensate a": ["step a"],
    }
    links = [link for span in spans for link in span.links]
    assert {link.trace_id for link in links} == {TRACE.trace_id}


def test_a_rejection_is_the_error_of_its_step_and_of_the_saga() -> None:
    """With the reject code as its type; the steps that went well have none."""
    spans = by_name(compensated().play().spans())
    errors = {name: span.error.type for name, span in spans.items() if span.error}
    assert errors == {"saga test": REFUSAL.kind, "step c": REFUSAL.kind}
    error = spans["saga test"].error
    assert error is not None
    assert error.message == REFUSAL.message
    assert spans["step c"].attributes[names.SAGA_OUTCOME] == "rejected"
    assert spans["compensate a"].attributes[names.SAGA_OUTCOME] == "succeeded"


def test_attempts_are_siblings_below_their_step() -> None:
    """The step lasts from the first dispatch to the last outcome, and has the last one's result."""
    story = retried().play()
    spans = story.spans()
    the_step = only(spans, "step a")
    sends = [span for span in spans if span.name == "send service"]
    assert [span.attributes[names.SAGA_ATTEMPT] for span in sends] == [1, 2]
    assert {span.parent_span_id for span in sends} == {the_step.span_id}
    assert (the_step.start, the_step.end) == (T0, story.history[-1].at)
    assert the_step.attributes[names.SAGA_ATTEMPT] == 2
    assert the_step.attributes[names.SAGA_OUTCOME] == "succeeded"
    assert the_step.error is None


def test_a_time_out_has_its_own_error_type_and_a_span_for_the_silent_participant() -> None:
    """Nobody else can have exported what happened in that attempt."""
    spans = timed_out().play().spans()
    errors = {span.name: span.error.type for span in spans if span.error}
    assert errors == {"saga test": "timed_out", "step a": "timeout", "process service": "timeout"}
    process = only(spans, "process service")
    assert process.kind == "consumer"
    assert process.parent_span_id == send_span_id(command_id(SAGA_ID, "a", "action", 1))
    assert process.end - process.start == timedelta(seconds=30)


def test_a_reply_without_times_gets_a_process_span() -> None:
    """A participant without traces of its own still appears."""
    spans = Story(linear("a"), succeeded("a")).play().spans()
    process = only(spans, "process service")
    assert process.parent_span_id == only(spans, "send service").span_id
    assert process.attributes[names.SAGA_OUTCOME] == "succeeded"


def test_a_cancelled_saga_says_who_was_not_to_blame() -> None:
    """Its error is the cancellation, not what the step in flight said afterwards."""
    root = cancelled().play().spans()[0]
    assert root.error is not None
    assert (root.error.type, root.error.message) == ("Cancelled", "changed my mind")


def test_a_failure_that_was_not_sampled_is_reconstructed() -> None:
    """Every span says so; the start and the participants' spans are made from the history."""
    spans = compensated().play(UNSAMPLED).spans()
    assert {span.attributes[names.SAGA_RECONSTRUCTED] for span in spans} == {True}
    assert sum(span.name == "saga.start test" for span in spans) == 1
    sends = [span for span in spans if span.kind == "producer"]
    processes = [span for span in spans if span.kind == "consumer"]
    assert len(sends) == 5
    assert [span.parent_span_id for span in processes] == [span.span_id for span in sends]
    assert {(span.start, span.end) for span in processes} == {(T0, T0 + 0.5 * SECOND)}


def test_a_sampled_trace_is_not_called_reconstructed() -> None:
    """Else it says nothing; its start was exported at the start."""
    spans = compensated().play().spans()
    assert all(names.SAGA_RECONSTRUCTED not in span.attributes for span in spans)
    assert all(not span.name.startswith("saga.start") for span in spans)


def test_the_callers_trace_is_continued() -> None:
    """Its span is the remote parent of the root."""
    trace = msgspec.structs.replace(TRACE, parent_span_id="00f067aa0ba902b7")
    root = completed().play(msgspec.structs.replace(START, trace=trace)).spans()[0]
    assert (root.parent_span_id, root.parent_is_remote) == ("00f067aa0ba902b7", True)


def test_a_saga_that_was_stuck_gives_the_rest_at_its_end() -> None:
    """What was exported when it got stuck is not exported again, but for the root."""
    story = Story(
        linear("a", "b"),
        ran(succeeded("a")),
        ran(rejected("b")),
        ran(failed("a", direction="compensation", failure=FOR_GOOD)),
        ran(succeeded("a", direction="compensation")),
    ).play()
    assert story.status is Status.COMPENSATED
    assert [span.name for span in story.spans()] == [
        "saga test",
        "compensate a",
        "send service",
    ]
    at_first = stuck().play().spans()
    assert [span.name for span in at_first].count("compensate a") == 1
    assert at_first[0].span_id == story.spans()[0].span_id
    assert at_first[0].end < story.spans()[0].end


def test_what_was_published_later_is_sent_later() -> None:
    """The process that published it knows the times; others take those of the decision."""
    story = completed().play()
    assert story.state is not None
    sent = {command_id(SAGA_ID, "a", "action", 1): (T0 + 0.1 * SECOND, T0 + 0.2 * SECOND)}
    spans = project(story.definition, story.state, story.history, system="redis", sent=sent)
    sends = [span for span in spans if span.name == "send service"]
    assert [(span.start, span.end) for span in sends] == [
        (T0 + 0.1 * SECOND, T0 + 0.2 * SECOND),
        (T0 + SECOND, T0 + SECOND),
    ]


def test_steps_at_the_same_time_are_siblings() -> None:
    """None hangs below another one."""
    definition = saga(step("a", after=()), step("b", after=())).definition
    spans = Story(definition, ran(succeeded("b")), ran(succeeded("a"))).play().spans()
    root, a, b = spans[0], only(spans, "step a"), only(spans, "step b")
    assert a.parent_span_id == b.parent_span_id == root.span_id
    assert (a.end, b.end) == (T0 + 2 * SECOND, T0 + SECOND)


def test_a_step_in_flight_when_another_gives_up_is_not_left_out() -> None:
    """It answers later, and its span ends then."""
    definition = saga(step("a", after=()), step("b", after=())).definition
    late = Reply(
        saga_id=SAGA_ID, step="b", direction="action", attempt=1, outcome=Succeeded(output=1)
    )
    refused = Reply(
        saga_id=SAGA_ID, step="a", direction="action", attempt=1, outcome=Rejected(failure=REFUSAL)
    )
    undone = succeeded("b", direction="compensation")
    story = Story(definition, ran(refused), ran(late), ran(undone)).play()
    assert story.status is Status.COMPENSATED
    b = only(story.spans(), "step b")
    assert (b.error, b.end) == (None, T0 + 2 * SECOND)


# Waiting and operated sagas -------------------------------------------------------------------


def tree(story: Story) -> dict[str, str | None]:
    """Name of each span and of its parent: exactly one root, and no orphan."""
    spans = story.spans()
    by_id = {one.span_id: one.name for one in spans}
    roots = [one for one in spans if one.parent_span_id not in by_id]
    assert [one.name for one in roots] == ["saga test"]
    assert len(by_id) == len(spans)
    return {one.name: by_id.get(one.parent_span_id or "") for one in spans}


def test_a_wait_is_a_step_span_without_a_message() -> None:
    """As long as it waited; nothing was sent."""
    definition = saga(step("a"), wait("w", WaitFor("ok")), step("b")).definition
    story = Story(definition, succeeded("a"), Signal(name="ok"), succeeded("b")).play()
    spans = tree(story)
    assert spans["step w"] == "saga test"
    assert [one.name for one in story.spans()].count("send service") == 2


def test_an_accepted_attempt_has_one_process_span_of_its_participant() -> None:
    """The participant has exported it; the step lasts until it was completed."""
    proof = proof_of(SECRET, SAGA_ID, "a", "action", 1)
    done = Complete(reply=succeeded("a"), proof=proof)
    story = Story(linear("a"), ran(accepted("a")), done).play()
    assert "process service" not in tree(story)
    (span,) = [one for one in story.spans() if one.name == "step a"]
    assert span.end == T0 + 2 * SECOND


def test_an_operated_saga_is_one_tree() -> None:
    """Paused, resumed, stuck, tried again and skipped."""
    definition = saga(
        step("a"), step("p", pivot=True, compensation=None), step("b"), step("c")
    ).definition
    story = Story(
        definition,
        Pause(by="ada"),
        succeeded("a"),
        Resume(by="ada"),
        succeeded("p"),
        failed("b", failure=FOR_GOOD),
        RetryNow(by="ada"),
        failed("b", 2, failure=FOR_GOOD),
        Skip(step="b", by="ada"),
        succeeded("c"),
    ).play()
    assert story.status is Status.COMPLETED
    assert tree(story)["step b"] == "saga test"
    (skipped,) = [one for one in story.spans() if one.name == "step b"]
    assert skipped.attributes[names.SAGA_OUTCOME] == "skipped"
