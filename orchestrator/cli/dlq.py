"""`saga dlq`: messages that nobody could act on."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli import output, session
from orchestrator.cli.bus_letters import make_bus_letters
from orchestrator.cli.options import Json, Limit
from shared.clock import utc_now
from shared.errors import InputError, KeyConflict, NotAllowed, UnknownSaga

if TYPE_CHECKING:
    from orchestrator.client import Client

Number = Annotated[int, typer.Argument(metavar="NO", min=1, help="Number of the dead letter.")]
Numbers = Annotated[
    list[int] | None, typer.Argument(metavar="[NO]...", help="Numbers of dead letters.")
]
All = Annotated[bool, typer.Option("--all", help="All of them, the oldest first.")]

_ALL_MAX = 100_000


def make_dlq(markup: Any) -> typer.Typer:
    """The group of commands about dead letters."""
    app = typer.Typer(
        no_args_is_help=True,
        help="Dead letters: messages that nobody could act on.",
        rich_markup_mode=markup,
    )
    app.callback()(_dlq)
    app.command("list")(list_letters)
    app.command("show")(show)
    app.command("requeue")(requeue)
    app.command("drop")(drop)
    app.add_typer(make_bus_letters(markup), name="bus")
    return app


def _dlq() -> None:
    """Dead letters: messages that nobody could act on."""


def list_letters(limit: Limit = 50, as_json: Json = False) -> None:
    """Show dead letters, newest first, each with the reason why."""
    from orchestrator.cli import render

    with session.reading() as client:
        letters = client.dead_letters(limit)
    if as_json:
        output.show_json(letters)
    elif letters:
        output.show([render.dead_letters_table(letters, utc_now())])
    else:
        output.note("There are no dead letters.")


def show(number: Number, as_json: Json = False) -> None:
    """Show a dead letter whole."""
    from orchestrator.cli.times import moment

    with session.reading() as client:
        letter = client.dead_letter(number)
    if as_json:
        output.show_json(letter)
        return
    facts = {
        "number": str(number),
        "at": moment(letter.at, utc_now()),
        "task": letter.task,
        "saga": letter.saga_id or "",
        "reason": letter.reason,
        "body": letter.body,
    }
    output.show(
        output.line(output.Piece(f"{name:<8}", "dim"), output.one_line(text))
        for name, text in facts.items()
    )


def requeue(numbers: Numbers = None, everything: All = False, as_json: Json = False) -> None:
    """Act on dead letters once more.

    After what was wrong has been mended: the definition is there, the saga is. One that still
    cannot be acted on stays, and the command says why and exits with 2.
    """
    done: list[int] = []
    refused: dict[int, str] = {}
    with session.acting() as client:
        for number in _chosen(client, numbers, everything=everything):
            try:
                client.requeue(number)
                done.append(number)
            except (InputError, NotAllowed, UnknownSaga, KeyConflict) as error:
                refused[number] = error.message
    _tell(done, refused, "acted on", as_json=as_json)


def drop(numbers: Numbers = None, everything: All = False, as_json: Json = False) -> None:
    """Delete dead letters for good."""
    with session.acting() as client:
        chosen = _chosen(client, numbers, everything=everything)
        known = [client.dead_letter(number).dead_letter_id for number in chosen]
        client.drop_dead_letters(known)
    _tell(known, {}, "dropped", as_json=as_json)


def _chosen(client: "Client", numbers: list[int] | None, *, everything: bool) -> list[int]:
    if bool(numbers) is everything:
        raise InputError(
            "Name dead letters by their numbers, or all of them with --all.",
            hint="`saga dlq list` shows them.",
        )
    if numbers:
        return numbers
    return [letter.dead_letter_id for letter in reversed(client.dead_letters(_ALL_MAX))]


def _tell(done: Sequence[int], refused: Mapping[int, str], word: str, *, as_json: bool) -> None:
    if as_json:
        output.show_json({word.replace(" ", "_"): done, "refused": refused})
    else:
        what = ", ".join(map(str, done)) or "none"
        output.show([output.line(f"{word}: {what}")])
        for reason in refused.values():
            output.note(reason)
    if refused:
        raise typer.Exit(NotAllowed.exit_code)
