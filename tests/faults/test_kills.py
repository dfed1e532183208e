"""SIGKILL at the points where it hurts: every saga ends as if nothing had happened."""

import pytest

from shared import faults
from shared.faults import FAULT_VARIABLE
from tests.faults.stack import MakeStack
from tests.waiting import wait_until

BEFORE_PUBLISH = "orchestrator:after-commit-before-publish"
BEFORE_ACKNOWLEDGE = "orchestrator:after-publish-before-ack"


@pytest.mark.parametrize("point", [faults.IN_ACTION, faults.AFTER_COMMIT, faults.AFTER_REPLY])
def test_killed_participant_leaves_its_step_to_the_next(make_stack: MakeStack, point: str) -> None:
    """A participant dies in an action, before its reply, or before it acknowledges: no effect twice."""
    fault = f"{point}@payment.charge"
    stack = make_stack(**{FAULT_VARIABLE: fault})
    orders = stack.order()
    stack.orchestrator()
    stack.participants("first", "-P", "solo")
    stack.await_death("first")
    assert stack.fired() == {fault}
    assert len(stack.ended(orders)) < len(orders)
    stack.participants("second", "-P", "solo")
    stack.assert_sound(orders)


@pytest.mark.parametrize("fault", [BEFORE_PUBLISH, BEFORE_ACKNOWLEDGE])
def test_killed_orchestrator_is_continued_by_the_next(make_stack: MakeStack, fault: str) -> None:
    """It dies with commands that nobody has sent, or with replies that come again: no step twice."""
    stack = make_stack(**{FAULT_VARIABLE: fault})
    orders = stack.order()
    stack.participants()
    stack.orchestrator("first")
    stack.await_death("first")
    assert stack.fired() == {fault}
    assert not stack.ended(orders)
    stack.orchestrator("second")
    stack.assert_sound(orders)
    # What the first one took comes again, and changes nothing.
    before = {one.saga_id: stack.client.row(one.saga_id).sequence for one in orders}
    wait_until(lambda: not stack.unsettled_replies(), timeout=20)
    assert before == {one.saga_id: stack.client.row(one.saga_id).sequence for one in orders}
    assert not stack.client.dead_letters()
