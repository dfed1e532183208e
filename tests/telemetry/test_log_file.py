"""Log files that several processes write, rotate and compress together."""

import gzip
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pytest

from shared.telemetry import log_file
from shared.telemetry.log_file import LogFile, Rotation, old_files, tidy
from tests.waiting import wait_until

SMALL = Rotation(bytes_max=4096, files_max=100_000)
LINE = b"x" * 99 + b"\n"


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where the log goes; the fixture waits for the thread that compresses."""
    yield tmp_path / "logs" / "svc.jsonl"
    wait_until(lambda: not _compressing(), what="the compression to end")


def _compressing() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name == "log-rotation"]


def _read(file: Path) -> bytes:
    return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()


def _lines(path: Path) -> list[bytes]:
    return [line for file in [*old_files(path), path] for line in _read(file).splitlines()]


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - a child must never go on as a test session
        print(f"child: {error!r}", file=sys.__stderr__)
        os._exit(1)


def test_many_processes_rotate_and_no_line_is_lost_or_torn(path: Path) -> None:
    """Eight processes, half of them with a file inherited over a fork, and dozens of rotations.

    Each line is there once and whole, the lines of a process are in the order in which it wrote
    them, and the files have the size that was asked for.
    """
    count, families = 1200, 4

    def write(file: LogFile, who: str) -> None:
        for number in range(count):
            # Of differing lengths: a torn line could not pass for a whole one.
            file.write(b"%s:%d:%s;\n" % (who.encode(), number, b"y" * (number % 211)))

    def family(name: int) -> None:
        file = LogFile(path, SMALL)
        child = _fork(lambda: write(file, f"{name}-child"))
        write(file, f"{name}-parent")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    children = [_fork(lambda name=name: family(name)) for name in range(families)]  # type: ignore[misc]  # no default in a Callable
    assert [0] * families == [os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in children]
    found: dict[str, list[int]] = {}
    for line in _lines(path):
        who, number, filling = line.decode().split(":")
        assert filling == "y" * (int(number) % 211) + ";"
        found.setdefault(who, []).append(int(number))
    assert len(found) == 2 * families
    for who, numbers in found.items():
        assert Counter(numbers) == Counter(range(count)), who
        assert numbers == sorted(numbers), who
    old = old_files(path)
    assert len(old) > 40
    # Who does not get the lock writes on, so that a few are larger.
    assert median(len(_read(file)) for file in old) <= SMALL.bytes_max + families * 230
    tidy(path, SMALL.files_max)
    assert {file.suffix for file in old_files(path)} == {".gz"}
    assert _left_beside(path) == {".svc.lock"}


def _left_beside(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir() if file.name.startswith(".")}


def test_a_full_file_is_put_aside_and_compressed(path: Path) -> None:
    """Its name says when it ended; the new one begins with the line that did not fit."""
    before = datetime.now(UTC)
    file = LogFile(path, SMALL)
    for _ in range(41):
        file.write(LINE)
    wait_until(lambda: path.parent.joinpath(old_files(path)[0].name).suffix == ".gz")
    (old,) = old_files(path)
    stamp = old.name.removeprefix("svc.jsonl.").removesuffix(".gz")
    ended = datetime.strptime(stamp, "%Y%m%dT%H%M%S.%f").replace(tzinfo=UTC)
    assert before <= ended <= datetime.now(UTC)
    assert gzip.decompress(old.read_bytes()) == 40 * LINE
    assert path.read_bytes() == LINE
    file.close()


def test_a_file_that_another_process_holds_is_not_compressed_yet(path: Path) -> None:
    """It may be about to write a line to it; the next rotation finds it free."""
    idle, busy = LogFile(path, SMALL), LogFile(path, SMALL)
    for _ in range(41):
        busy.write(LINE)
    wait_until(lambda: not _compressing())
    (held,) = old_files(path)
    assert held.suffix != ".gz"
    idle.write(b"late\n")  # looks at the path first, and follows
    assert path.read_bytes().endswith(b"late\n")
    tidy(path, SMALL.files_max)
    assert [file.suffix for file in old_files(path)] == [".gz"]
    idle.close()
    busy.close()


def test_a_day_ends_a_file_with_the_first_line_after_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process remembers when the file began: its last change says it."""
    file = LogFile(path, Rotation(every=timedelta(days=1)))
    file.write(b"today\n")
    file.write(b"today, too\n")
    assert old_files(path) == []
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    monkeypatch.setattr(log_file, "utc_now", lambda: tomorrow)
    file.write(b"tomorrow\n")
    os.utime(path, (tomorrow.timestamp(), tomorrow.timestamp()))
    file.write(b"tomorrow, too\n")
    wait_until(lambda: not _compressing())
    (old,) = old_files(path)
    assert _read(old) == b"today\ntoday, too\n"
    assert path.read_bytes() == b"tomorrow\ntomorrow, too\n"
    file.close()


def test_the_oldest_go_beyond_the_maximum(path: Path) -> None:
    """And what others have left beside ours stays."""
    path.parent.mkdir()
    foreign = [path.with_name("svc.jsonl.1"), path.with_name("svc.jsonl.2.gz")]
    for one in foreign:
        one.write_bytes(b"")
    file = LogFile(path, Rotation(bytes_max=100, files_max=3))
    for number in range(8):
        file.write(b"%99d\n" % number)
    wait_until(lambda: not _compressing())
    tidy(path, 3)
    assert [int(line) for line in _lines(path)] == [4, 5, 6, 7]
    assert all(one.exists() for one in foreign)
    file.close()


def test_a_compression_that_a_crash_cut_short_is_done_again(path: Path) -> None:
    """Half a file never passes for a whole one, and nothing counts twice."""
    path.parent.mkdir()
    old = path.with_name("svc.jsonl.20260101T000000.000000")
    old.write_bytes(LINE)
    path.with_name(".svc.20260101T000000.000000.part").write_bytes(b"\x1f\x8bhalf")
    tidy(path, 3)
    (packed,) = old_files(path)
    assert _read(packed) == LINE
    # It died after the new file was in place, and before the old one went.
    old.write_bytes(LINE)
    assert old_files(path) == [packed]
    assert _left_beside(path) == set()


def test_nothing_is_put_aside_without_a_limit(path: Path) -> None:
    """Where logrotate does it."""
    file = LogFile(path, Rotation(bytes_max=0))
    for _ in range(100):
        file.write(LINE)
    assert old_files(path) == []
    file.close()


def test_a_folder_where_nothing_can_be_renamed_costs_no_line(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and not at each line."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    file = LogFile(path, Rotation(bytes_max=1000))
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            file.write(LINE)
    assert path.read_bytes() == 50 * LINE
    assert 1 <= len(caplog.records) <= 4
    assert "cannot be rotated" in caplog.text
    file.close()


def test_who_does_not_get_the_lock_writes_on(path: Path) -> None:
    """A process that hangs while it rotates holds nobody up."""
    file = LogFile(path, Rotation(bytes_max=200, files_max=5))
    with log_file._locked(path) as locked:
        assert locked
        for _ in range(5):
            file.write(LINE)
    assert path.read_bytes() == 5 * LINE
    file.write(LINE)
    assert path.read_bytes() == LINE
    file.close()


def test_a_gevent_worker_compresses_in_a_thread_of_the_system(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a greenlet it would hold up every other one."""
    started: list[object] = []
    monkey = SimpleNamespace(
        is_module_patched=lambda _: True,
        get_original=lambda *what: lambda _work, _args: started.append(what),
    )
    monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)
    log_file._in_background(lambda: None)
    assert started == [("_thread", "start_new_thread")]
