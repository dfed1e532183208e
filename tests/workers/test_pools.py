from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shared.messages import Failed
from tests.waiting import wait_until
from tests.workers.stand_in import StandIn, command, summary, worker

POOLS = ["prefork", "threads", "gevent", "solo"]
QUEUE = "celery"

TASKS: list[tuple[str, dict[str, Any], str]] = [
    ("plain.add", {"x": 1, "y": 2, "sku": "lamp"}, "succeeded 3"),
    ("plain.add", {}, "rejected InvalidArguments"),
    ("plain.shared", {"x": 4}, "succeeded 4"),
    ("plain.bound", {"x": 4}, "succeeded [4, 0]"),
    ("plain.in_context", {"x": 4}, "succeeded [4, true]"),
    ("plain.class_based", {"x": 4}, "succeeded 40"),
    ("plain.calls_itself", {"depth": 3}, "succeeded 0"),
    ("plain.breaks", {}, "failed ConnectionError"),
    ("plain.says_no", {}, "rejected OutOfStock"),
    ("plain.retries", {"succeed_at": 2}, "succeeded 2"),
    ("plain.retries", {"succeed_at": 9}, "failed MaxRetriesExceededError"),
    ("plain.autoretries", {"succeed_at": 1}, "succeeded 1"),
    ("plain.autoretries", {"succeed_at": 9}, "failed ConnectionError"),
    ("plain.ignores", {}, "failed Ignored for good"),
    ("plain.rejects_message", {}, "failed MessageRejected for good"),
    ("plain.not_json", {}, "failed ResultNotJson for good"),
    ("plain.nobody_knows", {}, "rejected TaskUnknown"),
]


@pytest.fixture
def broker(redis_url: str) -> Iterator[StandIn]:
    """An orchestrator's end of a real broker."""
    with StandIn(redis_url) as stand_in:
        yield stand_in


@contextmanager
def installed(redis_url: str, folder: Path, pool: str, concurrency: int = 2) -> Iterator[None]:
    """A worker of the installed app."""
    options = ("--pool", pool, "--concurrency", str(concurrency), "-Q", QUEUE)
    with worker("tests.workers.installed_app", redis_url, folder, *options):
        yield


@pytest.mark.parametrize("pool", POOLS)
def test_unmodified_tasks_answer_once_in_every_pool(
    redis_url: str, broker: StandIn, tmp_path: Path, pool: str
) -> None:
    """One reply for each message, in every pool, however the task ends."""
    for number, (task, payload, _) in enumerate(TASKS):
        broker.send(task, command(step=f"step-{number}"), queue=QUEUE, **payload)
    with installed(redis_url, tmp_path, pool):
        replies = [broker.reply() for _ in TASKS]
    outcomes = {reply.step: summary(reply.outcome) for reply in replies}
    expected = {f"step-{number}": case[2] for number, case in enumerate(TASKS)}
    assert outcomes == expected
    # The worker has ended: what it acknowledged is gone, what it sent is here.
    assert broker.replies_left() == 0
    assert broker.unacknowledged() == 0


def test_compensation_of_an_unknown_task_fails_for_good(
    redis_url: str, broker: StandIn, tmp_path: Path
) -> None:
    """The answer names the task and the queue, so that somebody can mend it."""
    with installed(redis_url, tmp_path, "solo"):
        broker.send("plain.nobody_knows", command("compensation"), queue=QUEUE)
        outcome = broker.reply().outcome
    assert isinstance(outcome, Failed)
    assert not outcome.failure.retryable
    assert outcome.failure.message == (
        "No worker of queue 'celery' knows the task 'plain.nobody_knows'."
    )


@pytest.mark.parametrize(
    "task, expected",
    [
        ("plain.soft_limit", "failed SoftTimeLimitExceeded"),
        ("plain.hard_limit", "failed TimeLimitExceeded"),
    ],
)
def test_time_limits_are_answered(
    redis_url: str, broker: StandIn, tmp_path: Path, task: str, expected: str
) -> None:
    """A task that Celery stops is a failed attempt, and at once, not at the step's timeout."""
    with installed(redis_url, tmp_path, "prefork"):
        broker.send(task, command(), queue=QUEUE)
        assert summary(broker.reply().outcome) == expected
    assert broker.replies_left() == 0
    assert broker.unacknowledged() == 0


def test_task_that_kills_its_worker_is_given_up(
    redis_url: str, broker: StandIn, tmp_path: Path
) -> None:
    """A poison task is not requeued for ever: after three losses the saga is told."""
    with installed(redis_url, tmp_path, "prefork", concurrency=1):
        broker.send("plain.dies", command(), queue=QUEUE)
        broker.send("plain.add", command(step="after"), queue=QUEUE, x=1)
        replies = {reply.step: reply for reply in (broker.reply(), broker.reply())}
    assert summary(replies["pay"].outcome) == "failed WorkerLost for good"
    assert summary(replies["after"].outcome) == "succeeded 2"
    assert broker.replies_left() == 0
    assert broker.unacknowledged() == 0


def test_step_of_a_killed_child_comes_again(
    redis_url: str, broker: StandIn, tmp_path: Path
) -> None:
    """A child that is lost in the middle costs time, not the step, whatever the app's settings."""
    fault = {"SAGA_FAULT": "in-action@plain.add", "SAGA_FAULT_DIR": str(tmp_path / "faults")}
    with worker("tests.workers.installed_app", redis_url, tmp_path, "-c", "1", **fault):
        broker.send("plain.add", command(), queue=QUEUE, x=1)
        assert summary(broker.reply().outcome) == "succeeded 2"
    assert (tmp_path / "faults" / "in-action@plain.add.fired").exists()


def test_other_messages_keep_the_apps_own_settings(
    redis_url: str, broker: StandIn, tmp_path: Path
) -> None:
    """Without saga headers a task is acknowledged early, as this app wants it, and not repeated."""
    with installed(redis_url, tmp_path, "prefork", concurrency=1):
        broker.send_plainly("plain.dies", queue=QUEUE)
        broker.send("plain.add", command(), queue=QUEUE, x=1)
        assert summary(broker.reply().outcome) == "succeeded 2"
        log = tmp_path / "worker.log"
        wait_until(lambda: log.read_text().count("WorkerLostError"))
    assert broker.unacknowledged() == 0
    assert log.read_text().count("Task plain.dies[plain] received") == 1
