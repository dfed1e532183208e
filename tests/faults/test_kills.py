"""SIGKILL at the points where it hurts: every saga ends as if nothing had happened."""

import pytest

from shared import faults
from shared.faults import FAULT_VARIABLE
from shared.telemetry import setup
from shared.telemetry.config import tracing_config
from tests.faults.stack import MakeStack, Ordered, Stack
from tests.servers.otlp import OtlpReceiver
from tests.servers.spantree import assert_one_tree, draw
from tests.waiting import wait_until

BEFORE_PUBLISH = "orchestrator:after-commit-before-publish"
BEFORE_ACKNOWLEDGE = "orchestrator:after-publish-before-ack"


@pytest.mark.parametrize("point", [faults.IN_ACTION, faults.AFTER_COMMIT])
def test_killed_participant_leaves_its_step_to_the_next(
    make_stack: MakeStack, point: str, otlp_http: OtlpReceiver
) -> None:
    """A participant dies in an action, or between its work and its reply: no effect twice.

    What it has not exported dies with it: the trees are whole all the same, and the
    attempt that was cut off has the span of whoever did it in the end.
    """
    fault = f"{point}@payment.charge"
    stack = make_stack(
        **{FAULT_VARIABLE: fault}, **otlp_http.environment, OTEL_SDK_DISABLED="false"
    )
    config = tracing_config("test", home=stack.home, environ=otlp_http.environment)
    setup.start("test", config)
    try:
        orders = stack.order()
    finally:
        setup.shutdown()
    stack.orchestrator()
    stack.participants("first", "-P", "solo")
    stack.await_death("first")
    assert stack.fired() == {fault}
    assert len(stack.ended(orders)) < len(orders)
    stack.participants("second", "-P", "solo")
    stack.assert_sound(orders)
    stack.stop()
    for order in orders:
        state = order.started.row.state
        spans = otlp_http.spans(state.trace.trace_id)
        assert_one_tree(spans, state.trace.trace_id)
        charged = [span.span_id for span in spans if span.name == "send payment"]
        done = [span.parent_id for span in spans if span.name == "process payment"]
        assert set(charged) == set(done), draw(spans)


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
