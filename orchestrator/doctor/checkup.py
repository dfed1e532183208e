"""All checks one after the other, on the settings of this process."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
from celery import Celery

from orchestrator.bootstrap import SERVICE, load_sagas, make_celery
from orchestrator.core.definition import Definition, Saga
from orchestrator.doctor import brokers, exporting, payload_store, running, stores
from orchestrator.doctor.findings import Code, Finding, Severity, good, tried, wrong
from orchestrator.doctor.recovery import Recovery, worst_case
from orchestrator.log_files import LogQuery, open_logs, search
from orchestrator.store.sql import SqlStore
from shared.clock import utc_now
from shared.errors import SagaError
from shared.settings import Settings
from shared.telemetry.config import TracingConfig, tracing_config
from shared.telemetry.log_config import log_export_config
from shared.telemetry.log_file import make_folder
from shared.telemetry.names import messaging_system

LOGS_SINCE: Final = timedelta(days=1)
EXPORT_EVENTS: Final = ("telemetry.export_failing", "telemetry.export_recovered")


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        ok: Whether nothing is wrong.
        recovery: How long a step is lost at worst; None without a definition or a broker.
    """

    ok: bool
    findings: tuple[Finding, ...]
    recovery: Recovery | None


class Checkup:
    """One examination.

    Args:
        settings: Of this process.
        log_folders: Where log files are on this machine.
    """

    def __init__(self, settings: Settings, log_folders: Sequence[Path]) -> None:
        self._settings = settings
        self._log_folders = log_folders
        self._sagas: list[Saga] = []
        self._stored: list[Definition] = []
        self._recovery: Recovery | None = None

    def run(self) -> Report:
        """Try everything; takes a few seconds."""
        findings = [
            *tried("definitions", self._definitions),
            *tried(stores.CHECK, self._store),
            *tried(payload_store.CHECK, self._payload_store),
            *tried(brokers.CHECK, self._broker),
            *tried(exporting.CHECK, self._telemetry),
            *tried("logs", self._logs),
            *tried("disk", self._disk),
        ]
        return Report(
            ok=not any(one.severity is Severity.WRONG for one in findings),
            findings=tuple(findings),
            recovery=self._recovery,
        )

    def _definitions(self) -> Iterator[Finding]:
        try:
            self._sagas = load_sagas(self._settings.definitions)
        except SagaError as error:
            yield wrong("definitions", Code.DEFINITION_INVALID, error.message, error.hint)
            return
        names = ", ".join(sorted({saga.name for saga in self._sagas}))
        yield good("definitions", f"SAGA_DEFINITIONS has {names}.")

    def _store(self) -> Iterator[Finding]:
        try:
            store = SqlStore(self._settings.store_url)
        except SagaError as error:
            yield wrong(stores.CHECK, Code.SETTING, error.message, error.hint)
            return
        with closing(store):
            found = list(stores.check_store(store, self._sagas, utc_now))
            yield from found
            if not any(one.severity is Severity.WRONG and one.check == "store" for one in found):
                self._stored = store.definitions()

    def _payload_store(self) -> Iterator[Finding]:
        return payload_store.check_payload_store(self._settings)

    def _broker(self) -> Iterator[Finding]:
        try:
            url = self._settings.celery_broker_url
        except SagaError as error:
            yield wrong(brokers.CHECK, Code.SETTING, error.message, error.hint)
            return
        system = messaging_system(url)
        known = self._known_definitions()
        longest, where = _longest(known)
        with closing(make_celery(lambda: self._settings)) as app:
            if system == "redis":
                found = list(brokers.check_redis(url))
            elif system == "rabbitmq":
                found = list(brokers.check_rabbitmq(url, _queues(app, known), longest, where))
            else:
                found = list(brokers.check_other(url))
            yield from found
            if any(one.code in {Code.BROKER_UNREACHABLE, Code.SETTING} for one in found):
                return
            workers = running.ask_workers(app)
        others = running.visibility_timeouts(workers)
        self._recovery = worst_case(
            known,
            system=system,
            # The shortest one counts.
            visibility_timeout=min(
                [self._settings.visibility_timeout, *map(_seconds, others.values())]
            ),
            republish_after=self._settings.republish_after,
        )
        if system == "redis":
            yield from brokers.check_visibility(
                self._settings.visibility_timeout, longest, where, others
            )
        newest = {saga.name: saga for saga in sorted(self._sagas, key=lambda one: one.version)}
        now = [saga.definition for saga in newest.values()]
        yield from running.check_workers(workers, now, system)

    def _telemetry(self) -> Iterator[Finding]:
        try:
            config = self._tracing()
            log_export = log_export_config(config)
        except SagaError as error:
            yield wrong(exporting.CHECK, Code.SETTING, error.message, error.hint)
            return
        yield from exporting.check_exporter(config)
        yield from exporting.check_sampling(config)
        yield from exporting.check_log_export(log_export)
        yield from exporting.check_lost(self._export_lines())

    def _logs(self) -> Iterator[Finding]:
        folder = self._log_folders[0]
        try:
            make_folder(folder)
        except OSError as error:
            yield wrong(
                "logs",
                Code.LOG_FOLDER,
                f"No log file can be written in {folder}: {error.strerror or error}.",
                "Make the folder writable for the user of the workers, or set SAGA_LOG_DIR.",
            )
        else:
            yield good("logs", f"Log files can be written in {folder}.")

    def _disk(self) -> Iterator[Finding]:
        return stores.check_disk([self._settings.home, *self._log_folders])

    def _tracing(self) -> TracingConfig:
        return tracing_config(SERVICE, home=self._settings.home)

    def _export_lines(self) -> Iterator[Mapping[str, Any]]:
        query = LogQuery(level="warning", since=utc_now() - LOGS_SINCE)
        with open_logs(self._log_folders) as sources:
            for line in search(sources, query):
                if line.fields.get("event") in EXPORT_EVENTS:
                    yield line.fields

    def _known_definitions(self) -> list[Definition]:
        known = {(one.name, one.version): one for one in self._stored}
        known |= {(saga.name, saga.version): saga.definition for saga in self._sagas}
        return list(known.values())


def _longest(definitions: Sequence[Definition]) -> tuple[timedelta, str]:
    """The longest step timeout, and which step has it."""
    steps = [
        (step.timeout, f"{definition.name}/{step.name}")
        for definition in definitions
        for step in definition.steps
        if step.task
    ]
    return max(steps, default=(timedelta(0), "no step"))


def _queues(app: Celery[Any], definitions: Sequence[Definition]) -> list[Any]:
    names = sorted({queue for one in definitions for queue in one.queues})
    return [app.amqp.queues[name] for name in names]


def _seconds(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)
