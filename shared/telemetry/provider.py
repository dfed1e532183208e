"""The OpenTelemetry API's global provider, in front of whatever this process records with.

The API takes a provider once and for ever, while ours begins anew after a fork and ends with a
shutdown. So the API gets this one, whose tracers ask at each span.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.util._decorator import _agnosticcontextmanager
from opentelemetry.util.types import Attributes
from typing_extensions import override

Current = Callable[[], trace.TracerProvider | None]


class CurrentProvider(trace.TracerProvider):
    """Gives tracers that outlive a fork, a shutdown and a new start.

    Args:
        current: The provider to record with at the moment; None records nothing.
    """

    def __init__(self, current: Current) -> None:
        self._current = current

    @override
    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> trace.Tracer:
        return _Tracer(
            self._current,
            instrumenting_module_name,
            instrumenting_library_version,
            schema_url,
            attributes,
        )


class _Tracer(trace.Tracer):
    """Stands for a tracer of whatever provider this process has at the moment."""

    def __init__(self, current: Current, *key: Any) -> None:
        self._current = current
        self._key = key
        self._made_by: trace.TracerProvider | None = None
        self._made: trace.Tracer = trace.NoOpTracer()

    def _tracer(self) -> trace.Tracer:
        provider = self._current()
        if provider is not self._made_by:
            self._made = (
                trace.NoOpTracer() if provider is None else provider.get_tracer(*self._key)
            )
            self._made_by = provider
        return self._made

    @override
    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: trace.SpanKind = trace.SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[trace.Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> trace.Span:
        return self._tracer().start_span(
            name,
            context,
            kind,
            attributes,
            links,
            start_time,
            record_exception,
            set_status_on_exception,
        )

    @override
    @_agnosticcontextmanager  # as the API's own proxy: works as a decorator at import time, too
    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Iterator[trace.Span]:
        with self._tracer().start_as_current_span(*args, **kwargs) as span:
            yield span
