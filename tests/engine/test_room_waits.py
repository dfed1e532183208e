"""What waited for room within a limit is in the trace: how long, for what, and how that ended."""

from collections.abc import Mapping
from datetime import timedelta

import pytest

from orchestrator.core.definition import Definition, Input, Item
from orchestrator.core.events import Recorded
from orchestrator.core.limits import Limits
from orchestrator.core.machine import Message, Start, Tick, decide
from orchestrator.core.messages import Cancel, Resolve, RetryNow, Skip
from orchestrator.core.room import SAGA
from orchestrator.core.state import SagaState, Status
from orchestrator.ports import SagaRow
from orchestrator.projection import project
from orchestrator.trace_view import projected_spans
from shared.telemetry import names
from shared.telemetry.spans import SpanRecord
from tests.core.builders import (
    FOR_GOOD,
    START,
    START_TWO,
    T0,
    TRACE,
    Orders,
    Retry,
    failed,
    linear,
    saga,
    step,
    succeeded,
)

Room = Mapping[str, int]
NO_ROOM_FOR_B: Room = {"b": 0}
ROOM_FOR_B: Room = {"b": 1}


class Waiting:
    """A saga that is told something every second, each time with so much room."""

    def __init__(self, definition: Definition, *told: tuple[Message, Room]) -> None:
        self.definition = definition
        self.state: SagaState | None = None
        self.history: list[Recorded] = []
        self.now = T0
        for message, room in told:
            self.tell(message, room)

    def tell(self, message: Message, room: Room) -> None:
        """Let a message arrive, and a second pass."""
        limits = Limits(room=room)
        decision = decide(self.definition, self.state, message, self.now, limits=limits)
        self.state = decision.state
        for number, event in enumerate(decision.events, len(self.history) + 1):
            self.history.append(Recorded(sequence=number, at=self.now, event=event))
        self.now += timedelta(seconds=1)

    @property
    def spans(self) -> list[SpanRecord]:
        """What is exported."""
        assert self.state is not None
        return project(self.definition, self.state, self.history, system="redis", sent={})

    @property
    def waits(self) -> list[tuple[str, float, float, str]]:
        """Of each wait its name, from when to when, in seconds, and how it ended."""
        return [
            (
                span.name,
                (span.start - T0).total_seconds(),
                (span.end - T0).total_seconds(),
                str(span.attributes[names.SAGA_OUTCOME]),
            )
            for span in self.spans
            if span.name.startswith("await room")
        ]


def begun(definition: Definition, begin: Start = START) -> Waiting:
    """A saga that has waited for two seconds for room for its second step, and has it."""
    return Waiting(
        definition,
        (begin, NO_ROOM_FOR_B),
        (succeeded("a"), NO_ROOM_FOR_B),
        (Tick(), NO_ROOM_FOR_B),
        (Tick(), ROOM_FOR_B),
        (succeeded("b"), {}),
    )


def test_a_step_that_waited_has_a_span_from_its_turn_to_its_first_attempt() -> None:
    """Beside its own, which begins with the attempt, and with all that people search by."""
    story = begun(linear("a", "b"))
    assert story.waits == [("await room b", 1, 3, "succeeded")]
    spans = {span.name: span for span in story.spans}
    wait, root = spans["await room b"], spans["saga test"]
    assert wait.end == spans["step b"].start
    assert (wait.trace_id, wait.parent_span_id) == (TRACE.trace_id, root.span_id)
    assert wait.attributes == {
        names.SAGA_ID: root.attributes[names.SAGA_ID],
        names.SAGA_NAME: "test",
        names.SAGA_VERSION: 1,
        names.SAGA_STEP: "b",
        names.SAGA_DIRECTION: "action",
        names.SAGA_OUTCOME: "succeeded",
    }


def test_a_saga_that_waited_for_its_turn_has_a_span_of_its_name() -> None:
    """It has not begun, and no step is meant."""
    story = Waiting(
        linear("a"), (START, {SAGA: 0}), (Tick(), {SAGA: 0}), (Tick(), {}), (succeeded("a"), {})
    )
    assert story.waits == [("await room test", 0, 2, "succeeded")]
    (wait,) = (span for span in story.spans if span.name == "await room test")
    assert names.SAGA_STEP not in wait.attributes


def test_a_saga_that_never_waited_has_no_such_span() -> None:
    """However little room there was afterwards."""
    story = Waiting(linear("a"), (START, {"a": 1}), (succeeded("a"), {"a": 0}))
    assert story.waits == []


def test_each_wait_is_a_span_of_its_own() -> None:
    """Before a retry, and before an undo."""
    definition = linear("a", retry=Retry(attempts=2))
    story = Waiting(definition, (START, {}), (failed("a"), {}))
    story.tell(RetryNow(by="ada"), {"a": 0})
    story.tell(Tick(), {"a": 1})
    story.tell(failed("a", 2), {"a": 0})
    story.tell(Tick(), {})
    story.tell(succeeded("a", direction="compensation"), {})
    assert story.state is not None
    assert story.state.status is Status.COMPENSATED
    assert story.waits == [
        ("await room a", 2, 3, "succeeded"),
        ("await room a", 4, 5, "succeeded"),
    ]
    waits = [span for span in story.spans if span.name == "await room a"]
    directions = [span.attributes[names.SAGA_DIRECTION] for span in waits]
    assert directions == ["action", "compensation"]
    assert len({span.span_id for span in waits}) == 2


def test_a_list_waits_as_one_until_the_next_item_begins() -> None:
    """As it is one word in the history."""
    definition = saga(
        step("b", each=Input("order_ids"), payload={"order": Item()}),
        input=Orders,
    ).definition
    story = Waiting(definition, (START_TWO, ROOM_FOR_B), (succeeded("b[0]"), ROOM_FOR_B))
    story.tell(succeeded("b[1]"), {})
    assert story.waits == [("await room b", 0, 1, "succeeded")]


@pytest.mark.parametrize(
    "message",
    [Cancel(reason="r", by="ada"), Skip(step="b", by="ada")],
    ids=["cancelled", "skipped"],
)
def test_a_wait_that_came_to_nothing_ends_when_that_is_known(message: Message) -> None:
    """Nothing has begun, and nothing waits any more."""
    story = Waiting(linear("a", "b"), (START, {}), (succeeded("a"), NO_ROOM_FOR_B))
    story.tell(message, {})
    assert story.waits == [("await room b", 1, 2, "cancelled")]


def test_a_wait_that_goes_on_is_drawn_up_to_now() -> None:
    """`saga trace` of a saga that waits shows it open."""
    story = Waiting(linear("a", "b"), (START, {}), (succeeded("a"), NO_ROOM_FOR_B))
    assert story.state is not None
    row = SagaRow(
        sequence=len(story.history),
        state=story.state,
        wake_at=None,
        started_at=T0,
        updated_at=T0,
    )
    spans = projected_spans(
        story.definition, row, story.history, system="redis", now=T0 + timedelta(minutes=1)
    )
    (wait,) = (span for span in spans if span.name == "await room b")
    assert (wait.open, wait.end_ns - wait.start_ns) == (True, 59 * 10**9)


def stuck_while_one_waits() -> Waiting:
    """Of three steps at once one has given up, one waits for room, and one had to."""
    after_it = [step(name, after=("p",), compensation=None) for name in "bcd"]
    definition = saga(step("p", pivot=True, compensation=None), *after_it).definition
    story = Waiting(definition, (START, {}), (succeeded("p"), {"c": 0, "d": 0}))
    story.tell(Tick(), {"c": 0})
    story.tell(failed("b", failure=FOR_GOOD), {"c": 0})
    assert story.state is not None
    assert story.state.status is Status.STUCK
    return story


def test_a_wait_that_went_on_while_the_saga_was_stuck_is_exported_again_with_its_end() -> None:
    """Under the same id; one that had ended before is not."""
    story = stuck_while_one_waits()
    first = {span.name: span for span in story.spans}
    waits = [("await room d", 1, 2, "succeeded"), ("await room c", 1, 3, "abandoned")]
    assert story.waits == waits
    for message in (Tick(), succeeded("c"), succeeded("d"), Skip(step="b", by="ada")):
        story.tell(message, {})
    assert story.state is not None
    assert story.state.status is Status.COMPLETED
    assert story.waits == [("await room c", 1, 4, "succeeded")]
    last = {span.name: span for span in story.spans}
    assert last["await room c"].span_id == first["await room c"].span_id


def test_a_saga_that_is_resolved_waits_no_more() -> None:
    """Though nobody has given it room."""
    story = stuck_while_one_waits()
    story.tell(succeeded("d"), {"c": 0})
    story.tell(Resolve(by="ada"), {"c": 0})
    assert story.waits == [("await room c", 1, 5, "cancelled")]
