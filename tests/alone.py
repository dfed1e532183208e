"""What tests of one process share, and no test may see of another.

What the product sets up once for a process (structlog, the root logger, settings that were read) is put
back after each test. What only a test can have changed (the environment, the folder, handlers of
signals, the current trace) is compared: a test that leaves it changed fails, and not the one that
happens to run after it.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, Final

import pytest
import structlog
from opentelemetry import context

from shared.claims import claims
from shared.sealing import ring
from shared.settings import settings
from shared.telemetry import propagation, redaction
from tests.waiting import wait_until

_OURS: Final = ("orchestrator", "shared", "workers", "tests")
_LAZY_LOGGER: Final = type(structlog.get_logger())
# Not SIGALRM, which belongs to pytest-timeout.
_SIGNALS: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGCHLD,
    signal.SIGPIPE,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_THREADS_GONE_WITHIN_SECONDS: Final = 20.0
_THREADS_THAT_MAY_STAY: Final = ("AnyIO worker thread", "saga-answers")
"""Those of a loop end when it is collected; the reader of an app's answers lives as long as the app, which
a file's tests may share."""


@pytest.fixture(autouse=True)
def alone_in_the_process() -> Iterator[None]:
    """Each test finds the process as if it were the first one."""
    logging_before, before = _Logging(), _compared()
    names, ways = redaction._active, propagation._active
    threads = set(threading.enumerate())
    yield
    logging_before.put_back()
    redaction._active, propagation._active = names, ways
    for cached in (settings, ring, claims):
        if cached.cache_info().currsize:
            cached.cache_clear()
    after = _compared()
    if after != before:
        pytest.fail(f"left behind by the test: {'; '.join(_differences(before, after))}")
    left = _threads_left(threads)
    assert not left, f"threads left behind by the test: {left}"


class _Logging:
    """How log lines are made and where they go, of which a process has one."""

    def __init__(self) -> None:
        root = logging.getLogger()
        self._handlers, self._level = root.handlers[:], root.level
        self._record = logging.getLogRecordFactory()

    def put_back(self) -> None:
        """Undo `shared.telemetry.logs.configure`, if the test has called it."""
        if not structlog.is_configured():
            return
        structlog.reset_defaults()
        _forget_made_loggers()
        root = logging.getLogger()
        for handler in root.handlers[:]:
            if handler not in self._handlers:
                root.removeHandler(handler)
                handler.close()
        for handler in self._handlers:
            root.addHandler(handler)
        root.setLevel(self._level)
        logging.captureWarnings(capture=False)
        logging.setLogRecordFactory(self._record)


def _forget_made_loggers() -> None:
    """Let every module's logger be made anew, with its next line.

    structlog gives no list of them: they are looked for where they stand.
    """
    for name, module in [*sys.modules.items()]:
        if name.startswith(_OURS):
            for value in [*getattr(module, "__dict__", {}).values()]:
                if type(value) is _LAZY_LOGGER:
                    vars(value).pop("bind", None)


def _compared() -> dict[str, Any]:
    return {
        "environment": {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
        "folder": os.getcwd(),  # noqa: PTH109 - before and after each test: a Path costs more
        "path of imports": sys.path[:],
        "handlers of signals": {one.name: signal.getsignal(one) for one in _SIGNALS},
        "context of traces": dict(context.get_current()),
        "context of log lines": structlog.contextvars.get_contextvars(),
    }


def _differences(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    for what, was in before.items():
        now = after[what]
        if isinstance(was, dict):
            for key in sorted({*was, *now}):
                if was.get(key) != now.get(key):
                    yield f"{what}: {key} was {was.get(key)!r} and is {now.get(key)!r}"
        elif was != now:
            yield f"{what}: was {was!r} and is {now!r}"


def _threads_left(before: set[threading.Thread]) -> list[str]:
    def left() -> list[str]:
        return [
            one.name
            for one in threading.enumerate()
            if one not in before and not one.name.startswith(_THREADS_THAT_MAY_STAY)
        ]

    try:
        wait_until(lambda: not left(), timeout=_THREADS_GONE_WITHIN_SECONDS)
    except AssertionError:
        return left()
    return []
