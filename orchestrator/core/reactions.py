"""What a message means: the facts that it brings, by the state as it was before it.

What follows from these facts is decided in `machine`.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final, assert_never

import msgspec

from orchestrator.core import operators, sub_sagas, timers
from orchestrator.core.definition import TIMED_OUT, Definition, SubSaga
from orchestrator.core.events import (
    CancelRequested,
    DeadlineExceeded,
    Event,
    SagaForked,
    SagaPaused,
    SagaStarted,
    SignalReceived,
    StepAccepted,
    StepFailed,
    StepRejected,
    StepSucceeded,
    StepTimedOut,
    TaskUnknown,
    UndoRequested,
)
from orchestrator.core.messages import (
    Cancel,
    CompensateNow,
    Complete,
    HandOver,
    Heartbeat,
    Message,
    Pause,
    Resolve,
    Resume,
    RetryNow,
    Signal,
    Skip,
    Start,
    Tick,
    Undo,
)
from orchestrator.core.outputs import outcome_of
from orchestrator.core.state import Beat, Phase, SagaState, StepState, evolve
from orchestrator.core.terms import IN_FLIGHT, attempts, deadline_applies
from shared.ids import Direction
from shared.messages import TASK_UNKNOWN, Accepted, Failed, Rejected, Reply, Succeeded

HEARTBEAT_INTERVAL_MIN: Final = timedelta(seconds=1)
"""Signs of life that come faster than this do not count."""


def react(  # noqa: C901, PLR0912 - one case for each message
    definition: Definition, state: SagaState | None, message: Message, now: datetime
) -> Iterator[Event]:
    """The facts that a message brings, by the state as it was before it."""
    match message:
        case Start():
            if state is None:
                yield _started(definition, message, now)
                yield from message.copied
                if message.undo:
                    undo = message.undo
                    yield UndoRequested(attempt=undo.attempt, reason=undo.reason)
                elif message.pause:
                    yield SagaPaused(reason=message.pause.reason, by=message.pause.by)
        case Undo():
            if state is not None:
                yield from sub_sagas.undo_asked(definition, state, message)
        case HandOver(to=to, step=step, steps=steps, reason=reason, by=by):
            yield SagaForked(to=to, step=step, steps=steps, reason=reason, by=by)
        case _ if state is None or state.status.final:
            return
        case Reply(direction="action"):
            yield from _action_replied(definition, state, message, now)
        case Reply():
            yield from _compensation_replied(definition, state, message, now)
        case Complete(reply=reply):
            yield from react(definition, state, reply, now)
        case Signal(name=name, data=data, by=by):
            if name not in state.signals:
                yield SignalReceived(name=name, data=data, by=by)
        case Heartbeat():
            return  # a sign of life is no fact for the history
        case Tick():
            yield from _time_passed(definition, state, now)
        case Cancel():
            if state.cause is None:
                yield CancelRequested(reason=message.reason, by=message.by)
        case Pause() | Resume() | RetryNow() | Skip() | Resolve() | CompensateNow():
            yield from operators.facts(definition, state, message, now)
        case _:
            assert_never(message)


def _started(definition: Definition, start: Start, now: datetime) -> SagaStarted:
    begins_at = max(now, start.not_before or now)
    return SagaStarted(
        saga_id=start.saga_id,
        name=definition.name,
        version=definition.version,
        input=start.input,
        key=start.key,
        deadline_at=begins_at + definition.deadline if definition.deadline else None,
        trace=start.trace,
        secret=start.secret,
        not_before=start.not_before if begins_at > now else None,
        parent=start.parent,
        fork=start.fork,
    )


def _action_replied(
    definition: Definition, state: SagaState, reply: Reply, now: datetime
) -> Iterator[Event]:
    step = state.step(reply.step)
    current = reply.attempt == step.attempt
    outcome = outcome_of(definition.by_name[reply.step], reply.outcome)
    match outcome:
        case Succeeded(output=output, undo=undo):
            if not step.success and step.phase is not Phase.UNDONE:
                yield StepSucceeded(
                    step=reply.step,
                    direction="action",
                    attempt=reply.attempt,
                    output=output,
                    undo=undo,
                    execution=reply.execution,
                )
        case Rejected(failure=failure) if _unknown_task(definition, step, reply):
            if current and step.phase in {Phase.RUNNING, Phase.RETRYING}:
                yield TaskUnknown(
                    step=reply.step,
                    attempt=reply.attempt,
                    failure=failure,
                    execution=reply.execution,
                )
        case Rejected(failure=failure):
            if current and step.phase in {Phase.RUNNING, Phase.RETRYING}:
                yield StepRejected(
                    step=reply.step,
                    attempt=reply.attempt,
                    failure=failure,
                    execution=reply.execution,
                )
        case Failed(failure=failure, undo=undo):
            if current and step.phase is Phase.RUNNING:
                yield StepFailed(
                    step=reply.step,
                    direction="action",
                    attempt=reply.attempt,
                    failure=failure,
                    undo=undo,
                    retry_at=timers.retry_at(
                        definition, state, reply.step, "action", failure, now
                    ),
                    execution=reply.execution,
                )
        case Accepted():
            yield from _accepted(definition, state, reply, now)
        case _:
            assert_never(outcome)


def _unknown_task(definition: Definition, step: StepState, reply: Reply) -> bool:
    """Whether an action was not refused: the worker that got it does not know its task.

    A sub-saga passes on why it was undone, and whoever has accepted an attempt knew its task: they
    refuse.
    """
    outcome = reply.outcome
    return (
        isinstance(outcome, Rejected)
        and outcome.failure.kind == TASK_UNKNOWN
        and bool(definition.by_name[reply.step].task)
        and not step.accepted
    )


def _compensation_replied(
    definition: Definition, state: SagaState, reply: Reply, now: datetime
) -> Iterator[Event]:
    step = state.step(reply.step)
    match reply.outcome:
        case Succeeded(output=output):
            if step.phase is not Phase.UNDONE:
                yield StepSucceeded(
                    step=reply.step,
                    direction="compensation",
                    attempt=reply.attempt,
                    output=output,
                    execution=reply.execution,
                )
        case Failed(failure=failure) | Rejected(failure=failure):
            if isinstance(reply.outcome, Rejected):
                # A compensation cannot be refused; asking again will not help either.
                failure = msgspec.structs.replace(failure, retryable=False)
            if reply.attempt == step.undo_attempt and step.phase is Phase.UNDOING:
                yield StepFailed(
                    step=reply.step,
                    direction="compensation",
                    attempt=reply.attempt,
                    failure=failure,
                    retry_at=timers.retry_at(
                        definition, state, reply.step, "compensation", failure, now
                    ),
                    execution=reply.execution,
                )
        case Accepted():
            yield from _accepted(definition, state, reply, now)
        case _:
            assert_never(reply.outcome)


def _accepted(
    definition: Definition, state: SagaState, reply: Reply, now: datetime
) -> Iterator[Event]:
    """The attempt in flight goes on elsewhere; its time-out may be another one from here on."""
    step = state.step(reply.step)
    if isinstance(definition.by_name[reply.step].action, SubSaga):
        yield from sub_sagas.goes_on(step, reply)
        return
    flying = step.phase is (Phase.RUNNING if reply.direction == "action" else Phase.UNDOING)
    current = reply.attempt == attempts(step, reply.direction)
    due_at = timers.due_at(state, reply.step)
    if flying and current and due_at and not step.accepted:
        within = definition.by_name[reply.step].completes_within
        yield StepAccepted(
            step=reply.step,
            direction=reply.direction,
            attempt=reply.attempt,
            due_at=now + within if within else due_at,
            execution=reply.execution,
        )


def alive(
    definition: Definition, state: SagaState, heartbeat: Heartbeat, now: datetime
) -> SagaState:
    """The state after a sign of life; the same one where it does not count, or came too soon."""
    step = state.step(heartbeat.step)
    flying = step.phase is (Phase.RUNNING if heartbeat.direction == "action" else Phase.UNDOING)
    last = state.beats.get(heartbeat.step)
    if not flying or heartbeat.attempt != attempts(step, heartbeat.direction):
        return state
    if last and now < last.at + HEARTBEAT_INTERVAL_MIN:
        return state
    beat = Beat(
        at=now,
        due_at=now + definition.by_name[heartbeat.step].timeout,
        progress=heartbeat.progress,
    )
    return msgspec.structs.replace(state, beats={**state.beats, heartbeat.step: beat})


def _time_passed(definition: Definition, state: SagaState, now: datetime) -> Iterator[Event]:
    names = [*state.steps]
    if state.deadline_at and state.deadline_at <= now and deadline_applies(definition, state):
        yield (exceeded := DeadlineExceeded())
        state = evolve(state, exceeded)
    for name in names:
        step, due_at = state.step(name), timers.due_at(state, name)
        if definition.by_name[name].waits:
            continue  # how a wait ends is the same whatever ends it
        if step.phase in IN_FLIGHT and due_at and due_at <= now:
            if isinstance(definition.by_name[name].action, SubSaga):
                # Its end is known some time, and how: nothing is guessed.
                if step.phase is Phase.RUNNING:
                    yield (recalled := sub_sagas.recalled(name, step, TIMED_OUT))
                    state = evolve(state, recalled)
                continue
            direction: Direction = "action" if step.phase is Phase.RUNNING else "compensation"
            timed_out = StepTimedOut(
                step=name,
                direction=direction,
                attempt=attempts(step, direction),
                retry_at=timers.retry_at(definition, state, name, direction, None, now),
            )
            yield timed_out
            # Once one has given up, the next one is not retried any more.
            state = evolve(state, timed_out)
