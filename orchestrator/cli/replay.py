"""`saga replay`: would the core of today decide what a history says?"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from orchestrator.cli import output, session
from orchestrator.cli.options import Json
from orchestrator.cli.output import Block, Piece, Table, line
from orchestrator.cli.short_ids import whole_id
from orchestrator.cli.times import duration
from shared.errors import DecodeError, InputError, UnknownSaga

if TYPE_CHECKING:
    from orchestrator.core.definition import Definition
    from orchestrator.core.events import Event, Recorded
    from orchestrator.core.state import SagaState
    from orchestrator.replay import Replay, Replayed

DIFFERS: Final = 1
"""Exit code when a decision would be another one."""


def replay(
    which: Annotated[
        str,
        typer.Argument(
            metavar="ID|FILE",
            help="Id of a saga, or an archive that `saga purge` has written.",
            callback=whole_id,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Decide a stored history anew, and say what would differ.

    Each decision is made again by the core of today, from the facts before it. The exit code is 1 when one of them would be another, or when
    the history does not fold to the state that was stored with it.
    """
    from orchestrator.replay import replay as replayed

    in_flight_max = session.settings().in_flight_max
    results = []
    for saga_id, definition, history, stored in _found(which):
        result = replayed(definition, history, stored, in_flight_max=in_flight_max)
        results.append((saga_id, result))
        if not as_json:
            output.show(_blocks(saga_id, definition, history[0].at, result))
    if as_json:
        output.show_json([_as_json(saga_id, result) for saga_id, result in results])
    if not all(result.same for _, result in results):
        raise typer.Exit(DIFFERS)


_Story = tuple[str, "Definition", "Sequence[Recorded]", "SagaState"]


def _found(which: str) -> "Iterator[_Story]":
    path = Path(which)
    if path.is_file():
        yield from _archived(path)
        return
    if path.suffix:
        raise UnknownSaga(f"There is no file {which!r}, and no saga has such an id.")
    with session.reading() as client:
        definition, row, history = client.story(which)
    yield which, definition, history, row.state


def _archived(path: Path) -> "Iterator[_Story]":
    from orchestrator.retention import Archived
    from shared import codec

    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                saga = codec.decode(raw, Archived)
            except DecodeError as error:
                raise InputError(
                    f"{path}, line {number}: {error.message}",
                    hint="A file for `saga replay` is what `saga purge --archive` writes.",
                ) from error
            if saga.definition is None:
                output.note(f"{saga.saga_id}: its definition was lost; not replayed")
                continue
            yield saga.saga_id, saga.definition, saga.history, saga.row.state


def _blocks(
    saga_id: str, definition: "Definition", began: datetime, result: "Replay"
) -> Iterator[Block]:
    events = sum(len(one.recorded) for one in result.decisions)
    count = len(result.differences)
    said = Piece(f"{count} would differ", "bold red") if count else Piece("all the same", "green")
    yield line(
        Piece(f"{definition.name} v{definition.version}", "bold"),
        f"  {saga_id}  {events} events, {len(result.decisions)} decisions: ",
        said,
    )
    yield Table(
        ("NO", "AT", "ARRIVED", "HAPPENED", "TODAY"),
        [
            (
                Piece(str(one.sequence)),
                Piece(f"+{duration((one.at - began) / timedelta(milliseconds=1))}"),
                Piece(one.message),
                Piece(_listed(one.recorded)),
                Piece("same", "green") if one.same else Piece("DIFFERS", "bold red"),
            )
            for one in result.decisions
        ],
        right=frozenset({"NO", "AT"}),
    )
    for one in result.differences:
        yield ()
        yield line(Piece(f"event {one.sequence}, {one.message}", "bold red"))
        yield from _compared(one)
    if result.folds is False:
        yield line(Piece("the history does not fold to the state that was stored", "bold red"))


def _compared(one: "Replayed") -> Iterator[Block]:
    if one.refused:
        yield line(f"  today it would be refused: {one.refused}")
    for number in range(max(len(one.recorded), len(one.decided))):
        then, now = (events[number : number + 1] for events in (one.recorded, one.decided))
        if then == now:
            yield line(f"  same   {_listed(then)}")
            continue
        yield line(Piece("  then   ", "dim"), _whole(then))
        yield line(Piece("  today  ", "dim"), _whole(now))


def _listed(events: "Sequence[Event]") -> str:
    from orchestrator.replay import event_in_words

    return ", ".join(map(event_in_words, events))


def _whole(events: "Sequence[Event]") -> str:
    from shared import codec

    return codec.encode(events[0]).decode() if events else "nothing"


def _as_json(saga_id: str, result: "Replay") -> dict[str, Any]:
    return {
        "saga_id": saga_id,
        "same": result.same,
        "folds": result.folds,
        "decisions": [{"same": one.same, **_fields(one)} for one in result.decisions],
    }


def _fields(one: "Replayed") -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__struct_fields__}
