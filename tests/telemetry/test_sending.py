"""Spans of what an app sends, over kombu's broker in memory."""

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.app.amqp import AMQP
from kombu.exceptions import OperationalError
from opentelemetry import trace

from shared.embedded import free_port
from shared.telemetry import setup
from shared.telemetry.sending import trace_sending
from tests.servers.otlp import OtlpReceiver, ReceivedSpan
from tests.telemetry.conftest import StartTracing


@pytest.fixture
def app() -> Iterator[Celery[Any]]:
    """An app whose sending is traced."""
    with Celery("sender", broker="memory://", set_as_current=False) as made:
        trace_sending(made)
        yield made


@pytest.fixture
def receiver(otlp_http: OtlpReceiver, start_tracing: StartTracing) -> OtlpReceiver:
    """Gets the spans of this process."""
    start_tracing(otlp_http)
    return otlp_http


def received(receiver: OtlpReceiver) -> list[ReceivedSpan]:
    """What has been exported so far."""
    assert setup.flush()
    return receiver.spans()


def headers_of(app: Celery[Any], queue: str) -> dict[str, Any]:
    """Headers of the message that waits in a queue."""
    with app.connection_for_read() as connection:
        channel: Any = connection.default_channel
        message = channel.basic_get(queue, no_ack=True)
    return dict(message.headers)


def test_a_sent_task_is_one_producer_span(app: Celery[Any], receiver: OtlpReceiver) -> None:
    """It is the parent of whatever the receiver does, by the current conventions."""
    app.send_task("stock.count", queue="stock", task_id="t-1")
    (span,) = received(receiver)
    assert ("send stock", "producer", "unset") == (span.name, span.kind, span.status)
    assert {
        "messaging.system": "memory",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "stock",
        "messaging.message.id": "t-1",
    } == span.attributes
    traceparent = headers_of(app, "stock")["traceparent"].split("-")
    assert [span.trace_id, span.span_id] == traceparent[1:3]


def test_a_failed_publish_leaves_no_span_behind(
    receiver: OtlpReceiver,
) -> None:
    """The next root span begins a trace of its own."""
    gone = f"redis://127.0.0.1:{free_port()}/0"
    with Celery("sender", broker=gone, set_as_current=False) as app:
        trace_sending(app)
        with pytest.raises(OperationalError):
            app.send_task("stock.count", queue="stock", retry=False)
    assert not trace.get_current_span().get_span_context().is_valid
    with trace.get_tracer("test").start_as_current_span("next"):
        pass
    failed, following = received(receiver)
    assert ("send stock", "error", "kombu.exceptions.OperationalError") == (
        failed.name,
        failed.status,
        failed.attributes["error.type"],
    )
    assert ("exception",) == failed.events
    assert ("", "next") == (following.parent_id, following.name)
    assert failed.trace_id != following.trace_id


def test_an_attempt_that_follows_keeps_the_first_ones_context(
    app: Celery[Any], receiver: OtlpReceiver
) -> None:
    """A retry is sent inside of the attempt that failed, and is its sibling."""
    first = f"00-{'1' * 32}-{'2' * 16}-01"
    with trace.get_tracer("test").start_as_current_span("attempt"):
        app.send_task("stock.count", queue="a", retries=1, headers={"traceparent": first})
        app.send_task("stock.count", queue="b", headers={"traceparent": first})
    assert first == headers_of(app, "a")["traceparent"]
    assert first != headers_of(app, "b")["traceparent"]


def test_without_telemetry_the_callers_context_goes_on(app: Celery[Any]) -> None:
    """Nothing is recorded before `setup.start`, and a task is sent all the same."""
    app.send_task("stock.count", queue="stock")
    assert "traceparent" not in headers_of(app, "stock")


def test_an_app_that_has_sent_already_is_traced_too(receiver: OtlpReceiver) -> None:
    """And one with a message maker of its own; twice is once."""

    class Own(AMQP):
        pass

    with Celery("early", broker="memory://", set_as_current=False) as early:
        early.send_task("stock.count", queue="early")
        trace_sending(early)
        early.send_task("stock.count", queue="early")
    with Celery("own", broker="memory://", set_as_current=False, amqp=Own) as own:
        trace_sending(own)
        trace_sending(own)
        own.send_task("stock.count", queue="own")
        assert isinstance(own.amqp, Own)
    assert ["send early", "send own"] == [span.name for span in received(receiver)]
