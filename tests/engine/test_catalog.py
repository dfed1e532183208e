"""What is loaded is no larger than the settings allow."""

import pytest

from orchestrator.catalog import Catalog
from orchestrator.core.definition import Input, Item
from orchestrator.core.limits import Bounds
from shared.errors import DefinitionError
from tests.core.builders import Orders, saga, step

LISTED = step("c", after=("a",), each=Input("order_ids"), payload={"o": Item()}, items_max=20)
MADE = saga(step("a"), step("b", after=("a",)), LISTED, step("d", after=()), input=Orders)


def test_a_definition_that_is_too_large_is_refused_when_it_is_loaded() -> None:
    """Everything at once, each with the setting that allows more."""
    with pytest.raises(DefinitionError) as refused:
        Catalog([MADE], Bounds(steps_max=3, branches_max=1, items_max=19))
    assert refused.value.problems == (
        "it has 4 steps; SAGA_STEPS_MAX allows 3",
        "2 steps begin at the start together; SAGA_BRANCHES_MAX allows 1",
        "2 steps follow step 'a' together; SAGA_BRANCHES_MAX allows 1",
        "step 'c': items_max is 20; SAGA_ITEMS_MAX allows 19",
    )


def test_a_definition_that_is_as_large_as_allowed_is_taken() -> None:
    """Of a step without a list the longest one does not matter."""
    assert [*Catalog([MADE], Bounds(steps_max=4, branches_max=2, items_max=20))] == [MADE]
    one = saga(step("a"))
    assert [*Catalog([one], Bounds(steps_max=1, branches_max=1, items_max=1))] == [one]


def test_what_the_machine_can_do_is_the_limit_unless_a_setting_says_less() -> None:
    """By default a hundred steps, of which half begin together."""
    with pytest.raises(DefinitionError, match="SAGA_STEPS_MAX allows 100"):
        Catalog([saga(*(step(f"s{number}") for number in range(101)))])
    with pytest.raises(DefinitionError, match="SAGA_BRANCHES_MAX allows 50"):
        Catalog([saga(*(step(f"s{number}", after=()) for number in range(51)))])
