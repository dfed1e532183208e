"""`saga definitions`: what sagas there are, and what differs between two versions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from typer.core import TyperGroup
from typing_extensions import override

from orchestrator.cli import output, session
from orchestrator.cli.options import Json
from shared.clock import utc_now
from shared.errors import UnknownSaga
from shared.guessing import guess

if TYPE_CHECKING:
    from orchestrator.core.definition import Definition
    from orchestrator.ports import Control

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the saga.")]


class _ShowsByDefault(TyperGroup):
    """`saga definitions place-order` is `saga definitions show place-order`."""

    @override
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["show", *args]
        return super().parse_args(ctx, args)

    @override
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = args and args[0] in self.commands
        return super().resolve_command(ctx, args if known else ["show", *args])


def make_definitions(markup: Any) -> typer.Typer:
    """The group of commands about definitions."""
    app = typer.Typer(
        cls=_ShowsByDefault,
        help="Show definitions with their steps, and what differs between two.",
        rich_markup_mode=markup,
    )
    app.callback()(_definitions)
    app.command("show")(show)
    app.command("diff")(diff)
    return app


def _definitions() -> None:
    """Show definitions with their steps, and what differs between two."""


def show(
    name: Annotated[str | None, typer.Argument(help="Just this saga.")] = None,
    as_json: Json = False,
) -> None:
    """Show definitions with their steps."""
    from orchestrator.cli import render

    pauses: dict[str, Control] = {}
    stored, in_code = _known(pauses)
    known = [one for _, one in sorted({**in_code, **stored}.items())]
    found = known if name is None else _named(name, known)
    if as_json:
        output.show_json(
            [{**msgspec.to_builtins(one), "paused": pauses.get(one.name)} for one in found]
        )
        return
    for number, one in enumerate(found):
        output.show([*([()] if number else []), *render.definition_blocks(one)])
        if one.name in pauses:
            output.show([output.line(render.pause_line(pauses[one.name], utc_now()))])


def diff(
    name: Name,
    old: Annotated[
        int | None,
        typer.Option("--from", min=1, help="This version; by default the newest in the store."),
    ] = None,
    new: Annotated[
        int | None,
        typer.Option("--to", min=1, help="This version; by default the newest in the code."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what differs between two versions of a saga, field by field.

    By default between what the store has and what the code says: what a deploy would change. Sagas
    that run finish on the version that they started with.
    """
    from orchestrator.store.definitions import differences

    stored, in_code = _known()
    _named(name, [*stored.values(), *in_code.values()])
    before = _version(name, old, stored, in_code)
    after = _version(name, new, in_code, stored)
    found = list(differences(msgspec.to_builtins(before), msgspec.to_builtins(after)))
    if as_json:
        output.show_json(
            {
                "name": name,
                "from": before.version,
                "to": after.version,
                "differences": found,
            }
        )
        return
    output.show([output.line(f"{name} v{before.version} -> v{after.version}")])
    output.show(output.line(f"  {one}") for one in found)
    if not found:
        output.note("They are the same.")


Known = dict[tuple[str, int], "Definition"]


def _known(pauses: "dict[str, Control] | None" = None) -> tuple[Known, Known]:
    """Those in the store and those in the code; before anything has run only the latter.

    Args:
        pauses: Where the names that are paused are put, if they are wanted.
    """
    from orchestrator.bootstrap import load_sagas

    stored: Known = {}
    if session.has_store(session.settings()):
        with session.reading() as client:
            stored = {(one.name, one.version): one for one in client.stored_definitions()}
            if pauses is not None:
                pauses |= {one.name: one for one in client.controls.pauses()}
    sagas = load_sagas(session.settings().definitions)
    return stored, {(one.name, one.version): one.definition for one in sagas}


def _named(name: str, known: "Sequence[Definition]") -> "list[Definition]":
    found = [one for one in known if one.name == name]
    if not found:
        hint = guess(name, {one.name for one in known}) or "`saga definitions` lists them."
        raise UnknownSaga(f"There is no saga named {name!r}.", hint=hint)
    return found


def _version(name: str, version: int | None, first: Known, second: Known) -> "Definition":
    """The version that was asked for, or the newest, rather from the first than from the second."""
    if version is None:
        known = [one for one in (first or second) if one[0] == name]
        known = known or [one for one in second if one[0] == name]
        version = max(number for _, number in known)
    found = first.get((name, version)) or second.get((name, version))
    if found is None:
        versions = sorted({number for known, number in [*first, *second] if known == name})
        raise UnknownSaga(
            f"Saga {name!r} has no version {version}.",
            hint=f"Known are: {', '.join(map(str, versions))}.",
        )
    return found
