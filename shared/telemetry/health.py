"""Says once that the export of spans or log records fails, and once that it works again."""

import logging
from typing import Final

import structlog
from typing_extensions import override

_EXPORTER_LOGGERS: Final = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http._log_exporter",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
)

_log = structlog.stdlib.get_logger(__name__)


class ExportHealth:
    """Whether exports succeed; one log line for each change, in place of the exporters' own.

    Args:
        protocol: How they are exported.
        where: Endpoint or folder, for the log.
        signal: What is exported.
    """

    def __init__(self, protocol: str, where: str, *, signal: str = "spans") -> None:
        self._protocol = protocol
        self._signal = signal
        self._where = where
        self._failing = False
        self._lost = 0
        self._heard = _LastComplaint()
        for name in _EXPORTER_LOGGERS:
            # Before the exporter's own filter, which swallows what it has said lately.
            logging.getLogger(name).filters.insert(0, self._heard)

    @property
    def reason(self) -> str:
        """The last complaint of an exporter."""
        return self._heard.text

    def complain(self, reason: str) -> None:
        """Keep a reason for the log, which the exporter did not log itself."""
        self._heard.text = reason

    def fails(self, count: int) -> None:
        """That many were lost."""
        self._lost += count
        if not self._failing:
            self._failing = True
            _log.warning(
                "telemetry.export_failing",
                signal=self._signal,
                protocol=self._protocol,
                endpoint=self._where,
                reason=self._heard.text,
            )

    def works(self) -> None:
        """They have arrived."""
        if self._failing:
            self._failing = False
            _log.warning(
                "telemetry.export_recovered",
                signal=self._signal,
                endpoint=self._where,
                **{f"{self._signal}_lost": self._lost},
            )
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
