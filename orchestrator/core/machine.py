"""What a saga does next. Everything that decides is in this file, and this file only decides.

    decide(definition, state, message, now) -> Decision(events, commands, ...)

A decision has two halves. `_react` turns the message into facts; `_next` looks at the state alone
and names the one event that it asks for, again and again until it asks for nothing. So a rule
about *what follows* is written once, whatever message made it true:

    forward                 a step whose predecessors succeeded is dispatched, a due retry too
    a cause has come up     the steps in flight end, nothing new begins, then compensation starts
    backward                a step is undone once everything after it is cleared
    the end                 all succeeded: completed; all cleared: compensated

Three rules decide the hard cases (DESIGN.md, section 4):

* A success counts from whichever attempt it comes: its effect is real. A failure or a rejection
  counts for the current attempt only.
* "Unknown" (failed, timed out) is undone like a success. A rejection after an attempt of unknown
  outcome is unknown too, since "nothing happened" was said of the last attempt only.
* Past the pivot there is no way back. A pivot that cannot be undone and whose outcome is unknown
  counts as passed: it is tried again, and is stuck when it gives up.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, assert_never

import msgspec

from orchestrator.core.definition import (
    Definition,
    Input,
    Literal,
    NothingToUndo,
    Output,
    PlannedStep,
    Retry,
)
from orchestrator.core.events import (
    CancelRequested,
    CompensationStarted,
    DeadlineExceeded,
    Event,
    SagaCompensated,
    SagaCompleted,
    SagaStarted,
    SagaStuck,
    StepDispatched,
    StepFailed,
    StepRejected,
    StepSucceeded,
    StepTimedOut,
    Trace,
)
from orchestrator.core.state import Phase, SagaState, StepState, evolve
from shared.backoff import delay
from shared.ids import Direction, command_id, derived_span_id, idempotency_key
from shared.messages import Command, Failed, Failure, Rejected, Reply, Succeeded
from shared.names import UNDO_ARGUMENT

IN_FLIGHT = frozenset({Phase.RUNNING, Phase.UNDOING})
WAITING = frozenset({Phase.RETRYING, Phase.UNDO_RETRYING})
MAY_STAND = frozenset({Phase.SUCCEEDED, Phase.FAILED})
"""Phases in which a step's effect may exist."""
CLEARED = frozenset({Phase.PENDING, Phase.REJECTED, Phase.UNDONE})
"""Phases in which it does not."""


# Messages ------------------------------------------------------------------------------------


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Begin a saga; the input has been checked."""

    saga_id: str
    input: dict[str, Any]
    trace: Trace
    key: str | None = None


class Tick(msgspec.Struct, frozen=True):
    """A timer of the saga is due."""


class Cancel(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants the saga undone."""

    reason: str = ""
    by: str = ""


Message = Start | Reply | Tick | Cancel


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What follows from a message.

    Attributes:
        state: The state after the events; None only for a message to a saga that does not exist.
        events: Facts to store; empty means a stale or duplicate message, which is normal.
        commands: What to send once the events are stored.
        wake_at: When the saga wants a `Tick`, if it does.
        refused: Why the message cannot be acted on; empty for all but operator mistakes and
            replies that this saga never asked for.
    """

    state: SagaState | None
    events: tuple[Event, ...] = ()
    commands: tuple[Command, ...] = ()
    wake_at: datetime | None = None
    refused: str = ""


def decide(
    definition: Definition, state: SagaState | None, message: Message, now: datetime
) -> Decision:
    """Decide what follows from a message.

    Args:
        definition: The definition that the saga started with.
        state: Its state; None before it started.
        message: What arrived.
        now: The time of the decision, aware.

    Returns:
        The decision. The same arguments always give the same one.
    """
    refused = why_not(definition, state, message)
    if refused:
        return Decision(state=state, refused=refused)
    events: list[Event] = []
    commands: list[Command] = []
    for event in _react(definition, state, message, now):
        state = evolve(state, event)
        events.append(event)
    if state is None or not (events or isinstance(message, Tick)):
        return Decision(state=state)
    while (wanted := _next(definition, state, now)) is not None:
        state = evolve(state, wanted)
        events.append(wanted)
        if isinstance(wanted, StepDispatched):
            commands.append(_command(definition, state, wanted))
    return Decision(
        state=state,
        events=tuple(events),
        commands=tuple(commands),
        wake_at=wake_at(definition, state),
    )


def why_not(definition: Definition, state: SagaState | None, message: Message) -> str:
    """Why a message cannot be acted on, in one sentence; empty when it can."""
    match message:
        case Start() | Tick():
            return ""
        case _ if state is None:
            return "There is no such saga."
        case Reply(step=step) if step not in definition.by_name:
            return f"Saga {state.name!r} version {state.version} has no step {step!r}."
        case Reply():
            sent = _attempt(state.step(message.step), message.direction)
            if not 1 <= message.attempt <= sent:
                return (
                    f"Attempt {message.attempt} of {message.step!r} ({message.direction}) "
                    f"was never sent; {sent} were."
                )
            return ""
        case Cancel():
            if state.status.final:
                return f"The saga is {state.status} already."
            if _irrevocable(definition, state):
                pivot = definition.pivot.name if definition.pivot else ""
                return f"The saga is past its pivot {pivot!r}: it can only go forward."
            return ""
        case _:
            assert_never(message)


def wake_at(definition: Definition, state: SagaState) -> datetime | None:
    """The next moment at which the saga does something by itself; None when it only waits."""
    if state.status.final:
        return None
    turning = _turning_back(definition, state)
    times = [
        step.due_at
        for step in state.steps.values()
        # A retry that will not be made any more must not wake the saga for ever.
        if step.due_at is not None and not (turning and step.phase is Phase.RETRYING)
    ]
    if state.deadline_at and _deadline_applies(definition, state):
        times.append(state.deadline_at)
    return min(times, default=None)


# What a message means ------------------------------------------------------------------------


def _react(
    definition: Definition, state: SagaState | None, message: Message, now: datetime
) -> Iterator[Event]:
    """The facts that a message brings, by the state as it was before it."""
    match message:
        case Start():
            if state is None:
                yield _started(definition, message, now)
        case _ if state is None or state.status.final:
            return
        case Reply(direction="action"):
            yield from _action_replied(definition, state, message, now)
        case Reply():
            yield from _compensation_replied(definition, state, message, now)
        case Tick():
            yield from _time_passed(definition, state, now)
        case Cancel():
            if state.cause is None and not state.backward:
                yield CancelRequested(reason=message.reason, by=message.by)
        case _:
            assert_never(message)


def _started(definition: Definition, start: Start, now: datetime) -> SagaStarted:
    return SagaStarted(
        saga_id=start.saga_id,
        name=definition.name,
        version=definition.version,
        input=start.input,
        key=start.key,
        deadline_at=now + definition.deadline if definition.deadline else None,
        trace=start.trace,
    )


def _action_replied(
    definition: Definition, state: SagaState, reply: Reply, now: datetime
) -> Iterator[Event]:
    step = state.step(reply.step)
    current = reply.attempt == step.attempt
    match reply.outcome:
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
        case Rejected(failure=failure):
            if current and step.phase in {Phase.RUNNING, Phase.RETRYING}:
                yield StepRejected(
                    step=reply.step,
                    attempt=reply.attempt,
                    failure=failure,
                    execution=reply.execution,
                )
        case Failed(failure=failure):
            if current and step.phase is Phase.RUNNING:
                yield StepFailed(
                    step=reply.step,
                    direction="action",
                    attempt=reply.attempt,
                    failure=failure,
                    retry_at=_retry_at(definition, state, reply.step, "action", failure, now),
                    execution=reply.execution,
                )
        case _:
            assert_never(reply.outcome)


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
                    retry_at=_retry_at(
                        definition, state, reply.step, "compensation", failure, now
                    ),
                    execution=reply.execution,
                )
        case _:
            assert_never(reply.outcome)


def _time_passed(definition: Definition, state: SagaState, now: datetime) -> Iterator[Event]:
    names = [*state.steps]
    if state.deadline_at and state.deadline_at <= now and _deadline_applies(definition, state):
        yield (exceeded := DeadlineExceeded())
        state = evolve(state, exceeded)
    for name in names:
        step = state.step(name)
        if step.phase in IN_FLIGHT and step.due_at and step.due_at <= now:
            direction: Direction = "action" if step.phase is Phase.RUNNING else "compensation"
            timed_out = StepTimedOut(
                step=name,
                direction=direction,
                attempt=_attempt(step, direction),
                retry_at=_retry_at(definition, state, name, direction, None, now),
            )
            yield timed_out
            # Once one has given up, the next one is not retried any more.
            state = evolve(state, timed_out)


def _retry_at(
    definition: Definition,
    state: SagaState,
    name: str,
    direction: Direction,
    failure: Failure | None,
    now: datetime,
) -> datetime | None:
    planned = definition.by_name[name]
    attempt = _attempt(state.step(name), direction)
    retry = planned.retry if direction == "action" else planned.compensation_retry
    if direction == "action" and _turning_back(definition, state) and not _unsafe(planned):
        return None
    if _gives_up(retry, attempt, failure):
        return None
    return now + delay(retry.backoff, attempt, idempotency_key(state.saga_id, name, direction))


def _gives_up(retry: Retry, attempt: int, failure: Failure | None) -> bool:
    if failure and (not failure.retryable or failure.kind in retry.never_on):
        return True
    return retry.attempts is not None and attempt >= retry.attempts


# What the state asks for ---------------------------------------------------------------------


def _next(definition: Definition, state: SagaState, now: datetime) -> Event | None:
    """The one event that the state asks for; None when there is nothing to do but wait."""
    if state.status.final:
        return None
    for planned in definition.steps:
        if _gave_up(definition, state, planned):
            direction: Direction = "compensation" if state.backward else "action"
            return SagaStuck(step=planned.name, direction=direction)
    if state.backward:
        return _next_backward(definition, state, now)
    if _turning_back(definition, state):
        in_flight = any(step.phase is Phase.RUNNING for step in state.steps.values())
        return None if in_flight else CompensationStarted()
    return _next_forward(definition, state, now)


def _next_forward(definition: Definition, state: SagaState, now: datetime) -> Event | None:
    for planned in definition.steps:
        step = state.step(planned.name)
        if step.phase is Phase.PENDING and all(
            state.step(name).phase is Phase.SUCCEEDED for name in planned.after
        ):
            problem = _payload_problem(planned, state)
            if problem:
                return StepRejected(step=planned.name, attempt=1, failure=problem)
            return _dispatched(planned, step, "action", now)
        if step.phase is Phase.RETRYING and step.due_at and step.due_at <= now:
            return _dispatched(planned, step, "action", now)
    if all(state.step(planned.name).phase is Phase.SUCCEEDED for planned in definition.steps):
        return SagaCompleted()
    return None


def _next_backward(definition: Definition, state: SagaState, now: datetime) -> Event | None:
    cleared = _cleared(definition, state)
    for planned in definition.steps:
        step = state.step(planned.name)
        undoable = planned.undo_task is not None and step.phase in MAY_STAND
        if undoable and all(name in cleared for name in definition.successors[planned.name]):
            return _dispatched(planned, step, "compensation", now)
        if step.phase is Phase.UNDO_RETRYING and step.due_at and step.due_at <= now:
            return _dispatched(planned, step, "compensation", now)
    return SagaCompensated() if len(cleared) == len(definition.steps) else None


def _cleared(definition: Definition, state: SagaState) -> frozenset[str]:
    """Steps of which nothing is left, and of what came after them neither."""
    cleared: set[str] = set()
    open_ends = [*definition.steps]
    while ready := [
        planned
        for planned in open_ends
        if all(name in cleared for name in definition.successors[planned.name])
    ]:
        open_ends = [planned for planned in open_ends if planned not in ready]
        cleared |= {planned.name for planned in ready if _settled(planned, state)}
        if not any(planned.name in cleared for planned in ready):
            break
    return frozenset(cleared)


def _settled(planned: PlannedStep, state: SagaState) -> bool:
    phase = state.step(planned.name).phase
    nothing_to_undo = isinstance(planned.compensation, NothingToUndo)
    return phase in CLEARED or (nothing_to_undo and phase in MAY_STAND)


def _gave_up(definition: Definition, state: SagaState, planned: PlannedStep) -> bool:
    """Whether a step gave up where the saga can go neither on nor back, and nobody said so yet."""
    step = state.step(planned.name)
    if step.stuck:
        return False
    if state.backward:
        return step.phase is Phase.UNDO_FAILED or (
            planned.compensation is None and step.phase in MAY_STAND
        )
    if planned.name in definition.beyond_pivot:
        return step.phase in {Phase.FAILED, Phase.REJECTED}
    return _unsafe(planned) and step.phase is Phase.FAILED


def _turning_back(definition: Definition, state: SagaState) -> bool:
    return state.cause is not None and not _irrevocable(definition, state)


def _irrevocable(definition: Definition, state: SagaState) -> bool:
    """Whether the saga can only go forward: past the pivot, or perhaps past it."""
    pivot = definition.pivot
    if pivot is None or state.backward:
        return False
    step = state.step(pivot.name)
    # Another attempt in flight does not make the first one known again.
    again = step.phase is Phase.RUNNING and step.attempt > 1
    unknown = again or step.phase in {Phase.RETRYING, Phase.FAILED}
    return step.phase is Phase.SUCCEEDED or (_unsafe(pivot) and unknown)


def _unsafe(planned: PlannedStep) -> bool:
    """Whether an unknown outcome of this step can be neither undone nor ignored."""
    return planned.pivot and planned.compensation is None


def _deadline_applies(definition: Definition, state: SagaState) -> bool:
    return state.cause is None and not state.backward and not _irrevocable(definition, state)


def _attempt(step: StepState, direction: Direction) -> int:
    return step.attempt if direction == "action" else step.undo_attempt


def _dispatched(
    planned: PlannedStep, step: StepState, direction: Direction, now: datetime
) -> StepDispatched:
    return StepDispatched(
        step=planned.name,
        direction=direction,
        attempt=_attempt(step, direction) + 1,
        due_at=now + planned.timeout,
    )


# Commands ------------------------------------------------------------------------------------


def _command(definition: Definition, state: SagaState, event: StepDispatched) -> Command:
    planned = definition.by_name[event.step]
    identity = command_id(state.saga_id, event.step, event.direction, event.attempt)
    payload = _payload(planned, state)
    task = planned.action
    if event.direction == "compensation":
        task = planned.undo_task or ""
        payload[UNDO_ARGUMENT] = state.step(event.step).undo
    return Command(
        id=identity,
        saga_id=state.saga_id,
        saga_name=state.name,
        saga_version=state.version,
        step=event.step,
        direction=event.direction,
        attempt=event.attempt,
        task=task,
        queue=planned.queue,
        payload=payload,
        deadline_at=event.due_at,
        traceparent=state.trace.parent(derived_span_id(identity, "send")),
        tracestate=state.trace.tracestate,
    )


def _payload(planned: PlannedStep, state: SagaState) -> dict[str, Any]:
    """Keyword arguments of a step.

    Raises:
        LookupError: A reference leads to nothing.
    """
    if planned.payload is None:
        return dict(state.input)
    return {name: _resolve(value, state) for name, value in planned.payload.items()}


def _payload_problem(planned: PlannedStep, state: SagaState) -> Failure | None:
    try:
        _payload(planned, state)
    except LookupError as error:
        message = f"payload of step {planned.name!r}: {error.args[0]}"
        return Failure(kind="PayloadUnresolved", message=message, retryable=False)
    return None


def _resolve(reference: Input | Output | Literal, state: SagaState) -> Any:
    match reference:
        case Literal(value):
            return value
        case Input(path):
            return _at(state.input, path, "the input")
        case Output(step, path):
            return _at(state.step(step).output, path, f"the output of {step!r}")
        case _:
            assert_never(reference)


def _at(value: Any, path: str, where: str) -> Any:
    for part in path.split(".") if path else ():
        if not isinstance(value, Mapping) or part not in value:
            raise LookupError(f"{where} has no {path!r}")
        value = value[part]
    return value
