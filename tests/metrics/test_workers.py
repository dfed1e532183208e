"""Real workers, each pool: what they serve, whatever becomes of their processes."""

import os
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from signal import SIGKILL, SIGTERM

import psutil
import pytest
from celery import Celery

from shared.embedded import free_port
from shared.ids import new_trace_id
from shared.telemetry.metrics.server import PATH
from tests.metrics.read import Scrape, scrape
from tests.servers.process import kill_tree, spawn
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
STARTED_WITHIN_SECONDS = 60.0
STOPPED_WITHIN_SECONDS = 30.0


class Worker:
    """A worker process with a metrics endpoint."""

    def __init__(self, home: Path, broker_url: str, *arguments: str, **env: str) -> None:
        home.mkdir()
        self.name = home.name
        self.broker_url = broker_url
        self.port = free_port()
        self.output = home / "output"
        kept = {name: value for name, value in os.environ.items() if "OTEL" not in name}
        self.process = spawn(
            [
                *(sys.executable, "-m", "celery", "-A", "tests.metrics.worker_app", "worker"),
                *("--without-mingle", "--without-gossip", "-Q", self.name, *arguments),
            ],
            log=self.output,
            env=kept
            | {
                "PYTHONPATH": str(ROOT),
                "SAGA_HOME": str(home),
                "SAGA_BROKER_URL": broker_url,
                "SAGA_METRICS_PORT": str(self.port),
                "TMPDIR": str(home),
                **env,
            },
        )

    def sell(self, count: int) -> list[str]:
        """Send as many steps, each in a trace of its own; returns the trace ids."""
        traces = [new_trace_id() for _ in range(count)]
        with Celery("sender", broker=self.broker_url, set_as_current=False) as app:
            for trace_id in traces:
                headers = {
                    "saga_id": f"saga-{trace_id}",
                    "saga_name": "sell",
                    "saga_step": "sell",
                    "saga_direction": "action",
                    "saga_attempt": 1,
                    "traceparent": f"00-{trace_id}-{trace_id[:16]}-01",
                }
                app.send_task("shop.sell", queue=self.name, headers=headers)
        return traces

    def scrape(self) -> Scrape:
        """What the endpoint says."""
        return scrape(f"http://127.0.0.1:{self.port}{PATH}")

    def sold(self) -> float:
        """The worker's own counter."""
        return self.scrape().value("shop_sold_total", region="eu")

    def until_sold(self, count: int) -> Scrape:
        """Wait until the endpoint says that many."""

        def sold() -> bool:
            assert self.process.poll() is None, self.output.read_text()
            try:
                return self.sold() == count
            except OSError:  # it does not listen yet
                return False

        wait_until(sold, timeout=STARTED_WITHIN_SECONDS, what=f"{count} sold by {self.name}")
        return self.scrape()

    def children(self) -> list[int]:
        """Ids of the pool's processes."""
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def files(self) -> list[Path]:
        """What its children have written."""
        return list(self.output.parent.glob("saga-metrics-*/*.json"))

    def stop(self) -> None:
        """Stop it warmly; it leaves no file behind."""
        self.process.send_signal(SIGTERM)
        assert 0 == self.process.wait(STOPPED_WITHIN_SECONDS), self.output.read_text()
        assert [] == list(self.output.parent.glob("saga-metrics-*"))


StartWorker = Callable[..., Worker]


@pytest.fixture
def start_worker(tmp_path: Path, redis_url: str) -> Iterator[StartWorker]:
    """Start workers; they are killed after the test."""
    workers: list[Worker] = []

    def start(name: str, *arguments: str, **env: str) -> Worker:
        workers.append(Worker(tmp_path / name, redis_url, *arguments, **env))
        return workers[-1]

    yield start
    for worker in workers:
        kill_tree(worker.process)


def test_every_pool_serves_all_of_its_processes(start_worker: StartWorker) -> None:
    """One endpoint a worker: sums over children, recycled and killed ones too, with exemplars."""
    pools = ("threads", "gevent", "solo")
    one_process = [start_worker(pool, "-P", pool, "-c", "2") for pool in pools]
    prefork = start_worker("prefork", "-c", "2", "--max-tasks-per-child", "2")
    workers = [*one_process, prefork]
    sent = {worker.name: worker.sell(6) for worker in workers}

    for worker in workers:
        found = worker.until_sold(6)
        assert 6 == found.value(
            "saga_participant_duration_seconds_count",
            saga_task="shop.sell",
            saga_direction="action",
            saga_outcome="succeeded",
        )
        exemplars = found.exemplars("saga_participant_duration_seconds_bucket")
        assert exemplars
        assert {one.labels["trace_id"] for one in exemplars} <= set(sent[worker.name])
        assert [worker.name] == [one["service_name"] for one in found.labels("target_info")]
        wait_until(partial(has_exported, worker, 6), what=f"the spans of {worker.name}")
    assert [1, 1, 1] == [worker.scrape().value("saga_processes") for worker in one_process]

    # At least one child was recycled by now, one is killed, and no counter goes back.
    seen = []

    def sold_more() -> bool:
        seen.append(prefork.sold())
        return seen[-1] == 10

    os.kill(prefork.children()[0], SIGKILL)
    prefork.sell(4)
    wait_until(sold_more, timeout=STARTED_WITHIN_SECONDS)
    assert sorted(seen) == seen
    wait_until(lambda: len(prefork.files()) <= 2, what="the files of ended children to be gone")
    for worker in workers:
        worker.stop()


def has_exported(worker: Worker, spans: int) -> bool:
    """Whether that many spans have left the worker."""
    return worker.scrape().value("saga_spans_total", state="exported") >= spans


def test_a_port_that_is_taken_is_one_sentence(start_worker: StartWorker) -> None:
    """A worker whose port somebody else has says what to do, and ends."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        worker = start_worker("taken", "-P", "solo", SAGA_METRICS_PORT=str(port))
        assert 2 == worker.process.wait(60)
    said = worker.output.read_text()
    assert f"The metrics cannot be served on 127.0.0.1:{port}" in said
    assert "Set SAGA_METRICS_PORT to a free port" in said
    assert "Traceback" not in said
    assert [] == list(worker.output.parent.glob("saga-metrics-*"))
