from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_until
from tests.workers.stand_in import StandIn, command, summary, worker

QUEUE = "celery"


def test_first_reply_finds_its_queue(rabbitmq_url: str, tmp_path: Path) -> None:
    """RabbitMQ drops what goes to a queue that does not exist; the worker declares it first."""
    log = tmp_path / "worker.log"
    with (
        StandIn(rabbitmq_url) as broker,
        worker("tests.workers.installed_app", rabbitmq_url, tmp_path, "-P", "solo", "-Q", QUEUE),
    ):
        broker.send("plain.add", command(), queue=QUEUE, x=1)
        wait_until(lambda: "step.succeeded" in log.read_text(), timeout=30)
        assert summary(broker.reply().outcome) == "succeeded 2"


@pytest.mark.parametrize(
    "task, expected",
    [
        ("plain.dies", "failed WorkerLost for good"),
        ("plain.nobody_knows", "rejected TaskUnknown"),
        ("plain.retries", "succeeded 1"),
        ("plain.rejects_message", "failed MessageRejected for good"),
    ],
)
def test_hard_cases_are_answered_on_rabbitmq(
    rabbitmq_url: str, tmp_path: Path, task: str, expected: str
) -> None:
    """What depends on acknowledgement and redelivery works on the other broker too."""
    with (
        StandIn(rabbitmq_url) as broker,
        worker("tests.workers.installed_app", rabbitmq_url, tmp_path, "-c", "1", "-Q", QUEUE),
    ):
        payload: dict[str, Any] = {"succeed_at": 1} if task == "plain.retries" else {}
        broker.send(task, command(), queue=QUEUE, **payload)
        assert summary(broker.reply().outcome) == expected
        # The next message is served, so the one before it is neither requeued nor stuck.
        broker.send("plain.add", command(step="after"), queue=QUEUE, x=1)
        assert summary(broker.reply().outcome) == "succeeded 2"
