"""`saga pause`, `resume`, `retry`, `skip`, `resolve`, `compensate`: one saga, or all that fit.

Every one takes `--reason`, which is kept in the history with who asked and when, and `--dry-run`,
which says what would follow and changes nothing.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from orchestrator.cli import output, session
from orchestrator.cli.filters import (
    AttemptsOption,
    ErrorOption,
    NameOption,
    OlderThanOption,
    RetryingOption,
    StatusOption,
    StepOption,
    filter_of,
)
from orchestrator.cli.given_input import read_input, read_value
from orchestrator.cli.options import Json, Reason, user
from orchestrator.cli.short_ids import whole_ids
from shared.errors import InputError, NotAllowed, SagaError

if TYPE_CHECKING:
    from orchestrator.asking import Operated
    from orchestrator.client import Client
    from orchestrator.search import Filter

_COMPENSATE: Final = """Give up going forward, and undo what was done.

Also where nobody knows whether the pivot happened: you vouch that it did not."""

_PAUSE: Final = """Begin nothing new until it is resumed.

What is in flight ends. With --name alone, sagas of that name that start later are paused, too."""

_RESUME: Final = """Go on with a saga that was paused.

With --name alone, all that are paused, and those that start later begin at once again."""

Do = Callable[["Client", str], "Operated"]
Command = Callable[..., None]

SAGAS_MAX: Final = 10_000
"""Most sagas that one command acts on; the next one takes the rest."""

Ids = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[ID]...",
        help="Ids of sagas, or their first characters; or name a filter.",
        callback=whole_ids,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only say what would follow; nothing is changed.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before acting on a filter.")]
Which = Annotated[
    str, typer.Option("--step", help="This step; with a filter, the sagas that are at it.")
]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of operators."""
    for name, method, text in (
        ("pause", "pause", _PAUSE),
        ("resume", "resume", _RESUME),
        ("resolve", "resolve", "End a stuck saga that has been put right by hand."),
        (
            "compensate",
            "compensate",
            _COMPENSATE,
        ),
    ):
        app.command(name, help=text)(_simple(method))
    app.command("retry")(retry)
    app.command("skip")(skip)


def _simple(method: str) -> Command:
    def command(
        reason: Reason,
        saga_ids: Ids = None,
        status: StatusOption = None,
        name: NameOption = None,
        step: StepOption = "",
        error: ErrorOption = "",
        attempts: AttemptsOption = 0,
        retrying: RetryingOption = False,
        older_than: OlderThanOption = None,
        dry_run: DryRun = False,
        yes: Yes = False,
        as_json: Json = False,
    ) -> None:
        wanted = filter_of(
            status=status,
            name=name,
            step=step,
            error=error,
            attempts=attempts,
            retrying=retrying,
            older_than=older_than,
        )

        def do(client: "Client", saga_id: str) -> "Operated":
            asked = getattr(client, method)
            done: Operated = asked(saga_id, reason=reason, by=user(), dry_run=dry_run)
            return done

        whole = ""
        if method in {"pause", "resume"} and not saga_ids:
            whole = _whole_name(wanted)
        if whole:
            wanted = _whole(wanted, method)

        def say(client: "Client") -> None:
            if method == "pause":
                client.controls.pause(whole, reason=reason, by=user())
            else:
                client.controls.resume(whole, reason=reason, by=user())

        _act(
            saga_ids or [],
            wanted,
            do,
            dry_run=dry_run,
            yes=yes,
            as_json=as_json,
            say=say if whole else None,
        )

    return command


def retry(
    reason: Reason,
    saga_ids: Ids = None,
    step: Which = "",
    payload: Annotated[
        str | None,
        typer.Option(
            metavar="JSON|@FILE|-",
            help="Keyword arguments for the step in place of its own, from now on.",
        ),
    ] = None,
    status: StatusOption = None,
    name: NameOption = None,
    error: ErrorOption = "",
    attempts: AttemptsOption = 0,
    retrying: RetryingOption = False,
    older_than: OlderThanOption = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Make the next attempt now, or one more where a step or its undo has given up."""
    edited = None if payload is None else read_input(payload, "--payload")
    wanted = filter_of(
        status=status,
        name=name,
        step=step if not saga_ids else "",
        error=error,
        attempts=attempts,
        retrying=retrying,
        older_than=older_than,
    )

    def do(client: "Client", saga_id: str) -> "Operated":
        return client.retry(
            saga_id, step, payload=edited, reason=reason, by=user(), dry_run=dry_run
        )

    _act(saga_ids or [], wanted, do, dry_run=dry_run, yes=yes, as_json=as_json)


def skip(
    step: Annotated[
        str, typer.Option("--step", help="The step; with a filter, the sagas that are at it.")
    ],
    reason: Reason,
    saga_ids: Ids = None,
    result: Annotated[
        str,
        typer.Option(
            "--output", metavar="JSON|@FILE|-", help="What later steps see as its output."
        ),
    ] = "null",
    status: StatusOption = None,
    name: NameOption = None,
    error: ErrorOption = "",
    attempts: AttemptsOption = 0,
    older_than: OlderThanOption = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Go on as if a step, or its undo, had been done."""
    value = read_value(result, "--output")
    wanted = filter_of(
        status=status,
        name=name,
        step=step if not saga_ids else "",
        error=error,
        attempts=attempts,
        older_than=older_than,
    )

    def do(client: "Client", saga_id: str) -> "Operated":
        return client.skip(saga_id, step, output=value, reason=reason, by=user(), dry_run=dry_run)

    _act(saga_ids or [], wanted, do, dry_run=dry_run, yes=yes, as_json=as_json)


def _act(
    saga_ids: Sequence[str],
    wanted: "Filter",
    do: Do,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    say: Callable[["Client"], None] | None = None,
) -> None:
    """Do it to each saga.

    Args:
        saga_ids: Which; empty for those that fit the filter.
        wanted: The filter.
        do: What is done to one.
        dry_run: Nothing is stored.
        yes: Nothing is asked.
        as_json: How it is shown.
        say: What is said of the whole name before, so that no saga can slip through.
    """
    if bool(saga_ids) is not wanted.is_empty:
        raise InputError(
            "Name sagas by their ids, or by a filter, and not both.",
            hint="For example --status stuck --name place-order; --dry-run shows what would follow.",
        )
    if not saga_ids and not wanted.statuses:
        wanted = _active(wanted)  # nothing can be done to the others
    with session.acting() as client:
        from orchestrator.reports import operation_report

        chosen = list(saga_ids) or [row.saga_id for row in client.find(wanted, SAGAS_MAX)]
        if not saga_ids and not dry_run and (chosen or say):
            _confirm(len(chosen), yes=yes, later=say is not None)
            if say:
                say(client)
                chosen = [row.saga_id for row in client.find(wanted, SAGAS_MAX)]
        if len(saga_ids) == 1:  # its error is the command's
            results = [operation_report(do(client, saga_ids[0]))]
        else:
            results = [_attempted(client, saga_id, do) for saga_id in chosen]
    refused = sum(bool(result["refused"]) for result in results)
    if not all(result.get("published", True) for result in results):
        output.note_unpublished("What was decided")
    if as_json:
        output.show_json(results[0] if len(saga_ids) == 1 else results)
    elif results:
        output.show([_table(results, dry_run=dry_run)])
    else:
        output.note("No saga matches.")
    if refused:
        raise typer.Exit(NotAllowed.exit_code)


def _whole_name(wanted: "Filter") -> str:
    """The name, where the filter is nothing but a name."""
    from orchestrator.search import Filter

    name = wanted.name or ""
    return name if wanted == Filter(name=wanted.name) else ""


def _whole(wanted: "Filter", method: str) -> "Filter":
    """The sagas of a name that can be paused, or resumed."""
    import msgspec

    return msgspec.structs.replace(_active(wanted), paused=method == "resume")


def _active(wanted: "Filter") -> "Filter":
    """Those of them that have not ended."""
    import msgspec

    from orchestrator.core.state import ACTIVE

    return msgspec.structs.replace(wanted, statuses=tuple(sorted(ACTIVE)))


def _confirm(sagas: int, *, yes: bool, later: bool) -> None:
    if yes:
        return
    if not output.is_terminal():
        match = "saga matches" if sagas == 1 else "sagas match"
        hint = "Look with --dry-run, then give --yes. Nothing was done."
        raise InputError(f"{sagas} {match}{', and all that start later' * later}.", hint=hint)
    those = f"{sagas} sagas{', and to those that start later' * later}"
    if not typer.confirm(f"Do it to {those}?", err=True):
        raise typer.Abort


def _attempted(client: "Client", saga_id: str, do: Do) -> dict[str, Any]:
    from orchestrator.reports import operation_report, refusal_report

    try:
        return operation_report(do(client, saga_id))
    except SagaError as error:
        if not isinstance(error, NotAllowed) and error.saga_id is None and error.exit_code == 1:
            raise  # the store is away: that is not about this saga
        return refusal_report(saga_id, error.message)


def _table(results: Sequence[dict[str, Any]], *, dry_run: bool) -> output.Table:
    return output.Table(
        ("ID", "STATUS", "WOULD FOLLOW" if dry_run else "FOLLOWED"),
        [
            (
                output.Piece(one["saga_id"]),
                output.Piece(one.get("status", "")),
                output.Piece(one["refused"], "red") if one["refused"] else _followed(one),
            )
            for one in results
        ],
    )


def _followed(result: dict[str, Any]) -> output.Piece:
    sent = [
        f"attempt {one['attempt']} of {one['step']}"
        + (" (undo)" if one["direction"] == "compensation" else "")
        for one in result["commands"]
    ]
    words = ", ".join(event.replace("_", " ") for event in result["events"])
    if not words:
        return output.Piece("nothing: it was so already", "dim")
    return output.Piece(f"{words}; sends {', '.join(sent)}" if sent else words)
