"""Payloads of megabytes, over real processes: whole at the participants, nowhere in between."""

import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from cryptography.fernet import Fernet

from orchestrator.core.state import Status
from shared.clock import utc_now
from shared.sealing import ring
from shared.settings import settings
from tests.faults.stack import ENDED_WITHIN, MakeStack, Stack
from tests.guide.sessions import make_older
from tests.waiting import wait_until

TEXT = "large" * 400_000
BOOK = {"title": "Large", "text": TEXT}
DOCUMENT = "docs/claim-check.md"
APP = ("-A", "tests.faults.large_app", "worker")
SMALL = 8_000


def start(stack: Stack, **given: str) -> str:
    """Start the printing of a book of two megabytes."""
    return stack.client.start("print-book", {**BOOK, **given}).row.saga_id


def largest_text(file: Path) -> int:
    """Characters of the largest value in a database."""
    with sqlite3.connect(file) as base:
        tables = [
            name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        return max(
            len(str(value))
            for table in tables
            for row in base.execute(f"SELECT * FROM {table}")
            for value in row
        )


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A key for payloads, of this process too."""
    made = Fernet.generate_key().decode()
    monkeypatch.setenv("SAGA_ENCRYPTION_KEYS", made)
    for read_once in (settings, ring):
        read_once.cache_clear()
    yield made
    for read_once in (settings, ring):
        read_once.cache_clear()


def test_megabytes_pass_by_messages_and_stores(make_stack: MakeStack, key: str) -> None:
    """Two sagas, one of which is undone with what was really done; a purge takes all of it along.

    All of it is encrypted, but for the archive.
    """
    stack = make_stack(
        SAGA_DEFINITIONS="tests.faults.large",
        OTEL_SDK_DISABLED="false",
        OTEL_BSP_SCHEDULE_DELAY="100",
    )
    folder = stack.home / "claims"
    folder.mkdir()
    url = f"file://{folder}"
    stack.use(SAGA_CLAIM_CHECK_URL=url, SAGA_ENCRYPTION_KEYS=key)
    stack.settings = stack.settings.model_copy(
        update={"definitions": ("tests.faults.large",), "claim_check_url": url}
    )
    (stack.home / "book.json").write_text(json.dumps(BOOK))
    with stack.session() as session:
        session.play(DOCUMENT, "What it looks like")
        _, printed = session.type("echo -n $ID")
        undone = start(stack, region="moon")
        follow(stack, printed, undone)
        file = folder / "a-start-that-failed" / "0"
        file.parent.mkdir()
        file.touch()
        os.utime(file, (0, 0))
        make_older(stack.home / "saga.db", 31, printed, undone)
        session.play(DOCUMENT, "Retention")
    archive = (stack.home / "purged.jsonl").read_text()
    lines = [json.loads(line) for line in archive.splitlines()]
    assert all(TEXT in one["payloads"].values() for one in lines)


def follow(stack: Stack, printed: str, undone: str) -> None:
    """Let both end, and look at what was kept where."""
    folder = stack.home / "claims"
    with redis.Redis.from_url(stack.settings.broker_url) as broker:
        messages = broker.lrange("press", 0, -1)
    assert len(messages) == 2
    assert max(map(len, messages)) < SMALL
    stack._start("press", ["-m", "celery", *APP, "-Q", "press", "-c", "2"], {})
    stack.orchestrator()
    row = stack.client.wait(printed, ENDED_WITHIN)
    assert row.state.status is Status.COMPLETED, row.state.cause
    assert row.state.step("bind").output == len(TEXT)
    assert row.state.step("ship").output == "large to earth"
    assert stack.client.wait(undone, ENDED_WITHIN).state.status is Status.COMPENSATED
    shredded = json.loads((stack.home / f"shredded-{undone}").read_text())
    assert shredded["text"] == len(TEXT) < shredded["undo"]
    shown = stack.saga("payload", printed, "render")
    for file in (stack.home / "saga.db", stack.home / "press.db"):
        assert largest_text(file) < SMALL, file
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) == 4
    some = TEXT[:50].encode()  # five letters alone are in many a megabyte of base64
    assert not any(some in file.read_bytes().lower() for file in files)
    out, err = shown.communicate(timeout=60)
    assert (json.loads(out)["pdf"]["body"] == TEXT.upper()) is True, err
    wait_until(lambda: stack.client.count_ended(utc_now()) == 2, timeout=30, what="their traces")
    spans = json.loads(stack.run("trace", printed, "--json").stdout)["spans"]
    names = {one["span_id"]: one["name"] for one in spans}
    below = {
        (one["name"], names[one["parent_span_id"]]) for one in spans if "payload" in one["name"]
    }
    assert below == {("read payload", "process press"), ("write payload", "process press")}
