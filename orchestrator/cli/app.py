"""The command line as a whole: which commands there are, and what they are called."""

import sys
from typing import Annotated

import typer

from orchestrator.cli.answers import add_commands as add_answers
from orchestrator.cli.db import make_db
from orchestrator.cli.definitions import make_definitions
from orchestrator.cli.demo import demo
from orchestrator.cli.dev import dev
from orchestrator.cli.dlq import make_dlq
from orchestrator.cli.doctor import doctor
from orchestrator.cli.explaining import explain
from orchestrator.cli.fork import fork
from orchestrator.cli.graph import graph
from orchestrator.cli.limiting import limit
from orchestrator.cli.logs import logs
from orchestrator.cli.look import trace
from orchestrator.cli.operate import add_commands as add_operators
from orchestrator.cli.payload import payload
from orchestrator.cli.purge import purge
from orchestrator.cli.replay import replay
from orchestrator.cli.sagas import cancel, list_sagas, show
from orchestrator.cli.serve import serve
from orchestrator.cli.start import start


def make_app() -> typer.Typer:
    """The command, with its commands."""
    # Rich help is worth its import on a terminal only.
    markup = "rich" if sys.stdout.isatty() else None
    app = typer.Typer(
        name="saga",
        rich_markup_mode=markup,  # type: ignore[arg-type]  # a Literal that mypy widens
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_saga)
    app.command("start")(start)
    app.command("list")(list_sagas)
    app.command("show")(show)
    app.command("payload")(payload)
    app.command("cancel")(cancel)
    app.command("explain")(explain)
    add_answers(app)
    add_operators(app)
    app.command("fork")(fork)
    app.command("limit")(limit)
    app.command("trace")(trace)
    app.command("logs")(logs)
    app.add_typer(make_definitions(markup), name="definitions")
    app.add_typer(make_dlq(markup), name="dlq")
    app.command("replay")(replay)
    app.command("graph")(graph)
    app.command("purge")(purge)
    app.add_typer(make_db(markup), name="db")
    app.command("doctor")(doctor)
    app.command("serve")(serve)
    app.command("dev")(dev)
    app.command("demo")(demo)
    return app


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        from shared.telemetry.config import DISTRIBUTION

        print(f"saga {version(DISTRIBUTION)}")
        raise typer.Exit


def _saga(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Durable sagas with compensations and one trace id, on the Celery you already run.

    Start with `saga dev` in one terminal and `saga start place-order --input '{"order_id": "1"}'
    --wait` in another.
    """
