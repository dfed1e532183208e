"""Log lines back out of files: whose they are, their order, and following them."""

import gzip
import json
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.follow import Follower
from orchestrator.cli.times import since_when
from orchestrator.log_files import LogQuery, log_files, open_logs, read_logs, search
from shared.errors import InputError
from shared.telemetry.log_file import LogFile, Rotation, old_files, tidy

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


@pytest.fixture
def follower(folder: Path) -> Iterator[Follower]:
    """Follows the folder from now on."""
    with closing(Follower([folder])) as follower:
        yield follower


def test_a_follower_gives_each_new_line_once(folder: Path, follower: Follower) -> None:
    """Old lines are passed over, new files are found, half a line is left until it is whole."""
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


def test_a_follower_begins_anew_with_a_file_that_was_emptied(
    folder: Path, follower: Follower
) -> None:
    """As logrotate's copytruncate leaves it."""
    (folder / "a.jsonl").write_text('{"event": "anew"}\n')
    assert [line.fields["event"] for line in follower.new_lines()] == ["anew"]


# Rotated and compressed files -----------------------------------------------------------------


def _found(folder: Path, **query: Any) -> list[Any]:
    with open_logs([folder]) as sources:
        return [line.fields["event"] for line in search(sources, LogQuery(**query))]


def _stamped(folder: Path, name: str, *lines: dict[str, Any]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    (folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)


@pytest.fixture
def rotated(tmp_path: Path) -> Path:
    """A service whose file was rotated by us, one by logrotate, and what is no log file."""
    _stamped(tmp_path, "a.jsonl.20260101T120001.000000.gz", _line(1, "1"), _line(3, "3"))
    # Almost in order: the process that logged `2` was slower than the one that rotated.
    _stamped(tmp_path, "a.jsonl.20260101T120002.000000", _line(2, "2"), _line(5, "5"))
    _stamped(tmp_path, "a.jsonl", _line(7, "7"))
    _stamped(tmp_path, "b.jsonl.10.gz", _line(0, "0"))
    _stamped(tmp_path, "b.jsonl.2.gz", _line(4, "4"))
    _stamped(tmp_path, "b.jsonl.1", _line(6, "6"))
    _stamped(tmp_path, "b.jsonl", _line(8, "8"))
    (tmp_path / ".a.lock").touch()
    (tmp_path / ".a.20260101T120002.000000.part").write_bytes(b"half")
    return tmp_path


def test_rotated_and_compressed_files_are_merged_in_order_of_time(rotated: Path) -> None:
    """Ours and logrotate's, oldest first."""
    assert _found(rotated) == [str(number) for number in range(9)]
    assert [file.name for file in log_files([rotated]) if file.name[0] == "b"] == [
        "b.jsonl.10.gz",
        "b.jsonl.2.gz",
        "b.jsonl.1",
        "b.jsonl",
    ]


def test_a_file_that_is_being_compressed_counts_once(rotated: Path) -> None:
    """For a moment it stands there twice."""
    _stamped(rotated, "a.jsonl.20260101T120002.000000.gz", _line(2, "2"), _line(5, "5"))
    assert _found(rotated) == [str(number) for number in range(9)]


def test_a_damaged_compressed_file_costs_its_own_lines_alone(rotated: Path) -> None:
    """What is before the damage is still found."""
    (rotated / "b.jsonl.2.gz").write_bytes(b"no gzip")
    whole = (rotated / "b.jsonl.10.gz").read_bytes()
    (rotated / "b.jsonl.10.gz").write_bytes(whole[:-4])
    assert _found(rotated) == ["0", "1", "2", "3", "5", "6", "7", "8"]


def test_an_open_file_is_read_whatever_becomes_of_its_name(rotated: Path) -> None:
    """It may be rotated, compressed and removed while one searches; lines that come are not read."""
    with open_logs([rotated]) as sources:
        (rotated / "a.jsonl").rename(rotated / "a.jsonl.20260101T120009.000000")
        _write(rotated / "a.jsonl.20260101T120009.000000", _line(9, "9"))
        _stamped(rotated, "a.jsonl", _line(10, "10"))
        tidy(rotated / "a.jsonl", 0)
        found = [line.fields["event"] for line in search(sources, LogQuery())]
    assert found == [str(number) for number in range(9)]
    assert old_files(rotated / "a.jsonl") == []


def test_a_search_keeps_a_bounded_number_of_lines_in_memory(tmp_path: Path) -> None:
    """However large the files are: 10 MB of lines here, which are 30 in memory."""
    file = LogFile(tmp_path / "a.jsonl", Rotation(bytes_max=2_000_000, files_max=100))
    line = json.dumps(_line(1, "x" * 1000)).encode() + b"\n"
    for _ in range(10):
        file.write(line * 1000)
    file.close()
    tracemalloc.start()
    try:
        with open_logs([tmp_path]) as sources:
            count = sum(1 for _ in search(sources, LogQuery()))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 10_000
    assert peak < 8_000_000


# What can be asked ----------------------------------------------------------------------------


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """One line for each thing that can be asked for."""
    _write(
        tmp_path / "a.jsonl",
        _line(1, "step", saga_step="pay", level="info", saga_id="s1"),
        _line(2, "id", task_id="t-1", level="warning", saga_id="s2"),
        _line(3, "name", task_name="payment.charge", level="error"),
        _line(4, "key", key="order 1", level="debug", saga_id="s1"),
        _line(5, "mentions", message="pay t-1 payment.charge order 1"),
    )
    return tmp_path


@pytest.mark.parametrize(
    "query, expected",
    [
        ({"step": "pay"}, ["step"]),
        ({"task": "t-1"}, ["id"]),
        ({"task": "payment.charge"}, ["name"]),
        ({"key": "order 1"}, ["key"]),
        ({"level": "warning"}, ["id", "name"]),
        ({"level": "info"}, ["step", "id", "name"]),
        ({"since": datetime(2026, 1, 1, 12, 0, 4, tzinfo=UTC)}, ["key", "mentions"]),
        ({"saga_ids": frozenset({"s1", "s2"})}, ["step", "id", "key"]),
        ({"saga_ids": frozenset({"s1"}), "step": "pay"}, ["step"]),
    ],
)
def test_lines_are_found_by_what_they_say(asked: Path, query: Any, expected: list[str]) -> None:
    """A line that only mentions it does not count, and all that is asked has to hold."""
    assert _found(asked, **query) == expected


@pytest.mark.parametrize(
    "text, ago",
    [
        ("30s", timedelta(seconds=30)),
        ("10m", timedelta(minutes=10)),
        ("PT90M", timedelta(minutes=90)),
        ("2d", timedelta(days=2)),
        ("2026-01-01T11:00:00Z", timedelta(hours=1)),
        ("2026-01-01T12:00:00+01:00", timedelta(hours=1)),
    ],
)
def test_since_is_a_duration_or_a_time(text: str, ago: timedelta) -> None:
    """As people write it."""
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert since_when(text, "--since", now) == now - ago


@pytest.mark.parametrize("text", ["yesterday", "10", "10 apples", "99999999999d"])
def test_what_is_neither_is_refused(text: str) -> None:
    """With an example of each."""
    with pytest.raises(InputError, match="neither a duration nor a time"):
        since_when(text, "--since", datetime(2026, 1, 1, tzinfo=UTC))


# Following across rotations -------------------------------------------------------------------


def test_a_follower_misses_nothing_while_files_are_rotated_and_compressed(tmp_path: Path) -> None:
    """Several rotations between two looks, the file compressed and removed, or none at all."""
    path = tmp_path / "a.jsonl"
    rotation = Rotation(bytes_max=400, files_max=3)
    number, seen = 0, list[int]()
    with closing(LogFile(path, rotation)) as file:
        file.write(b'{"event": "old"}\n')
        with closing(Follower([tmp_path])) as follower:
            for looks in range(60):
                # Up to two whole files between two looks.
                for _ in range(looks % 9):
                    file.write(json.dumps(_line(0, "n", n=number)).encode() + b"\n")
                    number += 1
                if looks % 2:
                    tidy(path, rotation.files_max)
                seen += [line.fields["n"] for line in follower.new_lines()]
            seen += [line.fields["n"] for line in follower.new_lines()]
            assert len(follower._files) <= 3
    assert sorted(seen) == list(range(number))
    assert number > 200


def test_what_was_searched_is_not_followed_again(folder: Path) -> None:
    """`saga logs -f` shows each line once: it goes on where the search has ended."""
    with open_logs([folder]) as sources:
        _write(folder / "a.jsonl", _line(9, "later"))
        (folder / "b.jsonl").rename(folder / "b.jsonl.20260101T120009.000000")
        _write(folder / "b.jsonl.20260101T120009.000000", _line(10, "in a renamed file"))
        tidy(folder / "b.jsonl", 5)
        found = [line.fields["event"] for line in search(sources, LogQuery())]
        with closing(Follower([folder], sources)) as follower:
            followed = [line.fields["event"] for line in follower.new_lines()]
    assert len(found) == 6
    assert followed == ["later", "in a renamed file"]
