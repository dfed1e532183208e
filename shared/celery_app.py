"""The Celery app of either side, with the settings that keep its promises.

Importing a module that makes an app asks for nothing: the broker is looked up when the app's
configuration is first read.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from celery import Celery, signals
from typing_extensions import override

from shared.broker_transport import transport_for
from shared.bus.registry import keep_unknown
from shared.celery_errors import as_shown
from shared.errors import ConfigurationError
from shared.settings import Settings
from shared.telemetry.celery_signals import install_telemetry
from shared.telemetry.names import messaging_system

RESTORE_LOOK_EVERY: Final = timedelta(seconds=5)
"""How often a Redis worker looks for messages whose worker died."""

READ_WITHIN: Final = timedelta(seconds=3)
"""How long a child of a pool that ends waits until its results are read."""

FILESYSTEM_FOLDER: Final = "broker"

_BROKER_VARIABLES: Final = ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL")
"""What ``celery --broker`` sets; Celery prefers them to any configuration."""


def make_app(
    name: str,
    *,
    service: str,
    settings: Settings | Callable[[], Settings],
    default_queue: str = "celery",
) -> Celery[Any]:
    """A Celery app with durable delivery, JSON only, and telemetry in every pool.

    Args:
        name: Name of the app: the module that holds it.
        service: ``service.name`` of its workers' logs and spans; see `install_telemetry`.
        settings: A function is called when the configuration is first read, so that importing
            the app's module cannot fail.
        default_queue: Queue of tasks without a route, and of workers without ``-Q``.

    Returns:
        The app; reading its configuration raises `ConfigurationError` when there is no broker or
        a setting is wrong.
    """
    read = settings if callable(settings) else lambda: settings
    app = _SagaApp(name, settings=read, default_queue=default_queue)
    install_telemetry(app, service, settings=read)
    keep_unknown(app)
    signals.worker_process_init.connect(_end_soon, weak=False)
    return app


def configuration(settings: Settings, broker_url: str, default_queue: str) -> dict[str, Any]:
    """Celery's settings for a broker."""
    return {
        "broker_url": broker_url,
        "broker_transport": transport_for(broker_url),
        "broker_transport_options": transport_options(broker_url, settings),
        # A broker that is away is waited for, at start as well as later.
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "event_serializer": "json",
        "result_backend": None,
        "task_ignore_result": True,
        "task_default_queue": default_queue,
        "task_create_missing_queues": True,
        # Classic, durable queues. Celery sets up 28 more exchanges and queues for delays where it
        # finds a quorum queue, and whoever declares a queue otherwise is refused.
        "task_default_queue_type": "classic",
        # A message is acknowledged when its work is done, and comes again when its worker dies.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        # How long a killed child may still be about to answer.
        "worker_lost_wait": 2.0,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


def transport_options(broker_url: str, settings: Settings) -> dict[str, Any]:
    """Options of kombu's transport for a broker, chosen by the URL's scheme."""
    match messaging_system(broker_url):
        case "redis":
            look_every_s = int(RESTORE_LOOK_EVERY.total_seconds())
            return {
                "visibility_timeout": settings.visibility_timeout.total_seconds(),
                # Redis is asked for expired messages at every nth call. The event loop calls once
                # a second, and so does, when it is idle, a worker without one (gevent).
                "unacked_restore_interval": 1,
                "unacked_restore_throttle": look_every_s,
                "socket_keepalive": True,
                "socket_connect_timeout": 5,
            }
        case "rabbitmq":
            return {"confirm_publish": True}
        case "filesystem":
            folder = settings.home / FILESYSTEM_FOLDER
            messages = folder / "messages"
            messages.mkdir(parents=True, exist_ok=True)
            return {
                "data_folder_in": str(messages),
                "data_folder_out": str(messages),
                "control_folder": str(folder / "control"),
                "polling_interval": 0.01,
            }
        case _:
            return {}


def _end_soon(**_: Any) -> None:
    """Let a child end when nobody reads its last results.

    A worker that stops reads no result of a task that was handed over but not begun, and its child
    waits 30 s for that: as long as a supervisor waits before it kills. The message is not
    acknowledged, so it comes again.
    """
    from billiard import pool  # a child has it already, a command line need not

    pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = int(
        READ_WITHIN.total_seconds() / pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_INTERVAL
    )


class _SagaApp(Celery[Any]):
    """Reads its settings when its configuration is first asked for."""

    def __init__(self, name: str, *, settings: Callable[[], Settings], default_queue: str) -> None:
        super().__init__(name, set_as_current=True)
        self._settings = settings
        self._default_queue = default_queue

    @override
    def on_configure(self) -> None:  # type: ignore[override]  # a method is as good as the signal
        # Here, and not in `add_defaults`: what raises there is lost for the second reader, who
        # would get Celery's own default, a RabbitMQ on this host.
        try:
            settings = self._settings()
            override_url = next(filter(None, map(os.environ.get, _BROKER_VARIABLES)), None)
            broker_url = override_url or settings.celery_broker_url
            found = configuration(settings, broker_url, self._default_queue)
            self.add_defaults(lambda: found)
        except ConfigurationError as error:
            raise as_shown(error) from error
