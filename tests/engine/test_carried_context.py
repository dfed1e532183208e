"""The caller's trace and baggage are stored with the saga, and every message of it has them."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
from opentelemetry import baggage, context, trace

from orchestrator.bootstrap import make_client
from orchestrator.client import Client
from orchestrator.core.events import Trace
from orchestrator.transport.task_message import delivery, headers_of
from shared import names
from shared.codec import task_body
from shared.messages import Command, StartRequest
from shared.settings import Settings
from shared.telemetry import propagation
from shared.telemetry.header_propagator import parent_context
from shared.telemetry.propagation import Propagation
from tests.telemetry.records import ROOT_ID, TRACE_ID
from workers.sdk.command import command_of
from workers.sdk.reply import _headers

TRACEPARENT = f"00-{TRACE_ID}-{ROOT_ID}-01"
EVERYTHING = Propagation(
    formats=("tracecontext", "b3", "b3multi", "baggage"), baggage_keys=("tenant",)
)


@pytest.fixture(autouse=True)
def default_formats() -> Iterator[None]:
    """Each test begins with the default."""
    propagation.configure(Propagation())
    yield
    propagation.configure(Propagation())
    propagation._ignored.clear()


@pytest.fixture
def client(tmp_path: Any) -> Iterator[Client]:
    """A client whose broker is in memory."""
    made = make_client(Settings(home=tmp_path, broker_url="memory://"))
    yield made
    made.close()


def started(client: Client, **given: Any) -> Trace:
    """Start a saga and load the trace that was stored with it."""
    row = client.start("place-order", {"order_id": "o-1"}, **given).row
    return client.row(row.saga_id).state.trace


def command(client: Client) -> Command:
    """The first command of a saga of the caller in `TRACEPARENT`."""
    published: list[Command] = []
    with patch.object(client._engine.transport, "publish", published.extend):
        started(client, traceparent=TRACEPARENT, tracestate="a=1", baggage={"tenant": "acme"})
    (found,) = published
    return found


def test_every_command_is_written_in_every_configured_format(client: Client) -> None:
    """From what is stored, not from what happens to be current."""
    propagation.configure(EVERYTHING)
    headers = headers_of(command(client), "test")
    _, trace_id, span_id, _ = headers[names.TRACEPARENT].split("-")
    assert TRACE_ID == trace_id
    expected = {
        "tracestate": "a=1",
        "b3": f"{TRACE_ID}-{span_id}-0",  # traces are off in this process
        "x-b3-traceid": TRACE_ID,
        "x-b3-spanid": span_id,
        "x-b3-sampled": "0",
        "baggage": "tenant=acme",
    }
    assert expected == {name: headers[name] for name in expected}


def test_a_participant_reads_b3_alone_and_answers_in_it(client: Client) -> None:
    """A fleet that speaks only B3 loses nothing on the way back."""
    propagation.configure(Propagation(formats=("b3",)))
    headers = headers_of(command(client), "test")
    assert names.TRACEPARENT not in headers
    read = command_of(headers)
    assert read.traceparent is not None
    assert headers["b3"] == _headers(read, names.REPLY_TASK)["b3"]


@pytest.mark.parametrize("value", [7, ["a"], {"a": 1}, "garbage", "x" * 100_000])
def test_a_hostile_trace_header_does_not_stop_a_step(client: Client, value: object) -> None:
    """The command is carried out, without the trace."""
    headers = headers_of(command(client), "test") | {"traceparent": value, "tracestate": value}
    read = command_of(headers)
    assert ("place-order", None) == (read.saga_name, read.traceparent)


@pytest.mark.parametrize("value", [7, ["a"], {"a": 1}, "garbage", "x" * 100_000])
def test_a_hostile_trace_header_does_not_stop_a_start(client: Client, value: Any) -> None:
    """Neither in the headers nor in the body of ``saga.start``; a new trace begins."""
    propagation.configure(EVERYTHING)
    hostile = dict.fromkeys(("traceparent", "tracestate", "b3", "x-b3-traceid", "baggage"), value)
    request = StartRequest(name="place-order", input={"order_id": "o"})
    found = delivery(
        headers={"task": names.START_TASK, "id": "task-1", **hostile},
        content_type="application/json",
        body=task_body(request),
        receipt=None,
    )
    client._engine.handle([found])
    (saga,) = client.list()
    kept = client.row(saga.saga_id).state.trace
    assert (None, "", ()) == (kept.parent_span_id, kept.tracestate, kept.baggage)
    text = value if isinstance(value, str) else "junk"
    kept = started(client, traceparent=text, tracestate=text, baggage={"tenant": "x" * 9000})
    assert (None, "", ()) == (kept.parent_span_id, kept.tracestate, kept.baggage)


def test_a_start_in_b3_is_continued(client: Client) -> None:
    """From another service, through the headers of the message."""
    propagation.configure(EVERYTHING)
    found = delivery(
        headers={
            "task": names.START_TASK,
            "id": "task-1",
            "X-B3-TraceId": TRACE_ID,
            "X-B3-SpanId": ROOT_ID,
            "X-B3-Sampled": "0",
            "baggage": "tenant=acme,session=secret",
        },
        content_type="application/json",
        body=task_body(StartRequest(name="place-order", input={"order_id": "o"})),
        receipt=None,
    )
    client._engine.handle([found])
    (saga,) = client.list()
    kept = client.row(saga.saga_id).state.trace
    assert (TRACE_ID, ROOT_ID, False) == (kept.trace_id, kept.parent_span_id, kept.sampled)
    assert (("tenant", "acme"),) == kept.baggage


def test_baggage_that_is_not_switched_on_is_not_stored(client: Client) -> None:
    """The default: nothing of it is kept."""
    assert () == started(client, baggage={"tenant": "acme"}).baggage


def test_a_start_in_the_callers_code_continues_its_trace(client: Client) -> None:
    """From a web request or a task, without a line of the user's."""
    propagation.configure(EVERYTHING)
    caller = baggage.set_baggage("tenant", "acme", parent_context({"traceparent": TRACEPARENT}))
    token = context.attach(caller)
    try:
        saga = started(client)
    finally:
        context.detach(token)
    assert (TRACE_ID, ROOT_ID, (("tenant", "acme"),)) == (
        saga.trace_id,
        saga.parent_span_id,
        saga.baggage,
    )
    assert not trace.get_current_span().get_span_context().is_valid
    assert started(client).parent_span_id is None
