"""Facts: what each is about, and how it stands in a trace."""

from datetime import timedelta
from typing import Any, get_args

import msgspec
import pytest

from orchestrator.core import events
from orchestrator.core.events import Event, about
from tests.core.builders import FAILURE, T0, TRACE

WHOLE = {
    events.SagaStarted,
    events.UndoRequested,
    events.UndoRefused,
    events.SignalReceived,
    events.CancelRequested,
    events.DeadlineExceeded,
    events.CompensationStarted,
    events.HistoryFull,
    events.SagaPaused,
    events.SagaResumed,
    events.CompensationRequested,
    events.SagaResolved,
    events.SagaCompleted,
    events.SagaCompensated,
    events.SagaForked,
}
"""About the whole saga, although some name a step."""
VALUES: dict[str, Any] = {
    "step": "a",
    "direction": "compensation",
    "attempt": 2,
    "due_at": T0 + timedelta(seconds=1),
    "failure": FAILURE,
    "items": 3,
    "origin": events.Origin(saga_id="old", link=""),
}


def an_event(kind: type[Any]) -> Event:
    """An event of a kind, about attempt 2 of step `a`, of its compensation where it can be."""
    needed = {
        field.name: VALUES[field.name]
        for field in msgspec.structs.fields(kind)
        if field.name in VALUES
    }
    made: Event = kind(**needed)
    return made


@pytest.mark.parametrize("kind", sorted({*get_args(Event)} - WHOLE, key=str))
def test_an_event_is_about_a_step_a_direction_and_where_there_is_one_an_attempt(
    kind: type[Any],
) -> None:
    """By that it is shown, and compared with a replay; what has no direction is of the action."""
    has = kind.__struct_fields__
    direction = "compensation" if "direction" in has else "action"
    copied = kind is events.StepCopied
    attempt = 2 if "attempt" in has and not copied else None
    assert about(an_event(kind)) == ("a", direction, attempt)


def test_other_events_are_about_the_saga() -> None:
    """As waiting for room is where the saga itself waits for it."""
    assert about(events.RoomAwaited()) is None
    assert about(events.SagaCompleted()) is None
    assert about(events.CompensationRequested(step="p")) is None
    assert about(events.UndoRefused(attempt=1, reason="no")) is None


@pytest.mark.parametrize("sampled, flags", [(True, "01"), (False, "00")])
def test_the_sampling_decision_travels_with_the_trace(*, sampled: bool, flags: str) -> None:
    """In the last two digits of the ``traceparent``: whoever is called follows it."""
    trace: events.Trace = msgspec.structs.replace(TRACE, sampled=sampled)
    assert trace.parent("b7ad6b7169203331") == f"00-{TRACE.trace_id}-b7ad6b7169203331-{flags}"
