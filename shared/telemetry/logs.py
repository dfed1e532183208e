"""Logs: one JSON object a line, from our code, from Celery and from every library alike.

Each line carries what it belongs to: the saga, step and attempt that are bound to the running code
(`saga_context`, `bind`), the ids of the current span or, without one, of the bound trace, and, for
a line that names a Celery task outside of it, what `remember_task` knows about that task.

All processes of a service share a file, forked children included (`log_file`).
"""

import logging
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeGuard

import structlog
from opentelemetry import trace
from opentelemetry.context import Context, get_current
from typing_extensions import override

from shared.errors import ConfigurationError
from shared.settings import Settings
from shared.telemetry import log_line, log_record, names
from shared.telemetry.log_config import LogExportConfig
from shared.telemetry.log_file import LogFile, Rotation
from shared.telemetry.outlet import OutletStats
from shared.telemetry.propagation import extract

SUFFIX: Final = ".jsonl"
TASKS_REMEMBERED_MAX: Final = 4096

_STDOUT: Final = 1
_ROTATION: Final = Rotation()
_NOTHING: Final[Mapping[str, Any]] = {}
_NO_MAPPING: Final = frozenset({type(None), tuple})
_BOUND_KEYS: Final = (
    *names.LOG_SAGA_KEYS,
    names.LOG_TASK_ID,
    names.LOG_TASK_NAME,
    names.LOG_REQUEST_ID,
)

_PROCESSORS: Final = [log_line.wrap]
"""One list for every set-up: loggers keep it, and whoever captures their lines changes what is in
it. The work of other processors is done by `LineLogger`."""

_exporter: Any = None
_bound: ContextVar[Mapping[str, Any]] = ContextVar("saga_log_context", default=_NOTHING)
_tasks: OrderedDict[str, Mapping[str, Any]] = OrderedDict()


def configure(
    service: str,
    *,
    level: str | int = "INFO",
    log_dir: Path | None = None,
    file: Path | None = None,
    fd: int = _STDOUT,
    also_fd: bool = False,
    json: bool = True,
    rotation: Rotation = _ROTATION,
) -> None:
    """Send every log line of this process to one place, in place of whatever was set up before.

    Args:
        service: The key ``service`` of every line, and the name of the file.
        level: Level of the root logger.
        log_dir: Folder of the file ``<service>.jsonl``; None for the file descriptor `fd`.
        file: A file of another name, in place of the one in `log_dir`.
        fd: Where lines go without a folder and a file; 1 is standard output, 2 standard error.
        also_fd: Lines go to `fd` besides the file.
        json: False for lines at `fd` that people read at a terminal; a file is JSON always, so
            that it can be searched.
        rotation: When the file is put aside, and how many are kept.

    Raises:
        OSError: The folder cannot be written.
    """
    path = file or (log_dir / f"{service}{SUFFIX}" if log_dir is not None else None)
    handlers: list[_LineHandler] = []
    if path is not None:
        handlers.append(_FileHandler(LogFile(path, rotation), _renderer(service, json=True)))
    if path is None or also_fd:
        handlers.append(_LineHandler(partial(_write_all, fd), _renderer(service, json=json)))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        if isinstance(old, _LineHandler):
            old.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(capture=True)
    log_record.install()
    structlog.configure(
        processors=_PROCESSORS,
        wrapper_class=log_line.LineLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def configure_from(
    settings: Settings,
    service: str,
    *,
    level: str | int | None = None,
    file: Path | None = None,
) -> None:
    """Send the log lines of a process that serves where the settings say.

    Args:
        settings: Folder, level, format and rotation.
        service: As for `configure`.
        level: In place of the one in the settings.
        file: In place of the one in the settings' folder.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    try:
        configure(
            service,
            level=settings.log_level if level is None else level,
            log_dir=settings.log_dir,
            file=file,
            also_fd=settings.log_stdout,
            json=settings.log_format == "json",
            rotation=rotation_of(settings),
        )
    except OSError as error:
        if file is None:
            raise not_writable(f"SAGA_LOG_DIR={settings.log_dir}", error) from error
        raise not_writable(f"--logfile {file}", error) from error


def not_writable(setting: str, error: OSError) -> ConfigurationError:
    """Where no log file can be written.

    Args:
        setting: What says so, with its value.
        error: What the operating system says.
    """
    return ConfigurationError(
        f"{setting}: no log file can be written there: {error.strerror or error}.",
        hint="Make the folder writable for this user, or name another one.",
    )


def export(config: LogExportConfig) -> None:
    """Send the lines of this process to a collector, too; to be called after `configure`."""
    global _exporter  # noqa: PLW0603 - a process has one
    # The SDK is imported only where it is used.
    from shared.telemetry import log_export

    log_export.start(config)
    _exporter = log_export


def end_export(meanwhile: Callable[[], object] = lambda: None) -> None:
    """Hand over the last lines, if they are exported at all.

    Args:
        meanwhile: Something else that takes time at the end; both together have the limit of the
            configuration.
    """
    if _exporter is None:
        meanwhile()
    else:
        _exporter.shutdown_during(meanwhile)


def export_stats() -> OutletStats:
    """Log records of this process for a collector: exported, failed, dropped, waiting."""
    stats: OutletStats = OutletStats() if _exporter is None else _exporter.stats()
    return stats


def rotation_of(settings: Settings) -> Rotation:
    """When the settings want a file put aside."""
    return Rotation(
        bytes_max=settings.log_file_bytes_max,
        every=settings.log_rotate_every,
        files_max=settings.log_files_max,
    )


def context_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The log context in the headers of a message, or in any fields of the same names.

    Args:
        fields: Headers (``saga_id``, ``traceparent``, …), or the log keys themselves.

    Returns:
        Only what `fields` has; ids of the trace come from ``traceparent`` where there is one.
    """
    found = {key: fields[key] for key in _BOUND_KEYS if fields.get(key) is not None}
    parent, _ = extract(fields, count=False)
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


class _LineHandler(logging.Handler):
    """Hands each line over in one piece."""

    def __init__(
        self, write: Callable[[bytes], None], render: Callable[[logging.LogRecord], bytes]
    ) -> None:
        super().__init__()
        self._write = write
        self._render = render
        self._lost = 0

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._write(self._render(record) + b"\n")
        except RecursionError:
            raise
        except OSError as error:
            if not self._lost:
                _say(f"Log lines cannot be written, and are lost until they can: {error}")
            self._lost += 1
        except Exception:  # noqa: BLE001 - as in the standard handlers: a line never stops work
            self.handleError(record)
        else:
            if self._lost:
                _say(f"Log lines can be written again; {self._lost} were lost.")
                self._lost = 0


class _FileHandler(_LineHandler):
    """Writes to a file that other processes write to as well."""

    def __init__(self, file: LogFile, render: Callable[[logging.LogRecord], bytes]) -> None:
        super().__init__(file.write, render)
        self._file = file

    @override
    def close(self) -> None:
        self._file.close()
        super().close()


def _say(text: str) -> None:
    """Tell a person, once: a traceback for each line, as the standard handlers have, would flood."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # it is full, or closed, too
            sys.stderr.write(f"{text}\n")


def _write_all(fd: int, line: bytes) -> None:
    written = os.write(fd, line)
    while written < len(line):
        written += os.write(fd, line[written:])


def line(service: str) -> log_line.Line:
    """What a line of this process says, for a handler that does not write lines.

    Args:
        service: As for `configure`.
    """
    return log_line.Line(service, _context)


def _renderer(service: str, *, json: bool) -> Callable[[logging.LogRecord], bytes]:
    described = line(service)
    if json:
        return described.as_json
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[described.described, structlog.dev.ConsoleRenderer(sort_keys=False)],
        pass_foreign_args=True,
    )
    return lambda record: formatter.format(record).encode("utf-8", "backslashreplace")


def _context(record: logging.LogRecord, positional: object) -> Mapping[str, Any]:
    data = getattr(record, "data", None)  # Celery: `extra={"data": …}` on lines about a task
    if not _is_mapping(data):
        data = positional if _is_mapping(positional) else None
    if data is not None and "id" in data and "name" in data:
        about = {names.LOG_TASK_ID: data["id"], names.LOG_TASK_NAME: data["name"]}
        known = _tasks.get(str(data["id"]))
        if known is None:
            known = _bound.get()
            if about.items() <= known.items():
                return _current().context
        return {**known, **about, **_current().ids}
    if _tasks and isinstance(positional, tuple):
        task_id = next((one for one in positional if isinstance(one, str) and one in _tasks), None)
        if task_id is not None:
            return {**_tasks[task_id], names.LOG_TASK_ID: task_id, **_current().ids}
    return _current().context


class _Current(NamedTuple):
    """What a line says that is written now, and what that follows from."""

    bound: Mapping[str, Any]
    around: Context
    span: trace.Span
    ids: Mapping[str, Any]
    context: Mapping[str, Any]


def _current() -> _Current:
    """The same for line after line, of which most tasks write some: it is not made anew for each."""
    global _last  # noqa: PLW0603 - a process has one
    bound, around, last = _bound.get(), get_current(), _last
    if (
        last.bound is bound
        and last.around is around
        and last.span.is_recording() == bool(last.ids)
    ):
        return last
    span = trace.get_current_span(around)
    ids: Mapping[str, Any] = _NOTHING
    if span.is_recording():
        found = span.get_span_context()
        ids = {
            names.LOG_TRACE_ID: trace.format_trace_id(found.trace_id),
            names.LOG_SPAN_ID: trace.format_span_id(found.span_id),
        }
    _last = _Current(bound, around, span, ids, {**bound, **ids} if ids else bound)
    return _last


_last = _Current(_NOTHING, Context(), trace.INVALID_SPAN, _NOTHING, _NOTHING)


def _is_mapping(value: object) -> TypeGuard[Mapping[Any, Any]]:
    """`isinstance`, of which the usual answers are quicker."""
    kind = type(value)
    return kind is dict or (kind not in _NO_MAPPING and isinstance(value, Mapping))
