"""Whether the store is there, has the right schema, keeps what it is given, and what time it is there."""

import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from orchestrator.core.definition import Saga
from orchestrator.core.state import ACTIVE
from orchestrator.doctor.findings import Code, Finding, advise, good, wrong
from orchestrator.search import Filter, summaries
from orchestrator.store import rows
from orchestrator.store.definitions import check_same
from orchestrator.store.sql import SqlStore
from shared.clock import Clock
from shared.errors import ConfigurationError, DefinitionChanged, UnavailableError

CHECK: Final = "store"
SKEW_ADVICE: Final = timedelta(seconds=1)
SKEW_WRONG: Final = timedelta(seconds=5)
DISK_FREE_MIN: Final = 100 * 1024 * 1024
DISK_FREE_ADVICE: Final = 1024 * 1024 * 1024

NAMED_MAX: Final = 10
"""Sagas that are named at most."""
LOOKED_AT_MAX: Final = 5_000
"""Sagas that are read at most, the newest of those that have not ended: about a second."""

_MOUNTS: Final = Path("/proc/self/mounts")
_NETWORK: Final = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "ceph", "glusterfs", "afs", "lustre")


def check_store(store: SqlStore, sagas: Iterable[Saga], clock: Clock) -> Iterator[Finding]:
    """Reach it, look at its schema and its settings, compare definitions and clocks."""
    database = store.database
    if database.missing:
        yield wrong(
            CHECK,
            Code.STORE_SCHEMA,
            f"There is no store yet: {database.shown_url}.",
            "Run `saga db upgrade`, or start `saga dev`.",
        )
        return
    if database.is_sqlite:
        yield from check_sqlite_file(Path(database.url.database or ""))
    try:
        store.check()
    except UnavailableError as error:
        yield wrong(CHECK, Code.STORE_UNREACHABLE, error.message, error.hint)
        return
    except ConfigurationError as error:
        yield wrong(CHECK, Code.STORE_SCHEMA, error.message, error.hint)
        return
    yield good(
        CHECK, f"The store {database.shown_url} answers and has the schema of this version."
    )
    if not database.is_sqlite:
        yield from _check_postgresql(store, clock)
    yield from _check_definitions(store, sagas)
    yield from _check_readable(store)


def check_sqlite_file(path: Path, mounts: str | None = None) -> Iterator[Finding]:
    """Where the file is, and how it keeps its journal.

    Args:
        path: Of the database.
        mounts: As in ``/proc/self/mounts``; by default what stands there.
    """
    kind = filesystem_of(path, _mounts() if mounts is None else mounts)
    if kind.startswith(_NETWORK):
        yield wrong(
            CHECK,
            Code.SQLITE_NETWORK,
            f"{path} is on a network file system ({kind}): SQLite's locks and its WAL do not work "
            "there, and the file will be ruined.",
            "Keep it on a local disk (SAGA_HOME), or use PostgreSQL (SAGA_DATABASE_URL).",
            filesystem=kind,
        )
    # Read only, and before the store opens it: that would switch the mode.
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as file:
            (mode,) = file.execute("PRAGMA journal_mode").fetchone()
    except sqlite3.Error:
        return  # what is wrong with it, the store says
    if mode == "wal":
        yield good(CHECK, "SQLite writes ahead (WAL).")
    else:
        yield wrong(
            CHECK,
            Code.SQLITE_JOURNAL,
            f"SQLite's journal mode is {mode}: readers and the writer hold each other up.",
            "Something else has changed it; the orchestrator sets WAL when it starts. Where that "
            "does not last, the file system does not support it.",
            journal_mode=mode,
        )


def filesystem_of(path: Path, mounts: str) -> str:
    """Type of the file system that a path is on; empty where nobody knows."""
    found = path.absolute()
    kinds: dict[Path, str] = {}
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) >= 3:
            # The kernel writes a space in a name as \040.
            kinds[Path(fields[1].encode().decode("unicode_escape"))] = fields[2]
    return next((kinds[one] for one in [found, *found.parents] if one in kinds), "")


def check_disk(folders: Iterable[Path]) -> Iterator[Finding]:
    """Whether there is room for the store, logs and traces."""
    seen: set[int] = set()
    for folder in folders:
        existing = next(
            one for one in [folder.absolute(), *folder.absolute().parents] if one.exists()
        )
        device = existing.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(existing).free
        told = f"{free / 1024**2:,.0f} MiB are free where {folder} is"
        if free < DISK_FREE_ADVICE:
            make = wrong if free < DISK_FREE_MIN else advise
            yield make(
                "disk",
                Code.DISK_FULL,
                f"Only {told}: a full disk stops the store, and loses log lines and traces.",
                "Make room; SAGA_LOG_FILES_MAX and SAGA_LOG_FILE_BYTES_MAX bound the logs, and "
                "`saga purge` removes old sagas.",
                free_bytes=free,
            )
        else:
            yield good("disk", f"{told}.", free_bytes=free)


def _check_postgresql(store: SqlStore, clock: Clock) -> Iterator[Finding]:
    query = sa.text(
        "SELECT extract(epoch FROM clock_timestamp()), pg_is_in_recovery(), "
        "current_setting('default_transaction_read_only'), current_setting('synchronous_commit'), "
        "current_setting('fsync')"
    )
    with store.database.reading() as connection:
        connection.execute(sa.text("SELECT 1"))  # the round trip of connecting does not count
        before = clock()
        row = connection.execute(query).one()
        after = clock()
    there = datetime.fromtimestamp(float(row[0]), UTC)
    yield from _check_skew(there, before, after)
    if row[1] or row[2] == "on":
        yield wrong(
            CHECK,
            Code.STORE_READ_ONLY,
            "This PostgreSQL only reads: it is a standby, or default_transaction_read_only is on.",
            "Set SAGA_DATABASE_URL to the primary (target_session_attrs=read-write finds it).",
        )
    if row[3] == "off" or row[4] == "off":
        yield advise(
            CHECK,
            Code.STORE_NOT_DURABLE,
            f"PostgreSQL runs with synchronous_commit={row[3]}, fsync={row[4]}: the last sagas before "
            "a crash of the server are lost although their start was confirmed.",
            "Set both to on, at least for this database.",
        )


def _check_skew(there: datetime, before: datetime, after: datetime) -> Iterator[Finding]:
    # Somewhere between the two the server has looked at its clock.
    skew = max(before - there, there - after, timedelta(0))
    seconds = round(skew.total_seconds(), 3)
    if skew >= SKEW_ADVICE:
        make = wrong if skew >= SKEW_WRONG else advise
        yield make(
            CHECK,
            Code.CLOCK_SKEW,
            f"The clock of this machine and that of PostgreSQL differ by {seconds:g} s: timers and "
            "deadlines come early or late by that, and spans of different machines do not fit.",
            "Run a time service (chrony, systemd-timesyncd) on all machines.",
            skew_seconds=seconds,
        )
    else:
        yield good(
            CHECK, "The clocks of this machine and of PostgreSQL agree.", skew_seconds=seconds
        )


def _check_definitions(store: SqlStore, sagas: Iterable[Saga]) -> Iterator[Finding]:
    same = 0
    for saga in sagas:
        stored = store.definition(saga.name, saga.version)
        if stored is None:
            continue
        try:
            check_same(rows.to_json(stored), saga.definition)
        except DefinitionChanged as error:
            yield wrong(
                "definitions",
                Code.DEFINITION_CHANGED,
                f"Saga {saga.name!r} version {saga.version} is not the stored one: "
                f"{'; '.join(error.problems)}.",
                error.hint,
                saga=saga.name,
                version=saga.version,
            )
        else:
            same += 1
    if same:
        yield good("definitions", f"{same} definitions are as they are stored.")


def _check_readable(store: SqlStore) -> Iterator[Finding]:
    """Name sagas that have not ended and cannot be read: nothing goes on with them."""
    wanted = Filter(statuses=tuple(sorted(ACTIVE)), unreadable=True)
    found = summaries(store, wanted, limit=NAMED_MAX, looked_at_max=LOOKED_AT_MAX)
    if not found.sagas:
        return
    named = ", ".join(one.saga_id for one in found.sagas)
    first, more = found.sagas[0], " and perhaps more" if found.older else ""
    yield wrong(
        CHECK,
        Code.SAGA_UNREADABLE,
        f"Sagas stand still, since they cannot be read: {named}{more}. Of {first.saga_id}: "
        f"{first.unreadable}",
        "Put a key that was taken away too early back on SAGA_ENCRYPTION_KEYS, as the last one, or "
        "give it to this process; restore a damaged row from a backup. Then they go on by "
        "themselves within minutes. `saga list --unreadable` has all of them.",
        saga_ids=[one.saga_id for one in found.sagas],
    )


def _mounts() -> str:
    try:
        return _MOUNTS.read_text()
    except OSError:  # another system than Linux
        return ""
