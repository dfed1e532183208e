"""Spans of sending: one PRODUCER span for every task that an app sends, whoever sends it.

It takes the place of the publishing half of opentelemetry-instrumentation-celery, which hangs the
span between two signals. When the publish fails the second signal never comes, and the span stays
the current one: the next root span lands in the wrong trace. For a task that the
sender does not know, the span ends before the publish. A ``with`` block has neither fault.

An attempt that a task asks for itself (``self.retry()``) keeps the context that its first attempt
came with: attempts are siblings, never a staircase.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final
from weakref import WeakSet

from celery import Celery
from celery.app.amqp import AMQP
from celery.utils.imports import symbol_by_name
from opentelemetry import propagate, trace

from shared.telemetry import current, logs, names
from shared.telemetry.spans import AttributeValue

Send = Callable[..., Any]

_traced_apps: WeakSet[Celery[Any]] = WeakSet()
_tracer: Final = trace.get_tracer(names.INSTRUMENTATION_SCOPE)


def trace_sending(app: Celery[Any]) -> None:
    """Trace every task that an app sends from now on; a second call does nothing."""
    if app in _traced_apps:
        return
    _traced_apps.add(app)
    made = vars(app).get("amqp")
    if made is not None:
        made.send_task_message = _traced(made.send_task_message, app)
        return
    settable: Any = app
    base: type[AMQP] = symbol_by_name(settable.amqp_cls)
    # An app may have a message maker of its own; the plain one gives the plain traced one.
    settable.amqp_cls = (
        _TracedAMQP if base is AMQP else type(f"Traced{base.__name__}", (_TracedAMQP, base), {})
    )


class _TracedAMQP(AMQP):
    """Celery's message maker, whose sender is traced."""

    app: Celery[Any]

    def _create_task_sender(self) -> Send:
        send: Send = super()._create_task_sender()  # type: ignore[misc]  # not in the stubs
        return _traced(send, self.app)


def _traced(send: Send, app: Celery[Any]) -> Send:
    def send_task_message(
        producer: Any,
        name: str,
        message: Any,
        *args: Any,
        headers: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        merged: dict[str, Any] = message.headers
        merged.update(headers or {})
        destination = _destination(app, options)
        with _tracer.start_as_current_span(
            names.send_span(destination),
            kind=trace.SpanKind.PRODUCER,
            attributes=_attributes(app, destination, merged),
        ) as span:
            if not (merged.get("retries") and _has_context(merged)):
                propagate.inject(merged)
            try:
                return send(producer, name, message, *args, **options)
            except Exception as error:
                span.set_attribute(names.ERROR_TYPE, current.error_type(error))
                raise

    return send_task_message


def _has_context(headers: Mapping[str, Any]) -> bool:
    return any(headers.get(field) for field in propagate.get_global_textmap().fields)


def _destination(app: Celery[Any], options: Mapping[str, Any]) -> str:
    queue = options.get("queue")
    if queue is None:
        return str(options.get("routing_key") or app.conf.task_default_queue)
    return queue if isinstance(queue, str) else str(queue.name)


def _attributes(
    app: Celery[Any], destination: str, headers: Mapping[str, Any]
) -> dict[str, AttributeValue]:
    url: Any = app.conf.broker_write_url
    found: dict[str, AttributeValue] = {
        names.MESSAGING_SYSTEM: names.messaging_system(url if isinstance(url, str) else url[0]),
        names.MESSAGING_OPERATION_NAME: names.OPERATION_SEND,
        names.MESSAGING_OPERATION_TYPE: names.OPERATION_SEND,
        names.MESSAGING_DESTINATION_NAME: destination,
        names.MESSAGING_MESSAGE_ID: str(headers.get("id", "")),
    }
    # Sent from inside a step: it belongs to that saga.
    saga_id = logs.bound().get(names.LOG_SAGA_ID)
    if saga_id:
        found[names.SAGA_ID] = found[names.MESSAGING_CONVERSATION_ID] = str(saga_id)
    return found
