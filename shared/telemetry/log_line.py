"""A log record as a line, and the loggers that make records: the parts that run for every line.

structlog's `ProcessorFormatter` copies the record, and its loggers run a chain of processors and
look for the caller through all frames: 65 microseconds of CPU a line together, against 20 here, and
each is twice or three times as much in a process that does something else between two lines. A step
writes six of them. The lines are the same, and so is what other handlers get to see.
"""

import json as standard_json
import logging
import socket
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import structlog
from structlog.typing import EventDict, WrappedLogger
from typing_extensions import override

from shared.telemetry import names
from shared.telemetry.current import error_type, text_of
from shared.telemetry.redaction import redacted_fields, redacted_text

Context = Callable[[logging.LogRecord, object], Mapping[str, Any]]
"""What a record belongs to, by the record and its positional arguments."""

_HOSTNAME: Final = socket.gethostname()
_EXCEPTION: Final = "exc_info"
_STACK: Final = "stack_info"
_POSITIONAL: Final = "positional_args"
_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "exception": logging.ERROR,
    "critical": logging.CRITICAL,
    "notset": logging.NOTSET,
}
_FRAMES: Final = 2
"""From `LineLogger._proxy_to_logger` over `info` and its like to whoever logs."""

_bound_by_structlog: Final = getattr(structlog.contextvars, "_CONTEXT_VARS", (True,))
"""Empty for as long as nobody has bound anything by structlog's own means; private, so not relied on."""

_with_stack: Final = structlog.processors.StackInfoRenderer()
wrap: Final = structlog.stdlib.ProcessorFormatter.wrap_for_formatter


class LineLogger(structlog.stdlib.BoundLogger):
    """structlog's logger, which makes the record itself where the processors are `wrap` alone."""

    @override
    def _proxy_to_logger(
        self, method_name: str, event: str | None = None, *event_args: Any, **event_kw: Any
    ) -> Any:
        # A test may capture events by a processor of its own.
        if self._processors[0] is not wrap:  # type: ignore[index]  # a list, which the stubs deny
            return super()._proxy_to_logger(method_name, event, *event_args, **event_kw)
        logger, level = self._logger, _LEVELS[method_name]
        if not logger.isEnabledFor(level):
            return None
        if event_args:
            event = _filled_in(str(event), event_args)
        fields: EventDict = {**self._context, **event_kw, "event": event}
        if _bound_by_structlog:
            fields = structlog.contextvars.merge_contextvars(logger, method_name, fields)
        if _STACK in fields:
            fields = _with_stack(logger, method_name, fields)
        caller = sys._getframe(_FRAMES)  # noqa: SLF001 - as the standard library does
        code = caller.f_code
        error: Any = sys.exc_info() if method_name == "exception" else None
        record: Any = logger.makeRecord(
            logger.name, level, code.co_filename, caller.f_lineno, "", (), error, code.co_name
        )
        # As `wrap_for_formatter` leaves it for structlog's own formatter.
        record.msg = fields
        record._logger, record._name = logger, method_name  # noqa: SLF001
        logger.handle(record)
        return None


class Line:
    """What a record says, in the order of a line.

    Args:
        service: The key ``service``.
        context: Gives what the record belongs to.
    """

    def __init__(self, service: str, context: Context) -> None:
        self._service = service
        self._context = context
        self._process = (0, "")
        self._second = (-1, "")

    def as_json(self, record: logging.LogRecord) -> bytes:
        """A record as JSON, whatever it holds."""
        return _encoded(self.fields(record))

    def fields(self, record: logging.LogRecord) -> EventDict:
        """A record as keys and values: of structlog's or of the standard library's making."""
        if hasattr(record, "_logger"):
            fields: Any = record.msg
            return self._described(record, fields, None)
        event: EventDict = {"event": record.getMessage()}
        if record.exc_info:
            event[_EXCEPTION] = record.exc_info
        if record.stack_info:
            event[_STACK] = record.stack_info
        return self._described(record, event, record.args)

    def explained(self, record: logging.LogRecord) -> EventDict:
        """The same with its exception as text, and the exception's type beside it."""
        line = self.fields(record)
        given = line.get(_EXCEPTION)
        error = given[1] if isinstance(given, tuple) else given
        if error is True:
            error = sys.exc_info()[1]
        if isinstance(error, BaseException):
            line[names.EXCEPTION_TYPE] = error_type(error)
        return _with_exception(line)

    def described(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """The same as a processor of structlog's own formatter, for lines that people read."""
        record = event.pop("_record")
        event.pop("_from_structlog")
        event = _with_exception(event)
        return self._described(record, event, event.pop(_POSITIONAL, None))

    def _described(
        self, record: logging.LogRecord, event: Mapping[str, Any], positional: object
    ) -> EventDict:
        return {
            names.LOG_TIMESTAMP: self._moment(record.created),
            names.LOG_LEVEL: record.levelname.lower(),
            names.LOG_EVENT: "",
            names.LOG_LOGGER: record.name,
            names.LOG_SERVICE: self._service,
            **self._context(record, positional),
            **redacted_fields(event),
            names.LOG_HOSTNAME: _HOSTNAME,
            names.LOG_PID: record.process,
            names.LOG_PROCESS: self._process_name(record),
        }

    def _moment(self, created: float) -> str:
        second, micros = divmod(round(created * 1_000_000), 1_000_000)
        known, text = self._second
        if second != known:
            text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = (second, text)
        return f"{text}.{micros:06}Z"

    def _process_name(self, record: logging.LogRecord) -> str:
        pid = record.process or 0
        if self._process[0] != pid:
            # Celery's children belong to billiard; the standard library takes them for the parent.
            billiard = sys.modules.get("billiard.process")
            name = billiard.current_process().name if billiard else record.processName or ""
            self._process = (pid, name)
        return self._process[1]


def _filled_in(event: str, positional: tuple[Any, ...]) -> str:
    """The event with its arguments, as the standard library does it."""
    # A single mapping is for names in the text.
    named = len(positional) == 1 and isinstance(positional[0], Mapping) and positional[0]
    return event % (positional[0] if named else positional)


def _with_exception(line: EventDict) -> EventDict:
    """The same with its exception as text."""
    line = structlog.processors.format_exc_info(None, "", line)
    if names.LOG_EXCEPTION in line:
        line[names.LOG_EXCEPTION] = redacted_text(str(line[names.LOG_EXCEPTION]))
    return line


def _encoded(line: EventDict) -> bytes:
    if _EXCEPTION in line:
        line = _with_exception(line)
    try:
        return _encode(line)
    except (TypeError, ValueError, RecursionError, OverflowError):
        # What the strict encoder refuses (odd keys, lone surrogates) still makes a line.
        text = standard_json.dumps(
            line, default=text_of, skipkeys=True, separators=(",", ":"), ensure_ascii=False
        )
        return text.encode("utf-8", "replace")


_encode: Final = msgspec.json.Encoder(enc_hook=text_of).encode
