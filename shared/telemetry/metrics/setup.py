"""Switches metrics on: in a worker's main process, in its prefork children, in any other process.

    main process    serves Prometheus its own metrics and its children's, or exports them
    child           writes its own for the main process (`children`), or exports them
    threads, gevent, solo: there is one process

Metrics never harm work: nothing here raises after `start`, and no call blocks without a limit.
"""

import atexit
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from opentelemetry import metrics as api

from shared.settings import settings
from shared.telemetry.config import tracing_config
from shared.telemetry.metrics import catalog
from shared.telemetry.metrics.children import ChildFile, Children
from shared.telemetry.metrics.config import MetricsConfig, metrics_config
from shared.telemetry.metrics.meter import RegistryMeterProvider
from shared.telemetry.metrics.periodic import Periodic
from shared.telemetry.metrics.registry import REGISTRY
from shared.telemetry.metrics.snapshot import Snapshot

if TYPE_CHECKING:
    from shared.telemetry.metrics.server import MetricsServer

CHILD_WRITES_EVERY: Final = timedelta(seconds=1)
"""What a child that is killed takes with it at most."""

_FOLDER_VARIABLE: Final = "SAGA_METRICS_FOLDER"
"""Pid of the main process and its folder, for children that are spawned and inherit nothing."""


def start(config: MetricsConfig) -> str:
    """Record and export metrics in this process; a second call does nothing.

    Returns:
        URL for Prometheus; empty where there is none.

    Raises:
        ConfigurationError: The port is taken.
    """
    if not config.on or _process.config is not None:
        return _process.url
    return _process.start(config)


def start_from_environment(service: str) -> str:
    """Record and export metrics in a process that is no Celery worker: a web server, a script.

    Args:
        service: ``service.name``, unless the environment has one.

    Returns:
        URL for Prometheus; empty where there is none.

    Raises:
        ConfigurationError: A variable has a value that is not allowed, or the port is taken.
    """
    tracing = tracing_config(service, home=settings().home)
    return start(metrics_config(tracing, settings()))


def start_child() -> None:
    """Record in a forked child as its parent does; nothing happens in any other process."""
    _process.start_child()


def shutdown() -> None:
    """Hand over the last metrics, never longer than the configuration allows, and stop."""
    _process.stop()


class _Process:
    """The metrics of this process."""

    def __init__(self) -> None:
        self.config: MetricsConfig | None = None
        self.url = ""
        self._owner = os.getpid()
        self._children: Children | None = None
        self._folder: Path | None = None
        self._server: MetricsServer | None = None
        self._work: list[Periodic] = []
        self._registered = False

    def start(self, config: MetricsConfig) -> str:
        self._owner = os.getpid()
        self._folder = _folder_of_parent()
        if config.prometheus_port is not None and self._folder is None:
            self._serve(config, config.prometheus_port)
        self.config = config
        REGISTRY.start(config.label_values_max)
        catalog.PROCESSES.add(1)
        self._work = self._exports(config)
        if not self._registered:
            self._registered = True
            # Once and for ever, as the API wants it; its meters outlive a stop and a fork.
            api.set_meter_provider(RegistryMeterProvider(REGISTRY))
            atexit.register(self.stop)
        return self.url

    def start_child(self) -> None:
        config = self.config
        if config is None or self._owner == os.getpid():
            return
        self._owner = os.getpid()
        catalog.PROCESSES.add(1)
        if self._children is not None:
            self._folder = self._children.folder
        self._work = self._exports(config)

    def stop(self) -> None:
        config = self.config
        if config is None or self._owner != os.getpid():
            return
        self.config = None
        for work in self._work:
            work.close(config.shutdown_timeout)
        self._work = []
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._children is not None and self._folder is None:
            self._children.close()
            os.environ.pop(_FOLDER_VARIABLE, None)
        self._children = None
        self.url = ""
        REGISTRY.stop()

    def forked(self) -> None:
        # Threads are the parent's, and so is the port.
        self._work = []
        if self._server is not None:
            self._server.forked()
            self._server = None

    def _serve(self, config: MetricsConfig, port: int) -> None:
        # Neither is needed where metrics are off, and they take their time to import.
        from shared.telemetry.metrics.openmetrics import render
        from shared.telemetry.metrics.server import MetricsServer

        children = Children(config.label_values_max)

        def body(accept: str) -> tuple[bytes, str]:
            return render(children.gather(REGISTRY.snapshot()), config.resource, accept)

        try:
            self._server = MetricsServer(config.prometheus_host, port, body, children.upkeep)
        except BaseException:
            children.close()
            raise
        self._children = children
        self.url = self._server.url
        os.environ[_FOLDER_VARIABLE] = f"{os.getpid()}:{children.folder}"

    def _exports(self, config: MetricsConfig) -> list[Periodic]:
        work = []
        if self._folder is not None:
            work.append(Periodic(_Writer(ChildFile(self._folder)), CHILD_WRITES_EVERY))
        if config.otlp_endpoint:
            from shared.telemetry.metrics.otlp import OtlpMetrics

            work.append(Periodic(OtlpMetrics(config, REGISTRY).export, config.export_interval))
        return work


class _Writer:
    """Writes a child's snapshot when there is something new."""

    def __init__(self, file: ChildFile) -> None:
        self._file = file
        self._written: Snapshot | None = None

    def __call__(self) -> None:
        snapshot = REGISTRY.snapshot()
        if snapshot == self._written:
            return
        try:
            self._file.write(snapshot)
            self._written = snapshot
        except OSError as error:
            # The main process is gone, or the disk is full: a child has its work to do.
            REGISTRY.complain("", f"the metrics of this process cannot be written: {error}")


def _folder_of_parent() -> Path | None:
    """Where a child that was spawned, not forked, finds what a forked one inherits."""
    pid, _, folder = os.environ.get(_FOLDER_VARIABLE, "").partition(":")
    spawned = os.environ.get("FORKED_BY_MULTIPROCESSING") and pid == str(os.getppid())
    return Path(folder) if spawned else None


_process = _Process()
os.register_at_fork(after_in_child=_process.forked)
