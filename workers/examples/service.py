"""The Celery app of the examples; ``-Q inventory`` makes a worker of it the inventory service."""

from collections.abc import Callable
from typing import Final

from kombu import Exchange, Queue

from shared.celery_app import make_app
from shared.settings import settings

SERVICES: Final = ("inventory", "payment", "shipping", "orders", "notifications")

app = make_app("workers", service="workers", settings=settings, default_queue=SERVICES[0])
app.conf.task_queues = [
    Queue(name, Exchange(name, type="direct"), routing_key=name) for name in SERVICES
]
"""A worker without ``-Q`` is all five services."""


def ledger_url(service: str) -> Callable[[], str]:
    """Where a service keeps its books; asked for when they are first opened."""
    return lambda: settings().ledger_url_of(service)
