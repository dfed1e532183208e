"""What the documents say is true: snippets run, commands parse, links lead somewhere."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from orchestrator.cli import failures
from orchestrator.cli.app import make_app
from tests.guide import markdown
from tests.guide.markdown import ROOT, documents, name_of, snippets
from tests.guide.run_snippets import NAMESPACE, run
from tests.guide.sessions import Session, Typed, typed
from tests.guide.sessions import section as markdown_section

SNIPPETS_WITHIN_SECONDS = 90
VARIABLE = re.compile(r"\b(?:SAGA|OPENTELEMETRY)_[A-Z0-9_]*[A-Z0-9]\b")


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[Path, str]:
    """What the documents that failed have written; all of them run at once, when first needed."""
    home = tmp_path_factory.mktemp("snippets")
    redis = request.getfixturevalue("redis_server").start()
    found = [one for one in documents() if snippets(one.read_text())]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.guide.run_snippets", *map(str, found)],
        cwd=home,
        env=kept
        | {
            "PYTHONPATH": str(ROOT),
            "SAGA_HOME": str(home / "saga"),
            "SAGA_LOG_DIR": str(home / "logs"),
            "SAGA_BROKER_URL": redis.url,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SNIPPETS_WITHIN_SECONDS,
        check=False,
    )
    parts = re.split(r"^exit (-?\d+) (.*)$", done.stdout, flags=re.MULTILINE)
    codes = dict(zip(parts[2::3], parts[1::3], strict=True))
    assert codes.keys() == set(map(str, found)), done.stdout
    said = dict(zip(parts[2::3], parts[::3], strict=False))
    return {one: said[str(one)] for one in found if codes[str(one)] != "0"}


@pytest.fixture(scope="module")
def saga() -> Any:
    """The real command, an object of typer's own click or of another one."""
    return typer.main.get_command(make_app())


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_snippets_run(document: Path, results: dict[Path, str]) -> None:
    """Every Python block, one after the other, as a reader would type them."""
    assert document not in results, results.get(document)


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_what_is_not_run_has_its_reason(document: Path) -> None:
    """`not-run: why` in the info string, and no other word."""
    for block in snippets(document.read_text()):
        assert re.fullmatch(r"(not-run: .{10,})?", block.note), (block.line, block.note)


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_saga_commands_parse(document: Path, saga: Any) -> None:
    """Each line of a shell block is one that the command understands."""
    for line, arguments in markdown.saga_commands(document.read_text()):
        wrong = wrong_use(saga, arguments)
        assert not wrong, f"{name_of(document)}:{line}: saga {' '.join(arguments)}: {wrong}"


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_commands_in_the_text_exist(document: Path, saga: Any) -> None:
    """In tables and sentences a command may lack arguments; its name and options are real."""
    for words in markdown.inline_commands(document.read_text()):
        if not re.match("[a-z-]", words[0]):  # `saga COMMAND --help`, or a span: `saga {name}`
            continue
        context, rest = command_of(saga, words)
        known = {
            name for one in context.command.params for name in (*one.opts, *one.secondary_opts)
        }
        wrong = [word for word in rest if re.fullmatch(r"--?[a-z][a-z-]*", word)]
        wrong = [word for word in wrong if word not in {*known, "--help", "-h"}]
        assert not wrong, f"{name_of(document)}: saga {' '.join(words)}: no such option {wrong}"


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    """To a file of the project, and to a heading in it."""
    for link in markdown.links(document.read_text()):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{name_of(document)}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in markdown.anchors(target.read_text()), f"{name_of(document)}: {link}"


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_settings_exist(document: Path) -> None:
    """Every variable of ours that a document names is read somewhere."""
    named = set(VARIABLE.findall(document.read_text()))
    assert set() == named - known_variables()


@cache
def known_variables() -> set[str]:
    """Variables that the settings have, or that stand in the code."""
    from shared.settings import Settings

    found = {f"SAGA_{name.upper()}" for name in Settings.model_fields}
    for folder in ("shared", "orchestrator", "workers", "tests/servers", "deploy"):
        for path in (ROOT / folder).glob("**/*.py"):
            found |= set(VARIABLE.findall(path.read_text()))
    return found


def command_of(saga: Any, words: list[str]) -> tuple[Any, list[str]]:
    """Context of the innermost command that some words name, and the words after it."""
    context = saga.context_class(saga, info_name="saga")
    while is_group(context.command) and words and not words[0].startswith("-"):
        name, command, words = context.command.resolve_command(context, list(words))
        context = command.context_class(command, info_name=name, parent=context)
    return context, words


def is_group(command: Any) -> bool:
    """Whether a command has commands of its own."""
    return hasattr(command, "resolve_command")


def wrong_use(saga: Any, words: list[str]) -> str:
    """What the command would say about a command line, without running it; empty when it is right."""
    try:
        context, rest = command_of(saga, words)
        if {"--help", "-h", "--version"} & set(rest):
            return ""
        if is_group(context.command):
            return "a command is missing"
        context.command.make_context(context.info_name, list(rest), parent=context.parent).close()
    except Exception as error:
        if not failures.is_wrong_use(error):
            raise
        return str(error) or repr(error)
    return ""


# The reader itself --------------------------------------------------------------------------

SAMPLE = """\
# A title: with `code`, and more

```python
one = 1
```

<!-- snippet-setup
two = 2
-->

    saga start place-order --input '{"a": "b | c"}' \\
        --wait && saga list | head
    FOO=1 saga show X   # the saga of before

```python not-run: it needs a server
three(
    1)
```

See [here](other.md#x) and [there](https://example.org). `saga list [--status S]`
"""


def test_blocks_have_their_lines() -> None:
    """Shown and hidden Python, in order, each with its first line in the document."""
    assert [
        ("one = 1", 4, ""),
        ("two = 2", 8, ""),
        ("three(\n    1)", 16, "not-run: it needs a server"),
    ] == [(block.code, block.line, block.note) for block in snippets(SAMPLE)]


def test_commands_of_a_shell_block() -> None:
    """Continued lines, pipes, variables in front and comments are understood."""
    assert [
        (11, ["start", "place-order", "--input", '{"a": "b | c"}', "--wait"]),
        (11, ["list"]),
        (13, ["show", "X"]),
    ] == list(markdown.saga_commands(SAMPLE))
    assert [["list", "--status", "S"]] == list(markdown.inline_commands(SAMPLE))


def test_links_and_anchors() -> None:
    """Only links within the project are looked at."""
    assert ["other.md#x"] == list(markdown.links(SAMPLE))
    assert {"a-title-with-code-and-more"} == markdown.anchors(SAMPLE)


@pytest.mark.parametrize(
    "words",
    [
        ["strt"],
        ["start"],
        ["list", "--nonsense"],
        ["cancel", "X"],
        ["list", "--limit", "0"],
        ["db"],
    ],
)
def test_wrong_commands_are_found(words: list[str], saga: Any) -> None:
    """A command that was renamed, an option that is gone, an argument that is missing."""
    assert wrong_use(saga, words)
    assert not wrong_use(saga, ["show", "X"])


def test_a_failing_snippet_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the line of the document; the namespace is one for the whole of it."""
    text = "```python\na = 1\n```\n\ntext\n\n```python\nassert a == 1\nassert a == 2\n```\n"
    monkeypatch.setitem(sys.modules, NAMESPACE, ModuleType(NAMESPACE))  # put back afterwards
    path = tmp_path / "a.md"
    path.write_text(text)
    with pytest.raises(AssertionError) as failed:
        run(path)
    assert ("a.md", 9) == (str(failed.traceback[-1].path), failed.traceback[-1].lineno + 1)


# Sessions -----------------------------------------------------------------------------------

SESSION = """\
# Two letters

```console
$ echo a \\
  b; x=7
a   b
$ echo "$x"; \\
  false
error: …
$ saga dlq drop 1 # nothing shown
```

## Below

```console
$ echo $x
8
```
"""


def test_what_a_session_types_and_shows() -> None:
    """Continued lines, several commands of a block, and where they stand; parsed, too."""
    above, below = (markdown_section(SESSION, one) for one in ("Two letters", "Below"))
    assert [
        ("echo a \\\n  b; x=7", ["a   b"], 4),
        ('echo "$x"; \\\n  false', ["error: …"], 7),
        ("saga dlq drop 1 # nothing shown", [], 10),
    ] == [(one.command, one.shows, one.line) for one in typed(above)]
    assert [("echo $x", ["8"], 16)] == [(one.command, one.shows, one.line) for one in typed(below)]
    with pytest.raises(LookupError):
        markdown_section(SESSION, "Letters")
    assert [(10, ["dlq", "drop", "1"])] == list(markdown.saga_commands(SESSION))


def test_what_a_session_prints_is_compared(tmp_path: Path) -> None:
    """In one shell; with an ellipsis for what varies, and its exit code."""
    with Session(tmp_path, dict(os.environ)) as session:
        first = Typed(command="echo 'a  b 17'; x=8", line=1, shows=["a b …"])
        assert "" == first.problem(*session.type(first.command))
        assert (0, "8\n") == session.type("echo $x")
        assert (3, "") == session.type("(exit 3)")
        code, said = session.type("cd ..; saga show --nonsense")
    assert (2, True) == (code, "No such option: --nonsense" in said)
    shows = Typed(command="", line=1, shows=["one", "…", "last 1"])
    assert not shows.problem(0, "one\ntwo\nthree\nlast 1\n")
    assert not shows.problem(0, "one\nlast 1\n")
    for wrong in ((0, "one\nlast 12\n"), (1, "one\nlast 1\n"), (0, "one\nlast 1\nmore\n")):
        assert shows.problem(*wrong)
    refused = Typed(command="", line=1, shows=["error: no", "…"])
    assert not refused.problem(2, "error: no\nwhy\n")
    assert refused.problem(0, "error: no\n")


PLAYED = re.compile(r'\.play\((\S+), "([^"]+)"\)')


def test_every_session_is_played() -> None:
    """Some end-to-end test plays what a document shows: each heading with a `console` block."""
    played = {
        heading
        for path in (ROOT / "tests").glob("**/test_*.py")
        for _, heading in PLAYED.findall(path.read_text())
    }
    shown = {
        (name_of(document), heading)
        for document in documents()
        for heading in headings(document.read_text())
        if [*typed(markdown_section(document.read_text(), heading))]
    }
    assert shown
    assert not {one for one in shown if one[1] not in played}


def headings(text: str) -> list[str]:
    """Those of a document, as they are written; of comments in code there are some more."""
    return re.findall(r"^#+ +(.*?) *$", text, flags=re.MULTILINE)
