"""`saga limit`: how much all sagas of a name may do together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import output, session
from orchestrator.cli.options import Json, user
from shared.clock import utc_now
from shared.errors import InputError

if TYPE_CHECKING:
    from orchestrator.rooms import GateView


def limit(
    name: Annotated[str | None, typer.Argument(help="Name of a saga; by default all.")] = None,
    step: Annotated[str, typer.Option(help="One of its steps; by default the saga.")] = "",
    in_flight: Annotated[int | None, typer.Option(min=1, help="Most in flight at a time.")] = None,
    rate: Annotated[
        str, typer.Option(metavar="N/s|N/m|N/h", help="Most that begin in a time.")
    ] = "",
    none: Annotated[
        bool, typer.Option("--none", help="No limit, whatever the definition says.")
    ] = False,
    reset: Annotated[
        bool, typer.Option("--reset", help="What the definition says counts again.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why; kept with the limit.")] = "",
    as_json: Json = False,
) -> None:
    """Show the limits in force, or set one while sagas run.

    It is set with --in-flight, --rate, --none or --reset, holds everywhere within a second, and
    stays until it is set again. What is in flight stays in flight; what begins waits for room.
    """
    sets = in_flight is not None or bool(rate)
    if none + reset + sets > 1:
        raise InputError("Give either --in-flight and --rate, or --none, or --reset.")
    if none or reset or sets:
        if name is None:
            raise InputError("Name the saga whose limit is meant.")
        if not reason:
            raise InputError("Say why with --reason: it is kept with the limit, and in the log.")
        _set(name, step, in_flight, rate, reason, reset=reset)
    elif step or reason:
        raise InputError("Say what the limit is with --in-flight, --rate, --none or --reset.")
    with session.reading() as client:
        found = client.controls.limits(name)
    if as_json:
        output.show_json(found)
    elif found:
        output.show([_table(found)])
    else:
        output.note("There are no limits." if name is None else f"{name} has no limits.")


def _set(
    name: str, step: str, in_flight: int | None, rate: str, reason: str, *, reset: bool
) -> None:
    from orchestrator.core.limits import Limit

    with session.acting() as client:
        if reset:
            client.controls.reset_limit(name, step=step, reason=reason, by=user())
        else:
            wanted = Limit(in_flight=in_flight, rate=rate)
            client.controls.set_limit(name, wanted, step=step, reason=reason, by=user())


def _table(gates: "Sequence[GateView]") -> output.Table:
    from orchestrator.cli.times import moment

    now = utc_now()
    return output.Table(
        ("SAGA", "STEP", "LIMIT", "IN FLIGHT", "WAITING", "SET BY", "AT", "REASON"),
        [
            (
                output.Piece(one.name),
                output.Piece(one.step),
                output.Piece(str(one.limit)),
                output.Piece(str(one.in_flight)),
                output.Piece(str(one.waiting or "")),
                output.Piece(one.control.by if one.control else "its definition"),
                output.Piece(moment(one.control.at, now) if one.control else ""),
                output.Piece(output.one_line(one.control.reason) if one.control else ""),
            )
            for one in gates
        ],
        right=frozenset({"IN FLIGHT", "WAITING"}),
    )
