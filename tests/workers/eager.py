"""Runs tasks in this process, through Celery's own tracer, with replies on a broker in memory."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from celery import Celery
from kombu import Connection

from shared import codec, names
from shared.ids import command_id
from shared.messages import Inbound, Reply
from tests.workers.stand_in import headers
from workers.sdk.command import StepCommand


class Eager:
    """An app whose broker is ``memory://``.

    Attributes:
        states: How Celery says that each run has ended.
    """

    def __init__(self, app: Celery[Any]) -> None:
        self._app = app
        self.states: list[str] = []
        self._connection = Connection("memory://")

    def __enter__(self) -> Self:
        self._queue = self._connection.SimpleQueue(names.REPLIES_QUEUE)
        self._queue.clear()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._queue.close()
        self._connection.release()

    def run(
        self,
        task: str,
        of: StepCommand,
        payload: Mapping[str, Any],
        *,
        extra: Mapping[str, Any] | None = None,
    ) -> list[Reply]:
        """Run a step; returns the replies that it sent."""
        told = self.told(task, of, payload, extra=extra)
        assert all(isinstance(one, Reply) for one in told)
        return [one for one in told if isinstance(one, Reply)]

    def told(
        self,
        task: str,
        of: StepCommand,
        payload: Mapping[str, Any],
        *,
        extra: Mapping[str, Any] | None = None,
    ) -> list[Inbound]:
        """Run a step; returns everything that it told the orchestrator."""
        done = self._app.tasks[task].apply(
            kwargs=dict(payload),
            task_id=command_id(of.saga_id, of.step, of.direction, of.attempt),
            headers={**headers(of), **(extra or {})},
        )
        self.states.append(done.state)
        return self.messages()

    def plainly(self, task: str, payload: Mapping[str, Any]) -> Any:
        """Run a task outside of any saga; returns what it returned."""
        return self._app.tasks[task].apply(kwargs=dict(payload)).get()

    def replies(self) -> list[Reply]:
        """Take the replies that are there."""
        return [one for one in self.messages() if isinstance(one, Reply)]

    def messages(self) -> list[Inbound]:
        """Take everything that is there."""
        found = []
        while self._queue.qsize():
            message: Any = self._queue.get(block=False)
            message.ack()
            headers = message.headers
            body = message.body if isinstance(message.body, bytes) else message.body.encode()
            found.append(codec.decode_inbound(headers["task"], headers["id"], body, headers))
        return found
