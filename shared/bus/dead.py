"""Dead letters: messages that nobody could handle, kept whole with the reason.

They lie in one durable queue of the broker, `shared.names.DEAD_LETTERS_QUEUE`. A letter has the
body and the headers of its message, and in four more headers why, when and from which queue it
came; without these it can be sent again as it was.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

import structlog
from celery import Celery
from kombu.message import Message as BrokerMessage

from shared import names
from shared.broker_transport import BROKER_ERRORS
from shared.bus.envelope import DEAD_HEADERS
from shared.bus.publisher import Publisher, queue_of
from shared.clock import utc_now
from shared.errors import UnavailableError
from shared.messages import Failure
from shared.telemetry.metrics import catalog

LETTERS_MAX: Final = 1_000

_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("shared.bus")


def bury(
    publisher: Publisher, body: bytes, headers: Mapping[str, Any], *, queue: str, why: Failure
) -> None:
    """Keep a message as a dead letter, and say so in the log.

    Args:
        publisher: Of the app.
        body: Of the message, as it came.
        headers: Of the message.
        queue: Where it came from.
        why: What was wrong.

    Raises:
        UnavailableError: The broker did not take it; the message must not be acknowledged.
    """
    letter = {
        **headers,
        names.SAGA_DEAD_KIND: why.kind,
        names.SAGA_DEAD_REASON: why.message,
        names.SAGA_DEAD_QUEUE: queue,
        names.SAGA_DEAD_AT: utc_now().isoformat(),
    }
    publisher.send(names.DEAD_LETTERS_QUEUE, body, letter)
    catalog.DEAD_LETTERED.add(1)
    _log.error(
        "message.dead_lettered",
        kind=why.kind,
        reason=why.message,
        queue=queue,
        attempts=1 + int(headers.get("retries") or 0),
    )


class Letter:
    """A dead letter in hand: send it again, or drop it; else it goes back into the queue.

    Attributes:
        message: Name of the command or event.
        task_id: Its Celery task id.
        kind: Stable name of the reason.
        reason: For people.
        queue: Where it came from.
        at: When it was put aside; None where somebody else than a bus has put it there.
        body: ``[args, kwargs, embed]`` as JSON.
        headers: All of its headers.
    """

    def __init__(self, message: BrokerMessage, publisher: Publisher) -> None:
        headers: dict[str, Any] = dict(message.headers or {})
        raw: Any = message.body
        self._message = message
        self._publisher = publisher
        self.headers = headers
        self.body = raw.encode() if isinstance(raw, str) else bytes(raw)
        self.message = str(headers.get(names.SAGA_MESSAGE) or headers.get("task"))
        self.task_id = str(headers.get("id"))
        self.kind = str(headers.get(names.SAGA_DEAD_KIND))
        self.reason = str(headers.get(names.SAGA_DEAD_REASON))
        self.queue = str(headers.get(names.SAGA_DEAD_QUEUE))
        self.at = _moment(headers.get(names.SAGA_DEAD_AT))

    def send_again(self) -> None:
        """Put the message back into its queue, its attempts counted afresh.

        Raises:
            UnavailableError: The broker is away; the letter stays.
        """
        kept = {key: value for key, value in self.headers.items() if key not in DEAD_HEADERS}
        self._publisher.send(self.queue, self.body, {**kept, "retries": 0, "eta": None})
        self._message.ack()

    def drop(self) -> None:
        """Forget the message for good."""
        self._message.ack()


def _moment(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else None


class DeadLetters:
    """The dead letters of the buses on an app's broker.

    Args:
        app: Any app on that broker.
    """

    def __init__(self, app: Celery[Any]) -> None:
        self._app = app

    @contextmanager
    def take(self, limit: int = LETTERS_MAX) -> Iterator[list[Letter]]:
        """Have letters in hand within a ``with`` block, oldest first.

        Nobody else sees them meanwhile; those that are neither sent again nor dropped go back.

        Args:
            limit: Most letters.

        Raises:
            UnavailableError: The broker is away.
        """
        try:
            with self._app.connection_for_write() as connection, connection.channel() as channel:
                queue = queue_of(self._app, names.DEAD_LETTERS_QUEUE).bind(channel)
                queue.declare()
                taken: list[Letter] = []
                publisher = Publisher(self._app)
                while len(taken) < limit and (found := queue.get(accept=["json"])) is not None:
                    taken.append(Letter(found, publisher))
                try:
                    yield taken
                finally:
                    publisher.close()
        except BROKER_ERRORS as error:
            raise UnavailableError(
                f"The dead letters cannot be read: {error}.",
                hint="Check the app's broker URL, and that the broker runs.",
            ) from error
