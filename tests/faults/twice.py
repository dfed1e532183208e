"""``celery`` that publishes every message of a saga twice: ``python -m tests.faults.twice -A …``."""

import json
from collections.abc import Iterable
from typing import Any

from celery.__main__ import main
from kombu import Producer, uuid

from shared import names
from shared.kombu_redis import Channel

_once = Producer.publish
_push = Channel.push


def _twice(self: Producer, body: Any, *arguments: Any, **options: Any) -> Any:
    headers = options.get("headers") or {}
    if names.SAGA_ID in headers or headers.get("task") in names.INBOUND_TASKS:
        _once(self, body, *arguments, **options)
    return _once(self, body, *arguments, **options)


def _pushed_twice(self: Channel, messages: Iterable[tuple[str, bytes]]) -> None:
    """What goes to Redis without a producer is of a saga, all of it."""
    both = [
        copy for queue, raw in messages for copy in ((queue, raw), (queue, _with_own_tag(raw)))
    ]
    _push(self, both)


def _with_own_tag(raw: bytes) -> bytes:
    message = json.loads(raw)
    message["properties"]["delivery_tag"] = uuid()
    return json.dumps(message).encode()


if __name__ == "__main__":
    Producer.publish = _twice  # type: ignore[method-assign]  # before any connection is made
    Channel.push = _pushed_twice  # type: ignore[method-assign]
    main()
