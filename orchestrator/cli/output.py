"""Where commands write: tables and colours on a terminal, plain text in a pipe, or JSON.

What is shown is built as values first (`Line`, `Table`), so that it can be tested without a
terminal and so that rich is imported only where it paints.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

PLAIN_WIDTH: Final = 120
"""Columns of text that goes to a pipe or a file, unless COLUMNS says otherwise."""


class Piece(NamedTuple):
    """Text and its style, as rich names styles; empty for none."""

    text: str
    style: str = ""


Line = tuple[Piece, ...]


class Table(NamedTuple):
    """Rows under headers.

    Attributes:
        right: Headers of the columns that are aligned at the right.
    """

    headers: tuple[str, ...]
    rows: Sequence[Sequence[Piece]]
    right: frozenset[str] = frozenset()


Block = Line | Table


def line(*parts: str | Piece) -> Line:
    """A line of styled and plain text."""
    return tuple(part if isinstance(part, Piece) else Piece(part) for part in parts)


def one_line(text: str) -> str:
    """Text from outside, without line breaks and without control codes for the terminal."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode()
        for one in " ".join(text.split())
    )


def is_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def width() -> int:
    """Columns that a line may have."""
    if is_terminal():
        return max(60, os.get_terminal_size(sys.stdout.fileno()).columns)
    columns = os.environ.get("COLUMNS", "")
    return max(60, int(columns)) if columns.isdecimal() else PLAIN_WIDTH


def show(blocks: Iterable[Block]) -> None:
    """Write lines and tables to standard output, without secrets and personal data."""
    blocks = [_for_people(block) for block in blocks]
    if is_terminal():
        _paint(blocks)
    else:
        for block in blocks:
            for text in _plain(block):
                print(text)
    # A reader that has gone is noticed here and not when the interpreter ends.
    sys.stdout.flush()


def show_json(value: object) -> None:
    """Write a value as JSON: one line, indented on a terminal; as `show`, without secrets."""
    from shared.telemetry.redaction import redacted

    encoded = msgspec.json.encode(redacted(msgspec.to_builtins(value)))
    if is_terminal():
        encoded = msgspec.json.format(encoded, indent=2)
    print(encoded.decode(), flush=True)


def note(text: str) -> None:
    """Say something beside the result, on standard error."""
    from shared.telemetry.redaction import redacted_text

    print(redacted_text(text), file=sys.stderr, flush=True)


def note_unpublished(what: str, commands: str = "commands") -> None:
    """Say that what follows has to wait for the broker.

    Args:
        what: What is stored, as the subject of a sentence.
        commands: What has not been sent.
    """
    note(
        f"The broker cannot be reached. {what} is stored; "
        f"an orchestrator sends its {commands} as soon as the broker is back."
    )


def as_text(blocks: Iterable[Block]) -> str:
    """Lines and tables as plain text."""
    return "\n".join(text for block in blocks for text in _plain(block))


def _for_people(block: Block) -> Block:
    if isinstance(block, Table):
        return block._replace(rows=[[_hidden(piece) for piece in row] for row in block.rows])
    return tuple(map(_hidden, block))


def _hidden(piece: Piece) -> Piece:
    from shared.telemetry.redaction import redacted_text

    return piece._replace(text=redacted_text(piece.text))


def _plain(block: Block) -> Iterator[str]:
    if not isinstance(block, Table):
        yield "".join(piece.text for piece in block).rstrip()
        return
    rows = [block.headers, *([piece.text for piece in row] for row in block.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            text.rjust(size) if header in block.right else text.ljust(size)
            for text, size, header in zip(row, widths, block.headers, strict=True)
        )
        yield "  ".join(cells).rstrip()


def _paint(blocks: Iterable[Block]) -> None:
    from rich.console import Console

    console = Console(highlight=False, width=width())
    for block in blocks:
        if isinstance(block, Table):
            console.print(painted_table(block))
        else:
            console.print(painted(block), soft_wrap=True)


def painted(block: Line) -> Any:
    """A line as rich text."""
    from rich.text import Text

    return Text.assemble(*((piece.text, piece.style) for piece in block))


def painted_table(block: Table) -> Any:
    """A table as a rich table."""
    from rich.table import Table as RichTable

    table = RichTable(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for header in block.headers:
        # An id that is folded can be read, one that is cut off cannot.
        table.add_column(
            header, justify="right" if header in block.right else "left", overflow="fold"
        )
    for row in block.rows:
        table.add_row(*(painted((piece,)) for piece in row))
    return table
