"""`saga start`: start a saga, and wait for it where that is asked for."""

from contextlib import nullcontext
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from orchestrator.cli import output, session
from orchestrator.cli.given_input import read_input
from orchestrator.cli.options import Json
from orchestrator.cli.stopping import Stopping, told_first
from orchestrator.cli.times import given_moment
from shared.clock import monotonic, pause, utc_now
from shared.errors import UnavailableError

if TYPE_CHECKING:
    from orchestrator.client import Client
    from orchestrator.forks import Forked
    from orchestrator.starts import Started
    from orchestrator.views import SagaView

STILL_RUNNING: Final = 5
EXIT_CODES: Final = {"completed": 0, "compensated": 3, "stuck": 4}
OTHERWISE: Final = 1
INTERRUPTED: Final = 130

_STORE_AWAY_S: Final = 1.0


def start(
    name: Annotated[str, typer.Argument(help="Name of the saga; its newest version is started.")],
    given: Annotated[
        str,
        typer.Option(
            "--input", "-i", metavar="JSON|@FILE|-", help="Its input; - reads standard input."
        ),
    ] = "{}",
    key: Annotated[
        str | None,
        typer.Option(help="Business key: a second start with it gives the first saga."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN", help="When its first step begins: ISO 8601, or in 15m, 12h, 30d."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Longest wait.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Start a saga. It is durable when this command says so.

    Exit codes: 0 completed (or started, without --wait), 2 wrong use or wrong input and nothing
    stored, 3 compensated, 4 stuck, 5 still running when the wait ended, 1 anything else.

    A trace in the variable TRACEPARENT is continued.
    """
    if timeout is not None and not wait:
        raise typer.BadParameter("it needs --wait", param_hint="--timeout")
    value = read_input(given)
    not_before = None if at is None else given_moment(at, "--at", utc_now())
    with session.acting() as client:
        from orchestrator.reports import start_report

        with told_first() as stopping:
            started = _started(client, name, value, key, not_before)
            said = start_report(started)
            if not wait:
                _tell(started, as_json=as_json)
        code = INTERRUPTED if stopping.asked else 0
        if wait:
            code = wait_for(client, started, timeout, said, stopping, as_json=as_json)
    raise typer.Exit(code)


def _started(
    client: "Client",
    name: str,
    value: dict[str, Any],
    key: str | None,
    not_before: datetime | None,
) -> "Started":
    from shared.telemetry.propagation import (
        baggage_from_environment,
        format_traceparent,
        from_environment,
    )

    parent, tracestate = from_environment()
    traceparent = None
    if parent is not None:
        traceparent = format_traceparent(parent.trace_id, parent.span_id, sampled=parent.sampled)
    started = client.start(
        name,
        value,
        key=key,
        traceparent=traceparent,
        tracestate=tracestate,
        baggage=baggage_from_environment(),
        not_before=not_before,
    )
    note_unpublished(started)
    return started


def note_unpublished(started: "Started | Forked") -> None:
    """Say so where the first step of a new saga has to wait for the broker."""
    if not started.published:
        output.note_unpublished(f"Saga {started.row.saga_id}", "first step")


def _tell(started: "Started", *, as_json: bool) -> None:
    if as_json:
        from orchestrator.reports import start_report

        output.show_json(start_report(started))
        return
    status = started.row.state.status
    tell(started, "started" if started.created else f"its key has started it before: {status}")


def tell(started: "Started | Forked", what: str) -> None:
    """Name a new saga and its trace."""
    state = started.row.state
    output.show(
        [
            output.line(
                output.Piece(f"{state.name} v{state.version}", "bold"),
                f"  {state.saga_id}  {what}",
            ),
            output.line(output.Piece("trace    ", "dim"), state.trace.trace_id),
        ]
    )


def wait_for(
    client: "Client",
    started: "Started | Forked",
    timeout: float | None,
    said: dict[str, Any],
    stopping: Stopping,
    *,
    as_json: bool,
) -> int:
    """Wait for a new saga and tell how it went.

    Args:
        client: Asks.
        started: The saga.
        timeout: Longest wait in seconds; None waits without end.
        said: What JSON says of it beside its outcome.
        stopping: Whether somebody has given up before the wait began.
        as_json: Print JSON.

    Returns:
        The exit code.
    """
    saga_id = started.row.saga_id
    live = output.is_terminal() and not as_json
    interrupted = stopping.asked
    try:
        if not interrupted:
            _wait_patiently(client, saga_id, timeout, live=live)
    except KeyboardInterrupt:
        interrupted = True
    view = client.view(saga_id)
    if as_json:
        ended = {"outcome": view.outcome, "error": view.error, "duration_ms": view.duration_ms}
        output.show_json({**said, "status": view.status, **ended})
    else:
        output.show(_result(view))
    if view.outcome is not None:
        return EXIT_CODES.get(view.outcome.value, OTHERWISE)
    if interrupted:
        output.note(f"The saga goes on without this command. `saga show {saga_id}` shows it.")
        return INTERRUPTED
    output.note(f"It is still {view.status}, and goes on. `saga show {saga_id}` shows it.")
    return STILL_RUNNING


def _wait_patiently(client: "Client", saga_id: str, timeout: float | None, *, live: bool) -> None:
    """Wait, also while the store is away: the saga is durable, and so is the wish to see it."""
    deadline = None if timeout is None else monotonic() + timeout
    told = False
    with _progress(client, saga_id) if live else nullcontext() as progress:
        while True:
            left = None if deadline is None else max(0.0, deadline - monotonic())
            try:
                client.wait(
                    saga_id,
                    None if left is None else timedelta(seconds=left),
                    (lambda _: progress.changed()) if progress else None,
                )
                return
            except UnavailableError as error:
                if left is not None and left <= 0:
                    raise
                if not told:
                    output.note(f"{error.message} The saga is durable; still waiting.")
                    told = True
                pause(_STORE_AWAY_S if left is None else min(_STORE_AWAY_S, left))


def _progress(client: "Client", saga_id: str) -> Any:
    from orchestrator.cli.progress import Progress

    return Progress(lambda: client.view(saga_id))


def _result(view: "SagaView") -> list[output.Block]:
    from orchestrator.cli import render

    error = render.error_line(view)
    return [
        render.headline(view, utc_now()),
        *([output.line(output.Piece("error    ", "dim"), *error)] if error else []),
        output.line(output.Piece("trace    ", "dim"), view.trace_id),
    ]
