"""Reads the documents: their code blocks, command lines, links and settings.

What a document may contain, beside plain Markdown:

* ```` ```python ````: run, all blocks of a document one after the other in one namespace, so that a
  document reads like a session. A failing line is reported with its place in the document.
* ```` ```python not-run: why ````: must be correct Python, and is not run.
* ``<!-- snippet-setup`` … ``-->``: Python that is run at its place and not shown: what an excerpt
  leaves out.
* ```` ```bash ```` (also ``sh``, ``shell``) and indented blocks: every ``saga …`` line has to be one that
  the command understands.
* ```` ```console ````: what stands after ``$`` is typed, and what stands below it is printed; see `sessions`.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^(?P<indent> {0,3})```(?P<info>[^`\n]*)$")
_SETUP = re.compile(r"^<!-- snippet-setup$(?P<code>.*?)^-->$", re.MULTILINE | re.DOTALL)
_SHELLS = {"bash", "sh", "shell"}
_SESSION = "console"
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_INLINE = re.compile(r"(?<!`)`(?P<code>saga [^`]+)`(?!`)")
_HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of code.

    Attributes:
        language: First word of the info string; empty for an indented block.
        note: The rest of it.
        code: Without the fence.
        line: Number of its first line in the document, from 1.
    """

    language: str
    note: str
    code: str
    line: int


def documents() -> list[Path]:
    """Every document that users read."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def name_of(document: Path) -> str:
    """How a document is called in messages."""
    return (
        document.relative_to(ROOT).as_posix() if document.is_relative_to(ROOT) else document.name
    )


def blocks(text: str) -> Iterator[Block]:
    """Every block of code of a document, fenced or indented, in order."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        if fence is not None:
            end = next(
                (at for at in range(number + 1, len(lines)) if lines[at].strip() == "```"),
                len(lines),
            )
            language, _, note = fence["info"].strip().partition(" ")
            yield _block(language, note, lines, number + 1, end)
            number = end + 1
        elif lines[number].startswith("    ") and (not number or not lines[number - 1].strip()):
            end = number
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            yield _block("", "", lines, number, end, indent=4)
            number = end
        else:
            number += 1


def _block(
    language: str, note: str, lines: list[str], start: int, end: int, indent: int = 0
) -> Block:
    code = "\n".join(line[indent:] for line in lines[start:end])
    return Block(language=language, note=note, code=code, line=start + 1)


def snippets(text: str) -> list[Block]:
    """The Python of a document, shown or not, in the order in which it runs."""
    hidden = [
        Block(
            language="python",
            note="",
            code=match["code"].strip("\n"),
            line=text.count("\n", 0, match.start("code")) + 2,
        )
        for match in _SETUP.finditer(text)
    ]
    shown = [block for block in blocks(text) if block.language == "python"]
    return sorted([*hidden, *shown], key=lambda block: block.line)


def saga_commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """Arguments of each ``saga`` command in a shell block, with its line."""
    for block in blocks(text):
        if block.language and block.language not in {*_SHELLS, _SESSION}:
            continue
        joined = re.sub(r" *\\\n *", lambda _: " \x00", block.code)
        at = block.line
        for line in joined.splitlines():
            printed = block.language == _SESSION and not line.startswith("$ ")
            for arguments in () if printed else _commands(line.replace("\x00", "")):
                yield at, arguments
            at += 1 + line.count("\x00")


def _commands(line: str) -> Iterator[list[str]]:
    bare = re.sub(r"^\s*\$ ", "", line)
    if not re.search(r"(?:^|[;&|=('\s])saga\s", bare):
        return
    lexer = shlex.shlex(bare, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    words = list(lexer)
    while "saga" in words:
        words = words[words.index("saga") + 1 :]
        end = next((i for i, word in enumerate(words) if re.fullmatch(r"[();<>|&]+", word)), None)
        yield words[:end]


def inline_commands(text: str) -> Iterator[list[str]]:
    """Words of each ``saga …`` in running text and tables, without the brackets of a synopsis."""
    for match in _INLINE.finditer(text):
        yield re.sub(r"\\?\|\S+|[\[\]]", "", match["code"]).split()[1:]


def links(text: str) -> Iterator[str]:
    """Targets of links to other files and headings of this project."""
    for match in _LINK.finditer(text):
        if "://" not in match["target"] and not match["target"].startswith("mailto:"):
            yield match["target"]


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return {
        re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")
        for heading in _HEADING.findall(prose)
    }
