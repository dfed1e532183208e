"""Our loggers and lines beside structlog's own, which are slower."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import structlog
from structlog.stdlib import BoundLogger
from structlog.typing import EventDict, WrappedLogger
from typing_extensions import override

from shared.telemetry import log_line
from shared.telemetry.current import text_of

Say = Callable[[BoundLogger], object]


class Records(logging.Handler):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def records() -> Iterator[Records]:
    """The records of a logger of its own."""
    handler = Records()
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    yield handler
    LOGGER.removeHandler(handler)


LOGGER = structlog.stdlib.LoggerFactory()("tests.line")
LINE = log_line.Line("test-service", lambda record, positional: {"bound": "context"})
OURS = log_line.LineLogger(LOGGER, [log_line.wrap], {"mine": 1})
THEIRS = BoundLogger(
    LOGGER,
    [
        structlog.stdlib.filter_by_level,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.StackInfoRenderer(),
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    {"mine": 1},
)


def _rendered(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    return json.dumps(event, default=text_of)


FORMATTER = structlog.stdlib.ProcessorFormatter(
    processors=[LINE.described, structlog.processors.format_exc_info, _rendered],
    pass_foreign_args=True,
)


def failing(say: Say) -> Say:
    """Say it while an error is being handled."""

    def said(logger: BoundLogger) -> None:
        try:
            raise ValueError("broken")
        except ValueError:
            say(logger)

    return said


def line_of(record: logging.LogRecord, raw: bytes | str) -> Mapping[str, Any]:
    """A line without what differs from one record to the next."""
    line: dict[str, Any] = json.loads(raw)
    del line["timestamp"]
    for key in ("exception", "stack"):
        if key in line:
            line[key] = line[key].splitlines()[0]
    return line | {"funcName": record.funcName, "file": record.filename, "no": record.lineno}


EVENTS: Mapping[str, Say] = {
    "fields": lambda logger: logger.info("saga.started", name="x", number=3),
    "arguments": lambda logger: logger.warning("took %d of %s", 3, "five"),
    "named": lambda logger: logger.error("named %(one)s", {"one": 1}),
    "percent": lambda logger: logger.critical("100 %"),
    "by number": lambda logger: logger.log(logging.WARNING, "by number"),
    "bound": lambda logger: logger.bind(more=2).info("bound", mine=7),
    "below the level": lambda logger: logger.debug("not shown"),
    "stack": lambda logger: logger.info("here", stack_info=True),
    "no error": lambda logger: logger.info("no error", exc_info=None),
    "odd": lambda logger: logger.info("odd", key={1: 2}, other=object),
    "exception": failing(lambda logger: logger.exception("failed", kind="x")),  # noqa: LOG004
    "exc_info": failing(lambda logger: logger.warning("failed", exc_info=True)),  # noqa: LOG014
}
LIBRARY: Mapping[str, Callable[[Any], object]] = {
    "plain": lambda logger: logger.info("plain"),
    "arguments": lambda logger: logger.info("took %d of %s", 3, "five"),
    "task": lambda logger: logger.info("Task %(name)s", {"name": "x"}, extra={"data": {"id": 1}}),
    "stack": lambda logger: logger.warning("here", stack_info=True),
    "exception": failing(lambda logger: logger.exception("failed")),  # noqa: LOG004
}


@pytest.mark.parametrize("say", EVENTS.values(), ids=EVENTS)
def test_a_line_is_what_structlogs_own_chain_makes(records: Records, say: Say) -> None:
    """Whatever a logger is asked for, and as other handlers see it."""
    with structlog.contextvars.bound_contextvars(request="r-1"):
        say(OURS)
        say(THEIRS)
    assert len(records.records) in {0, 2}
    if records.records:
        ours, theirs = records.records
        expected = line_of(theirs, FORMATTER.format(theirs))
        assert expected == line_of(ours, LINE.as_json(ours))
        assert expected == line_of(ours, FORMATTER.format(ours))
        assert (ours.exc_info is None) == (theirs.exc_info is None)


@pytest.mark.parametrize("say", LIBRARY.values(), ids=LIBRARY)
def test_a_line_of_a_library_too(records: Records, say: Callable[[Any], object]) -> None:
    """Celery's and everyone's, by the standard library's loggers."""
    say(LOGGER)
    (record,) = records.records
    raw = FORMATTER.format(record)
    assert line_of(record, raw) == line_of(record, LINE.as_json(record))


def test_events_can_be_captured_by_structlogs_own_means() -> None:
    """A test replaces the processors of all loggers."""
    captured = structlog.testing.LogCapture()
    log_line.LineLogger(LOGGER, [captured], {}).info("seen", number=1)
    assert captured.entries == [{"event": "seen", "log_level": "info", "number": 1}]
