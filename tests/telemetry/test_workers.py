"""Real workers, each pool, with real brokers and collectors."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from signal import SIGTERM
from time import monotonic
from typing import Any

import msgspec
import psutil
import pytest
from celery import Celery

from orchestrator.log_files import read_logs
from shared.ids import new_trace_id
from shared.telemetry.log_file import old_files
from tests.servers.otlp import OtlpReceiver, ReceivedSpan
from tests.servers.process import kill_tree, spawn, wait_until_ready
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
SPAN_ID = "b7ad6b7169203331"
POOLS = ["prefork", "threads", "gevent", "solo"]
STOPPED_WITHIN_SECONDS = 30
STOPPED_SOON_WITHIN_SECONDS = 15


class Worker:
    """A worker process, its folder and its log lines."""

    def __init__(
        self,
        home: Path,
        broker_url: str,
        *arguments: str,
        env: dict[str, str],
        log_dir: Path | None = Path("logs"),
    ) -> None:
        self.home = home
        self.broker_url = broker_url
        self._output = home / "output"
        kept = {name: value for name, value in os.environ.items() if "OTEL" not in name}
        self.process = spawn(
            [
                sys.executable,
                *("-m", "celery", "-A", "tests.telemetry.worker_app", "worker"),
                *("--without-mingle", "--without-gossip", *arguments),
            ],
            log=self._output,
            env=kept
            | {
                "PYTHONPATH": str(ROOT),
                "SAGA_HOME": str(home),
                "SAGA_BROKER_URL": broker_url,
            }
            | ({} if log_dir is None else {"SAGA_LOG_DIR": str(home / log_dir)})
            | env,
        )

    def ready(self) -> "Worker":
        """Wait until it consumes."""
        wait_until_ready(
            self.process,
            lambda: self.has_logged(" ready."),
            log=self._output,
        )
        return self

    def send(self, task: str, count: int = 1, queue: str = "inventory") -> list[str]:
        """Send tasks as the orchestrator does, each in a trace of its own; return their traces."""
        traces = [new_trace_id() for _ in range(count)]
        with Celery("sender", broker=self.broker_url, set_as_current=False) as app:
            for number, trace_id in enumerate(traces):
                headers = headers_in(trace_id)
                app.send_task(
                    task, queue=queue, headers=headers, task_id=f"task-{trace_id}-{number}"
                )
        return traces

    def lines(self, trace_id: str = "") -> list[dict[str, Any]]:
        """All complete log lines, or those that a grep for a trace id finds."""
        found = []
        for path in (self.home / "logs").glob("*.jsonl"):
            text = path.read_text()
            found += [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [msgspec.json.decode(line) for line in found if trace_id in line]

    def has_logged(self, words: str, trace_id: str = "") -> bool:
        """Whether a line, of one trace or of all, says that."""
        return any(words in line["event"] for line in self.lines(trace_id))

    def output(self) -> str:
        """What it wrote to its terminal."""
        return self._output.read_text()

    def stop(self) -> float:
        """Stop it warmly; return how many seconds it took."""
        begin = monotonic()
        self.process.send_signal(SIGTERM)
        assert 0 == self.process.wait(STOPPED_WITHIN_SECONDS), self.output()
        return monotonic() - begin


StartWorker = Callable[..., Worker]


@pytest.fixture
def start_worker(tmp_path: Path, redis_url: str) -> Iterator[StartWorker]:
    """Start workers, by default on Redis; they are killed after the test."""
    workers: list[Worker] = []

    def start(*arguments: str, broker_url: str = redis_url, **env: str) -> Worker:
        home = tmp_path / f"home-{len(workers)}"
        home.mkdir()
        workers.append(Worker(home, broker_url, *arguments, env=env))
        return workers[-1]

    yield start
    for worker in workers:
        kill_tree(worker.process)


def headers_in(trace_id: str) -> dict[str, Any]:
    """Headers of a command in a trace."""
    return {
        "saga_id": f"saga-{trace_id}",
        "saga_name": "place-order",
        "saga_version": 3,
        "saga_step": "reserve-inventory",
        "saga_direction": "action",
        "saga_attempt": 2,
        "traceparent": f"00-{trace_id}-{SPAN_ID}-03",
    }


def processed(spans: list[ReceivedSpan]) -> Mapping[str, ReceivedSpan]:
    """The process spans by trace; each must be the only one of its trace."""
    found = [span for span in spans if span.name.startswith("process ")]
    assert len(found) == len({span.trace_id for span in found})
    return {span.trace_id: span for span in found}


@pytest.mark.parametrize("pool", POOLS)
def test_every_pool_gives_a_process_span_and_lines_with_its_ids(
    pool: str, start_worker: StartWorker, otlp_http: OtlpReceiver
) -> None:
    """Whatever the pool, a task is one CONSUMER span and its lines carry it."""
    worker = start_worker(
        *("-P", pool, "-c", "2", "-Q", "inventory"),
        **otlp_http.environment,
        OTEL_LOGS_EXPORTER="otlp",
    ).ready()
    traces = worker.send("inventory.reserve", 4)
    (failed,) = worker.send("inventory.fail")
    otlp_http.wait_for(lambda spans: len(spans) >= 5)
    worker.stop()

    spans = processed(otlp_http.spans())
    assert {*traces, failed} == spans.keys()
    for number, trace_id in enumerate(traces):
        span = spans[trace_id]
        assert ("process inventory", "consumer", "inventory", "unset") == (
            span.name,
            span.kind,
            span.service,
            span.status,
        )
        assert (SPAN_ID, True) == (span.parent_id, span.parent_is_remote)
        expected = {
            "saga.id": f"saga-{trace_id}",
            "saga.name": "place-order",
            "saga.version": 3,
            "saga.step": "reserve-inventory",
            "saga.direction": "action",
            "saga.attempt": 2,
            "messaging.system": "redis",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": "inventory",
            "messaging.message.id": f"task-{trace_id}-{number}",
            "messaging.message.conversation_id": f"saga-{trace_id}",
        }
        assert expected == {key: span.attributes.get(key) for key in expected}
        ours, library, succeeded = (
            line
            for line in worker.lines(trace_id)
            if line["logger"] in {"tests.worker", "a.library", "celery.app.trace"}
        )
        assert ("reserved", "number 0") == (ours["event"], library["event"])
        records = {one.body: one for one in otlp_http.logs() if one.trace_id == trace_id}
        for line in (ours, library, succeeded):
            record = records[line["event"]]
            assert ("inventory", line["span_id"]) == (
                record.resource["service.name"],
                record.span_id,
            )
        assert "succeeded" in succeeded["event"]
        for line in (ours, library, succeeded):
            assert {
                "service": "inventory",
                "trace_id": trace_id,
                "span_id": span.span_id,
                "saga_id": f"saga-{trace_id}",
                "saga_name": "place-order",
                "saga_step": "reserve-inventory",
                "saga_direction": "action",
                "saga_attempt": 2,
                "task_id": f"task-{trace_id}-{number}",
                "task_name": "inventory.reserve",
            }.items() <= line.items()
    assert ("error", "ValueError", ("exception",)) == (
        spans[failed].status,
        spans[failed].attributes["error.type"],
        spans[failed].events,
    )
    (raised,) = (line for line in worker.lines(failed) if line["level"] == "error")
    assert "ValueError: no stock" in raised["exception"]
    main_lines = [line for line in worker.lines() if line["pid"] == worker.process.pid]
    assert any(line["event"].endswith(" ready.") for line in main_lines)
    assert not any("saga_id" in line for line in main_lines if line["event"].endswith("ready."))


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_grpc_where_it_is_delicate(
    pool: str, start_worker: StartWorker, otlp_grpc: OtlpReceiver
) -> None:
    """A channel made before a fork would hang, and so would greenlets behind its waits."""
    worker = start_worker(
        *("-P", pool, "-c", "2", "-Q", "inventory"), **otlp_grpc.environment
    ).ready()
    traces = worker.send("inventory.reserve", 4)
    otlp_grpc.wait_for(lambda spans: len(spans) >= 4)
    assert set(traces) == processed(otlp_grpc.spans()).keys()
    worker.stop()


def test_recycled_children_lose_no_span_and_no_line(
    start_worker: StartWorker, otlp_http: OtlpReceiver
) -> None:
    """A child that ends after one task exports its span first (1 of 20 once).

    Its log records likewise; and its lines are in the files, which all of them rotate meanwhile.
    """
    worker = start_worker(
        *("-c", "2", "-Q", "inventory", "--max-tasks-per-child", "1"),
        **otlp_http.environment,
        OTEL_LOGS_EXPORTER="otlp",
        # Nothing goes out by itself.
        OTEL_BSP_SCHEDULE_DELAY="3600000",
        OTEL_BLRP_SCHEDULE_DELAY="3600000",
        SAGA_LOG_FILE_BYTES_MAX="6000",
    ).ready()
    traces = worker.send("inventory.reserve", 10)
    otlp_http.wait_for(lambda spans: len(spans) >= 10, timeout=60)
    assert set(traces) == processed(otlp_http.spans()).keys()
    assert 10 == len({span.resource["service.instance.id"] for span in otlp_http.spans()})
    worker.stop()
    assert old_files(worker.home / "logs" / "inventory.jsonl")
    said = {"reserved", "number 0"}
    for trace_id in traces:
        lines = read_logs([worker.home / "logs"], trace_id=trace_id)
        assert said < {line.fields["event"] for line in lines}
        assert said < {one.body for one in otlp_http.logs() if one.trace_id == trace_id}


@pytest.mark.parametrize("pool", POOLS)
def test_a_warm_stop_exports_the_last_spans(
    pool: str, start_worker: StartWorker, otlp_http: OtlpReceiver
) -> None:
    """What waits for its batch when a worker is stopped still goes out."""
    worker = start_worker(
        *("-P", pool, "-c", "2", "-Q", "inventory"),
        **otlp_http.environment,
        OTEL_BSP_SCHEDULE_DELAY="3600000",
    ).ready()
    traces = worker.send("inventory.reserve", 3)
    wait_until(lambda: sum("succeeded" in line["event"] for line in worker.lines()) == 3)
    assert [] == otlp_http.spans()
    worker.stop()
    assert set(traces) == processed(otlp_http.spans()).keys()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_collector_that_is_gone_delays_a_stop_by_two_seconds_at_most(
    pool: str, protocol: str, start_worker: StartWorker
) -> None:
    """Spans are lost, time is not; and the log says so once (7 s once)."""
    with OtlpReceiver("http" if protocol == "http" else "grpc") as receiver:
        environment = receiver.environment
    arguments = ("-P", pool, "-c", "1", "-Q", "inventory")
    took = {}
    for name, env in {"off": {"OTEL_SDK_DISABLED": "true"}, "gone": environment}.items():
        worker = start_worker(*arguments, **env).ready()
        (trace_id,) = worker.send("inventory.reserve")
        wait_until(partial(worker.has_logged, "succeeded", trace_id))
        took[name] = worker.stop()
        events = [line["event"] for line in worker.lines()]
        assert events.count("telemetry.export_failing") <= 1
    assert took["gone"] - took["off"] < 2.0 + 2.5  # a busy machine


def test_an_attempt_that_is_retried_by_celery_is_an_error(
    start_worker: StartWorker, otlp_http: OtlpReceiver
) -> None:
    """The failed attempt is marked (UNSET once), and its sibling follows."""
    worker = start_worker(*("-P", "solo", "-Q", "inventory"), **otlp_http.environment).ready()
    (trace_id,) = worker.send("inventory.again")
    spans = otlp_http.wait_for(
        lambda spans: sum(span.name == "process inventory" for span in spans) == 2
    )
    first, second = (span for span in spans if span.name == "process inventory")
    assert ("error", "KeyError") == (first.status, first.attributes["error.type"])
    assert "unset" == second.status
    assert {trace_id} == {span.trace_id for span in spans}
    assert (SPAN_ID, SPAN_ID) == (first.parent_id, second.parent_id)
    worker.stop()
    (send,) = (span for span in otlp_http.spans() if span.name == "send inventory")
    assert first.span_id == send.parent_id


def test_a_worker_stops_soon_though_its_child_holds_a_task(start_worker: StartWorker) -> None:
    """Nobody reads the result of a task that a stopping worker handed over but saw no begin of."""
    worker = start_worker("-P", "prefork", "-c", "1", "-Q", "inventory", "-l", "DEBUG").ready()
    (child,) = psutil.Process(worker.process.pid).children()
    child.suspend()
    worker.send("inventory.reserve")
    wait_until(lambda: worker.has_logged(" received"))
    worker.process.send_signal(SIGTERM)
    wait_until(lambda: worker.has_logged("Stopping Pool"))
    child.resume()
    assert 0 == worker.process.wait(STOPPED_SOON_WITHIN_SECONDS), worker.output()


def test_what_a_task_sends_belongs_to_its_trace(
    start_worker: StartWorker, otlp_http: OtlpReceiver
) -> None:
    """Each message has one PRODUCER span, also of a task that the sender does not know."""
    worker = start_worker(
        *("-P", "prefork", "-c", "1", "-Q", "inventory"), **otlp_http.environment
    ).ready()
    (trace_id,) = worker.send("inventory.hand_on")
    wait_until(lambda: worker.has_logged("reserve", trace_id))
    worker.stop()
    spans = {(span.name, span.parent_id): span for span in otlp_http.spans()}
    parent = spans["process inventory", SPAN_ID]
    sent, unknown = spans["send inventory", parent.span_id], spans["send nobody", parent.span_id]
    assert ("producer", "producer") == (sent.kind, unknown.kind)
    assert spans["process inventory", sent.span_id].trace_id == trace_id
    assert 4 == len(spans)
    assert f"saga-{trace_id}" == unknown.attributes["saga.id"]


def test_a_link_error_handler_belongs_to_the_trace_of_the_failed_task(
    start_worker: StartWorker, otlp_http: OtlpReceiver
) -> None:
    """It is no task and has no span of its own; its lines and messages have the ids."""
    worker = start_worker(*("-P", "solo", "-Q", "inventory"), **otlp_http.environment).ready()
    trace_id = new_trace_id()
    with Celery("sender", broker=worker.broker_url, set_as_current=False) as app:
        app.send_task(
            "inventory.fail",
            queue="inventory",
            headers=headers_in(trace_id),
            link_error=app.signature("inventory.gone_wrong"),
        )
    wait_until(lambda: worker.has_logged("reserved", trace_id))
    worker.stop()
    spans = {span.name: span for span in otlp_http.spans(trace_id)}
    (failed,) = (span for span in otlp_http.spans(trace_id) if span.parent_id == SPAN_ID)
    assert ("error", failed.span_id) == (failed.status, spans["send inventory"].parent_id)
    (line,) = (line for line in worker.lines(trace_id) if line["event"] == "gone wrong")
    assert (failed.span_id, "inventory.fail") == (line["span_id"], line["task_name"])


def test_a_span_follows_the_callers_decision(
    start_worker: StartWorker, otlp_http: OtlpReceiver
) -> None:
    """A saga that is not sampled has no spans, but its lines still carry its trace id."""
    worker = start_worker(*("-P", "solo", "-Q", "inventory"), **otlp_http.environment).ready()
    trace_id = new_trace_id()
    headers = headers_in(trace_id) | {"traceparent": f"00-{trace_id}-{SPAN_ID}-02"}
    with Celery("sender", broker=worker.broker_url, set_as_current=False) as app:
        app.send_task("inventory.reserve", queue="inventory", headers=headers)
    wait_until(lambda: worker.has_logged("succeeded", trace_id))
    worker.stop()
    assert [] == otlp_http.spans()
    (line,) = (line for line in worker.lines(trace_id) if line["event"] == "reserved")
    assert (trace_id, SPAN_ID) == (line["trace_id"], line["span_id"])


def test_a_task_outside_of_any_saga_is_traced_by_itself(
    start_worker: StartWorker, otlp_http: OtlpReceiver
) -> None:
    """An ordinary task begins a trace, and has nothing of the saga whose task ran before it."""
    worker = start_worker(*("-P", "solo", "-Q", "inventory"), **otlp_http.environment).ready()
    (of_saga,) = worker.send("inventory.reserve")
    with Celery("sender", broker=worker.broker_url, set_as_current=False) as app:
        app.send_task("inventory.reserve", queue="inventory", headers={"traceparent": "garbage"})
    spans = otlp_http.wait_for(lambda spans: len(spans) == 2)
    worker.stop()
    (span,) = (span for span in spans if span.trace_id != of_saga)
    assert "" == span.parent_id
    assert not [key for key in span.attributes if key.startswith("saga.")]
    (line,) = (line for line in worker.lines(span.trace_id) if line["event"] == "reserved")
    assert "saga_id" not in line


@pytest.mark.parametrize(
    "queues, env, service",
    [
        ("inventory", {}, "inventory"),
        ("inventory,payment", {}, "default-service"),
        ("inventory", {"OTEL_SERVICE_NAME": "warehouse"}, "warehouse"),
    ],
)
def test_the_name_of_the_service(
    queues: str, env: dict[str, str], service: str, start_worker: StartWorker
) -> None:
    """One queue names the service, more do not, and OTEL_SERVICE_NAME wins."""
    worker = start_worker("-P", "solo", "-Q", queues, **env).ready()
    worker.stop()
    assert [worker.home / "logs" / f"{service}.jsonl"] == list((worker.home / "logs").iterdir())
    assert {service} == {line["service"] for line in worker.lines()}


@pytest.mark.parametrize(
    "arguments, env, expected",
    [
        ((), {}, {"info"}),
        ((), {"SAGA_LOG_LEVEL": "DEBUG"}, {"debug", "info"}),
        (("-l", "DEBUG"), {}, {"debug", "info"}),
    ],
)
def test_the_level_of_the_log(
    arguments: tuple[str, ...], env: dict[str, str], expected: set[str], start_worker: StartWorker
) -> None:
    """SAGA_LOG_LEVEL sets it; ``--loglevel`` does when it is given, its default does not."""
    worker = start_worker("-P", "solo", "-Q", "inventory", *arguments, **env).ready()
    worker.stop()
    assert expected == {line["level"] for line in worker.lines()} - {"warning"}


def test_without_a_folder_lines_go_to_standard_output(tmp_path: Path, redis_url: str) -> None:
    """A container's output is JSON lines, without Celery's banner between them."""
    worker = Worker(tmp_path, redis_url, "-P", "solo", "-Q", "inventory", env={}, log_dir=None)
    try:
        wait_until(lambda: " ready." in worker.output() or worker.process.poll() is not None)
        worker.stop()
    finally:
        kill_tree(worker.process)
    events = [
        msgspec.json.decode(line)["event"]
        for line in worker.output().splitlines()
        if line.startswith("{")
    ]
    assert any(event.endswith(" ready.") for event in events)
    assert "[config]" not in worker.output()
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    "env, message",
    [
        ({"SAGA_BROKER_URL": ""}, "No broker: SAGA_BROKER_URL is not set"),
        ({"SAGA_LOG_LEVEL": "LOUD"}, "SAGA_LOG_LEVEL='LOUD'"),
        ({"SAGA_LOG_DIR": "/dev/null"}, "SAGA_LOG_DIR=/dev/null: no log file can be written"),
        ({"OTEL_TRACES_SAMPLER": "some"}, "OTEL_TRACES_SAMPLER='some' is not allowed"),
        ({"OTEL_PROPAGATORS": "w3c"}, "OTEL_PROPAGATORS='w3c' is not allowed"),
        (
            {"OPENTELEMETRY_SAMPLING_RATIO": "2"},
            "OPENTELEMETRY_SAMPLING_RATIO='2' is not allowed; expected a number from 0 to 1",
        ),
    ],
)
def test_a_wrong_setting_is_one_sentence(
    env: dict[str, str], message: str, tmp_path: Path
) -> None:
    """A worker that cannot start says why, without a traceback, and exits with 2."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tests.telemetry.worker_app", "worker"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "SAGA_HOME": str(tmp_path)}
        | {"SAGA_BROKER_URL": "redis://127.0.0.1:1/0"}
        | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 2 == done.returncode, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "" == done.stdout


def test_rabbitmq_is_named_as_the_system(
    start_worker: StartWorker, rabbitmq_url: str, otlp_http: OtlpReceiver
) -> None:
    """``messaging.system`` is the real broker, whatever the URL's scheme is called."""
    worker = start_worker(
        *("-P", "solo", "-Q", "inventory"), broker_url=rabbitmq_url, **otlp_http.environment
    ).ready()
    (trace_id,) = worker.send("inventory.reserve")
    (span,) = otlp_http.wait_for(lambda spans: spans)
    worker.stop()
    assert ("rabbitmq", trace_id) == (span.attributes["messaging.system"], span.trace_id)


def test_traces_are_files_by_default(start_worker: StartWorker) -> None:
    """Without a collector each process of a worker writes its own file."""
    worker = start_worker("-c", "2", "-Q", "inventory").ready()
    traces = worker.send("inventory.reserve", 6)
    wait_until(lambda: sum("succeeded" in line["event"] for line in worker.lines()) == 6)
    worker.stop()
    files = list((worker.home / "traces").iterdir())
    text = "".join(path.read_text() for path in files)
    assert all(trace_id in text for trace_id in traces)
    assert 1 <= len(files) <= 2
    assert all(path.name.startswith("inventory-") for path in files)
