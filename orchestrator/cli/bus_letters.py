"""`saga dlq bus`: dead letters of the command and event buses, in a queue of the broker.

They belong to no saga and need no store: the command speaks to the broker of the settings.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli import output, session
from orchestrator.cli.options import Json, Limit
from shared.errors import InputError

if TYPE_CHECKING:
    from datetime import datetime

    from shared.bus import Letter

Id = Annotated[str, typer.Argument(metavar="ID", help="Id of the dead letter.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of dead letters.")]
All = Annotated[bool, typer.Option("--all", help="All of them that fit, the oldest first.")]
Queue = Annotated[str, typer.Option(metavar="QUEUE", help="Only those that lay in this queue.")]
Message = Annotated[
    str,
    typer.Option(metavar="NAME", help="Only those of this command or event, as orders.create."),
]


def make_bus_letters(markup: Any) -> typer.Typer:
    """The group of commands about the dead letters of the buses."""
    app = typer.Typer(
        no_args_is_help=True,
        help="Dead letters of the command and event buses.",
        rich_markup_mode=markup,
    )
    app.command("list")(list_letters)
    app.command("show")(show)
    app.command("requeue")(requeue)
    app.command("drop")(drop)
    return app


def list_letters(
    limit: Limit = 50, queue: Queue = "", message: Message = "", as_json: Json = False
) -> None:
    """Show dead letters of the buses, newest first, each with the reason why."""
    with _taken() as letters:
        found = [*_fitting(letters, queue, message)][: -limit - 1 : -1]
    if as_json:
        output.show_json([_described(one) for one in found])
    elif found:
        output.show([_table(found)])
    else:
        output.note("There are no such dead letters." if queue or message else "There are none.")


def show(letter_id: Id, as_json: Json = False) -> None:
    """Show a dead letter of the buses whole."""
    from orchestrator.cli.times import moment
    from shared.clock import utc_now

    with _taken() as letters:
        (letter,) = _chosen(letters, [letter_id])
    if as_json:
        output.show_json({**_described(letter), "headers": letter.headers})
        return
    facts = {
        "id": letter.task_id,
        "at": moment(letter.at, utc_now()) if letter.at else "",
        "message": letter.message,
        "queue": letter.queue,
        "reason": f"{letter.kind}: {letter.reason}",
        "body": _body(letter),
    }
    output.show(
        output.line(output.Piece(f"{name:<8}", "dim"), output.one_line(text))
        for name, text in facts.items()
    )


def requeue(
    letter_ids: Ids = None,
    everything: All = False,
    queue: Queue = "",
    message: Message = "",
    as_json: Json = False,
) -> None:
    """Send dead letters of the buses again, each to the queue that it lay in.

    Its attempts are counted afresh. At most 1,000 at a time.
    """
    _each(
        letter_ids,
        lambda letter: letter.send_again(),
        "sent again",
        everything=everything,
        narrow=(queue, message),
        as_json=as_json,
    )


def drop(
    letter_ids: Ids = None,
    everything: All = False,
    queue: Queue = "",
    message: Message = "",
    as_json: Json = False,
) -> None:
    """Delete dead letters of the buses for good; at most 1,000 at a time."""
    _each(
        letter_ids,
        lambda letter: letter.drop(),
        "dropped",
        everything=everything,
        narrow=(queue, message),
        as_json=as_json,
    )


def _each(
    letter_ids: list[str] | None,
    do: Callable[["Letter"], None],
    word: str,
    *,
    everything: bool,
    narrow: tuple[str, str],
    as_json: bool,
) -> None:
    if bool(letter_ids) is everything or (letter_ids and any(narrow)):
        raise InputError(
            "Name dead letters by their ids, or all that fit with --all.",
            hint="`saga dlq bus list` shows them; --queue and --message narrow --all.",
        )
    done = []
    with _taken() as letters:
        fitting = _fitting(letters, *narrow)
        for letter in _chosen(letters, letter_ids) if letter_ids else fitting:
            do(letter)
            done.append(letter.task_id)
    if as_json:
        output.show_json({word.replace(" ", "_"): done})
    else:
        output.show([output.line(f"{word}: {', '.join(done) or 'none'}")])


@contextmanager
def _taken() -> Iterator[list["Letter"]]:
    """The letters in hand, oldest first; what is neither sent again nor dropped goes back.

    Raises:
        UnavailableError: The broker is away.
    """
    import os

    from shared.bus import DeadLetters
    from shared.celery_app import make_app
    from shared.telemetry import redaction
    from shared.telemetry.environment import Environment

    redaction.configure(redaction.redaction_from(Environment(os.environ)))
    session.log_errors_only()
    with (
        make_app("saga-dlq", service=session.SERVICE, settings=session.settings) as app,
        DeadLetters(app).take() as letters,
    ):
        yield sorted(letters, key=_age)


def _age(letter: "Letter") -> "tuple[bool, datetime | None]":
    return letter.at is not None, letter.at


def _fitting(letters: Sequence["Letter"], queue: str, message: str) -> Iterator["Letter"]:
    for letter in letters:
        if queue in {"", letter.queue} and message in {"", letter.message}:
            yield letter


def _chosen(letters: Sequence["Letter"], letter_ids: Sequence[str]) -> list["Letter"]:
    """The letters of these ids.

    Raises:
        InputError: There is none of an id; nothing is done to any.
    """
    known = {letter.task_id: letter for letter in letters}
    missing = [one for one in letter_ids if one not in known]
    if missing:
        raise InputError(
            f"The buses have no dead letter {missing[0]!r}.",
            hint="`saga dlq bus list` shows them; those of sagas are in `saga dlq list`.",
        )
    return [known[one] for one in dict.fromkeys(letter_ids)]


def _described(letter: "Letter") -> dict[str, Any]:
    return {
        "id": letter.task_id,
        "at": letter.at,
        "message": letter.message,
        "queue": letter.queue,
        "kind": letter.kind,
        "reason": letter.reason,
        "body": _body(letter),
    }


def _body(letter: "Letter") -> str:
    return letter.body.decode("utf-8", "backslashreplace")


def _table(letters: Sequence["Letter"]) -> output.Table:
    from orchestrator.cli.times import moment
    from shared.clock import utc_now

    now = utc_now()
    return output.Table(
        ("ID", "AT", "MESSAGE", "QUEUE", "REASON"),
        [
            (
                output.Piece(output.one_line(letter.task_id)),
                output.Piece(moment(letter.at, now) if letter.at else ""),
                output.Piece(output.one_line(letter.message)),
                output.Piece(output.one_line(letter.queue)),
                output.Piece(output.one_line(f"{letter.kind}: {letter.reason}")),
            )
            for letter in letters
        ],
    )
