"""Conditions and lists: what is skipped, what runs once for each item."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from orchestrator.core.definition import Definition, Input, Item, Output, Sleep, Step, WaitFor
from orchestrator.core.events import StepExpanded, StepSkipped
from orchestrator.core.messages import Signal, Skip
from orchestrator.core.payload import holds
from orchestrator.core.references import (
    Condition,
    all_of,
    any_of,
    eq,
    exists,
    ge,
    gt,
    is_in,
    le,
    lt,
    ne,
    not_,
)
from orchestrator.core.state import Phase, SagaState, Status
from shared import codec
from shared.errors import DefinitionError
from shared.messages import Failure
from shared.tickets import ticket
from tests.core.builders import (
    NOTHING_TO_UNDO,
    SAGA_ID,
    START_TWO,
    TRACE,
    Orders,
    Retry,
    Run,
    failed,
    rejected,
    saga,
    sent,
    step,
    succeeded,
    tags,
    wait,
)

EACH: dict[str, Any] = {"each": Input("order_ids"), "payload": {"order": Item()}}


def run(*steps: Step) -> Run:
    """A saga with a list of two."""
    return Run(saga(*steps, input=Orders).definition, start=START_TWO)


# Conditions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (eq(Input("n"), 2), True),
        (eq(2, Input("n")), True),
        (eq(Input("list"), (1, 2)), True),
        (ne(Input("n"), 2), False),
        (lt(Input("n"), 3), True),
        (le(Input("n"), 2), True),
        (gt(Input("n"), 2), False),
        (ge(Input("text"), "b"), True),
        (is_in(1, Input("list")), True),
        (is_in("k", Input("map")), True),
        (is_in("ex", Input("text")), False),
        (exists(Input("map.k")), True),
        (exists(Input("map.k.deeper")), False),
        (exists(Input("none")), True),
        (not_(exists(Input("nowhere"))), True),
        (all_of(exists(Input("nowhere")), gt(Input("nowhere"), 1)), False),
        (any_of(eq(Input("n"), 2), gt(Input("nowhere"), 1)), True),
        (all_of(), True),
        (any_of(), False),
        (gt(Output("s", "n", default=7), 6), True),
    ],
)
def test_what_a_condition_says(condition: Condition, expected: bool) -> None:
    """Of this input; parts that are not looked at may lead to nothing."""
    state = SagaState(
        saga_id=SAGA_ID,
        name="test",
        version=1,
        trace=TRACE,
        input={"n": 2, "text": "box", "list": [1, 2], "map": {"k": 1}, "none": None},
    )
    assert holds(condition, state) is expected


def test_a_step_whose_condition_does_not_hold_is_skipped_and_visible() -> None:
    """The next one goes on; on the way back there is nothing to undo there."""
    told = run(step("a"), step("b", when=eq(Output("a", "gift"), True)), step("c"))
    decision = told.tell(succeeded("a", output={"gift": False}))
    assert decision.events[1] == StepSkipped(step="b", condition=True)
    assert sent(decision) == [("c", "action", 1)]
    assert (told.phase("b"), told.known.step("b").by_hand) == ("skipped", False)
    assert sent(told.tell(rejected("c"))) == [("a", "compensation", 1)]


def test_a_step_whose_condition_holds_runs() -> None:
    """As if it had none."""
    told = run(step("a"), step("b", when=eq(Output("a", "gift"), True)))
    assert sent(told.tell(succeeded("a", output={"gift": True}))) == [("b", "action", 1)]


@pytest.mark.parametrize("output", [{}, {"price": "dear"}, None])
def test_a_condition_that_cannot_be_decided_rejects_the_step(output: object) -> None:
    """With the reason; nothing is guessed."""
    told = run(step("a"), step("b", when=gt(Output("a", "price"), 5)))
    told.tell(succeeded("a", output=output))
    cause = told.known.cause
    assert cause is not None
    assert cause.failure is not None
    assert cause.failure.kind == "ConditionUnresolved"
    assert cause.failure.message.startswith("when of step 'b': ")


@pytest.mark.parametrize(
    ("reference", "named"),
    [
        (Input("order_id"), "the field 'order_id' of the input"),
        (Output("a", "report"), "'report' of the output of 'a'"),
        (Output("a"), "the output of 'a'"),
    ],
)
def test_a_condition_on_what_is_in_the_payload_store_names_it(
    reference: Input | Output, named: str
) -> None:
    """It is not fetched to decide: a small field of its own is what a rule may look at."""
    kept = ticket("0" * 64, 1)
    start = msgspec.structs.replace(START_TWO, input={**START_TWO.input, "order_id": kept})
    definition = saga(step("a"), step("b", when=eq(reference, "x")), input=Orders).definition
    told = Run(definition, succeeded("a", output={"report": kept}), start=start)
    failure = told.known.step("b").failure
    assert failure is not None
    assert failure.message.startswith(f"when of step 'b': {named} is in the payload store")


def test_a_skipped_step_has_the_output_that_its_readers_declare() -> None:
    """By a default, or by being skipped themselves for the same reason."""
    rare = eq(Input("order_id"), "o-2")
    told = run(
        step("a", when=rare),
        step("b", payload={"id": Output("a", "id", default=0)}),
        step("c", when=rare, payload={"id": Output("a", "id")}),
    )
    assert [command.payload for command in told.last.commands] == [{"id": 0}]
    told.tell(succeeded("b"))
    assert told.known.status is Status.COMPLETED


def test_an_operators_output_stands_for_a_step_that_was_skipped_by_hand() -> None:
    """That one is not missing."""
    told = run(step("a"), step("b", payload={"id": Output("a", "id")}))
    told.tell(failed("a"))
    (command,) = told.tell(Skip(step="a", output={"id": 7})).commands
    assert command.payload == {"id": 7}


def test_a_step_that_is_skipped_early_waits_for_its_turn() -> None:
    """What comes after it must not overtake what came before it."""
    told = run(step("a"), step("b"), step("c"))
    assert sent(told.tell(Skip(step="b"))) == []
    assert sent(told.tell(succeeded("a"))) == [("c", "action", 1)]


# Lists ----------------------------------------------------------------------------------------


def test_a_step_runs_once_for_each_item_and_gathers_the_outputs() -> None:
    """In parallel; the outputs come in the order of the items."""
    told = run(step("l", **EACH), step("b", payload={"all": Output("l")}))
    assert told.events[1] == StepExpanded(step="l", items=2)
    assert sent(told.last) == [("l[0]", "action", 1), ("l[1]", "action", 1)]
    assert [command.payload for command in told.last.commands] == [
        {"order": "o-1"},
        {"order": "o-2"},
    ]
    assert sent(told.tell(succeeded("l[1]", output="two"))) == []
    (command,) = told.tell(succeeded("l[0]", output="one")).commands
    assert command.payload == {"all": ["one", "two"]}


def test_a_failure_of_one_item_undoes_the_others() -> None:
    """When all that were in flight have ended; each with its own arguments."""
    told = run(step("l", retry=Retry(attempts=1), **EACH))
    told.tell(rejected("l[0]"))
    (undo,) = told.tell(succeeded("l[1]", output={"id": 2})).commands
    assert (undo.step, undo.payload) == ("l[1]", {"order": "o-2", "undo": {"id": 2}})
    told.tell(succeeded("l[1]", direction="compensation"))
    assert told.known.status is Status.COMPENSATED


def test_items_may_be_limited_to_some_at_a_time() -> None:
    """The next one begins when one has ended, well or badly."""
    told = run(step("l", items_at_once=1, **EACH))
    assert sent(told.last) == [("l[0]", "action", 1)]
    told.tell(failed("l[0]"))
    assert told.phase("l[1]") == "running"


def test_an_empty_list_is_done_at_once() -> None:
    """Its output is an empty list."""
    told = run(step("a"), step("l", each=Output("a"), payload={"x": Item("id")}), step("b"))
    assert sent(told.tell(succeeded("a", output=[]))) == [("b", "action", 1)]
    assert told.known.step("l").output == []


def test_an_empty_list_keeps_the_order_of_undoing() -> None:
    """What comes before it is undone after what comes after it, as if it had items."""
    told = run(step("a"), step("l", each=Output("a"), payload={"x": Item()}), step("b"), step("c"))
    told.tell(succeeded("a", output=[]), succeeded("b"))
    assert sent(told.tell(rejected("c"))) == [("b", "compensation", 1)]
    undone = told.tell(succeeded("b", direction="compensation"))
    assert sent(undone) == [("a", "compensation", 1)]


@pytest.mark.parametrize(
    ("output", "kind", "message"),
    [
        ({"id": 1}, "PayloadUnresolved", "each of step 'l': the output of 'a' has no 'boxes'"),
        (None, "PayloadUnresolved", "each of step 'l': the output of 'a' has no 'boxes'"),
        ({"boxes": {}}, "PayloadUnresolved", "each of step 'l': dict is no list"),
        (
            {"boxes": [{"id": 1}] * 4},
            "TooManyItems",
            "each of step 'l' has 4 items; at most 3 are allowed (items_max)",
        ),
        (
            {"boxes": [{"no": 1}]},
            "PayloadUnresolved",
            "payload of step 'l[0]': item 0 has no 'id'",
        ),
    ],
)
def test_what_is_no_list_of_the_right_length_rejects_the_step(
    output: object, kind: str, message: str
) -> None:
    """Nothing has happened there, and another attempt would not help."""
    listed = step("l", each=Output("a", "boxes"), payload={"x": Item("id")}, items_max=3)
    told = run(step("a"), listed)
    told.tell(succeeded("a", output=output))
    cause = told.known.cause
    assert cause is not None
    assert cause.failure == Failure(kind=kind, message=message, retryable=False)


def test_a_list_of_approvals_waits_for_one_signal_each() -> None:
    """The signal has the number of the item."""
    told = run(wait("l", WaitFor("ok"), each=Input("order_ids")))
    told.tell(Signal(name="ok[1]", data="two"))
    assert "waits for no signal 'ok'" in told.tell(Signal(name="ok")).refused
    told.tell(Signal(name="ok[0]", data="one"))
    assert told.known.step("l").output == ["one", "two"]
    assert told.known.status is Status.COMPLETED


def test_a_list_that_is_skipped_is_not_spread_out() -> None:
    """Its condition is asked once."""
    told = run(step("l", when=eq(Input("order_id"), "o-2"), **EACH))
    assert tags(told.events) == ["saga_started", "step_skipped", "saga_completed"]
    assert told.known.step("l").phase is Phase.SKIPPED


# Definitions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        (
            (step("l", each=Input("order_ids")),),
            "it has an each; say with payload= where the Item() goes",
        ),
        ((step("l", each=Input("x"), payload={}),), "each is Input('x'), but the input has"),
        ((step("l", each=Output("x"), payload={}),), "each is the output of 'x', which is no"),
        ((step("a", payload={"x": Item()}),), "payload 'x' is an Item, which only the payload"),
        ((step("a", when=eq(Item(), 1)),), "when is an Item"),
        ((step("a", when=eq(Input("x"), 1)),), "when is Input('x'), but the input has"),
        ((step("a", when=all_of(eq(1, Input("x")))),), "when is Input('x'), but the input has"),
        ((step("a", when=any_of(eq(Input("x"), 1))),), "when is Input('x'), but the input has"),
        ((step("a", when=not_(exists(Input("x")))),), "when is Input('x'), but the input has"),
        ((step("a", when=eq(Input("order_id"), {1j})),), "when is not JSON"),
        (
            (step("a", when=exists(Input("order_id"))), step("b", when=eq(Output("a"), 1))),
            "when is the output of 'a', which may be skipped; give it a default",
        ),
        (
            (step("a", when=exists(Input("order_id"))), step("b", when=eq(1, Output("a")))),
            "when is the output of 'a', which may be skipped; give it a default",
        ),
        (
            (step("a", pivot=True, when=exists(Input("order_id"))),),
            "it is the pivot and has a when",
        ),
        ((step("a", pivot=True, **EACH),), "it is the pivot and has an each"),
        ((step("a", items_max=0, **EACH),), "items_max is 0; between 1 and 1000 are allowed"),
        ((step("a", items_at_once=0, **EACH),), "items_at_once is 0; it must be 1 or more"),
        (
            (
                step("a", when=exists(Input("order_id"))),
                step("b", payload={"x": Output("a")}),
            ),
            "payload 'x' is the output of 'a', which may be skipped; give it a default",
        ),
        (
            (
                step("a", when=exists(Input("order_id"))),
                wait("w", Sleep(until=Output("a", "at"))),
            ),
            "until is the output of 'a', which may be skipped",
        ),
        (
            (
                step("a", when=exists(Input("order_id"))),
                step("b", when=all_of(eq(Output("a"), 1)), payload={"x": Output("a")}),
            ),
            "payload 'x' is the output of 'a', which may be skipped; give it a default",
        ),
    ],
)
def test_mistakes_in_lists_and_conditions_are_named(steps: tuple[Step, ...], problem: str) -> None:
    """When the definition is built."""
    with pytest.raises(DefinitionError) as caught:
        saga(*steps, input=Orders)
    found = [one.partition(": ")[2] for one in caught.value.problems]
    assert any(one.startswith(problem) for one in found), caught.value.problems


def test_a_reader_with_the_same_condition_needs_no_default() -> None:
    """Or with that and another one."""
    rare = exists(Input("order_id"))
    for when in (rare, all_of(rare, eq(Input("order_id"), "o-1"))):
        saga(
            step("a", when=rare),
            step("b", when=when, payload={"x": Output("a")}, compensation=NOTHING_TO_UNDO),
            input=Orders,
        )


@pytest.mark.parametrize("compare", [eq, ne, lt, le, gt, ge, is_in])
def test_every_comparison_is_read_back_as_it_was_stored(
    compare: Callable[[Any, Any], Condition],
) -> None:
    """A saga finishes on the definition in the store."""
    definition = saga(step("a", when=not_(compare(Input("order_id"), "o-1")))).definition
    assert codec.decode(codec.encode(definition), Definition) == definition
