"""`saga logs`: the log lines of all processes, found, merged and followed."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Final

import typer

from orchestrator.cli import output, session
from orchestrator.cli.options import Json
from orchestrator.cli.short_ids import whole_id
from shared.clock import pause, utc_now
from shared.errors import (
    ConfigurationError,
    InputError,
    SagaError,
    UnavailableError,
    UnknownSaga,
)

if TYPE_CHECKING:
    from orchestrator.log_files import LogLine, LogQuery, Sources

_POLL_S: Final = 0.2


def logs(
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]",
            help="Id of a saga or of a trace, or a traceparent; by default all.",
            callback=whole_id,
        ),
    ] = None,
    step: Annotated[str, typer.Option(help="Lines of this step.")] = "",
    task: Annotated[str, typer.Option(help="Lines of a Celery task, by id or by name.")] = "",
    key: Annotated[str, typer.Option(help="Lines of the saga with this business key.")] = "",
    level: Annotated[
        str, typer.Option(help="This level or above: debug, info, warning, error, critical.")
    ] = "debug",
    since: Annotated[
        str, typer.Option(help="From then on: 10m, 2h, 1d, or a time such as 2026-01-31T12:00.")
    ] = "",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the log lines of all processes.

    Of a saga, a trace, a step, a task or a business key, in order of time, also out of rotated and compressed files. With --json the lines are printed as they stand in the files.
    """
    from orchestrator.cli.follow import Follower
    from orchestrator.log_files import open_logs, search

    query = _query(which, step=step, task=task, key=key, level=level, since=since)
    folders = session.log_folders(session.settings())
    with open_logs(folders) as sources:
        found = _show(search(sources, query), _width(sources), as_json=as_json)
        if not follow:
            if not found:
                raise _nothing(sources, which or key or step or task)
            return
        follower = Follower(folders, sources)
    with closing(follower):
        while True:
            new = (line for line in follower.new_lines() if query.wants(line.fields))
            _show(new, _width(sources), as_json=as_json)
            pause(_POLL_S)


def _query(
    which: str | None, *, step: str, task: str, key: str, level: str, since: str
) -> "LogQuery":
    from orchestrator.cli.times import since_when
    from orchestrator.log_files import LEVELS, LogQuery

    if which and key:
        raise InputError("An ID and --key both name a saga.", hint="Give one of them.")
    if level.lower() not in LEVELS:
        raise InputError(f"There is no level {level!r}.", hint=f"One of {', '.join(LEVELS)}.")
    saga_ids, trace_ids = _ids(which) if which else _ids_of_key(key) if key else (set(), set())
    return LogQuery(
        saga_ids=frozenset(saga_ids),
        trace_ids=frozenset(trace_ids),
        step=step,
        task=task,
        level=level.lower(),
        since=since_when(since, "--since", utc_now()) if since else None,
    )


def _ids(which: str) -> tuple[set[str], set[str]]:
    """Saga id and trace id of an argument; for a saga both, as far as the store can tell."""
    trace_id = session.as_trace_id(which)
    if trace_id is not None:
        return set(), {trace_id}
    try:
        with session.reading() as client:
            return {which}, {client.row(which).state.trace.trace_id}
    except (UnavailableError, ConfigurationError, UnknownSaga):
        return {which}, set()  # its lines name it all the same


def _ids_of_key(key: str) -> tuple[set[str], set[str]]:
    """The sagas of a key (one for each name), from the store or, without it, from their starts."""
    from orchestrator.log_files import LogQuery, open_logs, search
    from shared.telemetry import names

    try:
        with session.reading() as client:
            sagas = client.list(key=key)
            found = {saga.saga_id for saga in sagas}, {saga.trace_id for saga in sagas}
    except (UnavailableError, ConfigurationError):
        with open_logs(session.log_folders(session.settings())) as sources:
            starts = [line.fields for line in search(sources, LogQuery(key=key))]
        found = (
            {str(fields[names.LOG_SAGA_ID]) for fields in starts if names.LOG_SAGA_ID in fields},
            {str(fields[names.LOG_TRACE_ID]) for fields in starts if names.LOG_TRACE_ID in fields},
        )
    if not found[0]:
        raise UnknownSaga(
            f"There is no saga with the key {key!r}.", hint="`saga list` shows them."
        )
    return found


def _show(lines: "Iterable[LogLine]", services: int, *, as_json: bool) -> int:
    """Write lines as they come; returns how many there were."""
    from orchestrator.cli.logline import log_line

    shown = 0

    def blocks() -> Iterator[output.Block]:
        nonlocal shown
        for one in lines:
            shown += 1
            yield (
                (output.Piece(one.raw),) if as_json else log_line(one.fields, services=services)
            )

    output.show(blocks())
    return shown


def _width(sources: "Sources") -> int:
    """Columns for the name of a service: files are named after them."""
    from orchestrator.log_files import series

    return max((len(series(one.path).name.removesuffix(".jsonl")) for one in sources), default=8)


def _nothing(sources: "Sources", what: str) -> SagaError:
    folders = session.log_folders(session.settings())
    return SagaError(
        f"No log line{f' of {what}' if what else ''} was found.",
        hint=f"Looked in {', '.join(map(str, folders))} ({len(sources)} files). Processes elsewhere, "
        "or without SAGA_LOG_DIR, write to their own standard output.",
    )
