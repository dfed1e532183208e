"""The input of `saga start`: JSON, a file, or standard input; each mistake named."""

import io
import sys
from pathlib import Path

import pytest

from orchestrator.cli.given_input import read_input
from shared.errors import InputError


def test_json_is_taken_as_it_stands() -> None:
    """An object on the command line is the input."""
    assert read_input('{"order_id": "ü", "n": 1.5}') == {"order_id": "ü", "n": 1.5}


def test_a_file_is_named_with_an_at_sign(tmp_path: Path) -> None:
    """``@FILE`` reads a file."""
    file = tmp_path / "order.json"
    file.write_text('{"order_id": "1"}')
    assert read_input(f"@{file}") == {"order_id": "1"}


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """``-`` reads standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"order_id": "1"}')))
    assert read_input("-") == {"order_id": "1"}


@pytest.mark.parametrize(
    "given,said",
    [
        ('{"a": 1,\n "b": }', "line 2, column 7"),
        ("", "line 1, column 1"),
        ("[1]", "is a list"),
        ("3", "is a number"),
        ("true", "is a boolean"),
        ("null", "is null"),
        ('"x"', "is a string"),
        ('{"a": NaN}', "NaN is no JSON value"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ("[" * 100_000, "not JSON"),
        ("@/nowhere/order.json", "'/nowhere/order.json'"),
        ("@", "without the name of a file"),
        (r'{"a": "\ud800"}', "surrogates not allowed"),
    ],
)
def test_what_is_no_json_object_is_refused(given: str, said: str) -> None:
    """The message says where the mistake is, and the exit code is that of wrong use."""
    with pytest.raises(InputError) as refused:
        read_input(given)
    assert said in refused.value.message
    assert refused.value.exit_code == 2


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """Bytes that are no text are an error of the input, not a traceback."""
    file = tmp_path / "order.json"
    file.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InputError, match=r"order\.json is not UTF-8"):
        read_input(f"@{file}")


def test_a_standard_input_that_is_closed_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cron and `<&-` close it: that is no reason for a traceback."""
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="on standard input is not JSON"):
        read_input("-")
