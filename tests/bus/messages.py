"""What the services of these tests say to each other."""

from datetime import datetime

import msgspec

from shared.bus import Command, Event, Query


class CreateOrder(Command, name="orders.create"):
    order_id: str
    amount_cents: int = 100
    at: datetime | None = None


class FlakyOrder(Command, name="orders.flaky"):
    """Fails until it has been tried that often."""

    order_id: str
    succeeds_at: int


class RefusedOrder(Command, name="orders.refused"):
    order_id: str


class DeadlyOrder(Command, name="orders.deadly"):
    """Kills the process that handles it."""

    order_id: str


class SlowOrder(Command, name="orders.slow"):
    """Takes longer than its hard time limit."""

    order_id: str


class AskingOrder(Command, name="orders.asking"):
    """Asks a query while it is handled."""

    order_id: str


class UnknownOrder(Command, name="orders.unknown"):
    """Nobody handles it."""

    order_id: str


class OrderView(msgspec.Struct):
    order_id: str
    amount_cents: int


class FindOrder(Query[OrderView], name="orders.find"):
    order_id: str
    seconds: float = 0


class FindNothing(Query[OrderView], name="orders.find-nothing"):
    """No worker handles it."""


class FindElsewhere(Query[OrderView], name="nowhere.find"):
    """No worker consumes its queue."""


class OrderCreated(Event, name="orders.created"):
    order_id: str
    amount_cents: int = 100


class OrderVanished(Event, name="orders.vanished"):
    """Nobody subscribes to it."""

    order_id: str


class OrderFulfilled(Event, name="orders.fulfilled"):
    order_id: str


class OrderFailed(Event, name="orders.failed"):
    order_id: str
    why: str
