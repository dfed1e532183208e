"""Tickets are values like any other to the core, but it looks at none of them as if they were not."""

from typing import Any

import pytest

from orchestrator.core.definition import Item, Output, Saga, Sleep, Step
from orchestrator.core.payload import holds
from orchestrator.core.references import Condition, eq, exists, gt, is_in, not_
from orchestrator.core.state import Phase, SagaState, Status
from shared import tickets
from shared.tickets import follow, is_ticket, replaced, shown, ticket, tickets_in
from tests.core.builders import NOTHING_TO_UNDO, Order, Run, saga, step, succeeded, wait

DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
PHOTO = ticket(DIGEST, 3_145_728)


@pytest.mark.parametrize(
    "value, expected",
    [
        (PHOTO, True),
        ({**PHOTO, "path": "a.b", "default": None}, True),
        ({"$claim": DIGEST}, False),
        ({"$claim": "free of charge", "bytes": 1}, False),
        ({**PHOTO, "more": 1}, False),
        ({**PHOTO, "path": 1}, False),
        ({**PHOTO, "bytes": "1"}, False),
        ({"$claim": DIGEST.upper(), "bytes": 1}, False),
        ([PHOTO], False),
        ("$claim", False),
    ],
)
def test_only_what_looks_like_a_ticket_in_all_is_one(value: Any, *, expected: bool) -> None:
    """A user's value may have a field of that name."""
    assert is_ticket(value) is expected


def test_tickets_are_found_and_replaced_at_any_depth() -> None:
    """A sub-saga's output has them by step; a value without one stays the same object."""
    value = {"a": [1, {"b": PHOTO}], "c": "x"}
    assert [PHOTO] == list(tickets_in(value))
    assert {"a": [1, {"b": DIGEST[:4]}], "c": "x"} == replaced(
        value, lambda one: one["$claim"][:4]
    )
    plain = {"a": [1, {"b": {}}]}
    assert replaced(plain, lambda _: 1) is plain


def test_a_path_is_followed_where_the_value_is() -> None:
    """Or its default stands for it, as in any other output."""
    inner = tickets.into(tickets.into(PHOTO, "a"), "b.c")
    assert inner == {**PHOTO, "path": "a.b.c"}
    assert 1 == follow(inner, {"a": {"b": {"c": 1}}})
    with pytest.raises(LookupError, match=r"has no 'a.b.c'"):
        follow(inner, {"a": {"b": []}})
    assert follow(tickets.or_else(inner, None), {}) is None
    assert tickets.or_else(PHOTO, 7) == PHOTO


@pytest.mark.parametrize(
    "size, expected", [(999, "999 bytes"), (3_145_728, "3.1 MB"), (64_000, "64.0 kB")]
)
def test_people_see_how_large_it_is(size: int, expected: str) -> None:
    """Instead of a digest."""
    assert f"<{expected} in the payload store>" == shown(ticket(DIGEST, size))


def state(**fields: Any) -> SagaState:
    """A saga whose input has these, and whose first step has returned them."""
    run = Run(saga(step("a"), step("b")).definition)
    run.tell(succeeded("a", output=fields))
    return run.known


def payload_of_second(payload: dict[str, Any], output: Any) -> dict[str, Any]:
    """What the second step is sent when the first has returned that."""
    run = Run(saga(step("a"), step("b", payload=payload)).definition)
    (command,) = run.tell(succeeded("a", output=output)).commands
    return command.payload


def test_a_reference_through_a_ticket_becomes_a_ticket_with_a_path() -> None:
    """Not a look at the fields of the ticket, one of which is called ``bytes``."""
    payload = {
        "all": Output("a"),
        "photo": Output("a", "photo"),
        "bytes": Output("a", "photo.bytes"),
        "deep": Output("a", "photo.exif.camera", default="none"),
        "small": Output("a", "name"),
    }
    assert payload_of_second(payload, {"photo": PHOTO, "name": "x"}) == {
        "all": {"photo": PHOTO, "name": "x"},
        "photo": PHOTO,
        "bytes": {**PHOTO, "path": "bytes"},
        "deep": {**PHOTO, "path": "exif.camera", "default": "none"},
        "small": "x",
    }
    assert payload_of_second({"x": Output("a", "exif")}, PHOTO) == {"x": {**PHOTO, "path": "exif"}}


@pytest.mark.parametrize(
    "condition",
    [
        eq(Output("a", "photo"), "x"),
        not_(eq(Output("a", "photo"), "x")),
        gt(Output("a", "photo.bytes"), 1),
        eq(Output("a"), {"photo": "x"}),
        is_in("x", Output("a", "photo")),
        eq(1, Output("a", "photo.size", default=1)),
        exists(Output("a", "photo.exif")),
    ],
)
def test_a_condition_on_a_large_value_takes_no_branch(condition: Condition) -> None:
    """Neither of them; it says what is too large, in which step, and by which setting."""
    with pytest.raises(TypeError):
        holds(condition, state(photo=PHOTO))
    run = Run(saga(step("a"), step("b", when=condition)).definition)
    run.tell(succeeded("a", output={"photo": PHOTO}))
    failure = run.known.step("b").failure
    assert run.known.step("b").phase is Phase.REJECTED
    assert failure is not None
    assert failure.kind == "ConditionUnresolved"
    assert "when of step 'b'" in failure.message
    assert "the output of 'a'" in failure.message
    assert "SAGA_CLAIM_CHECK_BYTES" in failure.message


def test_that_a_large_value_is_there_can_be_asked() -> None:
    """A ticket says so much."""
    assert holds(exists(Output("a", "photo")), state(photo=PHOTO))


@pytest.mark.parametrize(
    "second, what",
    [
        (step("b", each=Output("a", "photo"), payload={"one": Item()}), "each"),
        (wait("b", Sleep(until=Output("a", "photo.at"))), "until"),
    ],
)
def test_a_list_or_a_time_in_the_payload_store_rejects_its_step(second: Step, what: str) -> None:
    """Before anything is sent."""
    run = Run(saga(step("a"), second).definition)
    run.tell(succeeded("a", output={"photo": PHOTO}))
    failure = run.known.step("b").failure
    assert failure is not None
    assert failure.message.startswith(f"{what} of step 'b': 'photo")
    assert "SAGA_CLAIM_CHECK_BYTES" in failure.message


def test_items_with_tickets_are_run_over() -> None:
    """The list is small; what its items hold is fetched where they are worked on."""
    definition = Saga(
        name="test",
        version=1,
        input=Order,
        steps=(
            step("a"),
            Step(
                "b", "s.b", NOTHING_TO_UNDO, each=Output("a", "of"), payload={"p": Item("photo")}
            ),
        ),
    ).definition
    run = Run(definition)
    (command,) = run.tell(succeeded("a", output={"of": [{"photo": PHOTO}]})).commands
    assert command.payload == {"p": PHOTO}
    assert run.known.status is Status.RUNNING
