"""Options that several commands have, and what is read out of them."""

import getpass
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.short_ids import whole_id
from shared.errors import InputError
from shared.guessing import guess

if TYPE_CHECKING:
    from orchestrator.core.state import Status

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


def statuses_of(given: Sequence[str]) -> "list[Status]":
    """The statuses that people name: singly, as `active` or `final`, several with commas.

    Raises:
        InputError: There is none of that name; names the nearest.
    """
    from orchestrator.core.state import ACTIVE, FINAL, Status

    groups = {"active": ACTIVE, "final": FINAL}
    known = {one.value: one for one in Status}
    found: list[Status] = []
    for text in (part.strip() for value in given for part in value.split(",")):
        if text in groups:
            found += sorted(groups[text])
        elif text in known:
            found.append(known[text])
        else:
            every = [*known, *groups]
            raise InputError(
                f"There is no status {text!r}. {guess(text, every, most=1)}".rstrip(),
                hint=f"One of {', '.join(every)}.",
            )
    return found
