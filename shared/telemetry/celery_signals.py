"""Traces, metrics and logs of Celery workers, in every pool.

Everything is set up in the worker's main process, before the pool: a forked child inherits it,
threads and greenlets share it, and a child that is spawned, not forked, comes here by itself. Spans
are recorded through a provider that begins anew after a fork (`setup`).

The process span itself comes from opentelemetry-instrumentation-celery. Our handlers are connected
after its handlers, so that they run after them: the span is there when we name it, and an error is
recorded before we add its type.
"""

import os
from collections.abc import Callable, Mapping
from contextvars import Token
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

import click
import structlog
from celery import Celery, Task, signals
from click.core import ParameterSource
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor

from shared import names as wire
from shared.celery_errors import as_shown
from shared.errors import ConfigurationError
from shared.settings import Settings
from shared.telemetry import current, logs, names, setup
from shared.telemetry.config import tracing_config
from shared.telemetry.log_config import log_export_config
from shared.telemetry.metrics import setup as metrics
from shared.telemetry.metrics.config import metrics_config
from shared.telemetry.sending import trace_sending
from shared.telemetry.spans import AttributeValue, SpanError

_SERVICE_VARIABLE: Final = "SAGA_WORKER_SERVICE"
"""Carries the name of the service to children that are spawned and never see ``-Q``."""

_TOKEN: Final = "saga_log_token"  # noqa: S105 - of a context variable
_LOGGED_HEADERS: Final = (*names.LOG_SAGA_KEYS, wire.TRACEPARENT)
_GIVEN: Final = {ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT}

_log = structlog.stdlib.get_logger(__name__)
_installed: WeakSet[Celery[Any]] = WeakSet()
_active: "_WorkerTelemetry | None" = None


def install_telemetry(app: Celery[Any], service: str, *, settings: Callable[[], Settings]) -> None:
    """Trace what an app sends, and set up telemetry in its workers, once they start.

    Args:
        app: The app; a second call for it does nothing.
        service: ``service.name`` of a worker without exactly one queue (``-Q inventory`` is the
            service ``inventory``); OTEL_SERVICE_NAME wins over both.
        settings: Where logs, traces and metrics go.
    """
    if app in _installed:
        return
    _installed.add(app)
    trace_sending(app)
    telemetry = _WorkerTelemetry(app, service, settings)
    signals.celeryd_init.connect(telemetry.on_worker, weak=False)
    signals.setup_logging.connect(telemetry.on_setup_logging, weak=False)


class _WorkerTelemetry:
    """The handlers of one app; those of the app whose worker runs here become active."""

    def __init__(self, app: Celery[Any], service: str, settings: Callable[[], Settings]) -> None:
        self._app = app
        self._service = os.environ.get(_SERVICE_VARIABLE, service)
        self._settings = settings
        self._started = False
        self._system = ""

    def on_worker(self, instance: Any, options: Mapping[str, Any], **_: Any) -> None:
        """``celeryd_init``: a worker begins; Celery swallows what is raised here."""
        global _active  # noqa: PLW0603 - a process has one worker
        if instance.app is not self._app:
            return
        _active = self
        queues: Any = options.get("queues") or []
        if isinstance(queues, str):
            queues = queues.split(",")
        if len(queues) == 1:
            self._service = queues[0].strip()
        os.environ[_SERVICE_VARIABLE] = self._service
        if self._settings().log_dir is None or self._settings().log_stdout:
            instance.quiet = True  # the banner would stand between the JSON lines

    def on_setup_logging(
        self, loglevel: int | None = None, logfile: str | None = None, **_: Any
    ) -> None:
        """``setup_logging``: before the pool is made; what is raised here ends the worker.

        Answering the signal at all keeps Celery from setting up a format of its own.
        """
        if _active not in {None, self}:
            return
        try:
            settings = self._settings()
            config = tracing_config(self._service, home=settings.home)
            log_export = log_export_config(config)
            metrics_url = metrics.start(metrics_config(config, settings))
            logs.configure_from(
                settings,
                config.service_name,
                level=loglevel if loglevel and _level_was_given() else None,
                file=Path(logfile) if logfile else None,
            )
        except ConfigurationError as error:
            raise as_shown(error) from error
        if log_export is not None:
            logs.export(log_export)
        setup.start(self._service, config)
        if metrics_url:
            _log.info("metrics.serving", url=metrics_url)
        self._system = names.messaging_system(self._app.conf.broker_read_url)
        if not self._started:
            self._started = True
            self._connect()

    def _connect(self) -> None:
        instrumentor = CeleryInstrumentor()  # type: ignore[no-untyped-call]
        if not instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.instrument()
        # Its half of the publishing: `trace_sending` does it right.
        signals.before_task_publish.disconnect(instrumentor._trace_before_publish)  # noqa: SLF001
        signals.after_task_publish.disconnect(instrumentor._trace_after_publish)  # noqa: SLF001
        signals.task_prerun.connect(self.on_prerun, weak=False)
        signals.task_retry.connect(self.on_retry, weak=False)
        signals.task_failure.connect(self.on_failure, weak=False)
        signals.task_postrun.connect(self.on_postrun, weak=False)
        # A child that is recycled or stopped loses its last spans without this.
        signals.worker_process_init.connect(_child_started, weak=False)
        signals.worker_process_shutdown.connect(_shutdown, weak=False)
        signals.worker_shutdown.connect(_shutdown, weak=False)

    def on_prerun(self, task_id: str, task: Task[Any, Any], **_: Any) -> None:
        """``task_prerun``: bind the log context, and name the span."""
        request = task.request
        fields = {key: getattr(request, key, None) for key in _LOGGED_HEADERS}
        fields[names.LOG_TASK_ID] = task_id
        fields[names.LOG_TASK_NAME] = task.name
        setattr(request, _TOKEN, logs.bind(fields))
        span = trace.get_current_span()
        if span.is_recording():
            queue = (request.delivery_info or {}).get("routing_key") or ""
            span.update_name(names.process_span(queue))
            span.set_attributes(self._attributes(task_id, queue, vars(request)))

    def _attributes(
        self, task_id: str, queue: str, headers: Mapping[str, Any]
    ) -> dict[str, AttributeValue]:
        found: dict[str, AttributeValue] = {
            names.MESSAGING_SYSTEM: self._system,
            names.MESSAGING_OPERATION_NAME: names.OPERATION_PROCESS,
            names.MESSAGING_OPERATION_TYPE: names.OPERATION_PROCESS,
            names.MESSAGING_DESTINATION_NAME: queue,
            names.MESSAGING_MESSAGE_ID: task_id,
        }
        for header, attribute in names.SAGA_ATTRIBUTES.items():
            value = headers.get(header)
            if isinstance(value, str | int):
                found[attribute] = value
        if names.SAGA_ID in found:
            found[names.MESSAGING_CONVERSATION_ID] = found[names.SAGA_ID]
        return found

    @staticmethod
    def on_retry(reason: Any, einfo: Any = None, **_: Any) -> None:
        """``task_retry``: a failed attempt is an error even when another follows."""
        error = getattr(reason, "exc", None)
        if isinstance(error, BaseException):
            traceback = str(getattr(einfo, "traceback", None) or "")
            kind = current.error_type(error)
            current.set_error(SpanError(type=kind, message=str(error), traceback=traceback))

    @staticmethod
    def on_failure(sender: Task[Any, Any], exception: BaseException, **_: Any) -> None:
        """``task_failure``: status and exception are recorded already, the type is not."""
        if not isinstance(exception, tuple(getattr(sender, "throws", None) or ())):
            current.set_attributes({names.ERROR_TYPE: current.error_type(exception)})

    @staticmethod
    def on_postrun(task: Task[Any, Any], **_: Any) -> None:
        """``task_postrun``: the task has written its last line."""
        token: Token[Mapping[str, Any]] | None = getattr(task.request, _TOKEN, None)
        if token is not None:
            logs.unbind(token)


def _child_started(**_: Any) -> None:
    metrics.start_child()


def _shutdown(**_: Any) -> None:
    logs.end_export(setup.shutdown)
    metrics.shutdown()  # last: it says what became of the spans


def _level_was_given() -> bool:
    """Whether ``--loglevel`` was asked for; its default says nothing about what is wanted."""
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source("loglevel") in _GIVEN
