"""SIGKILL at the points where it hurts: every saga ends as if nothing had happened."""

import pytest

from shared import faults
from shared.faults import FAULT_VARIABLE
from tests.faults.stack import MakeStack, Ordered, Stack
from tests.waiting import wait_until

BEFORE_PUBLISH = "orchestrator:after-commit-before-publish"
BEFORE_ACKNOWLEDGE = "orchestrator:after-publish-before-ack"


@pytest.mark.parametrize("point", [faults.IN_ACTION, faults.AFTER_COMMIT])
def test_killed_participant_leaves_its_step_to_the_next(make_stack: MakeStack, point: str) -> None:
    """A participant dies in an action, or between its work and its reply: no effect twice."""
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


def test_commands_of_a_killed_orchestrator_are_sent_by_the_next(make_stack: MakeStack) -> None:
    """It dies between commit and publish: the outbox has what nobody has sent."""
    stack = make_stack(**{FAULT_VARIABLE: BEFORE_PUBLISH})
    stack.participants()
    orders = killed(stack, BEFORE_PUBLISH)
    stack.orchestrator("second")
    stack.assert_sound(orders)
    assert stack.logged("outbox.republished")


def test_replies_of_a_killed_orchestrator_come_again(make_stack: MakeStack) -> None:
    """It dies between publish and acknowledge: what it took comes again, and changes nothing."""
    stack = make_stack(**{FAULT_VARIABLE: BEFORE_ACKNOWLEDGE})
    stack.participants()
    orders = killed(stack, BEFORE_ACKNOWLEDGE)
    assert stack.unsettled_replies()
    stack.orchestrator("second")
    stack.assert_sound(orders)
    before = {one.saga_id: stack.client.row(one.saga_id).sequence for one in orders}
    wait_until(lambda: not stack.unsettled_replies(), timeout=20)
    assert before == {one.saga_id: stack.client.row(one.saga_id).sequence for one in orders}
    assert not stack.client.dead_letters()


def killed(stack: Stack, fault: str) -> list[Ordered]:
    """Let an orchestrator begin orders, and die at its fault."""
    orders = stack.order()
    stack.orchestrator("first")
    stack.await_death("first")
    assert stack.fired() == {fault}
    assert not stack.ended(orders)
    return orders
