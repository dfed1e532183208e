"""The example services as a Celery app: ``celery -A workers worker -Q inventory``.

A worker without ``-Q`` is all five of them. Their tables are created when a worker starts.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import structlog
from celery import signals
from sqlalchemy.exc import OperationalError

from shared.clock import monotonic, pause
from workers.examples import inventory, ledger, notifications, orders, payment, shipping
from workers.examples.service import app
from workers.sdk import Participant

__all__ = ["app"]

DATABASE_WITHIN: Final = timedelta(seconds=30)
"""How long a worker that starts waits for its database."""

PARTICIPANTS: Final[Mapping[str, Participant]] = {
    "inventory": inventory.participant,
    "payment": payment.participant,
    "shipping": shipping.participant,
    "orders": orders.participant,
    "notifications": notifications.participant,
}
_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)


def create_tables(services: frozenset[str] = frozenset(PARTICIPANTS)) -> None:
    """Create the tables of services, and their opening stock; does nothing where they exist."""
    for service in services & PARTICIPANTS.keys():
        PARTICIPANTS[service].create_tables(ledger.metadata)
        if service == inventory.ledger.service:
            with inventory.participant.engine.begin() as connection:
                inventory.ledger.open(connection, inventory.OPENING_STOCK)


@signals.celeryd_after_setup.connect(weak=False)
def on_worker(instance: Any, **_: Any) -> None:
    """Create the tables of the services that this worker is, before its pool starts.

    Raises:
        SystemExit: The database was not there within `DATABASE_WITHIN`.
    """
    if instance.app is not app:
        return None
    deadline = monotonic() + DATABASE_WITHIN.total_seconds()
    while True:
        try:
            return create_tables(frozenset(app.amqp.queues.consume_from))
        except (OperationalError, OSError) as error:
            reason = str(getattr(error, "orig", error))
            if monotonic() > deadline:
                # Celery swallows any other exception of a signal handler, and the worker would
                # fail every step.
                _log.critical("worker.no_database", reason=reason)
                raise SystemExit(f"No database: {reason}") from error
            _log.warning("worker.waits_for_database", reason=reason)
            pause(1)
