"""`saga trace`: one trace id, followed through files, Jaeger and store."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.cli import output, session
from orchestrator.cli.options import Json, SagaOrTrace
from shared.clock import utc_now
from shared.errors import ConfigurationError, SagaError, UnavailableError, UnknownSaga

if TYPE_CHECKING:
    from orchestrator.client import Client
    from orchestrator.trace_files import Span


def trace(which: SagaOrTrace, as_json: Json = False) -> None:
    """Show a trace as a waterfall.

    The spans come from the trace files; what is not in them (a saga that still runs, or a
    collector that takes the spans) is projected from the store.
    """
    from orchestrator.cli.waterfall import waterfall
    from orchestrator.trace_files import read_trace

    asked = session.as_trace_id(which)
    saga_ids: Sequence[str] = ()
    try:
        with session.reading() as client:
            trace_id, saga_ids = _sagas(client, which)
            spans = spans_of(client, trace_id, saga_ids)
    except (UnavailableError, ConfigurationError) as error:
        if asked is None:
            raise
        output.note(f"Only what the trace files have: {error.message}")
        trace_id, spans = asked, read_trace(_traces_folder(), asked)
    if not spans:
        raise UnknownSaga(
            f"No span of the trace {trace_id} was found.",
            hint=f"Looked in {_traces_folder()} and in the store.",
        )
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


def spans_of(client: "Client", trace_id: str, saga_ids: Sequence[str]) -> "list[Span]":
    """The spans of a trace, from the files and, where they have gaps, from the store."""
    from orchestrator.trace_files import distinct, read_trace
    from orchestrator.trace_view import merged, projected_spans

    projected = [
        span
        for saga_id in saga_ids
        for span in projected_spans(
            *client.story(saga_id), system=_messaging_system(), now=utc_now()
        )
    ]
    return merged(read_trace(_traces_folder(), trace_id), distinct(projected))


def _sagas(client: "Client", which: str) -> tuple[str, list[str]]:
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
