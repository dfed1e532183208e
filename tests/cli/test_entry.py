"""The command line as such: exit codes, errors on standard error, nothing heavy before it runs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli import failures
from orchestrator.cli.entry import run
from shared.errors import InputError

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a `saga dev` is there, and nothing is set."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["strt"], "Did you mean 'start'?"),
        (["start"], "Missing argument"),
        (["start", "x", "--timeout", "-1", "--wait"], "--timeout"),
        (["start", "x", "--timeout", "1"], "it needs --wait"),
        (["list", "--limit", "0"], "--limit"),
        (["cancel", "x"], "--reason"),
        (["list", "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_use_exits_with_2_and_one_sentence(
    arguments: list[str], said: str, capsys: Captured
) -> None:
    """What is wrong, and where the help is; nothing on standard output."""
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.startswith("error: ")
    assert "--help" in captured.err
    assert captured.out == ""


def test_wrong_use_is_an_object_with_json(capsys: Captured) -> None:
    """Programs read the same that people do."""
    assert run(["start", "--json"]) == 2
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["type"] == "UsageError"
    assert "Missing argument" in error["message"]
    assert error["problems"] == []


def test_wrong_input_is_an_object_with_json(capsys: Captured) -> None:
    """Line and column of what is not JSON."""
    assert run(["start", "place-order", "--input", "{", "--json"]) == 2
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["type"] == "InputError"
    assert "line 1, column 2" in error["message"]


def test_all_problems_and_the_hint_are_reported(capsys: Captured) -> None:
    """An error's own list of problems reaches programs whole."""
    failures.report(InputError("m", problems=("a: x", "b: y"), hint="h"), as_json=True)
    expected = {"type": "InputError", "message": "m", "hint": "h", "problems": ["a: x", "b: y"]}
    assert json.loads(capsys.readouterr().err) == {"error": expected}
    failures.report(InputError("m", hint="h"), as_json=False)
    assert capsys.readouterr().err == "error: m\nhint: h\n"


def test_help_and_version_answer(capsys: Captured) -> None:
    """Every command is listed."""
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in ("start", "list", "show", "cancel", "trace", "logs", "definitions", "dev"):
        assert f"  {command} " in shown
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("saga ")


def test_a_port_that_is_taken_is_one_sentence(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server itself would end the command, and say why in the log alone."""
    monkeypatch.setenv("SAGA_HOME", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(["serve", "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"error: The HTTP API cannot listen on 127.0.0.1, port {port}: Address already" in said


def test_alone_it_shows_its_help_and_no_error(capsys: Captured) -> None:
    """A group of commands, too."""
    for arguments in ([], ["dlq"]):
        assert run(arguments) == 2
        shown = capsys.readouterr().err
        assert "error:" not in shown
        assert "Commands:" in shown


def test_help_imports_nothing_heavy() -> None:
    """The start-up time of every command begins with what `saga --help` imports."""
    heavy = ["celery", "sqlalchemy", "pydantic", "rich", "structlog", "opentelemetry", "alembic"]
    script = (
        "import sys; from orchestrator.cli.entry import run; run(['--help']);"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"


def test_a_reader_that_has_gone_is_no_error() -> None:
    """A closed pipe ends the command as the signal would, and in silence."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", "from orchestrator.cli import main; main()", "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
