"""What a check says: a finding, how bad it is, and what to do about it."""

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import Any

import msgspec


class Severity(StrEnum):
    """How bad a finding is; only ``wrong`` makes the command fail."""

    OK = "ok"
    ADVICE = "advice"
    WRONG = "wrong"


class Code(StrEnum):
    """Every finding there is; docs/troubleshooting.md has a section for each that is not good."""

    EXPORTER_UNREACHABLE = "exporter-unreachable"
    EXPORTER_PROTOCOL = "exporter-protocol"
    EXPORTER_REFUSES = "exporter-refuses"
    EXPORTER_SLOW = "exporter-slow"
    EXPORTS_FAILED = "exports-failed"
    TRACING_OFF = "tracing-off"
    SAMPLER = "sampler"
    SPAN_QUEUE = "span-queue"
    SETTING = "setting"
    LOG_FOLDER = "log-folder"
    DISK_FULL = "disk-full"
    BROKER_UNREACHABLE = "broker-unreachable"
    REDIS_EVICTS = "redis-evicts"
    REDIS_MEMORY = "redis-memory"
    REDIS_PERSISTENCE = "redis-persistence"
    REDIS_REPLICA = "redis-replica"
    VISIBILITY_TIMEOUT = "visibility-timeout"
    VISIBILITY_TIMEOUT_OTHERS = "visibility-timeout-others"
    RABBITMQ_QUEUE = "rabbitmq-queue"
    RABBITMQ_CONSUMER_TIMEOUT = "rabbitmq-consumer-timeout"
    NO_WORKER = "no-worker"
    NO_ORCHESTRATOR = "no-orchestrator"
    QUEUE_WITHOUT_WORKER = "queue-without-worker"
    TASK_UNKNOWN = "task-unknown"
    ACKS_EARLY = "acks-early"
    PREFETCH = "prefetch"
    POOL = "pool"
    STORE_UNREACHABLE = "store-unreachable"
    STORE_SCHEMA = "store-schema"
    STORE_READ_ONLY = "store-read-only"
    STORE_NOT_DURABLE = "store-not-durable"
    PAYLOAD_STORE = "payload-store"
    SAGA_UNREADABLE = "saga-unreadable"
    CLOCK_SKEW = "clock-skew"
    SQLITE_NETWORK = "sqlite-network"
    SQLITE_JOURNAL = "sqlite-journal"
    DEFINITION_INVALID = "definition-invalid"
    DEFINITION_CHANGED = "definition-changed"
    CHECK_FAILED = "check-failed"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at.

    Attributes:
        check: What was checked: ``exporter``, ``broker``, ``workers``, ``store`` …
        code: Which finding; None for what is as it should be.
        message: What was seen, one sentence.
        advice: What to do; empty for what is as it should be.
        details: The values behind it, for programs.
    """

    check: str
    severity: Severity
    code: Code | None = None
    message: str
    advice: str = ""
    details: dict[str, Any] = {}


def good(check: str, message: str, **details: Any) -> Finding:
    """Something is as it should be."""
    return Finding(check=check, severity=Severity.OK, message=message, details=details)


def advise(check: str, code: Code, message: str, advice: str, **details: Any) -> Finding:
    """Something works, but could be better, or will not for long."""
    return Finding(
        check=check,
        severity=Severity.ADVICE,
        code=code,
        message=message,
        advice=advice,
        details=details,
    )


def wrong(check: str, code: Code, message: str, advice: str, **details: Any) -> Finding:
    """Something loses or repeats work, or does not work at all."""
    return Finding(
        check=check,
        severity=Severity.WRONG,
        code=code,
        message=message,
        advice=advice,
        details=details,
    )


def tried(check: str, work: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of a check; one that breaks is a finding itself, and the others go on."""
    try:
        yield from work()
    except Exception as error:  # noqa: BLE001 - whatever a sick system answers, the rest is checked
        yield wrong(
            check,
            Code.CHECK_FAILED,
            f"This check broke: {type(error).__name__}: {error}".rstrip(": "),
            "The system answers in a way that nobody has foreseen; the other checks may say more.",
        )
