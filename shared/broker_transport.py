"""What depends on the broker: our kombu transports, confirms, what is raised when it is away."""

from collections.abc import Mapping
from typing import Any, Final

from amqp.exceptions import AMQPError
from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

BROKER_ERRORS: Final = (OSError, AMQPError, KombuError, RedisError)
"""What means that the broker is away. kombu's own list has `KeyError` in it, which hides bugs."""

_CONFIRM: Final = "confirm_publish"
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


def confirm_on_rabbitmq(app: Celery[Any]) -> None:
    """Have RabbitMQ confirm every publish of an app, unless it says otherwise itself.

    Without it a message that the broker never got counts as sent.
    """
    options = app.conf.broker_transport_options
    if _CONFIRM not in options and str(app.conf.broker_write_url).startswith(("amqp", "pyamqp")):
        app.conf.broker_transport_options = {**options, _CONFIRM: True}
