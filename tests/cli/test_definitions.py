import json
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from orchestrator.cli import definitions
from orchestrator.core.definition import Definition
from shared.errors import UnknownSaga
from tests.core.builders import linear

V1 = linear("a", "b")
V2 = msgspec.structs.replace(linear("a", "b", "c"), version=2, deadline=timedelta(hours=1))
CHANGED = linear("a", "b", timeout=timedelta(seconds=7))


def known(*found: Definition) -> definitions.Known:
    """Definitions by name and version."""
    return {(one.name, one.version): one for one in found}


def diffed(
    capsys: pytest.CaptureFixture[str], old: int | None = None, new: int | None = None
) -> dict[str, Any]:
    """What `saga definitions diff test --json` prints."""
    definitions.diff("test", old=old, new=new, as_json=True)
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


@pytest.mark.parametrize(
    "stored, in_code, asked, expected",
    [
        (known(V1), known(V1, V2), (None, None), (1, 2)),
        (known(V1, V2), known(V2), (None, None), (2, 2)),
        (known(V1, V2), known(V2), (1, 2), (1, 2)),
        (known(V1, V2), known(V2), (2, 1), (2, 1)),
        ({}, known(V1, V2), (1, None), (1, 2)),
    ],
)
def test_the_newest_of_store_and_code_are_compared(
    stored: definitions.Known,
    in_code: definitions.Known,
    asked: tuple[int | None, int | None],
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Unless other versions are asked for."""
    monkeypatch.setattr(definitions, "_known", lambda: (stored, in_code))
    found = diffed(capsys, *asked)
    assert expected == (found["from"], found["to"])
    assert bool(found["differences"]) is (expected[0] != expected[1])


def test_a_change_without_a_new_version_is_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The store's copy against the code's, of the same number; each field is named."""
    monkeypatch.setattr(definitions, "_known", lambda: (known(V1), known(CHANGED)))
    assert "steps.a.timeout: PT30S -> PT7S" in diffed(capsys)["differences"]


def test_an_unknown_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With those that there are."""
    monkeypatch.setattr(definitions, "_known", lambda: (known(V1), known(V2)))
    with pytest.raises(UnknownSaga, match=r"no version 7.*1, 2"):
        definitions.diff("test", old=7)
