"""Limits that decide: how long a history may be, and how much may be in flight."""

from datetime import datetime, timedelta

import pytest

from orchestrator.core.limits import (
    Limit,
    Limits,
    free_after,
    limit_problems,
    opens_at,
    starts_open,
)
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
    told.tell(succeeded("b"))
    assert told.state is not None
    assert (told.state.status, told.state.cause) == (Status.COMPLETED, None)
    assert told.state.went_wrong
    assert fold(told.events) == told.state  # type: ignore[arg-type]  # events
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


# Limits that sagas share ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limit, words",
    [
        (Limit(), "no limit"),
        (Limit(in_flight=3), "3 in flight"),
        (Limit(rate="10/s"), "10/s"),
        (Limit(in_flight=3, rate="10/s"), "3 in flight, 10/s"),
    ],
)
def test_a_limit_says_in_words_what_it_limits(limit: Limit, words: str) -> None:
    """In lists and in the reason why a saga waits."""
    assert words == str(limit)


@pytest.mark.parametrize(
    "limit, problems",
    [
        (Limit(in_flight=1, rate="1/h"), []),
        (Limit(rate="100000/s"), []),
        (Limit(in_flight=0), ["in_flight is 0; it must be 1 or more, or None"]),
        (Limit(rate="0/s"), ["rate is '0/s'; write it as 10/s, 600/m or 5000/h"]),
        (Limit(rate="10/d"), ["rate is '10/d'; write it as 10/s, 600/m or 5000/h"]),
        (Limit(rate="100001/s"), ["rate is '100001/s'; at most 100000 are allowed"]),
        (
            Limit(in_flight=-1, rate="ten"),
            [
                "in_flight is -1; it must be 1 or more, or None",
                "rate is 'ten'; write it as 10/s, 600/m or 5000/h",
            ],
        ),
    ],
)
def test_every_mistake_in_a_limit_is_named(limit: Limit, problems: list[str]) -> None:
    """With the field and what it may be."""
    assert limit_problems(limit) == problems


@pytest.mark.parametrize(
    "starts, unit, per", [(50, "s", 1), (7, "m", 60), (1, "h", 3600), (333, "m", 60)]
)
def test_a_rate_is_never_exceeded_and_almost_reached(starts: int, unit: str, per: int) -> None:
    """Whoever takes all that is open, whenever something is, stays within it in every window."""
    limit = Limit(rate=f"{starts}/{unit}")
    free_at: datetime | None = None
    now, begun = T0, list[datetime]()
    while now < T0 + timedelta(seconds=10 * per):
        count = starts_open(limit, free_at, now)
        assert count
        begun += [now] * count
        free_at = free_after(limit, free_at, now, count)
        assert starts_open(limit, free_at, now) == 0
        now = opens_at(limit, free_at)
        assert starts_open(limit, free_at, now - timedelta(microseconds=1)) == 0
    window = timedelta(seconds=per)
    pairs = zip(begun, begun[starts:], strict=False)
    assert all(later - first >= window for first, later in pairs)
    assert 1 <= begun.count(T0) <= starts // 20 + 1
    assert len(begun) >= 0.95 * 10 * starts


def test_what_was_not_used_is_not_saved_up() -> None:
    """After a long time of rest no more begin at once than at the very first."""
    limit = Limit(rate="100/s")
    first = starts_open(limit, None, T0)
    free_at = free_after(limit, None, T0, 1)
    later = T0 + timedelta(hours=1)
    assert first is not None
    assert starts_open(limit, free_at, T0) == first - 1
    assert starts_open(limit, free_at, later) == first
    assert free_after(limit, free_at, later, 1) - later == free_at - T0
    assert starts_open(Limit(in_flight=1), None, T0) is None
    overrun = free_after(limit, None, T0, 1_000)
    assert starts_open(limit, overrun, T0) == 0
