"""`saga list`, `saga show`, `saga cancel`, `saga definitions`, `saga dead-letters`."""

import difflib
import getpass
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import output, session
from orchestrator.cli.options import Json, Limit, SagaId
from shared.clock import utc_now
from shared.errors import InputError, UnknownSaga

if TYPE_CHECKING:
    from orchestrator.core.definition import Definition
    from orchestrator.core.state import Status


def list_sagas(
    status: Annotated[
        list[str] | None,
        typer.Option(
            help="running, compensating, stuck, completed, compensated, resolved; or active, "
            "final. May be given several times."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Sagas of this name.")] = None,
    key: Annotated[str | None, typer.Option(help="The saga with this business key.")] = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List sagas, newest first."""
    from orchestrator.cli import render

    statuses = statuses_of(status or ())
    with session.reading() as client:
        found = client.list(statuses=statuses, name=name, key=key, limit=limit)
    if as_json:
        output.show_json(found)
    elif found:
        output.show([render.sagas_table(found, utc_now())])
    else:
        output.note("No saga matches." if status or name or key else "There are no sagas yet.")
    if len(found) == limit and not as_json:
        output.note(f"These are the newest {limit}; --limit shows more.")


def statuses_of(given: "list[str] | tuple[()]") -> "list[Status]":
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
            near = difflib.get_close_matches(text, [*known, *groups], n=1)
            guess = f" Did you mean {near[0]}?" if near else ""
            raise InputError(
                f"There is no status {text!r}.{guess}",
                hint=f"One of {', '.join([*known, *groups])}.",
            )
    return found


def show(saga_id: SagaId, as_json: Json = False) -> None:
    """Show a saga with its time line.

    Its steps, what happened when and how long it took, and what happens next.
    """
    from orchestrator.cli import render

    with session.reading() as client:
        view = client.view(saga_id)
    if as_json:
        output.show_json(view)
    else:
        output.show(render.saga_blocks(view, utc_now()))


def cancel(
    saga_id: SagaId,
    reason: Annotated[str, typer.Option(help="Why; goes into the history.")],
    as_json: Json = False,
) -> None:
    """Ask that a saga be undone.

    The step in flight ends, then everything is compensated. After the pivot of the saga it is
    refused.
    """
    with session.acting() as client:
        row = client.cancel(saga_id, reason=reason, by=_user())
    state = row.state
    if as_json:
        output.show_json(
            {"saga_id": saga_id, "trace_id": state.trace.trace_id, "status": state.status}
        )
    else:
        output.show([output.line(f"{saga_id}  the cancel is stored; it is {state.status}")])


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as containers have
        return ""


def definitions(
    name: Annotated[str | None, typer.Argument(help="Just this saga.")] = None,
    as_json: Json = False,
) -> None:
    """Show definitions with their steps."""
    from orchestrator.cli import render

    known = _known_definitions()
    found = [one for one in known if name in {None, one.name}]
    if name and not found:
        near = difflib.get_close_matches(name, {one.name for one in known}, n=3, cutoff=0.5)
        guess = f"Did you mean {', '.join(near)}?" if near else "`saga definitions` lists them."
        raise UnknownSaga(f"There is no saga named {name!r}.", hint=guess)
    if as_json:
        output.show_json(found)
        return
    for number, one in enumerate(found):
        output.show([*([()] if number else []), *render.definition_blocks(one)])


def _known_definitions() -> "Sequence[Definition]":
    """Those in code and in the store; before anything has run there are only the former."""
    from orchestrator.bootstrap import load_sagas

    if session.has_store(session.settings()):
        with session.reading() as client:
            return client.definitions()
    session.import_from_here()
    return [saga.definition for saga in load_sagas(session.settings().definitions)]


def dead_letters(limit: Limit = 50, as_json: Json = False) -> None:
    """Show messages that nobody could act on.

    Each with the reason why.
    """
    from orchestrator.cli import render

    with session.reading() as client:
        letters = client.dead_letters(limit)
    if as_json:
        output.show_json(letters)
    elif letters:
        output.show([render.dead_letters_table(letters, utc_now())])
    else:
        output.note("There are no dead letters.")
