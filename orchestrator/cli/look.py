"""`saga trace` and `saga logs`: the one trace id, followed through files and store."""

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


def logs(which: SagaOrTrace, as_json: Json = False) -> None:
    """Show the log lines of all processes.

    They belong to a saga or a trace, and stand in order of time. With --json the lines are printed as they stand in the files.
    """
    from orchestrator.cli.logline import log_line
    from orchestrator.log_files import log_files, read_logs

    folders = session.log_folders(session.settings())
    saga_id, trace_id = _ids(which)
    lines = read_logs(folders, saga_id=saga_id, trace_id=trace_id)
    if not lines:
        files = len(log_files(folders))
        raise SagaError(
            f"No log line of {which} was found.",
            hint=f"Looked in {', '.join(map(str, folders))} ({files} files). Processes elsewhere, "
            "or without SAGA_LOG_DIR, write to their own standard output.",
        )
    if as_json:
        output.show((output.Piece(one.raw),) for one in lines)
        return
    services = max(len(str(one.fields.get("service", ""))) for one in lines)
    output.show(log_line(one.fields, services=services) for one in lines)


def _ids(which: str) -> tuple[str | None, str | None]:
    """Saga id and trace id of an argument; for a saga both, as far as the store can tell."""
    trace_id = session.as_trace_id(which)
    if trace_id is not None:
        return None, trace_id
    try:
        with session.reading() as client:
            return which, client.row(which).state.trace.trace_id
    except (UnavailableError, ConfigurationError, UnknownSaga):
        return which, None  # its lines name it all the same


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
