"""Answers to the queries of this process: one queue, one thread that reads it, for each app.

A forked child has a reader of its own; so has a process in which the last one was closed. The queue
is deleted when the process ends in order, and by the broker a minute after it ended otherwise.
"""

import atexit
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final
from weakref import WeakKeyDictionary

import msgspec
import structlog
from celery import Celery, signals
from celery.utils.nodenames import gethostname
from kombu import Connection, Consumer

from shared import names
from shared.backoff import Backoff, delay
from shared.broker_transport import BROKER_ERRORS
from shared.bus import replying
from shared.ids import new_span_id
from shared.messages import Failed, Succeeded
from shared.telemetry import logs
from shared.telemetry.metrics import catalog
from shared.telemetry.names import BUS_MESSAGE_NAME

STOPPED_WITHIN: Final = timedelta(seconds=2)

_SLICE_S: Final = 0.5
"""So often the thread looks whether it was stopped."""
_RECONNECT: Final = Backoff(wait_first=timedelta(milliseconds=100), wait_max=timedelta(seconds=5))
_THREAD: Final = "saga-answers"

_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("shared.bus")


class Waiting:
    """A query that waits for its answer."""

    def __init__(self) -> None:
        self.outcome: Succeeded | Failed | None = None
        self._came = threading.Event()

    def wait(self, seconds: float) -> Succeeded | Failed | None:
        """The outcome; None when the time is up."""
        self._came.wait(max(seconds, 0))
        return self.outcome

    def set(self, outcome: Succeeded | Failed) -> None:
        """It came."""
        self.outcome = outcome
        self._came.set()


class Answers:
    """The answers of this process over the broker of one app."""

    def __init__(self, app: Celery[Any]) -> None:
        self._app = app
        # Random, not only host and process: both come again.
        self.queue = f"{names.ANSWERS_PREFIX}{gethostname()}.{os.getpid()}.{new_span_id()}"
        self.late = 0
        self._waiting: dict[str, Waiting] = {}
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=_THREAD, daemon=True)
        self._thread.start()

    def expect(self, query_id: str, seconds: float) -> Waiting:
        """Wait from now on for the answer to a query that is about to be sent.

        Args:
            query_id: Id of the query.
            seconds: How long to wait for the queue to exist, if it does not yet.
        """
        waiting = self._waiting[query_id] = Waiting()
        # On RabbitMQ an answer that comes before its queue is lost.
        self._ready.wait(max(seconds, 0))
        return waiting

    def forget(self, query_id: str) -> None:
        """An answer from now on is a late one."""
        self._waiting.pop(query_id, None)

    def close(self) -> None:
        """Stop reading and delete the queue; never raises."""
        self._stopping.set()
        self._thread.join(STOPPED_WITHIN.total_seconds())

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                # Not from the pool: this one is held for as long as the process asks.
                with self._app.connection_for_read() as connection:
                    self._read(connection)
            except BROKER_ERRORS as error:
                failures = 1 if self._ready.is_set() else failures + 1
                self._ready.clear()
                _log.warning("answers.broker_away", error=str(error))
                self._stopping.wait(delay(_RECONNECT, failures, self.queue).total_seconds())

    def _read(self, connection: Connection) -> None:
        channel: Any = connection.channel()
        queue = replying.answers_queue(self.queue)
        consumer = Consumer(
            channel,
            [queue],
            on_message=self._on_message,
            on_decode_error=self._on_broken,
            no_ack=True,
        )
        with consumer:
            self._ready.set()
            while not self._stopping.is_set():
                with suppress(TimeoutError):
                    connection.drain_events(timeout=_SLICE_S)
                connection.heartbeat_check()
        with suppress(*BROKER_ERRORS):
            channel.queue_delete(self.queue)

    def _on_message(self, message: Any) -> None:
        headers: Mapping[str, Any] = message.headers or {}
        try:
            answer = replying.read(message.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._on_broken(message, error)
            return
        waiting = self._waiting.pop(answer.query_id, None)
        if waiting is not None:
            waiting.set(answer.outcome)
            return
        self.late += 1
        name = str(headers.get(names.SAGA_MESSAGE, ""))
        catalog.BUS_LATE_ANSWERS.add(1, {BUS_MESSAGE_NAME: name})
        with logs.saga_context({**headers, "task_id": answer.query_id}):
            _log.warning("query.late_answer", late_answers=self.late)

    def _on_broken(self, message: Any, error: Exception) -> None:
        with logs.saga_context(message.headers or {}):
            _log.error("query.broken_answer", error=str(error))


_readers: WeakKeyDictionary[Celery[Any], Answers] = WeakKeyDictionary()
_lock = threading.Lock()


def answers_of(app: Celery[Any]) -> Answers:
    """The answers of this process; starts reading with the first call."""
    found = _readers.get(app)
    if found is None:
        with _lock:
            found = _readers.get(app)
            if found is None:
                found = _readers[app] = Answers(app)
    return found


def close_answers(app: Celery[Any]) -> None:
    """Stop reading, for one app."""
    with _lock:
        reader = _readers.pop(app, None)
    if reader is not None:
        reader.close()


def close_all(**_: Any) -> None:
    """Stop reading, for every app; a later query starts anew."""
    with _lock:
        readers = list(_readers.values())
        _readers.clear()
    for reader in readers:
        reader.close()


def _forked() -> None:
    # The thread does not exist here, and the lock may be held for ever.
    global _lock  # noqa: PLW0603 - the module's own
    _lock = threading.Lock()
    _readers.clear()


os.register_at_fork(after_in_child=_forked)
atexit.register(close_all)
# A child of a worker's pool ends without `atexit`.
signals.worker_process_shutdown.connect(close_all, weak=False)
