"""The spans that a real collector receives form exactly one tree for each saga."""

import json
from collections import Counter
from typing import Any

import pytest

from shared.faults import FAULT_VARIABLE
from tests.faults.stack import ENDED_WITHIN, MakeStack, Stack
from tests.servers.otlp import OtlpReceiver, Protocol
from tests.servers.spantree import assert_one_tree, draw

BEFORE_PUBLISH = "orchestrator:after-commit-before-publish"

# Order, status, attempts: each of them is one send and one process span.
SAGAS: tuple[tuple[dict[str, Any], str, int], ...] = (
    ({}, "completed", 5),
    ({"region": "moon"}, "compensated", 5),
    ({"courier": "flaky"}, "completed", 6),
)


def start(stack: Stack) -> list[dict[str, Any]]:
    """Start the sagas as a user does: the ``saga.start`` span comes from the command's process."""
    found = []
    for one, _, _ in SAGAS:
        given = json.dumps({"order_id": "o", **one})
        command = stack.run("start", "place-order", "--json", "--input", given)
        assert command.returncode == 0, command.stderr
        found.append(json.loads(command.stdout))
    return found


@pytest.mark.parametrize("protocol, fault", [("http", ""), ("grpc", BEFORE_PUBLISH)])
def test_each_saga_is_one_tree(make_stack: MakeStack, protocol: Protocol, fault: str) -> None:
    """Completed, compensated and retried, over both protocols, and across the death of an orchestrator."""
    with OtlpReceiver(protocol) as receiver:
        stack = make_stack(
            **receiver.environment, OTEL_SDK_DISABLED="false", OTEL_BSP_SCHEDULE_DELAY="100"
        )
        stack.participants()
        started = start(stack)
        stack.orchestrator(**{FAULT_VARIABLE: fault})
        if fault:
            stack.await_death("orchestrator")
            stack.orchestrator()
        for saga, (_, status, _) in zip(started, SAGAS, strict=True):
            row = stack.client.wait(saga["saga_id"], ENDED_WITHIN)
            assert row.state.status.value == status
        stack.stop()
        for saga, (_, _, attempts) in zip(started, SAGAS, strict=True):
            spans = receiver.spans(saga["trace_id"])
            root = assert_one_tree(spans, saga["trace_id"])
            kinds = Counter(span.kind for span in spans)
            # The word "saga.start", the root, and one span for each step and its undoing.
            assert (kinds["producer"], kinds["consumer"]) == (attempts, attempts), draw(spans)
            assert {saga["saga_id"]} == {span.attributes.get("saga.id") for span in spans}
            assert all(root.start_ns <= span.start_ns <= root.end_ns for span in spans)
        assert {saga["trace_id"] for saga in started} == {one.trace_id for one in receiver.spans()}
