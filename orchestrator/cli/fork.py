"""`saga fork`: a new saga that goes on from a step of one that has ended."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli import output, session
from orchestrator.cli.given_input import read_input
from orchestrator.cli.options import Json, SagaId, user
from orchestrator.cli.start import INTERRUPTED, note_unpublished, tell, wait_for
from orchestrator.cli.stopping import told_first

if TYPE_CHECKING:
    from orchestrator.core.forking import ForkPlan
    from orchestrator.forks import Forked


def fork(
    saga_id: SagaId,
    from_step: Annotated[
        str, typer.Option(metavar="STEP", help="The first step that is done anew.")
    ],
    given: Annotated[
        str | None,
        typer.Option(
            "--input", "-i", metavar="JSON|@FILE|-", help="Its input; by default the old one's."
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="Business key: a second fork with it gives the first one."),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; goes into both histories.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would become of each step.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Longest wait.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Start a saga that goes on from a step of one that has ended.

    What was done before that step, or does not depend on it, counts as done, and the new saga
    undoes it when it turns back. The step and what comes after it is done anew, on the newest
    version of the definition. Exit codes as `saga start`.
    """
    if timeout is not None and not wait:
        raise typer.BadParameter("it needs --wait", param_hint="--timeout")
    if dry_run and wait:
        raise typer.BadParameter("nothing is started with --dry-run", param_hint="--wait")
    value = None if given is None else read_input(given)
    with session.acting() as client:
        from orchestrator.reports import fork_report

        with told_first() as stopping:
            forked = client.fork(
                saga_id,
                from_step,
                input=value,
                key=key,
                reason=reason,
                by=user(),
                dry_run=dry_run,
            )
            note_unpublished(forked)
            said = fork_report(saga_id, from_step, forked)
            if not wait:
                _tell(forked, said, as_json=as_json)
        code = INTERRUPTED if stopping.asked else 0
        if wait:
            code = wait_for(client, forked, timeout, said, stopping, as_json=as_json)
    raise typer.Exit(code)


def _tell(forked: "Forked", said: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.show_json(said)
        return
    if not forked.dry_run:
        tell(forked, "forked" if forked.created else "its key has made this fork before")
    if forked.plan:
        output.show([_steps(forked.plan, dry_run=forked.dry_run)])
    if forked.plan and forked.plan.left:
        output.note(
            f"Of {', '.join(forked.plan.left)} it may stand what {said['forked_from']} has done: "
            "it is done anew, and nobody undoes the old one."
        )


def _steps(plan: "ForkPlan", *, dry_run: bool) -> output.Table:
    would = "would be " if dry_run else ""
    rows = [
        *((name, f"{would}copied", name in plan.taken) for name in plan.names),
        *((name, f"{would}done anew", False) for name in plan.anew),
    ]
    return output.Table(
        ("STEP", "IN THE FORK", ""),
        [
            (
                output.Piece(name),
                output.Piece(becomes),
                output.Piece("and undone by it when it turns back" if taken else "", "dim"),
            )
            for name, becomes, taken in rows
        ],
    )
