"""Spans around code: one context manager and one decorator, on the OpenTelemetry API alone.

    with span(operations.external("card-network", "authorize")) as current:
        current.set_attribute("order.total", 12)

    @traced(arguments={"order_id": "order.id"}, result="order.total")
    def price(order_id: str) -> int: ...

An exception that leaves the block is recorded (type, message, stack, ``error.type``, status ERROR)
and goes on. Spans of the plain API, inside or outside, are parents and children as any other.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial, wraps
from typing import Any, Final, Literal, ParamSpec, TypeVar, cast, overload

import structlog
from opentelemetry import trace
from opentelemetry.context import Context

from shared.telemetry import current, names
from shared.telemetry.operations import Operation, custom
from shared.telemetry.spans import NO_ATTRIBUTES, Attributes, AttributeValue, SpanError

P = ParamSpec("P")
R = TypeVar("R")

Describe = str | Callable[[Any], Attributes]
"""What of a result becomes attributes: the key for all of it, or a function that picks."""

VALUE_CHARS_MAX: Final = 1_000
"""Longest text of a result or of an argument that becomes an attribute."""

_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)
_tracer: Final = trace.get_tracer(names.INSTRUMENTATION_SCOPE)


@contextmanager
def span(
    operation: Operation | str,
    attributes: Attributes = NO_ATTRIBUTES,
    *,
    parent: Context | None = None,
    links: Sequence[trace.Link] = (),
    expected: tuple[type[BaseException], ...] = (),
) -> Iterator[trace.Span]:
    """Record a span around a block of code.

    Args:
        operation: What it is about (`operations`), or the name of a custom span.
        attributes: More of them, known at the start.
        parent: Context with the parent, for example `propagation.parent_context` of a message's
            headers; by default the current one.
        links: Other spans that this one has to do with.
        expected: Exceptions that are no errors, for example `celery.exceptions.Retry`.

    Yields:
        The span; it records nothing where it is not sampled.
    """
    begun = start(operation, attributes, parent=parent, links=links)
    try:
        with _current(begun):
            yield begun
    except Exception as error:
        record(begun, error, expected)
        raise
    finally:
        begun.end()


def start(
    operation: Operation | str,
    attributes: Attributes = NO_ATTRIBUTES,
    *,
    parent: Context | None = None,
    links: Sequence[trace.Link] = (),
) -> trace.Span:
    """Begin a span that the caller ends; for code that no ``with`` block can wrap. As `span`."""
    if isinstance(operation, str):
        operation = custom(operation)
    given = {**operation.attributes, **attributes} if attributes else operation.attributes
    return _tracer.start_span(
        operation.name, parent, operation.kind, attributes=given, links=tuple(links) or None
    )


def record(
    recorded: trace.Span,
    error: BaseException,
    expected: tuple[type[BaseException], ...] = (),
) -> None:
    """Record an exception on a span: event, status ERROR and ``error.type``."""
    if recorded.is_recording() and not isinstance(error, expected):
        current.set_error(current.error_of(error), recorded)


def set_http_status(
    recorded: trace.Span, status_code: int, *, side: Literal["server", "client"]
) -> None:
    """Record the status of an HTTP response.

    A server's span is an error from 500, a client's from 400: a refusal is what the server is for.
    """
    recorded.set_attribute(names.HTTP_RESPONSE_STATUS_CODE, status_code)
    if status_code >= (500 if side == "server" else 400):
        current.set_error(SpanError(type=str(status_code)), recorded)


@overload
def traced(function: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def traced(
    operation: Operation | str | None = None,
    /,
    *,
    attributes: Attributes = NO_ATTRIBUTES,
    arguments: Mapping[str, str] | None = None,
    result: Describe | None = None,
    expected: tuple[type[BaseException], ...] = (),
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def traced(
    operation: Operation | str | Callable[..., Any] | None = None,
    /,
    *,
    attributes: Attributes = NO_ATTRIBUTES,
    arguments: Mapping[str, str] | None = None,
    result: Describe | None = None,
    expected: tuple[type[BaseException], ...] = (),
) -> Any:
    """Record a span around each call of a function.

    A coroutine's span lasts until it returns. A generator's lasts from the first item to its end,
    and is current only while the generator runs, not in the code that takes its items.

    Args:
        operation: What it is about, or the name of the span; by default the function's name.
        attributes: More of them.
        arguments: Which parameter becomes which attribute: ``{"order_id": "order.id"}``.
        result: What of the result becomes attributes.
        expected: Exceptions that are no errors.

    Raises:
        TypeError: At decoration: the function has no parameter of that name.
    """
    if callable(operation):
        return _Traced(operation, None, attributes, {}, None, ()).wrapper()

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        made = _Traced(function, operation, attributes, arguments or {}, result, expected)
        return cast("Callable[P, R]", made.wrapper())

    return decorate


class _Traced:
    """A function whose calls are spans."""

    def __init__(
        self,
        function: Callable[..., Any],
        operation: Operation | str | None,
        attributes: Attributes,
        arguments: Mapping[str, str],
        result: Describe | None,
        expected: tuple[type[BaseException], ...],
    ) -> None:
        if operation is None or isinstance(operation, str):
            operation = custom(operation or function.__qualname__)
        place = f"{function.__module__}.{function.__qualname__}"
        self._function = function
        self._operation = operation.having({names.CODE_FUNCTION_NAME: place, **attributes})
        self._arguments = arguments
        self._result = result
        self._expected = expected
        self._signature = inspect.signature(function) if arguments else None
        unknown = set(arguments) - set(self._signature.parameters if self._signature else ())
        if unknown:
            raise TypeError(f"{place} has no parameter {', '.join(sorted(unknown))}")

    def wrapper(self) -> Callable[..., Any]:
        """A function of the same kind: frameworks ask whether it is a coroutine function."""
        if inspect.isasyncgenfunction(self._function):
            return self._async_generator()
        if inspect.isgeneratorfunction(self._function):
            return self._generator()
        if inspect.iscoroutinefunction(self._function):
            return self._coroutine()
        return self._plain()

    def _span(self, args: Any, kwargs: Any) -> AbstractContextManager[trace.Span]:
        return span(self._operation, self._given(args, kwargs), expected=self._expected)

    def _plain(self) -> Callable[..., Any]:
        function = self._function

        @wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self._span(args, kwargs) as recorded:
                result = function(*args, **kwargs)
                self._describe(recorded, result)
                return result

        return wrapped

    def _coroutine(self) -> Callable[..., Any]:
        function = self._function

        @wraps(function)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self._span(args, kwargs) as recorded:
                result = await function(*args, **kwargs)
                self._describe(recorded, result)
                return result

        return wrapped

    def _generator(self) -> Callable[..., Any]:
        function = self._function

        @wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self._detached(args, kwargs) as recorded:
                generator = function(*args, **kwargs)
                resume = partial(generator.send, None)
                while True:
                    try:
                        with _current(recorded):
                            item = resume()
                    except StopIteration as end:
                        self._describe(recorded, end.value)
                        return end.value
                    try:
                        resume = partial(generator.send, (yield item))
                    except GeneratorExit:
                        with _current(recorded):
                            generator.close()
                        raise
                    except BaseException as error:  # noqa: BLE001 - the generator's to handle
                        resume = partial(generator.throw, error)

        return wrapped

    def _async_generator(self) -> Callable[..., Any]:
        function = self._function

        @wraps(function)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self._detached(args, kwargs) as recorded:
                generator = function(*args, **kwargs)
                resume = partial(generator.asend, None)
                while True:
                    try:
                        with _current(recorded):
                            item = await resume()
                    except StopAsyncIteration:
                        return
                    try:
                        resume = partial(generator.asend, (yield item))
                    except GeneratorExit:
                        with _current(recorded):
                            await generator.aclose()
                        raise
                    except BaseException as error:  # noqa: BLE001 - the generator's to handle
                        resume = partial(generator.athrow, error)

        return wrapped

    @contextmanager
    def _detached(self, args: Any, kwargs: Any) -> Iterator[trace.Span]:
        """A span that is not current between the steps of a generator."""
        recorded = start(self._operation, self._given(args, kwargs))
        try:
            yield recorded
        except Exception as error:
            record(recorded, error, self._expected)
            raise
        finally:
            recorded.end()

    def _given(self, args: Any, kwargs: Any) -> Attributes:
        if self._signature is None:
            return NO_ATTRIBUTES
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError:
            return NO_ATTRIBUTES  # the call itself says it better
        bound.apply_defaults()
        return {
            key: _value(bound.arguments[parameter]) for parameter, key in self._arguments.items()
        }

    def _describe(self, recorded: trace.Span, result: Any) -> None:
        if self._result is None or not recorded.is_recording():
            return
        if isinstance(self._result, str):
            recorded.set_attribute(self._result, _value(result))
            return
        try:
            recorded.set_attributes(self._result(result))
        except Exception:  # noqa: BLE001 - the function has succeeded, and stays so
            _log.warning(
                "telemetry.result_not_described", span=self._operation.name, exc_info=True
            )


def _current(recorded: trace.Span) -> AbstractContextManager[trace.Span]:
    return trace.use_span(recorded, record_exception=False, set_status_on_exception=False)


def _value(value: Any) -> AttributeValue:
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return tuple(value)
    text = current.text_of(value)
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[: VALUE_CHARS_MAX - 1]}…"
