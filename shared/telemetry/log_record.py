"""The standard library's log record, at a third of its cost.

Of the time of a line a quarter went into making its record: its file's name was taken apart again
each time, by five functions of `posixpath`, and from Python 3.12 on an exception said that no
asyncio task is running. Records of ours have the same attributes with the same values.
"""

import collections.abc
import logging
import os
import sys
import threading
from functools import lru_cache
from typing import Any, Final

from typing_extensions import override

from shared.clock import unix_time

_FILES_REMEMBERED_MAX: Final = 4096


class LineRecord(logging.LogRecord):
    """As `logging.LogRecord`, whose arguments it takes."""

    @override
    def __init__(
        self,
        name: str,
        level: int,
        pathname: str,
        lineno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        sinfo: str | None = None,
        **_: Any,
    ) -> None:
        # Not the base's own, whose work this is.
        created = unix_time()
        if args and len(args) == 1 and _is_mapping(args[0]) and args[0]:
            args = args[0]
        self.name = name
        self.msg = msg
        self.args = args
        self.levelname = logging.getLevelName(level)
        self.levelno = level
        self.pathname = pathname
        self.filename, self.module = _file(pathname)
        self.exc_info = exc_info
        self.exc_text = None
        self.stack_info = sinfo
        self.lineno = lineno
        self.funcName = func  # type: ignore[assignment]  # the stubs of its argument allow None
        self.created = created
        self.msecs = int((created - int(created)) * 1000) + 0.0
        self.relativeCreated = (created - _STARTED_AT) * 1000
        self.thread = threading.get_ident() if logging.logThreads else None
        self.threadName = threading.current_thread().name if logging.logThreads else None
        self.processName = _process_name() if logging.logMultiprocessing else None
        self.process = _pid if logging.logProcesses else None
        if _HAS_TASKS:
            self.taskName = _task_name()


def install() -> None:
    """Have all loggers make such records, unless somebody else has a say in it.

    Does nothing either where the standard library's have attributes that are not known here.
    """
    if logging.getLogRecordFactory() is not logging.LogRecord:
        return
    if vars(logging.LogRecord(*_ANY)).keys() == vars(LineRecord(*_ANY)).keys():
        logging.setLogRecordFactory(LineRecord)


@lru_cache(maxsize=_FILES_REMEMBERED_MAX)
def _file(pathname: str) -> tuple[str, str]:
    """Name and module of a source file, as the standard library has them."""
    record = logging.LogRecord("", logging.INFO, pathname, 0, "", (), None)
    return record.filename, record.module


def _is_mapping(value: object) -> bool:
    return type(value) is dict or isinstance(value, collections.abc.Mapping)


def _process_name() -> str:
    processes = sys.modules.get("multiprocessing")
    return processes.current_process().name if processes else "MainProcess"


def _task_name() -> str | None:
    asyncio, wanted = sys.modules.get("asyncio"), getattr(logging, "logAsyncioTasks", False)
    # Asked first, because `current_task` raises where no loop runs: nearly everywhere.
    if asyncio is None or not wanted or asyncio._get_running_loop() is None:  # noqa: SLF001
        return None
    task = asyncio.current_task()
    return task.get_name() if task is not None else None


def _forked() -> None:
    global _pid  # noqa: PLW0603 - a process has one
    _pid = os.getpid()


_pid = os.getpid()
"""Not asked for at each record: that is a call of the system, as expensive as all the rest."""

os.register_at_fork(after_in_child=_forked)

_ANY: Final = ("", logging.INFO, "", 0, "", (), None)
_HAS_TASKS: Final = hasattr(logging, "logAsyncioTasks")
_first: Final = logging.LogRecord(*_ANY)
_STARTED_AT: Final = _first.created - _first.relativeCreated / 1000
