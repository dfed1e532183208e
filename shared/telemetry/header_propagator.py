"""`propagation` behind the OpenTelemetry API, for instrumentations and for code that knows only it.

The API's own propagators are not used: they raise for a header that is no text, log each malformed
one, and know neither limits nor an allow-list.
"""

from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import baggage, propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from typing_extensions import override

from shared import names
from shared.telemetry import b3, propagation
from shared.telemetry.propagation import TraceParent

Decide = Callable[[str], bool]
"""Whether a trace is recorded whose caller left the decision to us; gets its id."""


_decide: Decide = lambda _: True  # noqa: E731 - until `install`


def install(decide: Decide) -> None:
    """Make the API, and so every instrumentation of this process, use these headers.

    Args:
        decide: For a caller that has not decided.
    """
    global _decide  # noqa: PLW0603 - a process has one sampler
    _decide = decide
    propagate.set_global_textmap(HeaderPropagator())


class HeaderPropagator(TextMapPropagator):
    """Reads and writes what `propagation.configure` has set."""

    @override
    def extract(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,
    ) -> Context:
        headers: dict[str, Any] = {}
        for name in propagation.written_names():
            value = getter.get(carrier, name)
            if not value and name in b3.AS_WRITTEN_BY_OTHERS:
                value = getter.get(carrier, b3.AS_WRITTEN_BY_OTHERS[name])
            if value:
                headers[name] = value
        return _continued(headers, Context() if context is None else context)

    @override
    def inject(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        setter: Setter[CarrierT] = default_setter,
    ) -> None:
        headers: dict[str, str] = {}
        inject_current(headers, context)
        for name, value in headers.items():
            setter.set(carrier, name, value)

    @property
    @override
    def fields(self) -> set[str]:
        return set(propagation.written_names())


def parent_context(headers: Mapping[str, Any]) -> Context:
    """The caller's trace and baggage as a context: the parent of a span.

    Nothing of the current context is in it: without a well-formed header a new trace begins.

    Args:
        headers: Of a task message, or of a request (`propagation.headers_of`).
    """
    return _continued(headers, Context())


def received(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's trace and baggage as data, to be stored with the work that they belong to.

    Returns:
        ``traceparent``, ``tracestate`` and ``baggage`` (its entries), as far as they came.
    """
    found: dict[str, Any] = {}
    parent, tracestate = propagation.extract(headers)
    if parent is not None:
        sampled = parent.sampled if parent.decided else _decide(parent.trace_id)
        found[names.TRACEPARENT] = propagation.format_traceparent(
            parent.trace_id, parent.span_id, sampled=sampled
        )
        found[names.TRACESTATE] = tracestate
    entries = propagation.extract_baggage(headers)
    if entries:
        found[names.BAGGAGE] = dict(entries)
    return found


def inject_current(headers: dict[str, Any], context: Context | None = None) -> None:
    """Put the trace and the baggage of a context, by default the current one, into headers."""
    entries = propagation.allowed_baggage(baggage.get_all(context))
    traceparent, tracestate = current_parent(context)
    if traceparent:
        propagation.inject(headers, traceparent, tracestate, entries)
    elif entries:
        propagation.inject_baggage(headers, entries)


def current_parent(context: Context | None = None) -> tuple[str, str]:
    """``traceparent`` and ``tracestate`` of the current span; empty where there is none."""
    span = trace.get_current_span(context).get_span_context()
    if not span.is_valid:
        return "", ""
    trace_id, span_id = trace.format_trace_id(span.trace_id), trace.format_span_id(span.span_id)
    return f"00-{trace_id}-{span_id}-{span.trace_flags:02x}", span.trace_state.to_header()


def current_baggage(context: Context | None = None) -> dict[str, str]:
    """Baggage of the current context, as far as it may travel."""
    return dict(propagation.allowed_baggage(baggage.get_all(context)))


def _continued(headers: Mapping[str, Any], context: Context) -> Context:
    parent, tracestate = propagation.extract(headers)
    if parent is not None:
        context = trace.set_span_in_context(_remote(parent, tracestate), context)
    for key, value in propagation.extract_baggage(headers).items():
        context = baggage.set_baggage(key, value, context)
    return context


def _remote(parent: TraceParent, tracestate: str) -> trace.Span:
    flags = parent.flags if parent.decided else int(_decide(parent.trace_id))
    return trace.NonRecordingSpan(
        trace.SpanContext(
            int(parent.trace_id, 16),
            int(parent.span_id, 16),
            is_remote=True,
            trace_flags=trace.TraceFlags(flags),
            trace_state=trace.TraceState.from_header([tracestate]) if tracestate else None,
        )
    )
