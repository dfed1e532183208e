"""Which of our own kombu transports fits a broker, and what it raises when it is away."""

from collections.abc import Mapping
from typing import Final

from amqp.exceptions import AMQPError
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

BROKER_ERRORS: Final = (OSError, AMQPError, KombuError, RedisError)
"""What means that the broker is away. kombu's own list has `KeyError` in it, which hides bugs."""

_TRANSPORTS: Final[Mapping[str, str]] = {
    "redis": "shared.kombu_redis:Transport",
    "filesystem": "shared.kombu_filesystem:Transport",
}


def transport_for(url: str) -> str | None:
    """Value for Celery's setting ``broker_transport``; None where kombu's own is right.

    Only for one plain URL: of a list of alternates, of TLS (``rediss``), Sentinel and Unix sockets
    kombu reads more from the scheme than a transport that is named can know.
    """
    return None if ";" in url else _TRANSPORTS.get(url.partition("://")[0])
