"""`saga graph`: a definition as a drawing, and how far a saga has got on it."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import output, session
from orchestrator.cli.options import Json
from orchestrator.cli.short_ids import whole_id
from shared.errors import InputError, UnknownSaga

if TYPE_CHECKING:
    from orchestrator.core.definition import Definition
    from orchestrator.core.state import SagaState


def graph(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|ID", help="Name of a saga, or the id of one.", callback=whole_id
        ),
    ],
    saga_id: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="Show how far this one got.", callback=whole_id),
    ] = None,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="As a Mermaid flowchart.")] = False,
    dot: Annotated[bool, typer.Option("--dot", help="For Graphviz.")] = False,
    ascii_: Annotated[bool, typer.Option("--ascii", help="As plain text (the default).")] = False,
    version: Annotated[
        int | None, typer.Option(min=1, help="Version of the definition; by default the newest.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw a definition; with an id, how far that saga got.

    ✔ succeeded, ▶ running, ↻ waits for its next attempt, ✘ rejected or failed, ◀ is being undone, ↺ waits for the next attempt to undo it, ↩ undone, ‼ could not be undone, ∅ skipped, · pending.
    """
    from orchestrator import graph as drawing

    if mermaid + dot + ascii_ > 1:
        raise InputError("Only one of --mermaid, --dot and --ascii can be given.")
    definition, state = _asked(name, saga_id, version)
    if as_json:
        output.show_json(
            {
                "name": definition.name,
                "version": definition.version,
                "steps": [
                    {
                        "name": box.step.name,
                        "after": box.step.after,
                        "pivot": box.step.pivot,
                        "phase": box.phase,
                    }
                    for box in drawing.boxes(definition, state)
                ],
            }
        )
        return
    draw = drawing.mermaid if mermaid else drawing.dot if dot else drawing.ascii_art
    print(draw(definition, state))
    sys.stdout.flush()


def _asked(
    name: str, saga_id: str | None, version: int | None
) -> "tuple[Definition, SagaState | None]":
    known = session.known_definitions()
    found = [one for one in known if one.name == name and version in {None, one.version}]
    if saga_id is None and found:
        return max(found, key=lambda one: one.version), None
    if saga_id is None and any(one.name == name for one in known):
        raise UnknownSaga(f"Saga {name!r} has no version {version}.")
    if not session.has_store(session.settings()):
        raise UnknownSaga(
            f"There is no saga named {name!r}.", hint="`saga definitions` lists them."
        )
    with session.reading() as client:
        try:
            definition, row, _ = client.story(saga_id or name)
        except UnknownSaga as error:
            if saga_id is not None:
                raise
            raise UnknownSaga(
                f"No definition is named {name!r}, and no saga has that id.",
                hint="`saga definitions` lists the names, `saga list` the ids.",
            ) from error
    if saga_id is not None and definition.name != name:
        raise InputError(f"Saga {saga_id} is one of {definition.name!r}, not of {name!r}.")
    return definition, row.state
