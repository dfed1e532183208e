"""A no-op by the command bus, and the same by ``apply_async`` of a task of the same app."""

import os
from typing import Any

from bench import done, names
from shared.bus import Command, CommandBus
from shared.celery_app import make_app
from shared.settings import settings

app = make_app("bench.bus", service="bench", settings=settings, default_queue=names.QUEUE)
bus = CommandBus(app)


class Nothing(Command, name="bench.nothing"):
    """Nothing to do."""

    number: str


class End(Command, name="bench.end"):
    """Everything before is done."""

    number: str


@bus.handler(Nothing)
def nothing(command: Nothing) -> None:
    """Do nothing."""


@bus.handler(End)
def end(command: End) -> None:
    """Say that everything before is done."""
    done.tell(os.getpid(), command.number)


@app.task(name="bench.bare")
def bare(number: str) -> None:
    """Do nothing."""


@app.task(name="bench.last")
def last(number: str) -> None:
    """Say that everything before is done."""
    done.tell(os.getpid(), number)


def by_bus(number: str, *, ends: bool) -> Any:
    """Send one message by the bus."""
    return bus.dispatch(End(number=number) if ends else Nothing(number=number))


def by_celery(number: str, *, ends: bool) -> Any:
    """Send one message by Celery's own means."""
    return (last if ends else bare).apply_async(kwargs={"number": number})
