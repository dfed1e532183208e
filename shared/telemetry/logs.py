"""Logs: one JSON object a line, from our code, from Celery and from every library alike.

Each line carries what it belongs to: the saga, step and attempt that are bound to the running code
(`saga_context`, `bind`), the ids of the current span or, without one, of the bound trace, and, for
a line that names a Celery task outside of it, what `remember_task` knows about that task.

A line is one write to a file opened for appending, so all processes of a service share a file, a
forked child included, and lines never mix.
"""

import json as standard_json
import logging
import os
import socket
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor, WrappedLogger
from typing_extensions import override

from shared.telemetry import names
from shared.telemetry.propagation import extract

SUFFIX: Final = ".jsonl"
TASKS_REMEMBERED_MAX: Final = 4096

_STDOUT: Final = 1
_HOSTNAME: Final = socket.gethostname()
_NOTHING: Final[Mapping[str, Any]] = {}
_BOUND_KEYS: Final = (
    *names.LOG_SAGA_KEYS,
    names.LOG_TASK_ID,
    names.LOG_TASK_NAME,
    names.LOG_REQUEST_ID,
)

_bound: ContextVar[Mapping[str, Any]] = ContextVar("saga_log_context", default=_NOTHING)
_tasks: OrderedDict[str, Mapping[str, Any]] = OrderedDict()


def configure(
    service: str,
    *,
    level: str | int = "INFO",
    log_dir: Path | None = None,
    file: Path | None = None,
    fd: int = _STDOUT,
    json: bool = True,
) -> None:
    """Send every log line of this process to one place, in place of whatever was set up before.

    Args:
        service: The key ``service`` of every line, and the name of the file.
        level: Level of the root logger.
        log_dir: Folder of the file ``<service>.jsonl``; None for the file descriptor `fd`.
        file: A file of another name, in place of the one in `log_dir`.
        fd: Where lines go without a folder and a file; 1 is standard output, 2 standard error.
        json: False for lines that people read at a terminal.

    Raises:
        OSError: The folder cannot be written.
    """
    path = file or (log_dir / f"{service}{SUFFIX}" if log_dir is not None else None)
    handler = _LineHandler(path, fd)
    handler.setFormatter(_formatter(service, json=json))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        if isinstance(old, _LineHandler):
            old.close()
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def context_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The log context in the headers of a message, or in any fields of the same names.

    Args:
        fields: Headers (``saga_id``, ``traceparent``, …), or the log keys themselves.

    Returns:
        Only what `fields` has; ids of the trace come from ``traceparent`` where there is one.
    """
    found = {key: fields[key] for key in _BOUND_KEYS if fields.get(key) is not None}
    parent, _ = extract(fields)
    if parent is not None:
        found[names.LOG_TRACE_ID] = parent.trace_id
        found[names.LOG_SPAN_ID] = parent.span_id
    for key in (names.LOG_TRACE_ID, names.LOG_SPAN_ID):
        if fields.get(key):
            found[key] = fields[key]
    return found


@contextmanager
def saga_context(fields: Mapping[str, Any]) -> Iterator[None]:
    """Bind the log context in some headers or fields to the code of a ``with`` block."""
    token = bind(fields)
    try:
        yield
    finally:
        unbind(token)


def bind(fields: Mapping[str, Any]) -> Token[Mapping[str, Any]]:
    """Bind the log context in some headers or fields; for code that `saga_context` cannot wrap.

    Returns:
        What `unbind` needs, in the same thread or greenlet.
    """
    return _bound.set({**_bound.get(), **context_of(fields)})


def unbind(token: Token[Mapping[str, Any]]) -> None:
    """Put back what was bound before; a token of another thread is ignored."""
    with suppress(ValueError, RuntimeError):
        _bound.reset(token)


def bound() -> Mapping[str, Any]:
    """What is bound to the running code."""
    return _bound.get()


def remember_task(task_id: str, headers: Mapping[str, Any]) -> None:
    """Remember which saga a task belongs to, for lines that name the task outside of it.

    A worker's main process logs about tasks ("received", "killed") that run in another process.
    The newest `TASKS_REMEMBERED_MAX` are kept.
    """
    _tasks[task_id] = context_of(headers)
    while len(_tasks) > TASKS_REMEMBERED_MAX:
        with suppress(KeyError):  # another thread was faster
            _tasks.popitem(last=False)


def forget_task(task_id: str) -> None:
    """Forget a task that has ended."""
    _tasks.pop(task_id, None)


class _LineHandler(logging.Handler):
    """Writes each line with one system call; follows a file that was moved away by logrotate."""

    def __init__(self, path: Path | None, fd: int) -> None:
        super().__init__()
        self._path = path
        self._fd = fd
        self._inode = (0, 0)
        if path is not None:
            self._open(path)

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = memoryview(self.format(record).encode("utf-8", "backslashreplace") + b"\n")
            if self._path is not None:
                self._follow(self._path)
            while line:
                line = line[os.write(self._fd, line) :]
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001 - as in the standard handlers: a line never stops work
            self.handleError(record)

    @override
    def close(self) -> None:
        if self._path is not None and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        super().close()

    def _follow(self, path: Path) -> None:
        try:
            found = path.stat()
        except FileNotFoundError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._inode:
            os.close(self._fd)
            self._open(path)

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        found = os.fstat(self._fd)
        self._inode = (found.st_dev, found.st_ino)


def _formatter(service: str, *, json: bool) -> structlog.stdlib.ProcessorFormatter:
    end: list[Processor] = (
        [structlog.processors.format_exc_info, _to_json]
        if json
        else [structlog.dev.ConsoleRenderer(sort_keys=False)]
    )
    return structlog.stdlib.ProcessorFormatter(
        processors=[_Describe(service), *end], pass_foreign_args=True
    )


class _Describe:
    """Puts the keys that every line has in front, and its context behind them."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._process = (0, "")

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        record: logging.LogRecord = event.pop("_record")
        event.pop("_from_structlog")
        positional = event.pop("positional_args", None)
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        line: EventDict = {
            names.LOG_TIMESTAMP: moment.replace("+00:00", "Z"),
            names.LOG_LEVEL: record.levelname.lower(),
            names.LOG_EVENT: event.pop("event", ""),
            names.LOG_LOGGER: record.name,
            names.LOG_SERVICE: self._service,
            **_context(record, positional),
        }
        line.update(event)
        line[names.LOG_HOSTNAME] = _HOSTNAME
        line[names.LOG_PID] = record.process
        line[names.LOG_PROCESS] = self._process_name(record)
        return line

    def _process_name(self, record: logging.LogRecord) -> str:
        pid = record.process or 0
        if self._process[0] != pid:
            # Celery's children belong to billiard; the standard library takes them for the parent.
            billiard = sys.modules.get("billiard.process")
            name = billiard.current_process().name if billiard else record.processName or ""
            self._process = (pid, name)
        return self._process[1]


def _context(record: logging.LogRecord, positional: object) -> Mapping[str, Any]:
    found = dict(_bound.get())
    data = getattr(record, "data", None)  # Celery: `extra={"data": …}` on lines about a task
    if not isinstance(data, Mapping):
        data = positional if isinstance(positional, Mapping) else None
    if data is not None and "id" in data and "name" in data:
        found = {**_tasks.get(str(data["id"]), found)}
        found[names.LOG_TASK_ID] = data["id"]
        found[names.LOG_TASK_NAME] = data["name"]
    elif _tasks and isinstance(positional, tuple):
        task_id = next((one for one in positional if isinstance(one, str) and one in _tasks), None)
        if task_id is not None:
            found = {**_tasks[task_id], names.LOG_TASK_ID: task_id}
    span = trace.get_current_span()
    if span.is_recording():
        context = span.get_span_context()
        found[names.LOG_TRACE_ID] = trace.format_trace_id(context.trace_id)
        found[names.LOG_SPAN_ID] = trace.format_span_id(context.span_id)
    return found


def _to_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    try:
        return _encoder.encode(event).decode()
    except (TypeError, ValueError, RecursionError, OverflowError):
        # What the strict encoder refuses (odd keys, lone surrogates) still makes a line.
        text = standard_json.dumps(
            event, default=_text, skipkeys=True, separators=(",", ":"), ensure_ascii=False
        )
        return text.encode("utf-8", "replace").decode()


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - somebody else's method, and only a log line
        return f"<{type(value).__name__} whose text raises {type(error).__name__}>"


_encoder = msgspec.json.Encoder(enc_hook=_text)
