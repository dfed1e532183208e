"""Room within limits that sagas share: who needs it, who takes it, and what waits for it."""

from collections.abc import Mapping
from datetime import timedelta

import msgspec

from orchestrator.core.definition import Definition, Input, Item, Sleep, WaitFor
from orchestrator.core.events import ForkedFrom, Origin, RoomAwaited, StepCopied
from orchestrator.core.limits import Limits
from orchestrator.core.machine import Cancel, Decision, Message, Tick, decide
from orchestrator.core.messages import Heartbeat, Skip, Undo
from orchestrator.core.plan import plan_of
from orchestrator.core.room import SAGA, Slot, begun_by, taken
from orchestrator.core.state import SagaState, evolve
from shared.messages import Parent
from tests.core.builders import (
    START,
    START_TWO,
    T0,
    Orders,
    Retry,
    Run,
    failed,
    linear,
    rejected,
    saga,
    sent,
    step,
    succeeded,
    tags,
    wait,
)

TWICE = Retry(attempts=2)
LIST = saga(
    step("l", each=Input("order_ids"), payload={"order": Item()}, retry=TWICE), input=Orders
).definition


def told(
    definition: Definition,
    state: SagaState | None,
    message: Message,
    room: Mapping[str, int],
    after: timedelta = timedelta(),
) -> Decision:
    """What follows from a message when there is so much room."""
    return decide(definition, state, message, T0 + after, limits=Limits(room=room))


# Who needs it ---------------------------------------------------------------------------------


def test_a_saga_without_room_begins_nothing_and_says_so_once() -> None:
    """And begins when there is some; what its steps need is another matter."""
    definition = linear("a", "b")
    waits = told(definition, None, START, {SAGA: 0})
    assert waits.events[1:] == (RoomAwaited(step="", direction="action"),)
    assert (waits.awaiting, waits.commands, waits.wake_at) == ({"a": ""}, (), None)
    again = told(definition, waits.state, Tick(), {SAGA: 0})
    assert (again.events, again.awaiting) == ((), {"a": ""})
    begins = told(definition, again.state, Tick(), {SAGA: 1})
    assert (sent(begins), begins.awaiting) == ([("a", "action", 1)], {})


def test_a_start_whose_time_has_come_waits_for_room_and_not_for_the_timer() -> None:
    """Which is past, and would wake it for ever."""
    minute = timedelta(minutes=1)
    definition = linear("a")
    later = told(definition, None, msgspec.structs.replace(START, not_before=T0 + minute), {})
    assert later.wake_at == T0 + minute
    waits = told(definition, later.state, Tick(), {SAGA: 0}, minute)
    assert (waits.awaiting, waits.wake_at) == ({"a": ""}, None)


def test_a_saga_of_which_a_step_was_skipped_ahead_has_not_begun() -> None:
    """It needs room for its first attempt all the same."""
    definition = linear("a", "b")
    waits = told(definition, None, START, {SAGA: 0})
    skipped = told(definition, waits.state, Skip(step="b"), {SAGA: 0})
    assert (skipped.awaiting, skipped.commands) == ({"a": ""}, ())


def test_a_saga_that_has_begun_goes_on_whatever_room_there_is_for_others() -> None:
    """On the way there and on the way back."""
    run = Run(linear("a", "b"))
    there = told(run.definition, run.known, succeeded("a"), {SAGA: 0})
    assert sent(there) == [("b", "action", 1)]
    back = told(run.definition, there.state, rejected("b"), {SAGA: 0})
    assert sent(back) == [("a", "compensation", 1)]


def test_an_undo_needs_room_of_its_step_as_well() -> None:
    """And says that it is the undo that waits."""
    run = Run(linear("a", "b"), succeeded("a"))
    waits = told(run.definition, run.known, rejected("b"), {"a": 0})
    assert waits.events[-1] == RoomAwaited(step="a", direction="compensation")
    assert (waits.awaiting, waits.commands) == ({"a": "a"}, ())
    begins = told(run.definition, waits.state, Tick(), {"a": 1})
    assert sent(begins) == [("a", "compensation", 1)]


def test_each_item_of_a_list_needs_room_of_its_step_and_what_waits_is_woken_by_it() -> None:
    """One word in the history for all of them; a retry that waits for room has no timer."""
    first = told(LIST, None, START_TWO, {"l": 1})
    assert sent(first) == [("l[0]", "action", 1)]
    assert tags(first.events)[-1] == "room_awaited"
    assert first.awaiting == {"l[1]": "l"}
    both = told(LIST, first.state, Tick(), {"l": 1})
    assert (sent(both), both.awaiting) == ([("l[1]", "action", 1)], {})
    failing = told(LIST, both.state, failed("l[0]"), {"l": 0})
    due = failing.wake_at
    assert due is not None
    late = told(LIST, failing.state, Tick(), {"l": 0}, timedelta(seconds=20))
    assert (tags(late.events), late.awaiting) == (["room_awaited"], {"l[0]": "l"})
    assert late.state is not None
    assert late.wake_at == late.state.step("l[1]").due_at


def test_waiting_is_written_down_once_whatever_happens_to_others() -> None:
    """Another step, or another item that fails: what waited waits on."""
    arms = saga(*(step(name, after=()) for name in "abc")).definition
    waits = told(arms, None, START, {"c": 0})
    assert tags(told(arms, waits.state, succeeded("a"), {"c": 0}).events) == ["step_succeeded"]
    items = told(LIST, None, START_TWO, {"l": 1})
    assert tags(told(LIST, items.state, failed("l[0]"), {"l": 0}).events) == ["step_failed"]


def test_an_undo_that_has_begun_waits_no_more() -> None:
    """Of each item of a list."""
    listed = step("l", each=Input("order_ids"), payload={"order": Item()})
    definition = saga(listed, step("b"), input=Orders).definition
    run = Run(definition, succeeded("l[0]"), succeeded("l[1]"), start=START_TWO)
    waits = told(definition, run.known, rejected("b"), {"l": 1})
    assert waits.state is not None
    assert (len(waits.commands), waits.state.awaited) == (1, ("l",))
    begun = told(definition, waits.state, Tick(), {"l": 1})
    assert begun.state is not None
    assert (len(begun.commands), begun.state.awaited) == (1, ())


def test_a_sign_of_life_changes_nothing_about_what_waits_for_room() -> None:
    """It is asked again by whoever makes room, and not by a timer that is past."""
    arms = saga(step("a", after=()), step("b", after=(), retry=TWICE)).definition
    begun = told(arms, None, START, {})
    waits = told(arms, begun.state, failed("b"), {"b": 0}, timedelta(seconds=1))
    due = waits.wake_at
    assert due is not None
    late = due - T0
    full = told(arms, waits.state, Tick(), {"b": 0}, late)
    beat = told(
        arms, full.state, Heartbeat(step="a", direction="action", attempt=1), {"b": 0}, late
    )
    assert (beat.beat, beat.awaiting, beat.events) == (True, {"b": "b"}, ())
    assert beat.wake_at == due + timedelta(seconds=30)


def test_a_saga_with_too_much_in_flight_waits_for_that_first() -> None:
    """Room for another step would be of no use to it yet."""
    arms = saga(*(step(name, after=()) for name in "abc")).definition
    limits = Limits(in_flight_max=1, room={"c": 0})
    begun = decide(arms, None, START, T0, limits=limits)
    assert (sent(begun), begun.awaiting) == ([("a", "action", 1)], {})


def test_what_only_waits_needs_no_room() -> None:
    """Although an operator may have set a limit of that name."""
    definition = saga(wait("w", WaitFor("ok")), step("a")).definition
    begins = told(definition, None, START, {"w": 0})
    assert begins.state is not None
    assert (begins.state.step("w").phase, begins.awaiting) == ("running", {})
    assert begun_by(definition, None, begins.state, begins.events) == {SAGA: 1}


# What has begun, and what is held -------------------------------------------------------------


def test_a_saga_begins_with_its_first_attempt_and_only_once() -> None:
    """Every attempt of a step counts there, an undo too."""
    run = Run(linear("a", "b", retry=TWICE), failed("a"))
    before = run.known
    run.wait(timedelta(seconds=10))
    again = run.tell(Tick())
    assert begun_by(run.definition, before, run.known, again.events) == {"a": 1}
    first = Run(run.definition)
    assert begun_by(run.definition, None, first.known, first.events) == {SAGA: 1, "a": 1}


def test_a_saga_holds_the_slots_of_what_is_in_flight_where_there_is_a_limit() -> None:
    """Its own until it has ended, each item of a list by itself, and a wait none."""
    run = Run(LIST, succeeded("l[0]"), start=START_TWO)
    plan = plan_of(LIST, run.known)
    one = Slot(step="l", run="l[1]")
    assert taken(plan, run.known, {"l"}) == [one]
    assert taken(plan, run.known, {SAGA, "l"}) == [Slot(step=SAGA, run=SAGA), one]
    assert taken(plan, run.known, {"x"}) == []
    run.tell(succeeded("l[1]"))
    assert taken(plan, run.known, {SAGA, "l"}) == []
    sleeps = Run(saga(wait("w", Sleep(timedelta(hours=1)))).definition)
    assert taken(sleeps.definition, sleeps.known, {"w"}) == []


def test_a_saga_that_is_undone_after_its_end_is_not_let_in_again() -> None:
    """It needs no room, and takes none but for its steps: its parent waits for it."""
    parent = Parent(saga_id="above", step="hotel", attempt=1)
    start = msgspec.structs.replace(START, parent=parent)
    run = Run(linear("a"), succeeded("a"), start=start)
    undo = told(run.definition, run.known, Undo(attempt=1, reason="rain"), {SAGA: 0})
    assert sent(undo) == [("a", "compensation", 1)]
    assert undo.state is not None
    assert taken(run.definition, undo.state, {SAGA, "a"}) == [Slot(step="a", run="a")]


def test_a_fork_begins_with_what_it_does_itself() -> None:
    """What it has copied was attempted by another saga; to undo that it needs no room."""
    copied = StepCopied(
        step="a", origin=Origin(saga_id="old", link=""), attempt=1, success=1, payload={}
    )
    fork = ForkedFrom(saga_id="old", step="b")
    start = msgspec.structs.replace(START, fork=fork, copied=(copied,))
    definition = linear("a", "b")
    waits = told(definition, None, start, {SAGA: 0})
    assert waits.awaiting == {"b": ""}
    assert waits.state is not None
    assert taken(definition, waits.state, {SAGA}) == []
    back = told(definition, waits.state, Cancel(), {SAGA: 0})
    assert sent(back) == [("a", "compensation", 1)]
    assert back.state is not None
    assert back.state.awaited == ()
    begins = told(definition, waits.state, Tick(), {SAGA: 1})
    assert begins.state is not None
    assert begun_by(definition, waits.state, begins.state, begins.events)[SAGA] == 1
    assert taken(definition, begins.state, {SAGA}) == [Slot(step=SAGA, run=SAGA)]


def test_waiting_for_room_is_over_when_the_step_has_begun() -> None:
    """For the saga as well."""
    definition = linear("a")
    waits = told(definition, None, START, {SAGA: 0})
    assert waits.state is not None
    assert waits.state.awaited == ("",)
    begun = told(definition, waits.state, Tick(), {})
    assert begun.state is not None
    assert begun.state.awaited == ()
    assert evolve(waits.state, begun.events[0]) == begun.state
