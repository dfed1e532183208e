"""A real worker of the services, and what it has done."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM
from subprocess import Popen
from typing import Any

from tests.servers.process import kill_tree, spawn, wait_until_ready

ROOT = Path(__file__).parents[2]


class Worker:
    """A worker process, its log lines and its effects."""

    def __init__(self, folder: Path, process: "Popen[bytes]") -> None:
        self.folder = folder
        self.process = process

    def effects(self, order_id: str) -> list[str]:
        """What was done for an order, in order of time."""
        path = self.folder / "effects.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        return [one["effect"] for one in found if one["order_id"] == order_id]

    def lines(self, words: str = "") -> list[dict[str, Any]]:
        """Log lines that hold these words."""
        paths = sorted((self.folder / "logs").glob("*.jsonl"))
        lines = [line for path in paths for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines if words in line]

    def ready(self) -> "Worker":
        """Wait until it consumes."""
        wait_until_ready(
            self.process,
            lambda: any(line["event"].endswith(" ready.") for line in self.lines()),
            log=self.folder / "output",
        )
        return self


def stop(*workers: Worker) -> None:
    """Stop them warmly, all at once."""
    for one in workers:
        one.process.send_signal(SIGTERM)
    for one in workers:
        assert 0 == one.process.wait(30), (one.folder / "output").read_text()


@contextmanager
def worker(
    folder: Path, broker_url: str, *arguments: str, app: str = "tests.bus.services", **env: str
) -> Iterator[Worker]:
    """Run a worker for the block; it need not be ready yet, and is killed at the end."""
    folder.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if "OTEL" not in name}
    process = spawn(
        [
            *(sys.executable, "-m", "celery", "-A", app, "worker"),
            *("--without-mingle", "--without-gossip", "--without-heartbeat"),
            # On RabbitMQ two of one name wait for each other.
            *("--hostname", f"{folder.name}@test", *arguments),
        ],
        log=folder / "output",
        env=kept
        | {
            "PYTHONPATH": str(ROOT),
            "SAGA_HOME": str(folder),
            "SAGA_BROKER_URL": broker_url,
            "SAGA_LOG_DIR": str(folder / "logs"),
            "BUS_TEST_EFFECTS": str(folder / "effects.jsonl"),
        }
        | ({} if "OTEL_EXPORTER_OTLP_ENDPOINT" in env else {"OTEL_SDK_DISABLED": "true"})
        | env,
    )
    try:
        yield Worker(folder, process)
    finally:
        kill_tree(process)
