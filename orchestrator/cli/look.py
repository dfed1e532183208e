"""`saga trace`: one trace id, followed through files, Jaeger and store."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.cli import output, session
from orchestrator.cli.options import Json, SagaOrTrace
from shared.clock import utc_now
from shared.errors import ConfigurationError, SagaError, UnavailableError, UnknownSaga

if TYPE_CHECKING:
    from orchestrator.reader import Reader
    from orchestrator.trace_files import Span


def trace(which: SagaOrTrace, as_json: Json = False) -> None:
    """Show a trace as a waterfall.

    The spans come from the trace files, or from Jaeger where SAGA_JAEGER_URL names one; what is not
    there (a saga that still runs, or one that was not sampled) is projected from the store.
    """
    from orchestrator.cli.waterfall import waterfall
    from orchestrator.trace_view import merged

    asked = session.as_trace_id(which)
    saga_ids: Sequence[str] = ()
    projected: Sequence[Span] = ()
    try:
        with session.reading() as client:
            trace_id, saga_ids = _sagas(client, which)
            projected = _projected(client, saga_ids)
    except (UnavailableError, ConfigurationError) as error:
        if asked is None:
            raise
        output.note(f"Only what {_source()} has: {error.message}")
        trace_id = asked
    exported = _exported(trace_id)
    if not exported and not projected:
        raise UnknownSaga(
            f"No span of the trace {trace_id} was found.",
            hint=f"Looked in {_source()} and in the store.",
        )
    if not exported and session.settings().jaeger_url:
        output.note(f"{_source()} does not know the trace; this is what the store has.")
    spans = merged(exported, projected)
    if as_json:
        output.show_json({"trace_id": trace_id, "saga_ids": saga_ids, "spans": spans})
    else:
        output.show(trace_head(trace_id, spans))
        output.show(waterfall(spans, output.width()))


def trace_head(trace_id: str, spans: "Sequence[Span]") -> list[output.Block]:
    """What stands above a waterfall."""
    services = sorted({span.service for span in spans})
    projected = sum(span.projected for span in spans)
    return [
        output.line(
            output.Piece(f"trace {trace_id}", "bold"),
            f"  {len(spans)} spans of {', '.join(services)}",
            f" ({projected} of them from the store)" if projected else "",
        )
    ]


def spans_of(client: "Reader", trace_id: str, saga_ids: Sequence[str]) -> "list[Span]":
    """The spans of a trace as they were exported and, where there are gaps, from the store."""
    from orchestrator.trace_view import merged

    return merged(_exported(trace_id), _projected(client, saga_ids))


def _projected(client: "Reader", saga_ids: Sequence[str]) -> "list[Span]":
    from orchestrator.trace_files import distinct
    from orchestrator.trace_view import projected_spans

    return distinct(
        span
        for saga_id in saga_ids
        for span in projected_spans(
            *client.story(saga_id), system=_messaging_system(), now=utc_now()
        )
    )


def _exported(trace_id: str) -> "list[Span]":
    from orchestrator.jaeger import read_jaeger
    from orchestrator.trace_files import read_trace

    jaeger_url = session.settings().jaeger_url
    if jaeger_url:
        return read_jaeger(jaeger_url, trace_id)
    return read_trace(_traces_folder(), trace_id)


def _source() -> str:
    """Where exported spans are read, in words."""
    from orchestrator.jaeger import shown_url

    jaeger_url = session.settings().jaeger_url
    return f"Jaeger at {shown_url(jaeger_url)}" if jaeger_url else f"{_traces_folder()}"


def _sagas(client: "Reader", which: str) -> tuple[str, list[str]]:
    """The trace that an argument means, and the sagas in it."""
    trace_id = session.as_trace_id(which)
    if trace_id is None:
        return client.row(which).state.trace.trace_id, [which]
    return trace_id, [saga.saga_id for saga in client.by_trace(trace_id)]


def _messaging_system() -> str:
    from shared.telemetry.names import messaging_system

    try:
        return messaging_system(session.settings().celery_broker_url)
    except SagaError:
        return ""


def _traces_folder() -> Any:
    from shared.telemetry.config import TRACES_FOLDER

    return session.settings().home / TRACES_FOLDER
