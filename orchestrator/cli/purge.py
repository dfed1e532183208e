"""`saga purge`: delete what ended long ago."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final

import typer

from orchestrator.cli import output, session
from orchestrator.cli.options import Json
from shared.clock import utc_now
from shared.durations import given_duration
from shared.errors import ConfigurationError, InputError

ASKED_BELOW: Final = timedelta(hours=1)
"""Nobody keeps sagas for a shorter time: a slip of the keyboard would delete all that have ended."""


def purge(
    older_than: Annotated[
        str, typer.Option(metavar="DURATION", help="Since their end: 12h, 30d, 2w or ISO 8601.")
    ],
    name: Annotated[str | None, typer.Option(help="Sagas of this name.")] = None,
    status: Annotated[
        list[str] | None,
        typer.Option(help="completed, compensated or resolved; all three without it."),
    ] = None,
    archive: Annotated[
        Path | None, typer.Option(help="File of JSON lines that gets each saga before it goes.")
    ] = None,
    leftovers: Annotated[
        bool,
        typer.Option(
            "--leftovers",
            help="Also delete what the payload store has of sagas that are not in this store.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before deleting what has just ended.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Delete sagas that ended long ago, with their histories, in batches.

    Sagas that run or are stuck are never deleted. An interrupted purge goes on with the next one.
    It asks before it deletes what ended less than an hour ago. Large payloads of a saga go with it,
    out of the payload store. --leftovers takes along what an interrupted purge, or a start that
    failed, has left there more than a day ago; never give it where another system keeps payloads in
    the same place.
    """
    from orchestrator.retention import archive_to
    from orchestrator.search import statuses_of

    age = given_duration(older_than, "--older-than")
    before = utc_now() - age
    statuses = statuses_of(status or ())
    active = [one.value for one in statuses if not one.final]
    if active:
        raise InputError(
            f"Sagas that are {active[0]} have not ended, and are not deleted.",
            hint="--status takes completed, compensated and resolved.",
        )
    swept = 0
    with session.acting() as client:
        if age < ASKED_BELOW and not (dry_run or yes):
            _confirm(client.count_ended(before, name=name, statuses=statuses))
        if dry_run:
            deleted = client.count_ended(before, name=name, statuses=statuses)
        else:
            keep = archive_to(archive) if archive else None
            try:
                deleted = sum(client.purge(before, name=name, statuses=statuses, archive=keep))
            except OSError as error:
                raise ConfigurationError(
                    f"The archive {archive} cannot be written: {error.strerror}.",
                    hint="What is not in the archive was not deleted.",
                ) from error
            swept = client.sweep() if leftovers else 0
    if as_json:
        written = str(archive) if archive and not dry_run else None
        output.show_json(
            {"sagas": deleted, "deleted": not dry_run, "archive": written, "leftovers": swept}
        )
        return
    would = "would be " if dry_run else ""
    output.show([output.line(f"{_sagas(deleted)} {would}deleted.")])
    if swept:
        exist = "that does not exist" if swept == 1 else "that do not exist"
        output.show([output.line(f"Payloads of {_sagas(swept)} {exist} deleted.")])


def _sagas(number: int) -> str:
    return "1 saga" if number == 1 else f"{number} sagas"


def _confirm(sagas: int) -> None:
    """Ask whether so many are to be deleted, though some have only just ended."""
    if not sagas:
        return
    if not output.is_terminal():
        have = "has" if sagas == 1 else "have"
        raise InputError(
            f"{_sagas(sagas)} {have} ended, some less than an hour ago.",
            hint="Look with --dry-run, then give --yes. Nothing was deleted.",
        )
    if not typer.confirm(f"Delete {_sagas(sagas)}, also what has only just ended?", err=True):
        raise typer.Abort
