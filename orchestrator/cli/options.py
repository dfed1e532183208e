"""Options that several commands have, and what is read out of them."""

import getpass
from typing import Annotated

import typer

from orchestrator.cli.short_ids import whole_id
from shared.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print JSON, also for errors.")]
SagaId = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="Id of the saga, or its first characters.", callback=whole_id
    ),
]
SagaOrTrace = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="Id of a saga or of a trace, or a traceparent.", callback=whole_id
    ),
]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="Most to show, newest first.")]


def _given_reason(text: str) -> str:
    if not text.strip():
        raise InputError("--reason is empty.", hint="Say why: it goes into the history.")
    return text


Reason = Annotated[str, typer.Option(help="Why; goes into the history.", callback=_given_reason)]


def user() -> str:
    """Who is asking: goes into the history."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as containers have
        return ""
