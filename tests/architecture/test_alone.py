"""The check after each test sees what a test leaves behind, and puts back what the product has set up."""

import logging
import threading
from pathlib import Path

import pytest
import structlog

from orchestrator import journal
from shared.telemetry import logs
from tests import alone


def test_what_a_test_has_changed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thing, with what it was."""
    monkeypatch.setenv("SAGA_HOME", "before")
    before = alone._compared()
    monkeypatch.setenv("SAGA_HOME", "after")
    monkeypatch.chdir(tmp_path)
    with structlog.contextvars.bound_contextvars(request="r-1"):
        after = alone._compared()
    environment, folder, context = alone._differences(before, after)
    assert environment == "environment: SAGA_HOME was 'before' and is 'after'"
    assert folder.startswith("folder: was ")
    assert context == "context of log lines: request was None and is 'r-1'"


def test_a_thread_that_goes_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more once it has ended."""
    monkeypatch.setattr(alone, "_THREADS_GONE_WITHIN_SECONDS", 0)
    before = set(threading.enumerate())
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="left")
    thread.start()
    assert ["left"] == alone._threads_left(before)
    over.set()
    thread.join()
    assert [] == alone._threads_left(before)


def test_logs_are_as_if_nobody_had_set_them_up(tmp_path: Path) -> None:
    """Also the loggers that were made meanwhile: they would go on with what they were made of."""
    root = logging.getLogger()
    handlers, level, record = root.handlers[:], root.level, logging.getLogRecordFactory()
    before = alone._Logging()
    logs.configure("svc", level="DEBUG", log_dir=tmp_path)
    journal.log.info("made")
    assert "bind" in vars(journal.log)
    before.put_back()
    assert "bind" not in vars(journal.log)
    assert not structlog.is_configured()
    assert (handlers, level, record) == (root.handlers, root.level, logging.getLogRecordFactory())
