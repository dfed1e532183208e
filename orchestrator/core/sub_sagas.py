"""Steps that are sagas: calling one back, being called back, and asking until there is an answer.

A saga answers its parent once, when it ends. That message may be lost like any other, and so may
those that start it and call it back. So a step that is a saga asks again what it has asked, after
longer and longer waits and without end. Nothing of it stands in the history: it would grow as long
as the sub-saga takes, and nothing follows from it.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

import msgspec

from orchestrator.core import between
from orchestrator.core.definition import Definition, PlannedStep
from orchestrator.core.events import Event, StepRecalled, SubSagaBegan, UndoRefused, UndoRequested
from orchestrator.core.messages import Undo
from orchestrator.core.state import Inquiry, Phase, SagaState, StepState
from orchestrator.core.terms import IN_FLIGHT, irrevocable
from shared.backoff import Backoff, delay
from shared.messages import Command, Parent, Reply

ASK_FIRST_MIN: Final = timedelta(seconds=30)
"""A sub-saga is not asked again sooner, whatever the back-off of its step says."""

ASK_WAIT_MAX: Final = timedelta(minutes=10)
"""Longest wait between two questions, unless the back-off of the step wants longer ones."""


def recalled(name: str, step: StepState, reason: str) -> StepRecalled:
    """The saga of a step is called back: it is undone, and the step waits for how it ends."""
    return StepRecalled(step=name, attempt=step.attempt, reason=reason)


def goes_on(step: StepState, reply: Reply) -> Iterator[Event]:
    """The saga of a step says that it has not ended: from now on it is known that it began."""
    flying = step.phase is Phase.RUNNING and reply.direction == "action"
    if flying and reply.attempt == step.attempt and not step.began:
        yield SubSagaBegan(step=reply.step, attempt=reply.attempt)


def undo_asked(definition: Definition, state: SagaState, undo: Undo) -> Iterator[Event]:
    """The parent wants the saga undone: each attempt of it is answered, also after the end."""
    known = state.undo_attempt
    if known is not None and undo.attempt <= known:
        return
    if undo.attempt == 0 and (state.status.final or irrevocable(definition, state)):
        return  # it ends, or has ended, as it is, and the parent is told that
    if reason := between.refusal(definition, state):
        yield UndoRefused(attempt=undo.attempt, reason=reason, parent=_fork(state, undo))
    else:
        yield UndoRequested(attempt=undo.attempt, reason=undo.reason, parent=_fork(state, undo))


def _fork(state: SagaState, undo: Undo) -> Parent | None:
    """Who asks, where it is another saga than the one that is answered: a fork of that one."""
    other = undo.parent and state.parent and undo.parent.saga_id != state.parent.saga_id
    return undo.parent if other else None


def ask(
    definition: Definition, state: SagaState, now: datetime
) -> tuple[SagaState, tuple[Command, ...]]:
    """Ask the sub-sagas again that should have answered by now.

    Args:
        definition: The steps that the saga has.
        state: Its state.
        now: The time of the decision.

    Returns:
        The state, which knows when they are asked next, and what is sent to them.
    """
    if not definition.sub_sagas:
        return state, ()
    inquiries: dict[str, Inquiry] = {}
    commands: list[Command] = []
    for planned in definition.sub_sagas:
        step = state.step(planned.name)
        if step.phase not in IN_FLIGHT:
            continue
        known, of = state.inquiries.get(planned.name), _question(step)
        if known is None or known.of != of:
            known = Inquiry(of=of, at=now + _wait(planned, state, 1))
        elif known.at <= now and not (state.paused or state.full):
            times = known.times + 1
            commands.append(between.question(planned, state, times, now))
            known = Inquiry(of=of, at=now + _wait(planned, state, times + 1), times=times)
        inquiries[planned.name] = known
    if inquiries == state.inquiries:
        return state, ()
    return msgspec.structs.replace(state, inquiries=inquiries), tuple(commands)


def _question(step: StepState) -> str:
    if step.phase is Phase.UNDOING:
        return f"compensation:{step.undo_attempt}"
    return f"{'recall' if step.recalled else 'action'}:{step.attempt}"


def _wait(planned: PlannedStep, state: SagaState, times: int) -> timedelta:
    undoing = state.step(planned.name).phase is Phase.UNDOING
    backoff = (planned.compensation_retry if undoing else planned.retry).backoff
    patient = Backoff(
        wait_first=max(backoff.wait_first, ASK_FIRST_MIN),
        factor=backoff.factor,
        wait_max=max(backoff.wait_max, ASK_WAIT_MAX),
    )
    return delay(patient, times, f"{state.saga_id}:{planned.name}")
