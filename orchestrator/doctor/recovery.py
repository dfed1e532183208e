"""How long a step is lost at worst when its worker, or an orchestrator, dies: with the sum.

A command that a dead worker had in hand comes again by what is faster: the broker gives it back, or
the step times out and the next attempt is sent. Before that, an orchestrator that dies between its
commit and the sending leaves the command for another one.
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import Final

import msgspec

from orchestrator.coordinator import SWEEP_INTERVAL, TIMER_INTERVAL
from orchestrator.core.definition import Definition, PlannedStep
from shared.celery_app import RESTORE_LOOK_EVERY

RABBITMQ_NOTICES: Final = timedelta(seconds=180)
"""A machine that vanishes without a word: three heartbeats of 60 s; a process that dies is noticed
at once."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a sum."""

    what: str
    seconds: float


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """The worst case.

    Attributes:
        step: Which step it is, with its saga.
        seconds: The sum of `parts`.
        by: ``redelivery`` or ``next attempt``, whichever is faster.
        parts: What it is made of.
    """

    step: str
    seconds: float
    by: str
    parts: tuple[Part, ...]


def worst_case(
    definitions: Iterable[Definition],
    *,
    system: str,
    visibility_timeout: timedelta,
    republish_after: timedelta,
) -> Recovery | None:
    """The step whose loss is noticed last; None without any definition.

    Args:
        definitions: Those known.
        system: ``messaging.system`` of the broker.
        visibility_timeout: Of Redis.
        republish_after: When a command that was stored but not sent counts as left behind.
    """
    found = [
        _of_step(one, step, system, visibility_timeout, republish_after)
        for one in definitions
        for step in one.steps
        if step.task  # what only waits cannot be lost
    ]
    return max(found, key=lambda one: one.seconds, default=None)


def _of_step(
    definition: Definition,
    step: PlannedStep,
    system: str,
    visibility_timeout: timedelta,
    republish_after: timedelta,
) -> Recovery:
    unsent = (
        _part(
            "an orchestrator dies before it sends the command: SAGA_REPUBLISH_AFTER",
            republish_after,
        ),
        _part("until another one looks", SWEEP_INTERVAL),
    )
    again: list[tuple[str, tuple[Part, ...]]] = [("next attempt", _next_attempt(step))]
    match system:
        case "redis":
            redelivery = (
                _part("Redis gives it back: SAGA_VISIBILITY_TIMEOUT", visibility_timeout),
                _part("until a worker looks", RESTORE_LOOK_EVERY),
            )
            again.append(("redelivery", redelivery))
        case "rabbitmq":
            gone = _part(
                "RabbitMQ misses three heartbeats of the worker's machine", RABBITMQ_NOTICES
            )
            again.append(("redelivery", (gone,)))
        case _:
            pass  # who takes files for a broker is on one machine
    by, parts = min(again, key=lambda one: sum(part.seconds for part in one[1]))
    parts = (*unsent, *parts)
    return Recovery(
        step=f"{definition.name}/{step.name}",
        seconds=round(sum(part.seconds for part in parts), 3),
        by=by,
        parts=parts,
    )


def _next_attempt(step: PlannedStep) -> tuple[Part, ...]:
    parts = [
        _part(f"the step times out: timeout of {step.name}", step.timeout),
        _part("until a timer is looked at", TIMER_INTERVAL),
    ]
    if step.retry.attempts != 1:
        parts.append(
            _part(
                "wait before the next attempt",
                min(step.retry.backoff.wait_first, step.retry.backoff.wait_max),
            )
        )
    return tuple(parts)


def _part(what: str, duration: timedelta) -> Part:
    return Part(what=what, seconds=duration.total_seconds())
