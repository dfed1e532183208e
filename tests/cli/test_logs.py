"""`saga logs` as a command: what it prints, what it refuses, and following."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from signal import SIGINT
from typing import Any

import pytest

from orchestrator.cli.entry import run
from shared.settings import settings
from shared.telemetry.log_file import LogFile, Rotation
from tests.e2e.saga_dev import SAGA, environment
from tests.waiting import wait_until

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


def _line(second: int, event: str, **more: Any) -> bytes:
    fields = {
        "timestamp": f"2026-01-01T12:00:{second:02d}.000000Z",
        "level": "info",
        "event": event,
        "service": "inventory",
        **more,
    }
    return json.dumps(fields).encode() + b"\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with log files of two sagas and no store; the command sees it."""
    monkeypatch.setenv("SAGA_HOME", str(tmp_path))
    monkeypatch.delenv("SAGA_LOG_DIR", raising=False)
    settings.cache_clear()
    with closing(LogFile(tmp_path / "logs" / "inventory.jsonl", Rotation())) as file:
        ids = {"saga_id": "s1", "trace_id": TRACE_ID}
        file.write(_line(1, "saga.started", key="order-7", **ids))
        file.write(_line(2, "step.started", saga_step="reserve", task_id="t-1", **ids))
        file.write(_line(3, "a.library", trace_id=TRACE_ID))
        file.write(_line(4, "saga.started", key="order-8", saga_id="s2", level="error"))
    yield tmp_path
    settings.cache_clear()


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], ["saga.started", "step.started", "a.library", "saga.started"]),
        (["s1"], ["saga.started", "step.started"]),
        ([TRACE_ID], ["saga.started", "step.started", "a.library"]),
        (["--key", "order-7"], ["saga.started", "step.started", "a.library"]),
        (["--step", "reserve"], ["step.started"]),
        (["--task", "t-1"], ["step.started"]),
        (["--level", "error"], ["saga.started"]),
        (["--since", "2026-01-01T12:00:03Z"], ["a.library", "saga.started"]),
    ],
)
def test_it_finds_by_everything_that_a_line_says(
    arguments: list[str], expected: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also a business key without a store: the line of the start names its saga."""
    assert run(["logs", "--json", *arguments]) == 0
    assert [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()] == expected


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        (["nobody"], 1, "No log line of nobody was found"),
        (["s1", "--key", "order-7"], 2, "both name a saga"),
        (["--key", "order-9"], 2, "no saga with the key 'order-9'"),
        (["--level", "loud"], 2, "no level 'loud'"),
        (["--since", "tomorrow"], 2, "neither a duration nor a time"),
    ],
)
def test_what_cannot_be_found_is_an_error(
    arguments: list[str], code: int, said: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each names the thing and says what to do."""
    assert run(["logs", *arguments]) == code
    assert said in capsys.readouterr().err


def test_it_follows_across_a_rotation_until_it_is_stopped(home: Path) -> None:
    """What there is first, then each new line of the trace, in whatever file it lands."""
    path = home / "logs" / "inventory.jsonl"
    out = home / "out"
    with out.open("wb") as written:
        process = subprocess.Popen(
            [*SAGA, "logs", TRACE_ID, "-f", "--json"],
            env=environment(SAGA_HOME=str(home)),
            stdout=written,
            cwd=home,
        )

    def events() -> list[str]:
        return [json.loads(line)["event"] for line in out.read_text().splitlines()]

    first = ["saga.started", "step.started", "a.library"]
    try:
        wait_until(lambda: events() == first, timeout=30)
        with closing(LogFile(path, Rotation(bytes_max=700, files_max=5))) as file:
            for number in range(12):
                file.write(_line(10 + number, f"new.{number}", trace_id=TRACE_ID))
                file.write(_line(10 + number, "of another", trace_id="f" * 32))
        wait_until(lambda: events() == [*first, *(f"new.{number}" for number in range(12))])
    finally:
        process.send_signal(SIGINT)
        assert process.wait(10) == 130
