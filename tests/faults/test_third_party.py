"""A collector that nobody here wrote understands our spans, and passes on right trees."""

from collections import Counter
from pathlib import Path

from tests.faults.stack import ENDED_WITHIN, MakeStack
from tests.faults.test_traces import SAGAS, start
from tests.servers.fixtures import missing
from tests.servers.otlp import OtlpReceiver
from tests.servers.process import ServerMissingError
from tests.servers.rotel import Rotel
from tests.servers.spantree import assert_one_tree, draw

FAST = {"OTEL_SDK_DISABLED": "false", "OTEL_BSP_SCHEDULE_DELAY": "100"}


def test_rotel_receives_whole_trees(make_stack: MakeStack, tmp_path: Path) -> None:
    """The orchestrator and the command speak HTTP to it, the participants gRPC; of each saga one tree."""
    with OtlpReceiver("grpc") as receiver:
        try:
            collector = Rotel(tmp_path, receiver)
        except ServerMissingError as error:
            missing(str(error))
        with collector:
            stack = make_stack(**collector.environment("http"), **FAST)
            stack.participants(**collector.environment("grpc"))
            stack.orchestrator()
            started = start(stack)
            for saga, (_, status, _) in zip(started, SAGAS, strict=True):
                row = stack.client.wait(saga["saga_id"], ENDED_WITHIN)
                assert row.state.status.value == status
            stack.stop()
            expected = sum(2 * attempts for _, _, attempts in SAGAS)
            receiver.wait_for(
                lambda spans: (
                    sum(span.kind in {"producer", "consumer"} for span in spans) == expected
                )
            )
            receiver.wait_for(
                lambda spans: sum(span.name == "saga place-order" for span in spans) == len(SAGAS)
            )
    for saga, (_, status, attempts) in zip(started, SAGAS, strict=True):
        spans = receiver.spans(saga["trace_id"])
        root = assert_one_tree(spans, saga["trace_id"])
        assert ("saga place-order", status) == (root.name, root.attributes["saga.status"])
        kinds = Counter(span.kind for span in spans)
        assert (kinds["producer"], kinds["consumer"]) == (attempts, attempts), draw(spans)
        assert {"orchestrator", "saga-cli", "workers"} == {span.service for span in spans}
        assert {saga["saga_id"]} == {span.attributes["saga.id"] for span in spans}
        assert all(root.start_ns <= span.start_ns <= span.end_ns for span in spans)
    undone = [span for span in receiver.spans() if span.name.startswith("compensate ")]
    by_id = {span.span_id: span for span in receiver.spans()}
    assert [f"step {span.name.partition(' ')[2]}" for span in undone] == [
        by_id[span.links[0].span_id].name for span in undone
    ]
    assert {saga["trace_id"] for saga in started} == {span.trace_id for span in receiver.spans()}
