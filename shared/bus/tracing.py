"""The spans of the buses: one for each send, one for each attempt of a handler.

The span of a send is never the current one, so that a publish that fails leaves nothing behind;
its context goes into the message's headers. A retry keeps the headers of the first attempt:
attempts are siblings.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from celery import Celery
from opentelemetry import propagate, trace

from shared import names as wire
from shared.contract import Wire
from shared.messages import Failure
from shared.telemetry import current, logs, names, operations, tracing
from shared.telemetry.header_propagator import parent_context
from shared.telemetry.spans import AttributeValue, SpanError


def asking(query: Wire) -> AbstractContextManager[trace.Span]:
    """Span of a query, from the question to its answer."""
    attributes: dict[str, AttributeValue] = {
        names.BUS_MESSAGE_KIND: query.kind,
        names.BUS_MESSAGE_NAME: query.name,
    }
    asked = operations.custom(names.ask_span(query.name), attributes, kind=trace.SpanKind.CLIENT)
    return tracing.span(asked)


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
    operation = operations.send(
        destination,
        system=_system(app),
        message_id=_message_id(headers),
        # What is published from within a step or a handler belongs to the same saga.
        conversation_id=logs.bound().get(names.LOG_SAGA_ID),
        attributes=_attributes(headers),
    )
    span = tracing.start(operation)
    try:
        propagate.inject(headers, context=trace.set_span_in_context(span))
        yield
    except Exception as error:
        tracing.record(span, error)
        raise
    finally:
        span.end()


@contextmanager
def processing(app: Celery[Any], queue: str, headers: Mapping[str, Any]) -> Iterator[None]:
    """Span of one attempt of a handler; the worker's own instrumentation has begun it, if any.

    Args:
        app: Its broker is ``messaging.system``.
        queue: Where the message lay.
        headers: Of the message.
    """
    begun = trace.get_current_span()
    if not begun.get_span_context().is_valid:
        # No instrumentation in this worker: a message is traced all the same.
        with tracing.span(_process(app, queue, headers), parent=parent_context(headers)):
            yield
        return
    if begun.is_recording():
        operation = _process(app, queue, headers)
        begun.update_name(operation.name)
        begun.set_attributes(operation.attributes)
    yield


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
    with tracing.span(_process(app, queue, headers), parent=parent_context(headers)):
        current.set_error(SpanError(type=why.kind, message=why.message))
        yield


def _process(app: Celery[Any], queue: str, headers: Mapping[str, Any]) -> operations.Operation:
    return operations.process(
        queue,
        system=_system(app),
        message_id=_message_id(headers),
        conversation_id=headers.get(wire.SAGA_ID),
        attributes=_attributes(headers),
    )


def _attributes(headers: Mapping[str, Any]) -> dict[str, AttributeValue]:
    found = {
        attribute: headers[header]
        for header, attribute in (*names.BUS_ATTRIBUTES.items(), *names.SAGA_ATTRIBUTES.items())
        if isinstance(headers.get(header), str | int)
    }
    if wire.SAGA_ID not in headers and (saga_id := logs.bound().get(names.LOG_SAGA_ID)):
        found[names.SAGA_ID] = saga_id
    return found


def _message_id(headers: Mapping[str, Any]) -> str:
    """Every subscriber's copy of an event is the same message."""
    return str(headers.get(wire.SAGA_EVENT_ID) or headers["id"])


def _system(app: Celery[Any]) -> str:
    url: Any = app.conf.broker_write_url
    return names.messaging_system(url if isinstance(url, str) else url[0])
