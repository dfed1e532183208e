"""Limits that decide: how long a history may be, and how much may be in flight."""

from datetime import timedelta

from orchestrator.core.limits import Limits
from orchestrator.core.machine import Decision, decide
from orchestrator.core.messages import Message, Resolve, Resume, Tick
from orchestrator.core.state import SagaState, Status, fold
from tests.core.builders import (
    START,
    T0,
    Retry,
    failed,
    linear,
    rejected,
    saga,
    sent,
    step,
    succeeded,
    tags,
)


class Limited:
    """One saga under limits."""

    def __init__(self, definition: object, limits: Limits) -> None:
        self.definition = definition
        self.limits = limits
        self.state: SagaState | None = None
        self.events: list[object] = []
        self.now = T0
        self.last = self.tell(START)

    def tell(self, message: Message) -> Decision:
        """Let a message arrive."""
        self.last = decide(
            self.definition,  # type: ignore[arg-type]  # a definition
            self.state,
            message,
            self.now,
            limits=self.limits,
            history=len(self.events),
        )
        self.state = self.last.state
        self.events += self.last.events
        return self.last


def test_a_saga_with_too_many_events_begins_nothing_more_and_is_stuck() -> None:
    """It does not grow any more by itself; the reply of what is in flight is still recorded."""
    told = Limited(linear("a", retry=Retry.forever()), Limits(events_max=100))
    attempt = 0
    while told.state is not None and told.state.status is Status.RUNNING:
        attempt += 1
        told.tell(failed("a", attempt))
        told.now += timedelta(hours=1)
        told.tell(Tick())
    assert told.state is not None
    assert (told.state.status, told.last.wake_at) == (Status.STUCK, None)
    assert tags(told.last.events) == ["history_full"]
    # The last attempt began within the limit; its end and the event that says so come on top.
    assert len(told.events) == 102
    assert fold(told.events) == told.state  # type: ignore[arg-type]  # events
    assert told.tell(Tick()).events == ()


def test_a_saga_with_too_many_events_goes_on_when_it_is_resumed_under_a_higher_limit() -> None:
    """Under the same one it is stuck again; an operator may also end it."""
    told = Limited(linear("a", "b"), Limits(events_max=2))
    told.tell(succeeded("a"))
    assert tags(told.last.events) == ["step_succeeded", "history_full"]
    assert tags(told.tell(Resume(by="ada")).events) == ["saga_resumed", "history_full"]
    told.limits = Limits()
    assert sent(told.tell(Resume(by="ada"))) == [("b", "action", 1)]
    other = Limited(linear("a", "b"), Limits(events_max=2))
    other.tell(succeeded("a"))
    other.tell(Resolve(by="ada"))
    assert other.state is not None
    assert other.state.status is Status.RESOLVED


def test_what_is_ready_waits_while_too_much_is_in_flight() -> None:
    """On the way there and on the way back; a retry that is due does not wake it in vain."""
    once = Retry(attempts=2)
    arms = [step(name, after=(), retry=once) for name in "abc"]
    told = Limited(saga(*arms).definition, Limits(in_flight_max=1))
    assert sent(told.last) == [("a", "action", 1)]
    assert sent(told.tell(failed("a"))) == [("b", "action", 1)]
    told.now += timedelta(seconds=10)
    tick = told.tell(Tick())
    assert (tick.events, sent(tick)) == ((), [])
    assert sent(told.tell(succeeded("b"))) == [("a", "action", 2)]
    assert sent(told.tell(succeeded("a", 2))) == [("c", "action", 1)]
    assert sent(told.tell(rejected("c"))) == [("a", "compensation", 1)]
    assert sent(told.tell(succeeded("a", direction="compensation"))) == [("b", "compensation", 1)]


def test_a_late_tick_of_a_crowded_saga_sets_no_timer_in_the_past() -> None:
    """The coordinator would be woken by it again and again."""
    arms = [step(name, after=(), retry=Retry(attempts=2)) for name in "ab"]
    told = Limited(saga(*arms).definition, Limits(in_flight_max=1))
    told.tell(failed("a"))
    told.now += timedelta(seconds=20)
    tick = told.tell(Tick())
    assert tick.wake_at is not None
    assert tick.wake_at > told.now
