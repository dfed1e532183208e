"""A Celery task message written by hand: protocol 2's headers, and the envelope of kombu's Redis transport.

They are what Celery and kombu write themselves (tests compare them), at a tenth of the CPU: nothing
is rendered, declared or looked up for each message.
"""

from base64 import b64encode
from typing import Any, Final

import msgspec
from kombu import uuid

CONTENT_TYPE: Final = "application/json"
CONTENT_ENCODING: Final = "utf-8"
PERSISTENT: Final = 2

_HIDDEN: Final = "{...}"
"""Instead of the arguments, which Celery would write into logs and events."""

_encode: Final = msgspec.json.Encoder().encode


def headers(*, task: str, task_id: str, origin: str) -> dict[str, Any]:
    """The headers of Celery's protocol 2, as `celery.app.amqp.AMQP.as_task_v2` makes them.

    Args:
        task: Celery task name.
        task_id: Celery task id.
        origin: Name of the sending process, as Celery shows it.
    """
    return {
        "lang": "py",
        "task": task,
        "id": task_id,
        "shadow": None,
        "eta": None,
        # Never `expires`: an attempt that runs late may still count, and clocks differ.
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": "()",
        "kwargsrepr": _HIDDEN,
        "origin": origin,
        "ignore_result": True,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }


def envelope(queue: str, headers: dict[str, Any], body: bytes) -> bytes:
    """A task message as it lies in a Redis list, for `shared.kombu_redis.Channel.push`.

    Args:
        queue: Where it goes, by the default exchange and with the default priority.
        headers: Those of `headers`, and custom ones.
        body: ``[args, kwargs, embed]`` as JSON.
    """
    return _encode(
        {
            "body": b64encode(body).decode(),
            "content-encoding": CONTENT_ENCODING,
            "content-type": CONTENT_TYPE,
            "headers": headers,
            "properties": {
                "correlation_id": headers["id"],
                "reply_to": "",
                "delivery_mode": PERSISTENT,
                "delivery_info": {"exchange": "", "routing_key": queue},
                "priority": 0,
                "body_encoding": "base64",
                # Its own for each copy: under it a consumer keeps what is unacknowledged.
                "delivery_tag": uuid(),
            },
        }
    )
