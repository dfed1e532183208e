"""What a participant sees of an orchestrator: commands that come, and a queue for the replies."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from types import TracebackType
from typing import Any, Self

from kombu import Connection, Exchange, Producer, Queue
from kombu.simple import SimpleQueue

from shared import codec, names
from shared.ids import Direction, command_id
from shared.messages import Accepted, Failed, Outcome, Rejected, Reply, Succeeded
from workers.sdk.command import StepCommand

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


def command(
    direction: Direction = "action",
    *,
    saga_id: str = "saga-1",
    step: str = "pay",
    attempt: int = 1,
    token: str = "",
) -> StepCommand:
    """One attempt of a step."""
    return StepCommand(
        saga_id=saga_id, step=step, direction=direction, attempt=attempt, token=token
    )


def headers(of: StepCommand) -> dict[str, Any]:
    """Its saga headers, as the orchestrator writes them."""
    return {
        names.SAGA_ID: of.saga_id,
        names.SAGA_NAME: "place-order",
        names.SAGA_VERSION: 1,
        names.SAGA_STEP: of.step,
        names.SAGA_DIRECTION: of.direction,
        names.SAGA_ATTEMPT: of.attempt,
        names.SAGA_REPLY_TO: names.REPLIES_QUEUE,
        names.SAGA_DEADLINE: "2030-01-01T00:00:00+00:00",
        names.TRACEPARENT: TRACEPARENT,
        **({names.SAGA_TOKEN: of.token} if of.token else {}),
    }


class StandIn:
    """Sends commands and takes replies on a real broker."""

    def __init__(self, broker_url: str) -> None:
        self._connection = Connection(broker_url)
        self._replies: SimpleQueue | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._replies is not None:
            self._replies.close()
        self._connection.release()

    def send(
        self,
        task: str,
        of: StepCommand,
        *,
        queue: str,
        extra: Mapping[str, Any] | None = None,
        **payload: Any,
    ) -> None:
        """Send a command; `extra` replaces headers."""
        task_id = command_id(of.saga_id, of.step, of.direction, of.attempt)
        self._publish(task, task_id, queue, payload, {**headers(of), **(extra or {})})

    def send_plainly(self, task: str, *, queue: str, **payload: Any) -> None:
        """Send a message that belongs to no saga, with the task id ``plain``."""
        self._publish(task, "plain", queue, payload, {})

    def _publish(
        self,
        task: str,
        task_id: str,
        queue: str,
        payload: Mapping[str, Any],
        more_headers: Mapping[str, Any],
    ) -> None:
        message_headers = {
            "lang": "py",
            "task": task,
            "id": task_id,
            "root_id": task_id,
            "retries": 0,
            "argsrepr": "()",
            "kwargsrepr": "{...}",
            "ignore_result": True,
            **more_headers,
        }
        Producer(self._connection).publish(
            json.dumps([[], payload, {}]),
            exchange="",
            routing_key=queue,
            content_type="application/json",
            content_encoding="utf-8",
            headers=message_headers,
            correlation_id=task_id,
            delivery_mode=2,
            declare=[Queue(queue, Exchange(queue), routing_key=queue)],
        )

    def reply(self, *, timeout: float = 60) -> Reply:
        """The next reply.

        Raises:
            AssertionError: None came.
        """
        if self._replies is None:
            # Not before: no orchestrator may have run yet when the first reply is sent.
            self._replies = self._connection.SimpleQueue(names.REPLIES_QUEUE)
        try:
            message: Any = self._replies.get(timeout=timeout)
        except Empty:
            raise AssertionError(f"no reply within {timeout:g} s") from None
        message.ack()
        assert message.headers["task"] == names.REPLY_TASK
        return codec.decode(message.body, tuple[list[Any], Reply, dict[str, Any]])[1]

    def unacknowledged(self) -> int:
        """How many messages were delivered and not acknowledged (Redis)."""
        return int(self._redis.hlen("unacked"))

    def replies_left(self) -> int:
        """How many replies nobody has taken (Redis)."""
        return int(self._redis.llen(names.REPLIES_QUEUE))

    @property
    def _redis(self) -> Any:
        channel: Any = self._connection.default_channel
        return channel.client


def summary(outcome: Outcome) -> str:
    """An outcome in a word or two, for tables of cases."""
    match outcome:
        case Succeeded(output=output):
            return f"succeeded {json.dumps(output)}"
        case Rejected(failure=failure):
            return f"rejected {failure.kind}"
        case Failed(failure=failure):
            return f"failed {failure.kind}{'' if failure.retryable else ' for good'}"
        case Accepted():
            return "accepted"


@contextmanager
def worker(
    app: str, broker_url: str, folder: Path, *options: str, **environment: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """A real Celery worker as a process; its output goes to ``worker.log`` in the folder.

    It need not be ready when the block begins: messages wait in the broker. At the end it is asked
    to stop, and killed with all its children if it does not.
    """
    with (folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", app, "worker", "--loglevel", "INFO"),
                *("--without-mingle", "--without-gossip", "--without-heartbeat"),
                *("--hostname", f"{folder.name}@test", *options),
            ],
            env={
                **os.environ,
                "SAGA_BROKER_URL": broker_url,
                "SAGA_HOME": str(folder),
                "OTEL_SDK_DISABLED": "true",
                "C_FORCE_ROOT": "1",
                **environment,
            },
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
