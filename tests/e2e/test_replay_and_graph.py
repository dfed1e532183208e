"""`saga replay` and `saga graph` on a store that a real engine has written."""

import json
import os
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from orchestrator.bootstrap import make_client
from orchestrator.retention import Archived
from shared import codec
from shared.settings import Settings
from tests.servers.preloaded import COMMANDS, Ended


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where the saga of this test is."""
    return tmp_path / "home"


@pytest.fixture
def saga_id(home: Path) -> str:
    """A saga that was cancelled while its first step was in flight."""
    client = make_client(Settings(home=home, broker_url="memory://"))
    try:
        saga_id = client.start("place-order", {"order_id": "o-1"}).row.saga_id
        client.cancel(saga_id, reason="test")
    finally:
        client.close()
    return saga_id


def saga(home: Path, *arguments: str) -> Ended:
    """Run the command."""
    env = {**os.environ, "SAGA_HOME": str(home), "SAGA_BROKER_URL": "memory://"}
    return COMMANDS.run(arguments, cwd=home, env=env)


def test_a_stored_saga_is_replayed_and_drawn(home: Path, saga_id: str, tmp_path: Path) -> None:
    """The same today: exit code 0; another history: what differs, and exit code 1."""
    done = saga(home, "replay", saga_id)
    assert done.returncode == 0, done.stderr
    assert "3 events, 2 decisions: all the same" in done.stdout
    assert "cancel_requested" in done.stdout

    client = make_client(Settings(home=home, broker_url="memory://"))
    definition, row, history = client.story(saga_id)
    client.close()
    first = msgspec.structs.replace(definition.steps[0], queue="other", timeout=timedelta(hours=1))
    changed = msgspec.structs.replace(definition, steps=(first, *definition.steps[1:]))
    archive = tmp_path / "archive.jsonl"
    archive.write_bytes(
        b"\n".join(
            codec.encode(Archived(saga_id=saga_id, definition=one, row=row, history=history))
            for one in (definition, changed)
        )
    )
    differs = saga(home, "replay", str(archive), "--json")
    assert differs.returncode == 1
    first, second = json.loads(differs.stdout)
    assert (first["same"], second["same"]) == (True, False)
    assert [one["same"] for one in second["decisions"]] == [False, True]

    drawn = saga(home, "graph", "place-order", saga_id)
    assert drawn.stdout.startswith("▶ reserve-inventory")


def test_a_file_that_is_no_archive_is_refused(home: Path, tmp_path: Path) -> None:
    """With its line, and what the file should be."""
    home.mkdir()
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text("{}\n")
    done = saga(home, "replay", str(wrong))
    assert done.returncode == 2
    assert "line 1" in done.stderr
    assert "saga purge --archive" in done.stderr
