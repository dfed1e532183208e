"""Which of our own kombu transports fits a broker."""

from collections.abc import Mapping
from typing import Final

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
