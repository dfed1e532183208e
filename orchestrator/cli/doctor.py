"""`saga doctor`: tries everything out, and says what is wrong and what to do about it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final

import typer

from orchestrator.cli import output, session
from orchestrator.cli.options import Json

if TYPE_CHECKING:
    from orchestrator.doctor.checkup import Report
    from orchestrator.doctor.recovery import Recovery

_MARKS: Final = {
    "ok": output.Piece("✓ ok     ", "green"),
    "advice": output.Piece("! advice ", "yellow"),
    "wrong": output.Piece("✗ wrong  ", "bold red"),
}


def doctor(
    all_findings: Annotated[
        bool, typer.Option("--all/--problems", help="Show also what is as it should be.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Check exporter, broker, workers, store, logs and definitions.

    By trying: a real span is sent, servers are asked, workers are inspected. Each finding says what
    to do. The exit code is 1 when something is wrong; advice does not change it.
    """
    from orchestrator.doctor.checkup import Checkup

    configured = session.settings()
    session.log_errors_only()
    report = Checkup(configured, session.log_folders(configured)).run()
    if as_json:
        output.show_json(report)
    else:
        output.show(_blocks(report, all_findings=all_findings))
    if not report.ok:
        raise typer.Exit(1)


def _blocks(report: "Report", *, all_findings: bool) -> Iterator[output.Block]:
    width = max((len(one.check) for one in report.findings), default=0)
    for one in report.findings:
        if all_findings or one.severity != "ok":
            code = output.Piece(f"  [{one.code}]" if one.code else "", "dim")
            yield output.line(
                _MARKS[one.severity],
                output.Piece(f"{one.check:<{width}}  ", "bold"),
                output.one_line(one.message),
                code,
            )
        if one.advice:
            indent = " " * (len(_MARKS["ok"].text) + width + 2)
            yield output.line(indent, output.Piece(f"→ {one.advice}", "cyan"))
    yield ()
    if report.recovery is not None:
        yield from _recovery(report.recovery)
        yield ()
    counts = {
        severity: sum(one.severity == severity for one in report.findings) for severity in _MARKS
    }
    yield output.line(
        f"{counts['wrong']} wrong, {counts['advice']} to consider, {counts['ok']} as they should be."
    )


def _recovery(recovery: "Recovery") -> Iterator[output.Block]:
    yield output.line(
        "A lost step is noticed after at most ",
        output.Piece(f"{recovery.seconds:g} s", "bold"),
        f" ({recovery.step}, by {recovery.by}):",
    )
    for part in recovery.parts:
        yield output.line(f"  {part.seconds:>8g} s  {part.what}")
