"""`saga signal`, `saga approve`, `saga complete`, `saga fail`: what waiting sagas wait for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import output, session
from orchestrator.cli.given_input import read_value
from orchestrator.cli.options import Json, SagaId, user
from shared.errors import DecodeError, InputError

if TYPE_CHECKING:
    from orchestrator.asking import Operated

Signal = Annotated[str, typer.Argument(metavar="SIGNAL", help="Name of the signal.")]
Token = Annotated[
    str, typer.Argument(metavar="TOKEN", help="As the participant of the accepted step got it.")
]
Result = Annotated[
    str, typer.Option("--output", metavar="JSON|@FILE|-", help="The output of the step.")
]
UndoData = Annotated[
    str | None,
    typer.Option(
        "--undo", metavar="JSON|@FILE|-", help="What its compensation gets; the output if missing."
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (signal, approve, complete, fail):
        app.command(command.__name__)(command)


def signal(
    saga_id: SagaId,
    name: Signal,
    data: Annotated[
        str, typer.Option(metavar="JSON|@FILE|-", help="Is the output of the steps that wait.")
    ] = "null",
    as_json: Json = False,
) -> None:
    """Tell a saga that something has happened.

    The first signal of a name counts, whether a step waits for it already or not.
    """
    value = read_value(data, "--data")
    with session.acting() as client:
        told = client.signal(saga_id, name, value, by=user())
    _tell(told, f"the signal {name} is stored", as_json=as_json)


def approve(
    saga_id: SagaId,
    name: Signal,
    reject: Annotated[
        bool, typer.Option("--reject", help="Say no: the step is rejected.")
    ] = False,
    comment: Annotated[str, typer.Option(help="Goes into the history and the output.")] = "",
    as_json: Json = False,
) -> None:
    """Answer an approval that a saga waits for: yes, or no with --reject."""
    with session.acting() as client:
        told = client.approve(saga_id, name, approved=not reject, comment=comment, by=user())
    _tell(told, f"{name} is {'rejected' if reject else 'approved'}", as_json=as_json)


def complete(
    token: Token, result: Result = "null", undo: UndoData = None, as_json: Json = False
) -> None:
    """Say that a step that was accepted has succeeded; late or again it changes nothing."""
    value = read_value(result, "--output")
    with session.acting() as client, _reading_a_token():
        if undo is None:
            told = client.complete(token, value)
        else:
            told = client.complete(token, value, undo=read_value(undo, "--undo"))
    _tell(told, "the step has succeeded", as_json=as_json)


def fail(
    token: Token,
    kind: Annotated[str, typer.Option(help="What went wrong, in a word: CardExpired.")],
    message: Annotated[str, typer.Option(help="What went wrong, in a sentence.")] = "",
    rejected: Annotated[
        bool, typer.Option("--rejected", help="Nothing happened: it is not tried again or undone.")
    ] = False,
    retryable: Annotated[
        bool, typer.Option("--retryable/--final", help="Whether another attempt may help.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Say that a step that was accepted has failed, or was rejected."""
    with session.acting() as client, _reading_a_token():
        told = client.fail(token, kind, message, retryable=retryable, rejected=rejected)
    _tell(told, f"the step has {'been rejected' if rejected else 'failed'}", as_json=as_json)


@contextmanager
def _reading_a_token() -> Iterator[None]:
    try:
        yield
    except DecodeError as error:
        raise InputError(
            error.message, hint="The participant of the step got it, as `context.token`."
        ) from error


def _tell(told: "Operated", words: str, *, as_json: bool) -> None:
    from orchestrator.core.events import tag_of

    state = told.row.state
    if not told.published:
        output.note_unpublished("What was decided")
    if as_json:
        output.show_json(
            {
                "saga_id": state.saga_id,
                "trace_id": state.trace.trace_id,
                "status": state.status,
                "events": [tag_of(event) for event in told.events],
            }
        )
        return
    if not told.events:
        words = "nothing has changed: that was known already, or is too late"
    output.show([output.line(f"{state.saga_id}  {words}; it is {state.status}")])
