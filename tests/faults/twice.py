"""``celery`` that publishes every message of a saga twice: ``python -m tests.faults.twice -A …``."""

from typing import Any

from celery.__main__ import main
from kombu import Producer

from shared import names

_once = Producer.publish


def _twice(self: Producer, body: Any, *arguments: Any, **options: Any) -> Any:
    headers = options.get("headers") or {}
    if names.SAGA_ID in headers or headers.get("task") in names.INBOUND_TASKS:
        _once(self, body, *arguments, **options)
    return _once(self, body, *arguments, **options)


if __name__ == "__main__":
    Producer.publish = _twice  # type: ignore[method-assign]  # before any connection is made
    main()
