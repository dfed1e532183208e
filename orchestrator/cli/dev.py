"""`saga dev`: everything in one terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from orchestrator.cli import output, session
from orchestrator.cli.options import Json
from orchestrator.cli.stopping import Stopping
from shared.clock import monotonic, pause

if TYPE_CHECKING:
    from orchestrator.cli.stack import Participants, Stack
    from orchestrator.log_files import LogLine
    from shared.settings import Settings

TICK_S: Final = 0.1
SLOW_AFTER_S: Final = 20.0


def dev(
    app: Annotated[
        str, typer.Option(help="Celery app of the participants, as for `celery -A`.")
    ] = "workers",
    queues: Annotated[
        str,
        typer.Option(
            help="Their queues, separated by commas, one process for each; by default "
            "those that the definitions name."
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Run everything in this terminal.

    Broker, store, orchestrator, and the participants as separate processes. What is set in the environment is used instead of the embedded parts: SAGA_BROKER_URL,
    SAGA_DATABASE_URL, OTEL_EXPORTER_OTLP_ENDPOINT. Ctrl-C ends all of it; the next start finds
    the sagas that were not finished and finishes them.
    """
    from orchestrator.cli.stack import Stack

    configured = session.settings()
    taking_part = participants(app, queues, configured)
    with Stopping() as stopping:
        started_at = monotonic()
        with Stack(configured, taking_part, output.note) as stack:
            _introduce(stack, as_json=as_json)
            _run(stack, stopping, started_at, as_json=as_json)
            output.note("Ending everything …")
        output.note("Everything has ended. `saga dev` goes on from here.")


def participants(app: str, queues: str, configured: "Settings") -> "Participants":
    """Who takes part, as the options say it or as the definitions ask for it."""
    from orchestrator.bootstrap import load_sagas
    from orchestrator.cli.stack import Participants

    sagas = load_sagas(configured.definitions)
    asked = [queue.strip() for queue in queues.split(",") if queue.strip()]
    needed = [queue for saga in sagas for queue in saga.definition.queues]
    return Participants(app, list(dict.fromkeys(asked or needed)))


def _introduce(stack: "Stack", *, as_json: bool) -> None:
    if as_json:
        output.show_json({"parts": dict(stack.parts())})
        return
    output.show(
        output.line(output.Piece(f"{name:<14}", "bold"), value) for name, value in stack.parts()
    )


def _run(stack: "Stack", stopping: Stopping, started_at: float, *, as_json: bool) -> None:
    ready = slow = False
    while not stopping.asked:
        _show(stack.tick(), as_json=as_json)
        took = monotonic() - started_at
        if not ready and not stack.not_ready:
            ready = True
            _say_ready(stack, took, as_json=as_json)
        elif not ready and not slow and took > SLOW_AFTER_S:
            slow = True
            output.note(f"Still starting: {', '.join(sorted(stack.not_ready))}.")
        pause(TICK_S)


def _say_ready(stack: "Stack", took: float, *, as_json: bool) -> None:
    from orchestrator.cli.stack import LEFT_OVER_MAX

    left = stack.left_over
    if as_json:
        output.show_json({"ready": True, "left_over": left})
        return
    more = left == LEFT_OVER_MAX
    output.show(
        [
            output.line(output.Piece(f"Ready after {took:.1f} s.", "bold green"), " Try:"),
            output.line("  saga definitions"),
            output.line('  saga start place-order --input \'{"order_id": "1"}\' --wait'),
            output.line("  saga list, saga show ID, saga trace ID, saga logs ID"),
            output.line("Ctrl-C ends all of it."),
            *([output.line(f"{left}{' or more' * more} sagas of earlier go on.")] if left else []),
            (),
        ]
    )


def _show(lines: "Sequence[LogLine]", *, as_json: bool) -> None:
    from orchestrator.cli.events import event_line

    found = [(one, event) for one in lines if (event := event_line(one.fields))]
    if as_json:
        output.show((output.Piece(one.raw),) for one, _ in found)
    elif found:
        output.show(event for _, event in found)
