"""The span that is current in the running code, for code that did not start it."""

import traceback
from typing import Final

from opentelemetry import trace

from shared.telemetry import names
from shared.telemetry.spans import AttributeValue, SpanError

MESSAGE_CHARS_MAX: Final = 2_000
TRACEBACK_CHARS_MAX: Final = 8_000
"""The last part of a longer one is kept: it says where."""


def set_attributes(attributes: dict[str, AttributeValue]) -> None:
    """Add attributes to the current span; nothing happens where none is recorded."""
    trace.get_current_span().set_attributes(attributes)


def set_error(error: SpanError, span: trace.Span | None = None) -> None:
    """Give a span the status ERROR, ``error.type``, and an exception event where it has a stack.

    For a failure that is a value: no exception leaves the task, so that nothing else records it.

    Args:
        error: What happened.
        span: By default the current one.
    """
    span = span or trace.get_current_span()
    if not span.is_recording():
        return
    span.set_status(trace.Status(trace.StatusCode.ERROR, error.message or None))
    span.set_attribute(names.ERROR_TYPE, error.type)
    if error.traceback:
        span.add_event(
            names.EXCEPTION_EVENT,
            {
                names.EXCEPTION_TYPE: error.type,
                names.EXCEPTION_MESSAGE: error.message,
                names.EXCEPTION_STACKTRACE: error.traceback,
            },
        )


def error_of(error: BaseException) -> SpanError:
    """An exception with its type, message and stack."""
    stack = "".join(traceback.format_exception(error))
    return SpanError(
        type=error_type(error),
        message=text_of(error)[:MESSAGE_CHARS_MAX],
        traceback=stack[-TRACEBACK_CHARS_MAX:],
    )


def error_type(error: BaseException) -> str:
    """``error.type`` of an exception: its class, with the module unless it is built in."""
    kind = type(error)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def text_of(value: object) -> str:
    """``str`` of anything; of a value that has none, what is wrong with it."""
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - somebody else's method, and only telemetry
        return f"<{type(value).__name__} whose text raises {type(error).__name__}>"
