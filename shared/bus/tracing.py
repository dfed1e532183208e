"""The spans of the buses: one for each send, one for each attempt of a handler.

The span of a send is never the current one, so that a publish that fails leaves nothing behind
(FACTS.md, L6); its context goes into the message's headers. A retry keeps the headers of the first
attempt: attempts are siblings.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, Final

from celery import Celery
from opentelemetry import propagate, trace

from shared import names as wire_names
from shared.messages import Failure
from shared.telemetry import current, logs, names
from shared.telemetry.spans import AttributeValue, SpanError

_tracer: Final = trace.get_tracer(names.INSTRUMENTATION_SCOPE)


@contextmanager
def sending(
    app: Celery[Any], destination: str, headers: MutableMapping[str, Any]
) -> Iterator[None]:
    """Span of a send around a ``with`` block; puts its context into the headers.

    Args:
        app: Its broker is ``messaging.system``.
        destination: Queue, or the name of an event.
        headers: Of the message.
    """
    attributes = _attributes(app, destination, headers, names.OPERATION_SEND)
    # What is published from within a step or a handler belongs to the same saga.
    saga_id = logs.bound().get(names.LOG_SAGA_ID)
    if saga_id:
        attributes[names.SAGA_ID] = attributes[names.MESSAGING_CONVERSATION_ID] = str(saga_id)
    span = _tracer.start_span(
        names.send_span(destination), kind=trace.SpanKind.PRODUCER, attributes=attributes
    )
    try:
        propagate.inject(headers, context=trace.set_span_in_context(span))
        yield
    except Exception as error:
        _set_error(span, error)
        raise
    finally:
        span.end()


@contextmanager
def processing(app: Celery[Any], queue: str, headers: Mapping[str, Any]) -> Iterator[None]:
    """Span of one attempt of a handler; the worker's own instrumentation has begun it, if any.

    Args:
        app: Its broker is ``messaging.system``.
        queue: Where the message lay.
        headers: Of the message, the task's id included.
    """
    span = trace.get_current_span()
    name = names.process_span(queue)
    attributes = _attributes(app, queue, headers, names.OPERATION_PROCESS)
    if span.get_span_context().is_valid:
        if span.is_recording():
            span.update_name(name)
            span.set_attributes(attributes)
        yield
        return
    # No instrumentation in this worker: a message is traced all the same.
    with _tracer.start_as_current_span(
        name,
        context=propagate.extract(headers),
        kind=trace.SpanKind.CONSUMER,
        attributes=attributes,
    ) as own:
        try:
            yield
        except Exception as error:
            own.set_attribute(names.ERROR_TYPE, current.error_type(error))
            raise


@contextmanager
def failed_attempt(
    app: Celery[Any], queue: str, headers: Mapping[str, Any], why: Failure
) -> Iterator[None]:
    """Span with the status ERROR, for an attempt that no task runs or survives.

    Args:
        app: Its broker is ``messaging.system``.
        queue: Where the message lay.
        headers: Of the message.
        why: What was wrong.
    """
    with _tracer.start_as_current_span(
        names.process_span(queue),
        context=propagate.extract(headers),
        kind=trace.SpanKind.CONSUMER,
        attributes=_attributes(app, queue, headers, names.OPERATION_PROCESS),
    ):
        current.set_error(SpanError(type=why.kind, message=why.message))
        yield


def _attributes(
    app: Celery[Any], destination: str, headers: Mapping[str, Any], operation: str
) -> dict[str, AttributeValue]:
    url: Any = app.conf.broker_write_url
    return {
        names.MESSAGING_SYSTEM: names.messaging_system(url if isinstance(url, str) else url[0]),
        names.MESSAGING_OPERATION_NAME: operation,
        names.MESSAGING_OPERATION_TYPE: operation,
        names.MESSAGING_DESTINATION_NAME: destination,
        names.MESSAGING_MESSAGE_ID: str(headers.get(wire_names.SAGA_EVENT_ID) or headers["id"]),
        names.SAGA_MESSAGE: str(headers.get(wire_names.SAGA_MESSAGE, "")),
    }


def _set_error(span: trace.Span, error: Exception) -> None:
    with trace.use_span(span, record_exception=False, set_status_on_exception=False):
        current.set_error(SpanError(type=current.error_type(error), message=str(error)))
    span.record_exception(error)
