"""From a request to the last worker: what is started or sent inside a request continues its trace."""

from collections import Counter
from typing import Any

from fastapi import FastAPI

from orchestrator.bootstrap import make_celery, make_client
from shared.telemetry.http import AsgiTracing
from tests.faults.conftest import make_stack
from tests.faults.stack import ENDED_WITHIN, MakeStack, Stack
from tests.servers.otlp import OtlpReceiver
from tests.servers.spantree import assert_one_tree, draw
from tests.telemetry.conftest import StartTracing
from tests.web.calls import SPAN_ID, TRACE_ID, TRACEPARENT
from tests.web.conftest import Lines
from tests.web.serving import uvicorn_serving
from tests.web.test_servers import Client

__all__ = ["make_stack"]


def shop(stack: Stack) -> AsgiTracing:
    """A service that takes orders, and writes mails."""
    api = FastAPI()
    celery = make_celery(lambda: stack.settings)

    @api.post("/orders/{order_id}")
    async def order(order_id: str) -> Any:
        client = make_client(stack.settings)
        saga_id = client.start("place-order", {"order_id": order_id}).row.saga_id
        client.close()
        return saga_id

    @api.post("/mails")
    async def mail() -> None:
        celery.send_task(
            "notifications.send", kwargs={"order_id": "o", "email": "a@b"}, queue="notifications"
        )

    return AsgiTracing(api)


def test_a_request_and_everything_behind_it_is_one_trace(
    make_stack: MakeStack, otlp_http: OtlpReceiver, start_tracing: StartTracing, lines: Lines
) -> None:
    """A saga below one request, a Celery task below another, in the trace of their caller."""
    stack = make_stack(
        **otlp_http.environment, OTEL_SDK_DISABLED="false", OTEL_BSP_SCHEDULE_DELAY="100"
    )
    start_tracing(otlp_http, service_name="shop-web")
    stack.orchestrator()
    stack.participants()
    other = TRACE_ID[::-1]
    with uvicorn_serving(shop(stack)) as port:
        client = Client(port)
        answer = client.get("/orders/o-1", "POST", traceparent=TRACEPARENT)
        assert (200, TRACE_ID) == (answer[0], answer[2])
        saga_id = answer[1].strip('"')
        client.get("/mails", "POST", traceparent=TRACEPARENT.replace(TRACE_ID, other))
        client.close()
    row = stack.client.wait(saga_id, ENDED_WITHIN)
    assert ("completed", TRACE_ID) == (row.state.status.value, row.state.trace.trace_id)
    otlp_http.wait_for(lambda spans: sum(span.trace_id == other for span in spans) == 3)
    stack.stop()

    ordered = otlp_http.spans(TRACE_ID)
    request = assert_one_tree(ordered, TRACE_ID, remote_parent_id=SPAN_ID)
    assert ("POST /orders/{order_id}", "shop-web") == (request.name, request.service)
    saga = next(span for span in ordered if span.name == "saga place-order")
    assert (request.span_id, True) == (saga.parent_id, saga.parent_is_remote), draw(ordered)
    assert {"server": 1, "producer": 5, "consumer": 5} == {
        kind: count
        for kind, count in Counter(span.kind for span in ordered).items()
        if kind != "internal"
    }
    mailed = otlp_http.spans(other)
    assert_one_tree(mailed, other, remote_parent_id=SPAN_ID)
    assert ["POST /mails", "send notifications", "process notifications"] == [
        span.name for span in sorted(mailed, key=lambda span: span.start_ns)
    ]
    # And a grep for the trace id finds the lines of all of them.
    services = {line["service"] for line in stack.lines() if line.get("trace_id") == TRACE_ID}
    assert {"orchestrator", "workers"} == services
    assert any(line.get("trace_id") == TRACE_ID for line in lines())
