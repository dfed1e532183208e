"""Records that cost less than the standard library's, and say the same."""

import asyncio
import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import pytest

from shared.telemetry import log_record
from shared.telemetry.log_record import LineRecord

VARYING = {"created": 1.0, "msecs": 1000.0, "relativeCreated": 1000.0}
"""How far two records that are made one after the other may differ."""


@pytest.fixture
def factory() -> Iterator[None]:
    """The factory of records is put back."""
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.parametrize(
    "args", [(), (1, "two"), ({"a": 1},), ({},), ([],), (MappingProxyType({"a": 1}),), None]
)
@pytest.mark.parametrize("path", ["/a/b/c.d.py", "c.py", "", "<stdin>", "/a/b/"])
def test_a_record_is_the_standard_librarys(args: Any, path: str) -> None:
    """Every attribute, in its order, whatever its arguments are."""
    given = ("name", logging.WARNING, path, 3, "a %s", args, None, "function", "stack")
    expected, found = vars(logging.LogRecord(*given)), vars(LineRecord(*given))
    assert list(expected) == list(found)
    for key, limit in VARYING.items():
        assert expected.pop(key) == pytest.approx(found.pop(key), abs=limit)
    assert expected == found


def test_a_record_knows_its_thread() -> None:
    """The one that makes it, by the name that it has now."""
    found: list[LineRecord] = []
    thread = threading.Thread(target=lambda: found.append(_record()), name="other")
    thread.start()
    thread.join()
    assert ("other", thread.ident) == (found[0].threadName, found[0].thread)


def test_a_record_knows_its_process() -> None:
    """A forked child's is its own."""
    queue: Any = multiprocessing.get_context("fork").SimpleQueue()

    def child() -> None:
        record = _record()
        queue.put((record.process, record.processName, os.getpid()))

    process = multiprocessing.get_context("fork").Process(target=child, name="forked")
    process.start()
    pid, name, real = queue.get()
    process.join()
    assert (real, "forked") == (pid, name)
    assert os.getpid() == _record().process != pid


def test_a_record_knows_its_asyncio_task() -> None:
    """Where this version of Python has a place for it."""

    async def inside() -> LineRecord:
        return _record()

    async def outside() -> LineRecord:
        return await asyncio.create_task(inside(), name="mine")

    expected = "mine" if hasattr(logging, "logAsyncioTasks") else None
    assert expected == getattr(asyncio.run(outside()), "taskName", None)
    assert getattr(_record(), "taskName", None) is None


def test_what_is_switched_off_stays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the standard library's own switches."""
    for switch in ("logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, switch, False)
    record = _record()
    off = (record.thread, record.threadName, record.process, record.processName)
    assert (None, None, None, None) == off


def test_loggers_make_such_records(factory: None) -> None:
    """Unless somebody else's factory is there."""
    logging.setLogRecordFactory(logging.LogRecord)
    log_record.install()
    assert LineRecord is type(_made())
    other = type("OtherRecord", (logging.LogRecord,), {})
    logging.setLogRecordFactory(other)
    log_record.install()
    assert other is type(_made())


def test_an_unknown_attribute_of_a_later_python_is_not_lost(
    factory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The standard library's records are kept then."""
    logging.setLogRecordFactory(logging.LogRecord)
    monkeypatch.setattr(log_record, "_HAS_TASKS", not log_record._HAS_TASKS)
    monkeypatch.setattr(log_record, "_task_name", lambda: None)
    log_record.install()
    assert logging.LogRecord is type(_made())


def _record() -> LineRecord:
    return LineRecord("name", logging.INFO, "/a/b.py", 1, "text", (), None)


def _made() -> logging.LogRecord:
    return logging.getLogger("tests").makeRecord("n", logging.INFO, "f.py", 1, "m", (), None)
