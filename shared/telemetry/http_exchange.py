"""One request and its answer: the span, what is current meanwhile, and how it ended.

Neither ASGI nor WSGI: those two feed it what happens, in the order in which it happens.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Final

import msgspec
import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace

from shared import names as wire
from shared.ids import new_request_id
from shared.telemetry import current, logs, names
from shared.telemetry.header_propagator import parent_context
from shared.telemetry.http_options import HttpOptions
from shared.telemetry.http_request import (
    Request,
    method_of,
    recorded_headers,
    request_attributes,
)
from shared.telemetry.metrics import histogram
from shared.telemetry.spans import AttributeValue, SpanError

_log = structlog.stdlib.get_logger(__name__)
_tracer: Final = trace.get_tracer(names.INSTRUMENTATION_SCOPE)

_duration: Final = histogram(
    names.METRIC_HTTP_DURATION,
    description="How long a request took, to the last byte of its answer.",
    labels=(
        names.HTTP_REQUEST_METHOD,
        names.HTTP_ROUTE,
        names.HTTP_RESPONSE_STATUS_CODE,
        names.ERROR_TYPE,
    ),
    # As the conventions advise.
    bounds=(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
)

_HARMLESS_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=@+/-]{0,127}", re.ASCII)
_FAULT_STATUS_MIN: Final = 500


def current_request_id() -> str:
    """The ``x-request-id`` of the request that the running code belongs to; empty outside of one."""
    return str(logs.bound().get(names.LOG_REQUEST_ID, ""))


class Exchange:
    """A request from its headers to the end of its answer.

    Args:
        request: What was asked.
        options: What of it is recorded.

    Attributes:
        request_id: The caller's, when it is harmless, else a new one.
        answer_headers: What every answer gets, by lower-case name.
        find_route: Asks for the path template; None while the framework has not matched one.
    """

    def __init__(self, request: Request, options: HttpOptions) -> None:
        self._options = options
        self._method = method_of(request, options)
        self._route: str | None = None
        self.find_route: Callable[[], str | None] = lambda: None
        self._failed = False
        self._labels: dict[str, AttributeValue] = {names.HTTP_REQUEST_METHOD: self._method}
        self._started_at = time.time_ns()
        self._ended_at: int | None = None
        self._ended = False
        given = request.headers.get(wire.HTTP_REQUEST_ID, "")
        self.request_id = given if _HARMLESS_ID.fullmatch(given) else new_request_id()
        outer = _outer_instrumentation()
        # A websocket is as long as a talk; what stands around us measures by itself.
        self._is_measured = outer is None and request.protocol == "http"
        caller = outer or parent_context(request.headers)
        self._span = _tracer.start_span(
            names.http_span(self._method),
            context=caller,
            kind=trace.SpanKind.INTERNAL if outer else trace.SpanKind.SERVER,
            attributes=request_attributes(request, options)
            | {names.HTTP_REQUEST_ID: self.request_id},
        )
        self._context = trace.set_span_in_context(self._span, caller)
        self._fields = {names.LOG_REQUEST_ID: self.request_id}
        self.answer_headers = {wire.HTTP_REQUEST_ID: self.request_id}
        ids = self._span.get_span_context()
        if ids.is_valid:
            trace_id = trace.format_trace_id(ids.trace_id)
            # Bound as well: a span that is not recorded, or has ended, gives a log line no ids.
            self._fields[names.LOG_TRACE_ID] = trace_id
            self._fields[names.LOG_SPAN_ID] = trace.format_span_id(ids.span_id)
            self.answer_headers[wire.HTTP_TRACE_ID] = trace_id

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make the span current, and bind the log context, for the code of a ``with`` block."""
        token = otel_context.attach(self._context)
        bound = logs.bind(self._fields)
        try:
            yield
        finally:
            logs.unbind(bound)
            otel_context.detach(token)

    def _find_route(self) -> None:
        """Name the span after the framework's route, once it has matched one."""
        if self._route is not None:
            return
        try:
            self._route = self.find_route()
        except Exception:  # noqa: BLE001 - frameworks change, and a route is not worth a request
            _complain_once()
        if self._route:
            self._span.update_name(names.http_span(self._method, self._route))
            self._span.set_attribute(names.HTTP_ROUTE, self._route)
            self._labels[names.HTTP_ROUTE] = self._route

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """The answer has begun.

        Args:
            status: Of HTTP; 101 for a websocket that was accepted.
            headers: By lower-case name.
        """
        self._find_route()
        self._span.set_attribute(names.HTTP_RESPONSE_STATUS_CODE, status)
        self._labels[names.HTTP_RESPONSE_STATUS_CODE] = status
        self._span.set_attributes(
            recorded_headers(headers, self._options.response_headers, names.HTTP_RESPONSE_HEADER)
        )
        if status >= _FAULT_STATUS_MIN and not self._failed:
            self._mark(SpanError(type=str(status)))

    def closed(self, code: int) -> None:
        """A websocket was closed, by whichever side."""
        self._span.set_attribute(names.WEBSOCKET_CLOSE_CODE, code)

    def failed(self, error: BaseException, *, client_gone: bool = False) -> None:
        """An exception leaves the application; whoever calls this raises it again.

        Args:
            error: The exception.
            client_gone: Whether it only says that nobody listens any more.
        """
        if self._ended:
            self._failed_afterwards(error)
            return
        self._find_route()
        found = current.error_of(error)
        if client_gone:
            found = msgspec.structs.replace(found, type=names.CLIENT_DISCONNECTED)
        self._mark(found)
        if not client_gone and isinstance(error, Exception):
            # The server logs it, too, but outside of the request: without any of its ids.
            with self.active():
                _log.error(
                    "http.request_failed",
                    http_method=self._method,
                    http_route=self._route,
                    error_type=found.type,
                    exc_info=error,
                )

    def complete(self) -> None:
        """The last byte was sent. The span ends; what still runs is background work.

        Not when the status is a server's fault: then the exception behind it is still to come, since
        frameworks answer before they raise again. The end keeps its time all the same.
        """
        self._ended_at = self._ended_at or time.time_ns()
        if not self._failed:
            self._end()

    def end(self, wrong: str = "") -> None:
        """The application has returned, or raised; a second call does nothing.

        Args:
            wrong: ``error.type`` of an answer that is not whole; an exception goes before it.
        """
        if self._ended:
            return
        self._find_route()
        if wrong and not self._failed:
            self._mark(SpanError(type=wrong))
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._ended_at = self._ended_at or time.time_ns()
        if self._is_measured:
            took_s = (self._ended_at - self._started_at) / 1e9
            _duration.record(took_s, self._labels, self._context)
        self._span.end(self._ended_at)

    def _mark(self, error: SpanError) -> None:
        self._failed = True
        self._labels[names.ERROR_TYPE] = error.type
        current.set_error(error, self._span)

    def _failed_afterwards(self, error: BaseException) -> None:
        """Background work has failed: the request's span has ended, so it gets one of its own."""
        span = _tracer.start_span(
            names.background_span(self._method, self._route),
            context=self._context,
            start_time=self._ended_at,
        )
        found = current.error_of(error)
        current.set_error(found, span)
        span.end()
        with self.active():
            _log.error(
                "http.background_failed",
                http_method=self._method,
                http_route=self._route,
                error_type=found.type,
                exc_info=error,
            )


@cache
def _complain_once() -> None:
    _log.warning("http.route_not_found", exc_info=True)


def _outer_instrumentation() -> otel_context.Context | None:
    """The context of somebody else's SERVER span around this request; None where there is none.

    Anything else that is current in a server is no caller: it was left behind.
    """
    span = trace.get_current_span()
    if span.is_recording() and getattr(span, "kind", None) is trace.SpanKind.SERVER:
        return otel_context.get_current()
    return None
