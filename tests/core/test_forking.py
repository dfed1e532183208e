"""What a fork copies, what it does anew, and where there is no fork."""

import msgspec
import pytest

from orchestrator.core.definition import (
    NOTHING_TO_UNDO,
    Definition,
    Input,
    Output,
    SubSaga,
    WaitFor,
)
from orchestrator.core.events import ForkedFrom, SagaForked, StepCopied
from orchestrator.core.forking import ForkPlan, fork_plan
from orchestrator.core.messages import Cancel, HandOver, Resolve, Signal, Skip, Start
from orchestrator.core.references import Item, eq
from orchestrator.core.state import SagaState, fold
from shared.messages import Parent
from tests.core.builders import (
    FOR_GOOD,
    START,
    START_TWO,
    Orders,
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

LINEAR = linear("a", "b", "c")
FORK_ID = "0199c8a0-0000-7000-8000-000000000002"

# a ─► b ─► d
#  └─► c     , and e alone
GRAPH = saga(
    step("a", after=()),
    step("b", after=("a",)),
    step("c", after=("a",)),
    step("d", after=("b",)),
    step("e", after=()),
).definition


def completed(definition: Definition, *names: str, start: Start = START) -> Run:
    """A saga that went well."""
    run = Run(definition, start=start)
    for name in names:
        run.tell(succeeded(name, output={"of": name}))
    assert run.known.status == "completed"
    return run


def planned(old: Run | SagaState, at: str, definition: Definition | None = None) -> ForkPlan:
    """The plan of a fork that there is."""
    plan = asked(old, at, definition)
    assert isinstance(plan, ForkPlan), plan
    return plan


def asked(old: Run | SagaState, at: str, definition: Definition | None = None) -> ForkPlan | str:
    """What comes of asking for a fork."""
    if isinstance(old, Run):
        return fork_plan(definition or old.definition, old.definition, old.known, at)
    return fork_plan(definition or LINEAR, LINEAR, old, at)


def forked(old: Run, at: str, definition: Definition | None = None, saga_id: str = FORK_ID) -> Run:
    """The fork, begun."""
    plan = planned(old, at, definition)
    over = HandOver(to=saga_id, step=at, steps=plan.taken, reason="why", by="ada")
    assert tags(old.tell(over).events) == ["saga_forked"]
    fork = ForkedFrom(saga_id=old.known.saga_id, step=at, reason="why", by="ada")
    start = msgspec.structs.replace(START, saga_id=saga_id, fork=fork, copied=plan.copied)
    return Run(definition or old.definition, start=start)


def test_what_comes_before_the_step_counts_as_done() -> None:
    """With the outputs that it had; the step goes out at once, as its first attempt."""
    fork = forked(completed(LINEAR, "a", "b", "c"), "c")
    assert fork.tags == ["saga_started", "step_copied", "step_copied", "step_dispatched"]
    assert sent(fork.last) == [("c", "action", 1)]
    assert fork.known.step("b").output == {"of": "b"}
    assert fork.tell(succeeded("c")).events[-1] == fork.events[-1]
    assert fork.known.status == "completed"
    assert fold(fork.events) == fork.known


@pytest.mark.parametrize(
    "at, copied, anew",
    [
        ("a", "e", "abcd"),
        ("b", "ace", "bd"),
        ("c", "abde", "c"),
        ("d", "abce", "d"),
        ("e", "abcd", "e"),
    ],
)
def test_only_what_depends_on_the_step_is_done_anew(at: str, copied: str, anew: str) -> None:
    """The other branches count as done; a step that is done anew stays with the old saga, too."""
    plan = planned(completed(GRAPH, "a", "e", "b", "c", "d"), at)
    assert (plan.names, plan.anew) == (tuple(copied), tuple(anew))
    assert (plan.taken, plan.left) == (tuple(copied), tuple(anew))


def test_a_fork_that_turns_back_undoes_what_it_copied_too() -> None:
    """Under the id of the saga that did it, with what the action was called with, and its undo data."""
    mapped = saga(
        step("a", payload={"order": Input("order_id")}), step("b"), step("c", payload={"a": "x"})
    ).definition
    old = completed(mapped, "a", "b", "c")
    fork = forked(old, "c")
    decision = fork.tell(rejected("c"))
    assert sent(decision) == [("b", "compensation", 1)]
    decision = fork.tell(succeeded("b", direction="compensation"))
    (command,) = decision.commands
    assert (command.saga_id, command.origin_id) == (FORK_ID, old.known.saga_id)
    assert command.payload == {"order": "o-1", "undo": {"of": "a"}}
    fork.tell(succeeded("a", direction="compensation"))
    assert fork.known.status == "compensated"


def test_its_own_steps_it_undoes_under_its_own_id() -> None:
    """Also where it was given another input."""
    old = completed(LINEAR, "a", "b", "c")
    fork = forked(old, "b")
    fork.tell(succeeded("b"))
    decision = fork.tell(rejected("c"))
    assert [(one.step, one.origin_id) for one in decision.commands] == [("b", "")]


def test_the_old_saga_hands_the_effects_over() -> None:
    """It stays what it was, and says who has them."""
    old = completed(LINEAR, "a", "b", "c")
    before = old.known
    forked(old, "c")
    assert old.known.status == before.status
    assert [old.known.step(name).heir for name in "abc"] == [FORK_ID, FORK_ID, ""]
    assert isinstance(old.events[-1], SagaForked)
    assert (old.last.commands, old.last.wake_at) == ((), None)


def test_what_belongs_to_a_fork_is_not_forked_once_more() -> None:
    """Two sagas would undo it; from the first step on there is nothing that they share."""
    old = completed(LINEAR, "a", "b", "c")
    forked(old, "c")
    said = asked(old, "b")
    assert said == f"Its step 'a' belongs to an earlier fork, {FORK_ID}: fork that saga."
    assert planned(old, "a").names == ()
    late = HandOver(to="another", step="c", steps=("a",))
    assert old.tell(late).refused == said


def test_a_fork_is_forked_in_its_turn() -> None:
    """What it had copied keeps the id of the saga that did it."""
    first = completed(LINEAR, "a", "b", "c")
    second = forked(first, "b")
    second.tell(succeeded("b"), succeeded("c"))
    third = forked(second, "c", saga_id="third")
    copies = {one.step: one.origin for one in third.events if isinstance(one, StepCopied)}
    assert {name: origin.saga_id for name, origin in copies.items()} == {
        "a": first.known.saga_id,
        "b": FORK_ID,
    }
    decision = third.tell(rejected("c"))
    assert [one.origin_id for one in decision.commands] == [FORK_ID]
    decision = third.tell(succeeded("b", direction="compensation"))
    assert [one.origin_id for one in decision.commands] == [first.known.saga_id]


def test_what_has_nothing_to_undo_may_be_copied_again_and_again() -> None:
    """Nobody owns it; so a saga that was undone is forked behind its reading steps."""
    reads = saga(step("a", compensation=NOTHING_TO_UNDO), step("b"), step("c")).definition
    old = Run(reads, succeeded("a"), succeeded("b"), rejected("c"))
    old.tell(succeeded("b", direction="compensation"))
    assert old.known.status == "compensated"
    for number in range(2):
        fork = forked(old, "b", saga_id=f"fork-{number}")
        assert fork.tags == ["saga_started", "step_copied", "step_dispatched"]
        assert planned(old, "a").left == ()  # `a` reads, `b` is undone, `c` never happened
    assert asked(old, "c") == (
        "Step 'b', which comes before 'c', was undone: fork from it or earlier."
    )


def test_a_saga_that_may_still_undo_something_is_not_forked() -> None:
    """While it runs, is stuck, or belongs to another saga."""
    running = Run(LINEAR, succeeded("a"))
    assert asked(running, "b") == (
        "It is running, and may still undo what it did: wait until it has ended."
    )
    stuck = Run(linear("a", "b", pivot=False), succeeded("a"), rejected("b"))
    stuck.tell(failed("a", direction="compensation", failure=FOR_GOOD))
    assert asked(stuck, "b") == "It is stuck, and may still undo what it did: resolve it first."
    below = completed(LINEAR, "a", "b", "c").known
    parent = Parent(saga_id="above", step="hotel", attempt=1)
    assert asked(msgspec.structs.replace(below, parent=parent), "b") == (
        "It is the sub-saga of above, which may undo it: fork that saga from its step 'hotel'."
    )


def test_a_saga_that_was_resolved_on_the_way_back_is_not_forked() -> None:
    """Somebody has put right by hand, nobody knows what."""
    old = Run(LINEAR, succeeded("a"), rejected("b"))
    old.tell(failed("a", direction="compensation", failure=FOR_GOOD), Resolve(by="ada"))
    assert old.known.status == "resolved"
    assert str(asked(old, "b")).startswith("It was resolved on the way back: nobody knows")


def test_a_saga_that_was_resolved_behind_its_pivot_goes_on_in_a_fork() -> None:
    """Which is behind its pivot as well."""
    definition = saga(
        step("a"), step("b", pivot=True, compensation=None), step("c", compensation=None)
    ).definition
    old = Run(definition, succeeded("a"), succeeded("b"))
    old.tell(failed("c", failure=FOR_GOOD), Resolve(by="ada"))
    fork = forked(old, "c")
    assert sent(fork.last) == [("c", "action", 1)]
    assert "past its pivot" in fork.tell(Cancel(by="ada")).refused


def test_a_list_is_copied_with_its_items_or_done_anew_as_a_whole() -> None:
    """Its length is that of the old saga, whatever the input says now."""
    definition = saga(
        step("each", each=Input("order_ids"), payload={"one": Item()}),
        step("last", payload={"all": Output("each")}),
        input=Orders,
    ).definition
    old = completed(definition, "each[0]", "each[1]", "last", start=START_TWO)
    assert planned(old, "last").names == ("each[0]", "each[1]", "each")
    fork = forked(old, "last")
    assert fork.tags[:5] == ["saga_started", "step_expanded", *["step_copied"] * 3]
    (command,) = fork.last.commands
    assert command.payload == {"all": [{"of": "each[0]"}, {"of": "each[1]"}]}
    fork.tell(rejected("last"))
    undone = {(one.step, one.payload["one"]) for one in fork.last.commands}
    assert undone == {("each[0]", "o-1"), ("each[1]", "o-2")}
    again = completed(definition, "each[0]", "each[1]", "last", start=START_TWO)
    assert planned(again, "each").copied == ()


def test_a_skipped_step_stays_skipped() -> None:
    """And leaves nothing to undo."""
    definition = saga(
        step("a", when=eq(Input("order_id"), "o-2")), step("b"), step("c")
    ).definition
    old = completed(definition, "b", "c")
    plan = planned(old, "c")
    assert (plan.names, plan.taken) == (("a", "b"), ("b",))
    called = [one.payload for one in plan.copied if isinstance(one, StepCopied)]
    assert called == [None, {"order_id": "o-1"}]
    fork = forked(old, "c")
    assert fork.phase("a") == "skipped"
    fork.tell(rejected("c"), succeeded("b", direction="compensation"))
    assert fork.known.status == "compensated"


def test_a_fork_runs_on_a_newer_version_where_what_it_copies_is_the_same() -> None:
    """A step that is new there, or does something else, cannot count as done."""
    old = completed(LINEAR, "a", "b", "c")
    longer = msgspec.structs.replace(linear("a", "b", "c", "d"), version=2)
    assert planned(old, "c", longer).anew == ("c", "d")
    inserted = msgspec.structs.replace(linear("a", "new", "b", "c"), version=2)
    assert asked(old, "c", inserted) == (
        "Step 'new', which comes before 'c', is new in version 2: fork from it or earlier."
    )
    assert planned(old, "new", inserted).names == ("a",)
    other = saga(step("a"), step("b", action="service.other"), step("c")).definition
    other = msgspec.structs.replace(other, version=2)
    assert asked(old, "c", other) == (
        "Step 'b', which comes before 'c', does something else in version 2 than in 1: "
        "fork from it or earlier."
    )


def test_what_an_operator_said_of_a_skipped_step_is_copied() -> None:
    """Later steps see it there, too."""
    definition = saga(step("a"), step("b", payload={"x": Output("a", "id")})).definition
    old = Run(definition, Skip(step="b", by="ada"), failed("a"), Skip(step="a", output={"id": 7}))
    assert old.known.status == "completed"
    (command,) = forked(old, "b").last.commands
    assert command.payload == {"x": 7}


def test_what_was_called_is_copied_with_its_arguments() -> None:
    """A task or a sub-saga, for its undo; a wait was called with nothing."""
    definition = saga(
        step("a"),
        wait("w", WaitFor("ok")),
        step("s", action=SubSaga("hotel"), compensation=None, payload={"id": Input("order_id")}),
        step("b"),
    ).definition
    old = Run(definition, succeeded("a"), Signal(name="ok"), succeeded("s"), succeeded("b"))
    copied = planned(old, "b").copied
    assert [getattr(one, "payload", None) for one in copied] == [
        {"order_id": "o-1"},
        None,
        {"id": "o-1"},
    ]


def test_what_was_given_up_does_not_count_as_done() -> None:
    """It says how the step stands."""
    pivot = saga(step("a", pivot=True), step("b"), step("c")).definition
    old = Run(pivot, succeeded("a"), failed("b", failure=FOR_GOOD), Resolve(by="ada"))
    assert asked(old, "c") == (
        "Step 'b', which comes before 'c', is failed there: fork from it or earlier."
    )


def test_a_step_that_has_become_a_list_does_something_else() -> None:
    """Its output is another one, although its tasks are the same."""
    old = completed(saga(step("a"), step("b"), input=Orders).definition, "a", "b")
    listed = step("a", each=Input("order_ids"), payload={"one": Item()})
    new = msgspec.structs.replace(saga(listed, step("b"), input=Orders).definition, version=2)
    assert "does something else in version 2 than in 1" in str(asked(old, "b", new))


def test_a_step_does_not_count_as_done_where_what_comes_before_it_is_new() -> None:
    """On another branch it is done anew behind that; before the step itself nothing may be new."""
    old = completed(saga(*(step(name, after=()) for name in "abc")).definition, "a", "b", "c")
    new = saga(
        step("a", after=()), step("b", after=("x",)), step("x", after=()), step("c", after=("a",))
    ).definition
    plan = planned(old, "c", msgspec.structs.replace(new, version=2))
    assert (plan.names, plan.anew) == (("a",), ("b", "x", "c"))
    behind = saga(step("b", after=("x",)), step("x", after=()), step("c", after=("b",))).definition
    assert asked(old, "c", msgspec.structs.replace(behind, version=2)) == (
        "Step 'x', which comes before 'c', is new in version 2: fork from it or earlier."
    )


def test_a_step_that_there_is_not_is_named_with_those_that_there_are() -> None:
    """So that nobody has to look them up."""
    assert asked(completed(LINEAR, "a", "b", "c"), "x") == (
        "Saga 'test' version 1 has no step 'x', but 'a', 'b', 'c'."
    )
