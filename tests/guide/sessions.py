"""Plays the shell sessions of documents: what a ``console`` block types is run, what it shows is compared.

    ```console
    $ saga start place-order --input '{"order_id": "o-1"}' --wait
    place-order v1  …  completed in …
    trace    …
    ```

A line after ``$`` is typed into a real bash, which is one and the same for all that a `Session` plays;
a line that ends in a backslash goes on in the next one. The lines below it are what it prints, on
either stream: ``…`` stands for whatever may be there, a line of its own for any number of lines, and
one blank is as good as several. Where nothing is shown, nothing is compared. A command has to succeed,
unless what it shows begins with ``error:``.

`saga` itself is a fork of a process that has imported everything (`tests.servers.preloaded`).
"""

import json
import os
import re
import selectors
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final, Self

from tests.guide.markdown import ROOT, blocks, name_of
from tests.servers.preloaded import COMMANDS

LANGUAGE: Final = "console"
ANSWERED_WITHIN_SECONDS: Final = 60

_ASK: Final = Path(__file__).with_name("ask_saga.py")
_END: Final = "\x1eend of a command"


@dataclass(frozen=True, kw_only=True)
class Typed:
    """A command of a document.

    Attributes:
        command: As it is typed.
        shows: Lines that the document shows below it.
        line: Where it stands, from 1.
    """

    command: str
    line: int
    shows: list[str] = field(default_factory=list)

    def problem(self, code: int, printed: str) -> str:
        """What is wrong with what came of it; empty for nothing."""
        fails = bool(self.shows) and self.shows[0].startswith("error:")
        if fails is not bool(code):
            return f"exit code {code}:\n{printed}"
        if not self.shows or re.fullmatch(_pattern(self.shows), _even(printed.splitlines())):
            return ""
        return "the document shows\n{}\nand it prints\n{}".format("\n".join(self.shows), printed)


def typed(text: str) -> Iterator[Typed]:
    """The commands in the ``console`` blocks of a text, each with what is shown below it."""
    for block in blocks(text):
        if block.language != LANGUAGE:
            continue
        last: Typed | None = None
        lines = iter(enumerate(block.code.splitlines(), block.line))
        for number, line in lines:
            if line.startswith("$ "):
                command = line[2:]
                while command.endswith("\\"):
                    command = f"{command}\n{next(lines)[1]}"
                last = Typed(command=command, line=number)
                yield last
            elif last is not None:
                last.shows.append(line)
            else:
                raise ValueError(f"line {number} shows something before anything is typed: {line}")


def section(text: str, heading: str) -> str:
    """A heading with all that stands below it, at the line where it stands.

    Raises:
        LookupError: There is none.
    """
    lines = text.splitlines()
    begins = [
        at for at, line in enumerate(lines) if re.fullmatch(f"#+ +{re.escape(heading)}", line)
    ]
    if not begins:
        raise LookupError(f"there is no heading {heading!r}")
    first = begins[0]
    ends = [at for at in range(first + 1, len(lines)) if re.match("#+ ", lines[at])]
    return "\n".join([*[""] * first, *lines[first : ends[0] if ends else None]])


class Session:
    """A shell; a ``with`` block ends it.

    Args:
        folder: Where it is.
        env: All of its environment.
    """

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self._line, theirs = socket.socketpair()
        self._line.settimeout(ANSWERED_WITHIN_SECONDS)
        with theirs:
            self._shell = subprocess.Popen(
                ["bash", "--norc", "--noprofile"],
                cwd=folder,
                env={**env, "SESSION_FD": str(theirs.fileno()), "SESSION_PYTHON": sys.executable},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        self.type(f'saga() {{ "$SESSION_PYTHON" -I -S {_ASK} "$@"; }}')

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self._shell.stdin, self._shell.stdout):
            assert pipe is not None
            pipe.close()
        self._shell.wait(ANSWERED_WITHIN_SECONDS)
        self._line.close()

    def play(self, document: str, heading: str) -> None:
        """Type what a document types below a heading, and compare what comes of it.

        Args:
            document: Its path, ``docs/operating.md``.
            heading: The heading, without its marks.
        """
        path = ROOT / document
        commands = [*typed(section(path.read_text(), heading))]
        assert commands, f"{document} types nothing below {heading!r}"
        for one in commands:
            problem = one.problem(*self.type(one.command))
            assert not problem, f"{name_of(path)}:{one.line}: {one.command}: {problem}"

    def type(self, command: str) -> tuple[int, str]:
        """Type a command; returns its exit code, and what it has printed."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"{command}\nprintf '\\n{_END} %s\\n' $?\n".encode())
        self._shell.stdin.flush()
        printed = b""
        with selectors.DefaultSelector() as waiting:
            for one in (self._shell.stdout, self._line):
                waiting.register(one, selectors.EVENT_READ)
            while True:
                ready = waiting.select(ANSWERED_WITHIN_SECONDS)
                assert ready, f"{command!r} does not end; so far: {printed.decode()}"
                if any(key.fileobj is self._line for key, _ in ready):
                    self._answer()
                    continue
                read = os.read(self._shell.stdout.fileno(), 65_536)
                assert read, f"{command!r} has ended the shell: {printed.decode()}"
                printed += read
                end = re.search(f"\n{_END} (\\d+)\n$", printed.decode(errors="replace"))
                if end is not None:
                    return int(end[1]), end.string[: end.start()]

    def _answer(self) -> None:
        """Run the `saga` command that the shell runs."""
        with self._line.makefile("rw") as file:
            asked = json.loads(file.readline())
            done = COMMANDS.run(asked["arguments"], cwd=Path(asked["cwd"]), env=asked["env"])
            file.write(json.dumps(done) + "\n")


def make_older(store: Path, days: int, *saga_ids: str) -> None:
    """As if sagas in an SQLite store had changed for the last time so much earlier."""
    by = timedelta(days=days) // timedelta(microseconds=1)
    with closing(sqlite3.connect(store)) as base, base:
        for saga_id in saga_ids:
            base.execute("UPDATE saga SET updated_at = updated_at - ? WHERE id = ?", [by, saga_id])


def _even(lines: list[str]) -> str:
    return "".join(f"{' '.join(line.split())}\n" for line in lines)


def _pattern(shows: list[str]) -> str:
    return "".join(
        "(?:.*\n)*" if line.strip() == "…" else re.escape(_even([line])).replace("…", ".*")
        for line in shows
    )
