"""Settings, from the environment (``SAGA_...``) and from what `saga dev` leaves in its folder.

A wrong value is a `ConfigurationError` at start that names the variable, the value and what is
allowed.
"""

from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.codec import PAYLOAD_BYTES_MAX_DEFAULT
from shared.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

BROKERS: Final = frozenset(
    [
        "redis",
        "rediss",
        "redis+socket",
        "sentinel",
        "amqp",
        "amqps",
        "pyamqp",
        "filesystem",
        "memory",
    ]
)
"""Schemes of broker URLs. Another one would fail only where it is first used, in kombu's words."""

BROKER_URL_FILE = "broker.url"
"""Written by `saga dev` into its folder: how its other commands find the private broker."""


class Settings(BaseSettings):
    """Everything that can be set; each field is the variable ``SAGA_<NAME>``.

    Attributes:
        home: Folder of the embedded defaults: store, logs, traces, private Redis.
        broker_url: Celery broker; empty means the one that `saga dev` runs in `home`.
        database_url: Store of the orchestrator; empty means SQLite in `home`.
        ledger_url: Database of the example participants; empty means SQLite in `home`.
        definitions: Modules that hold saga definitions, separated by commas.
        history_events_max: Most events in the history of one saga; then it is stuck.
        in_flight_max: Most attempts of one saga in flight at a time.
        steps_max: Most steps of a definition.
        branches_max: Most steps of a definition that begin together.
        items_max: Longest list that a step of a definition may run over.
        payload_bytes_max: Largest input, payload or output of a step, as JSON.
        batch_messages_max: Most replies that one transaction takes.
        visibility_timeout: Redis only: when a message whose worker died is delivered again.
        republish_after: Age at which an outbox row counts as left behind by a crash.
        log_dir: Folder of the JSON log files; empty means standard output.
        log_level: Level of the root logger.
        log_format: Of the lines on standard output: ``json``, or ``console`` for people.
        log_stdout: Lines go to standard output besides the files in `log_dir`.
        log_file_bytes_max: Size at which a log file is put aside; 0 for never.
        log_rotate_every: Time after which it is put aside, too; counted in UTC.
        log_files_max: Old log files of a service that are kept.
        jaeger_url: Where `saga trace` reads spans; empty means the trace files.
        encryption_keys: Keys of payloads, the first one seals; empty seals nothing.
        claim_check_url: Payload store, for values that are too large for messages; empty for none.
        claim_check_bytes: Size of a field, as JSON, from which on it is kept there.
        claim_check_bytes_max: Largest value that is kept there.
        http_token: What requests to the HTTP API must carry; empty lets everybody on loopback in.
        metrics_port: Port of a worker's metrics for Prometheus; 0 is a free one, none is off.
        metrics_host: Address that it listens on.
        metrics_label_values_max: Most values of a label of a metric that are kept apart.
    """

    model_config = SettingsConfigDict(env_prefix="SAGA_", env_ignore_empty=True, extra="ignore")

    home: Path = Path(".saga")
    broker_url: str = ""
    database_url: str = ""
    ledger_url: str = ""
    definitions: Annotated[tuple[str, ...], NoDecode] = ("orchestrator.sagas",)
    history_events_max: Annotated[int, Field(ge=100, le=1_000_000)] = 10_000
    in_flight_max: Annotated[int, Field(ge=1, le=10_000)] = 100
    steps_max: Annotated[int, Field(ge=1, le=300)] = 100
    branches_max: Annotated[int, Field(ge=1, le=300)] = 50
    items_max: Annotated[int, Field(ge=1, le=1_000)] = 1_000
    payload_bytes_max: Annotated[int, Field(ge=1024, le=64 * 1024 * 1024)] = (
        PAYLOAD_BYTES_MAX_DEFAULT
    )
    batch_messages_max: Annotated[int, Field(ge=1, le=10_000)] = 200
    visibility_timeout: Annotated[timedelta, Field(gt=timedelta(0))] = timedelta(minutes=5)
    republish_after: Annotated[timedelta, Field(gt=timedelta(0))] = timedelta(seconds=5)
    log_dir: Path | None = None
    log_level: Annotated[str, Field(pattern="^(DEBUG|INFO|WARNING|ERROR|CRITICAL)$")] = "INFO"
    log_format: Literal["json", "console"] = "json"
    log_stdout: bool = False
    log_file_bytes_max: Annotated[int, Field(ge=0)] = 64 * 1024 * 1024
    log_rotate_every: Annotated[timedelta, Field(ge=timedelta(seconds=1))] | None = None
    log_files_max: Annotated[int, Field(ge=0, le=100_000)] = 10
    jaeger_url: str = ""
    encryption_keys: Annotated[tuple[str, ...], NoDecode, Field(repr=False)] = ()
    claim_check_url: str = ""
    claim_check_bytes: Annotated[int, Field(ge=256, le=64 * 1024 * 1024)] = 64 * 1024
    claim_check_bytes_max: Annotated[int, Field(ge=1024, le=1024 * 1024 * 1024)] = 64 * 1024 * 1024
    http_token: Annotated[str, Field(repr=False)] = ""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    metrics_host: str = "127.0.0.1"
    metrics_label_values_max: Annotated[int, Field(ge=1, le=10_000)] = 100

    @field_validator("definitions", "encryption_keys", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            tuple(filter(None, map(str.strip, value.split(","))))
            if isinstance(value, str)
            else value
        )

    @field_validator("broker_url")
    @classmethod
    def _is_broker(cls, value: str) -> str:
        for one in filter(None, value.split(";")):
            parts = urlsplit(one)
            if parts.scheme not in BROKERS:
                raise ValueError("write redis://host:6379/0 or amqp://user:password@host:5672//")
            if "://[" not in one and "@[" not in one:  # of IPv6 hosts kombu reads more than we do
                _ = parts.port  # raises where it is none
            database = parts.path.strip("/")
            if parts.scheme in {"redis", "rediss"} and database and not database.isdecimal():
                raise ValueError(f"the database of a Redis is a number, not {database!r}")
        return value

    @field_validator("claim_check_url")
    @classmethod
    def _is_shared_place(cls, value: str) -> str:
        scheme, found, rest = value.partition("://")
        if value and not (found and scheme and rest.strip("/")):
            raise ValueError("write file:///shared/folder, s3://bucket/prefix or the like")
        if scheme == "file" and not rest.startswith("/"):
            raise ValueError("the folder is absolute: write file:///shared/folder")
        return value

    @property
    def store_url(self) -> str:
        """SQLAlchemy URL of the store."""
        return self.database_url or f"sqlite:///{self.home / 'saga.db'}"

    def ledger_url_of(self, service: str) -> str:
        """SQLAlchemy URL of an example participant's own database."""
        return self.ledger_url or f"sqlite:///{self.home / 'ledgers' / service}.db"

    @property
    def celery_broker_url(self) -> str:
        """Broker URL for Celery.

        Raises:
            ConfigurationError: None is set and no `saga dev` has run in `home`.
        """
        if self.broker_url:
            return self.broker_url
        left_by_dev = self.home / BROKER_URL_FILE
        if left_by_dev.exists():
            return left_by_dev.read_text().strip()
        raise ConfigurationError(
            f"No broker: SAGA_BROKER_URL is not set and {left_by_dev} does not exist.",
            hint="Start `saga dev` in this folder, or set SAGA_BROKER_URL=redis://host:6379/0.",
        )


@cache
def settings() -> Settings:
    """The settings of this process, read once.

    Raises:
        ConfigurationError: A variable has a value that is not allowed.
    """
    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(
            f"SAGA_{'_'.join(map(str, part['loc'])).upper()}{_shown(part)}: {part['msg']}"
            for part in error.errors()
        )
        raise ConfigurationError(f"Wrong setting: {wrong}.") from error


def _shown(part: "ErrorDetails") -> str:
    """The value that is wrong; not of a URL, which may hold a password."""
    return "" if str(part["loc"][0]).endswith("_url") else f"={part['input']!r}"
