"""Commands, queries and events over Celery: typed, durable, traced and logged by themselves."""

from shared.bus.commands import CommandBus
from shared.bus.dead import DeadLetters, Letter
from shared.bus.events import EventBus
from shared.bus.policy import Refuse, RetryPolicy
from shared.bus.queries import QueryBus
from shared.contract import Command, Event, Query

__all__ = [
    "Command",
    "CommandBus",
    "DeadLetters",
    "Event",
    "EventBus",
    "Letter",
    "Query",
    "QueryBus",
    "Refuse",
    "RetryPolicy",
]
