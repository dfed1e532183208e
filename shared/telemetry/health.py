"""Says once that the export of spans fails, and once that it works again."""

import logging
from typing import Final

import structlog
from typing_extensions import override

_EXPORTER_LOGGERS: Final = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
)

_log = structlog.stdlib.get_logger(__name__)


class ExportHealth:
    """Whether exports succeed; one log line for each change, in place of the exporters' own.

    Args:
        protocol: How spans are exported.
        where: Endpoint or folder, for the log.
    """

    def __init__(self, protocol: str, where: str) -> None:
        self._protocol = protocol
        self._where = where
        self._failing = False
        self._lost = 0
        self._heard = _LastComplaint()
        for name in _EXPORTER_LOGGERS:
            # Before the exporter's own filter, which swallows what it has said lately.
            logging.getLogger(name).filters.insert(0, self._heard)

    def complain(self, reason: str) -> None:
        """Keep a reason for the log, which the exporter did not log itself."""
        self._heard.text = reason

    def fails(self, spans: int) -> None:
        """That many spans were lost."""
        self._lost += spans
        if not self._failing:
            self._failing = True
            _log.warning(
                "telemetry.export_failing",
                protocol=self._protocol,
                endpoint=self._where,
                reason=self._heard.text,
            )

    def works(self) -> None:
        """Spans have arrived."""
        if self._failing:
            self._failing = False
            _log.warning("telemetry.export_recovered", endpoint=self._where, spans_lost=self._lost)
            self._lost = 0

    def close(self) -> None:
        """Let the exporters log again."""
        for name in _EXPORTER_LOGGERS:
            logging.getLogger(name).removeFilter(self._heard)


class _LastComplaint(logging.Filter):
    """Keeps the exporters' lines, several for each failure, from becoming a storm."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        self.text = record.getMessage()
        return False
