"""What a command runs in: the settings, a client, and telemetry that is handed over at the end."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from orchestrator.client import Client
    from orchestrator.core.definition import Definition
    from orchestrator.reader import Reader
    from shared.settings import Settings

SERVICE: Final = "saga-cli"
STORE_FILE: Final = "saga.db"

_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}")


def settings() -> "Settings":
    """The settings of this process; their import costs more than all else that `--help` needs."""
    from shared.settings import settings as read

    return read()


def has_store(configured: "Settings") -> bool:
    """Whether there is a store to read: an embedded one only where something has run."""
    return bool(configured.database_url) or (configured.home / STORE_FILE).exists()


@contextmanager
def reading() -> Iterator["Reader"]:
    """A reader for commands that only read; no broker is needed, and nothing is created.

    Raises:
        ConfigurationError: Nothing has ever run here.
    """
    from orchestrator.bootstrap import make_reader
    from shared.errors import ConfigurationError
    from shared.telemetry import redaction
    from shared.telemetry.environment import Environment

    if not has_store(settings()):
        raise ConfigurationError(
            f"There is no store in {settings().home}.",
            hint="Start `saga dev` in this folder, or set SAGA_HOME or SAGA_DATABASE_URL to "
            "where your sagas are.",
        )
    redaction.configure(redaction.redaction_from(Environment(os.environ)))
    log_errors_only()
    client = make_reader(settings())
    try:
        yield client
    finally:
        client.close()


@contextmanager
def acting(service: str = SERVICE) -> Iterator["Client"]:
    """A client for commands that change something.

    Its log lines go where those of the other processes go, and its spans are handed over before
    the command ends: within the limit that the configuration sets, however slow the collector.
    """
    from orchestrator.bootstrap import make_client
    from shared.telemetry import logs, setup
    from shared.telemetry.config import tracing_config
    from shared.telemetry.log_config import log_export_config

    tracing = tracing_config(service, home=settings().home)
    log_export = log_export_config(tracing)
    _log_to_file(service)
    if log_export is not None:
        logs.export(log_export)
    setup.start(service, tracing)
    try:
        client = make_client(settings())
        try:
            yield client
        finally:
            client.close()
    finally:
        logs.end_export(setup.shutdown)


def log_folders(configured: "Settings") -> list[Path]:
    """Where the log files of this machine are."""
    return list(dict.fromkeys([*filter(None, [configured.log_dir]), configured.home / "logs"]))


def as_trace_id(text: str) -> str | None:
    """The trace id in an argument: the id itself, or a whole ``traceparent``; else None."""
    from shared.telemetry.propagation import parse_traceparent

    parent = parse_traceparent(text)
    if parent is not None:
        return parent.trace_id
    return text.lower() if _TRACE_ID.fullmatch(text.lower()) else None


def _log_to_file(service: str) -> None:
    from shared.telemetry import logs

    configured = settings()
    folder = log_folders(configured)[0]
    with suppress(OSError):  # a command that has nowhere to write its log still does its work
        logs.configure(
            service,
            level=configured.log_level,
            log_dir=folder,
            rotation=logs.rotation_of(configured),
        )
        return
    log_errors_only()


def log_errors_only() -> None:
    """Write errors to standard error, and nothing else anywhere."""
    from shared.telemetry import logs

    logs.configure(SERVICE, level="ERROR", fd=sys.stderr.fileno())


def known_definitions() -> "list[Definition]":
    """Those in the code and in the store; before anything has run only the former.

    Raises:
        ConfigurationError: A module that SAGA_DEFINITIONS names cannot be imported.
    """
    from orchestrator.bootstrap import load_sagas

    if has_store(settings()):
        with reading() as client:
            return [*client.definitions()]
    return [saga.definition for saga in load_sagas(settings().definitions)]
