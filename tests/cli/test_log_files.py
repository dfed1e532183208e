"""Log lines back out of files: whose they are, their order, and following them."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.follow import Follower
from orchestrator.log_files import log_files, read_logs

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


def _write(file: Path, *lines: dict[str, Any]) -> None:
    with file.open("a") as written:
        written.writelines(json.dumps(line) + "\n" for line in lines)


def _line(second: int, event: str, **more: Any) -> dict[str, Any]:
    return {"timestamp": f"2026-01-01T12:00:{second:02d}.000000Z", "event": event, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two services, one rotated file, and lines of another saga in the same trace."""
    _write(
        tmp_path / "a.jsonl",
        _line(1, "first", saga_id="s1", trace_id=TRACE_ID),
        _line(4, "fourth", trace_id=TRACE_ID),
        _line(5, "other saga", saga_id="s2", trace_id=TRACE_ID),
        _line(6, "mentions it", message=f"s1 {TRACE_ID}"),
    )
    _write(tmp_path / "b.jsonl.1", _line(2, "second", saga_id="s1", trace_id=TRACE_ID))
    _write(tmp_path / "b.jsonl", _line(3, "third", saga_id="s1"))
    (tmp_path / "a.out").write_text("s1\n")
    return tmp_path


def _events(folder: Path, **which: Any) -> list[str]:
    return [line.fields["event"] for line in read_logs([folder], **which)]


def test_the_lines_of_a_saga_stand_in_order_of_time(folder: Path) -> None:
    """Of all files, rotated ones too; a line that only mentions an id does not count."""
    assert _events(folder, saga_id="s1") == ["first", "second", "third"]


def test_a_saga_has_the_lines_of_its_trace_but_not_those_of_another_saga(folder: Path) -> None:
    """A library's line knows the trace alone, and belongs to it."""
    found = _events(folder, saga_id="s1", trace_id=TRACE_ID)
    assert found == ["first", "second", "third", "fourth"]


def test_a_trace_has_the_lines_of_all_its_sagas(folder: Path) -> None:
    """A caller's trace may hold several."""
    assert _events(folder, trace_id=TRACE_ID) == ["first", "second", "fourth", "other saga"]


def test_a_line_that_was_cut_short_is_passed_over(folder: Path) -> None:
    """A crash in the middle of a write costs that line alone."""
    with (folder / "a.jsonl").open("a") as written:
        written.write('{"saga_id": "s1", "eve')
    assert _events(folder, saga_id="s1") == ["first", "second", "third"]


def test_a_line_keeps_its_own_words(folder: Path) -> None:
    """What `--json` prints is what stands in the file."""
    raw = read_logs([folder], saga_id="s1")[0].raw
    assert raw == (folder / "a.jsonl").read_text().splitlines()[0]


def test_a_folder_that_is_not_there_has_no_files(tmp_path: Path) -> None:
    """Looking is not creating."""
    assert log_files([tmp_path / "nowhere"]) == []
    assert not (tmp_path / "nowhere").exists()


def test_a_follower_gives_each_new_line_once(folder: Path) -> None:
    """Old lines are passed over, new files are found, half a line is left until it is whole."""
    follower = Follower(folder)
    assert follower.new_lines() == []
    _write(folder / "a.jsonl", _line(9, "later"))
    _write(folder / "new.jsonl", _line(8, "in a new file"))
    with (folder / "b.jsonl").open("a") as written:
        written.write('{"event": "ha')
        written.flush()
        events = [line.fields["event"] for line in follower.new_lines()]
        assert events == ["in a new file", "later"]
        written.write('lf"}\n')
    assert [line.fields["event"] for line in follower.new_lines()] == ["half"]
    assert follower.new_lines() == []


def test_a_follower_begins_anew_with_a_file_that_was_emptied(folder: Path) -> None:
    """As logrotate's copytruncate leaves it."""
    follower = Follower(folder)
    (folder / "a.jsonl").write_text('{"event": "anew"}\n')
    assert [line.fields["event"] for line in follower.new_lines()] == ["anew"]
