"""The answer to a query: a value, whether it is a result or a failure."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from kombu import Queue

from shared import codec, names
from shared.bus.envelope import task_headers
from shared.bus.publisher import Publisher
from shared.messages import Failed, Succeeded

EXPIRES_S: Final = 60
"""How long the broker keeps answers for a process that has ended without a word."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a query.

    Attributes:
        query_id: Id of the query.
        outcome: The answer, or why there is none.
    """

    query_id: str
    outcome: Succeeded | Failed


_bodies: Final = msgspec.json.Decoder(tuple[list[Any], Answer, Any])


def answers_queue(name: str) -> Queue:
    """The queue of a process that asks; it goes away by itself when nobody consumes it."""
    return Queue(name, exchange="", routing_key=name, durable=True, expires=EXPIRES_S)


def reply(publisher: Publisher, headers: Mapping[str, Any], outcome: Succeeded | Failed) -> None:
    """Send an answer to whoever asked; nothing where nobody waits for one.

    Args:
        publisher: Of the app.
        headers: Of the query.
        outcome: What came of it.

    Raises:
        UnavailableError: The broker was away for too long.
    """
    reply_to = headers.get(names.SAGA_REPLY_TO)
    if not isinstance(reply_to, str):
        return
    query_id = str(headers["id"])
    answer = task_headers(names.ANSWER_TASK, f"{query_id}:answer")
    for key in (names.SAGA_MESSAGE, names.TRACEPARENT, names.TRACESTATE):
        if key in headers:
            answer[key] = headers[key]
    body = codec.task_body(msgspec.Raw(codec.encode(Answer(query_id=query_id, outcome=outcome))))
    publisher.send(answers_queue(reply_to), body, answer)


def read(body: bytes | str) -> Answer:
    """An answer as it came.

    Raises:
        msgspec.DecodeError: It is none.
    """
    return _bodies.decode(body)[1]
