"""When a saga does something by itself: the timers of its steps, its retries, its deadline."""

from collections.abc import Collection
from datetime import datetime

from orchestrator.core.definition import TIMED_OUT, Definition
from orchestrator.core.plan import plan_of
from orchestrator.core.state import Phase, SagaState
from orchestrator.core.terms import (
    WAITING,
    attempts,
    deadline_applies,
    has_begun,
    turning_back,
    unsafe,
)
from shared.backoff import delay
from shared.ids import Direction, idempotency_key
from shared.messages import Failure


def wake_at(
    definition: Definition,
    state: SagaState,
    *,
    crowded: bool = False,
    awaiting: Collection[str] = (),
) -> datetime | None:
    """The next moment at which the saga does something by itself; None when it only waits.

    Args:
        definition: The definition that the saga runs on.
        state: Its state.
        crowded: Too much is in flight for another attempt: one of those has to end before.
        awaiting: Steps whose turn has come, and that wait for room: whoever makes it wakes them.
    """
    if state.status.final:
        return None
    definition = plan_of(definition, state)
    # A retry that will not be made, or not now, must not wake the saga for ever.
    held = WAITING if state.paused or state.full or crowded else frozenset()
    if turning_back(definition, state):
        held |= {Phase.RETRYING}
    asked = sub_sagas_undoing(definition, state)
    times = [
        at
        for name, step in state.steps.items()
        if step.phase not in held
        and name not in asked
        and (at := due_at(state, name)) is not None
        and not (name in awaiting and step.phase in WAITING)
    ]
    if state.deadline_at and deadline_applies(definition, state):
        times.append(state.deadline_at)
    if not (state.paused or state.full):
        times += [inquiry.at for inquiry in state.inquiries.values()]
    held_back = state.paused or state.full or awaiting
    if state.not_before and not (has_begun(state) or held_back):
        times.append(state.not_before)
    return min(times, default=None)


def sub_sagas_undoing(definition: Definition, state: SagaState) -> frozenset[str]:
    """Steps whose sub-saga is being undone: that has no time-out, for it is asked until it is."""
    if not definition.sub_sagas:
        return frozenset()
    steps = [planned.name for planned in definition.sub_sagas]
    return frozenset(name for name in steps if state.step(name).phase is Phase.UNDOING)


def due_at(state: SagaState, name: str) -> datetime | None:
    """When a step's timer is due: a sign of life may have moved it."""
    step, beat = state.step(name), state.beats.get(name)
    if step.due_at is None or beat is None:
        return step.due_at
    return max(step.due_at, beat.due_at)


def retry_at(
    definition: Definition,
    state: SagaState,
    name: str,
    direction: Direction,
    failure: Failure | None,
    now: datetime,
) -> datetime | None:
    """When the next attempt is made after one that failed, or timed out; None without another.

    Args:
        definition: The steps that the saga has.
        state: Its state.
        name: The step.
        direction: What was attempted.
        failure: How it failed; None when it timed out.
        now: The time.
    """
    planned = definition.by_name[name]
    attempt = attempts(state.step(name), direction)
    retry = planned.retry if direction == "action" else planned.compensation_retry
    if direction == "action" and turning_back(definition, state) and not unsafe(planned):
        return None
    kind = failure.kind if failure else TIMED_OUT
    policy = retry.after(kind)
    hopeless = (failure and not failure.retryable) or kind in {*retry.never_on, *policy.never_on}
    if hopeless or (policy.attempts is not None and attempt >= policy.attempts):
        return None
    return now + delay(policy.backoff, attempt, idempotency_key(state.saga_id, name, direction))
