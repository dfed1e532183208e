"""What a saga does next. Everything that decides is in this file, and this file only decides.

    decide(definition, state, message, now) -> Decision(events, commands, ...)

A decision has two halves. `_react` turns the message into facts; `_next` looks at the state alone
and names the one event that it asks for, again and again until it asks for nothing. So a rule
about *what follows* is written once, whatever message made it true:

    forward                 a step whose predecessors succeeded is dispatched, a due retry too
    a cause has come up     the steps in flight end, nothing new begins, then compensation starts
    backward                a step is undone once everything after it is cleared
    the end                 all succeeded: completed; all cleared: compensated
    paused                  facts are taken, and nothing follows from them until it is resumed

Three rules decide the hard cases (DESIGN.md, section 4):

* A success counts from whichever attempt it comes: its effect is real. A failure or a rejection
  counts for the current attempt only.
* "Unknown" (failed, timed out) is undone like a success. A rejection after an attempt of unknown
  outcome is unknown too, since "nothing happened" was said of the last attempt only.
* Past the pivot there is no way back. A pivot that cannot be undone and whose outcome is unknown
  counts as passed: it is tried again, and is stuck when it gives up.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final, assert_never

import msgspec

from orchestrator.core import operators, payload, waits
from orchestrator.core.commands import commands_of
from orchestrator.core.definition import TIMED_OUT, Definition, PlannedStep, SubSaga, WaitFor
from orchestrator.core.eventing import publications
from orchestrator.core.events import (
    CancelRequested,
    CompensationStarted,
    DeadlineExceeded,
    Event,
    HistoryFull,
    SagaCompensated,
    SagaCompleted,
    SagaStarted,
    SagaStuck,
    SignalReceived,
    StepAccepted,
    StepDispatched,
    StepExpanded,
    StepFailed,
    StepRecalled,
    StepRejected,
    StepSkipped,
    StepSucceeded,
    StepTimedOut,
    UndoRefused,
    UndoRequested,
)
from orchestrator.core.limits import Limits
from orchestrator.core.messages import (
    Cancel,
    CompensateNow,
    Complete,
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
from orchestrator.core.plan import plan_of
from orchestrator.core.state import Beat, Phase, SagaState, StepState, evolve
from orchestrator.core.terms import (
    IN_FLIGHT,
    WAITING,
    attempts,
    cleared,
    deadline_applies,
    gave_up,
    irrevocable,
    is_done,
    may_stand,
    turning_back,
    unsafe,
)
from shared.backoff import delay
from shared.ids import Direction, idempotency_key
from shared.messages import Accepted, Command, Failed, Failure, Rejected, Reply, Succeeded
from shared.tokens import is_proof, proof_of

NO_LIMITS: Final = Limits()
HEARTBEAT_INTERVAL_MIN: Final = timedelta(seconds=1)
"""Signs of life that come faster than this do not count."""

__all__ = ["Cancel", "Decision", "Message", "Start", "Tick", "decide", "wake_at", "why_not"]


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What follows from a message.

    Attributes:
        state: The state after the events; None only for a message to a saga that does not exist.
        events: Facts to store; empty means a stale or duplicate message, which is normal.
        commands: What to send once the events are stored.
        wake_at: When the saga wants a `Tick`, if it does.
        beat: A heartbeat counted: the state and `wake_at` are new, without an event.
        refused: Why the message cannot be acted on; empty for all but operator mistakes and
            replies that this saga never asked for.
    """

    state: SagaState | None
    events: tuple[Event, ...] = ()
    commands: tuple[Command, ...] = ()
    wake_at: datetime | None = None
    beat: bool = False
    refused: str = ""


def decide(
    definition: Definition,
    state: SagaState | None,
    message: Message,
    now: datetime,
    *,
    limits: Limits = NO_LIMITS,
    history: int = 0,
) -> Decision:
    """Decide what follows from a message.

    Args:
        definition: The definition that the saga started with.
        state: Its state; None before it started.
        message: What arrived.
        now: The time of the decision, aware.
        limits: How much the saga may do.
        history: Number of events in its history.

    Returns:
        The decision. The same arguments always give the same one.
    """
    refused = why_not(definition, state, message)
    if refused:
        return Decision(state=state, refused=refused)
    events: list[Event] = []
    commands: list[Command] = []
    plan = plan_of(definition, state)
    for event in _react(plan, state, message, now):
        state = evolve(state, event)
        events.append(event)
        commands += commands_of(plan, state, event, now)
    if isinstance(message, Heartbeat) and state is not None:
        alive = _alive(plan, state, message, now)
        return Decision(state=alive, beat=alive is not state, wake_at=wake_at(definition, alive))
    if state is None or not (events or isinstance(message, Tick)):
        return Decision(state=state)
    crowded = False
    while (wanted := _next(plan := plan_of(definition, state), state, now)) is not None:
        if isinstance(wanted, StepDispatched):
            if history + len(events) >= limits.events_max:
                wanted = HistoryFull(events_max=limits.events_max)
            elif crowded := _crowded(plan, state, limits):
                break
        state = evolve(state, wanted)
        events.append(wanted)
        commands += commands_of(plan, state, wanted, now)
    commands += publications(definition, state, events, now)
    return Decision(
        state=state,
        events=tuple(events),
        commands=tuple(commands),
        wake_at=wake_at(definition, state, crowded=crowded),
    )


def _crowded(plan: Definition, state: SagaState, limits: Limits) -> bool:
    """Whether no other attempt may be in flight now."""
    if len(plan.steps) <= limits.in_flight_max:
        return False
    flying = sum(step.phase in IN_FLIGHT for step in state.steps.values())
    return flying >= limits.in_flight_max


def why_not(definition: Definition, state: SagaState | None, message: Message) -> str:
    """Why a message cannot be acted on, in one sentence; empty when it can."""
    definition = plan_of(definition, state)
    match message:
        case Start() | Tick() | Undo():
            return ""
        case _ if state is None:
            return "There is no such saga."
        case Reply() | Heartbeat():
            return _never_sent(definition, state, message)
        case Complete(reply=reply, proof=proof):
            if not is_proof(proof, _proof_of(state, reply)):
                return "The token is not one of this saga."
            return _never_sent(definition, state, reply)
        case Signal(name=name):
            works = [planned.action for planned in definition.steps]
            known = [work.signal for work in works if isinstance(work, WaitFor)]
            if name not in known:
                listed = ", ".join(map(repr, known)) or "none"
                return f"Saga {state.name!r} waits for no signal {name!r}, but for {listed}."
            late = state.status.final and name not in state.signals
            return f"The saga is {state.status} already." if late else ""
        case Cancel():
            if state.status.final:
                return f"The saga is {state.status} already."
            if irrevocable(definition, state):
                pivot = definition.pivot.name if definition.pivot else ""
                return f"The saga is past its pivot {pivot!r}: it can only go forward."
            return ""
        case Pause() | Resume() | RetryNow() | Skip() | Resolve() | CompensateNow():
            return operators.refusal(definition, state, message)
        case _:
            assert_never(message)


def _never_sent(definition: Definition, state: SagaState, said: Reply | Heartbeat) -> str:
    planned = definition.by_name.get(said.step)
    if planned is None:
        return f"Saga {state.name!r} version {state.version} has no step {said.step!r}."
    if planned.waits:
        return f"Step {said.step!r} waits by itself: no participant was asked."
    sent = attempts(state.step(said.step), said.direction)
    if 1 <= said.attempt <= sent:
        return ""
    attempt = f"Attempt {said.attempt} of {said.step!r} ({said.direction})"
    return f"{attempt} was never sent; {sent} were."


def _proof_of(state: SagaState, reply: Reply) -> str:
    attempt = (state.saga_id, reply.step, reply.direction, reply.attempt)
    return proof_of(state.secret, *attempt)


def wake_at(definition: Definition, state: SagaState, *, crowded: bool = False) -> datetime | None:
    """The next moment at which the saga does something by itself; None when it only waits.

    Args:
        definition: The definition that the saga runs on.
        state: Its state.
        crowded: Too much is in flight for another attempt: one of those has to end before.
    """
    if state.status.final:
        return None
    definition = plan_of(definition, state)
    # A retry that will not be made, or not now, must not wake the saga for ever.
    held = WAITING if state.paused or state.full or crowded else frozenset()
    if turning_back(definition, state):
        held |= {Phase.RETRYING}
    times = [
        due_at
        for name, step in state.steps.items()
        if step.phase not in held and (due_at := _due_at(state, name)) is not None
    ]
    if state.deadline_at and deadline_applies(definition, state):
        times.append(state.deadline_at)
    begun = state.backward or any(step.attempt for step in state.steps.values())
    if state.not_before and not (begun or state.paused or state.full):
        times.append(state.not_before)
    return min(times, default=None)


def _due_at(state: SagaState, name: str) -> datetime | None:
    """When a step's timer is due: a sign of life may have moved it."""
    step, beat = state.step(name), state.beats.get(name)
    if step.due_at is None or beat is None or step.phase not in IN_FLIGHT:
        return step.due_at
    return max(step.due_at, beat.due_at)


# What a message means ------------------------------------------------------------------------


def _react(  # noqa: C901, PLR0912 - one case for each message
    definition: Definition, state: SagaState | None, message: Message, now: datetime
) -> Iterator[Event]:
    """The facts that a message brings, by the state as it was before it."""
    match message:
        case Start():
            if state is None:
                yield _started(definition, message, now)
                if message.undo:
                    undo = message.undo
                    yield UndoRequested(attempt=undo.attempt, reason=undo.reason)
        case Undo():
            if state is not None:
                yield from _undo_asked(definition, state, message)
        case _ if state is None or state.status.final:
            return
        case Reply(direction="action"):
            yield from _action_replied(definition, state, message, now)
        case Reply():
            yield from _compensation_replied(definition, state, message, now)
        case Complete(reply=reply):
            yield from _react(definition, state, reply, now)
        case Signal(name=name, data=data, by=by):
            if name not in state.signals:
                yield SignalReceived(name=name, data=data, by=by)
        case Heartbeat():
            return  # a sign of life is no fact for the history
        case Tick():
            yield from _time_passed(definition, state, now)
        case Cancel():
            if state.cause is None and not state.backward:
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
    )


def _undo_asked(definition: Definition, state: SagaState, undo: Undo) -> Iterator[Event]:
    """The parent wants the saga undone: each attempt of it is answered, also after the end."""
    known = state.undo_attempt
    if known is not None and undo.attempt <= known:
        return
    if undo.attempt == 0 and (state.status.final or irrevocable(definition, state)):
        return  # it ends, or has ended, as it is, and the parent is told that
    if irrevocable(definition, state):
        pivot = definition.pivot.name if definition.pivot else ""
        reason = f"The sub-saga {state.saga_id} is past its pivot {pivot!r}: it cannot be undone."
        yield UndoRefused(attempt=undo.attempt, reason=reason)
    else:
        yield UndoRequested(attempt=undo.attempt, reason=undo.reason)


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
        case Accepted():
            yield from _accepted(definition, state, reply, now)
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
        case Accepted():
            yield from _accepted(definition, state, reply, now)
        case _:
            assert_never(reply.outcome)


def _accepted(
    definition: Definition, state: SagaState, reply: Reply, now: datetime
) -> Iterator[Event]:
    """The attempt in flight goes on elsewhere; its time-out may be another one from here on."""
    step = state.step(reply.step)
    flying = step.phase is (Phase.RUNNING if reply.direction == "action" else Phase.UNDOING)
    current = reply.attempt == attempts(step, reply.direction)
    due_at = _due_at(state, reply.step)
    if flying and current and due_at and not step.accepted:
        within = definition.by_name[reply.step].completes_within
        yield StepAccepted(
            step=reply.step,
            direction=reply.direction,
            attempt=reply.attempt,
            due_at=now + within if within else due_at,
            execution=reply.execution,
        )


def _alive(
    definition: Definition, state: SagaState, heartbeat: Heartbeat, now: datetime
) -> SagaState:
    """The state after a sign of life; the same one where it does not count, or came too soon."""
    step = state.step(heartbeat.step)
    flying = step.phase is (Phase.RUNNING if heartbeat.direction == "action" else Phase.UNDOING)
    last = state.beats.get(heartbeat.step)
    if not flying or heartbeat.attempt != attempts(step, heartbeat.direction):
        return state
    if state.status.final or (last and now < last.at + HEARTBEAT_INTERVAL_MIN):
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
        step, due_at = state.step(name), _due_at(state, name)
        if definition.by_name[name].waits:
            continue  # how a wait ends is the same whatever ends it
        if step.phase in IN_FLIGHT and due_at and due_at <= now:
            if (
                isinstance(definition.by_name[name].action, SubSaga)
                and step.phase is Phase.RUNNING
            ):
                # Its end is known some time, and how: nothing is guessed.
                yield (recalled := _recalled(name, step, TIMED_OUT))
                state = evolve(state, recalled)
                continue
            direction: Direction = "action" if step.phase is Phase.RUNNING else "compensation"
            timed_out = StepTimedOut(
                step=name,
                direction=direction,
                attempt=attempts(step, direction),
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


# What the state asks for ---------------------------------------------------------------------


def _next(definition: Definition, state: SagaState, now: datetime) -> Event | None:
    """The one event that the state asks for; None when there is nothing to do but wait."""
    if state.status.final:
        return None
    if state.backward or state.cause:
        for planned in definition.steps:
            if gave_up(definition, state, planned) and not state.step(planned.name).stuck:
                direction: Direction = "compensation" if state.backward else "action"
                return SagaStuck(step=planned.name, direction=direction)
    turning = turning_back(definition, state)
    for planned in definition.without_task:
        if (over := waits.ended(planned, state, now, turning=turning)) is not None:
            return over
        held = state.paused or state.full
        called_back = turning and not held and isinstance(planned.action, SubSaga)
        step = state.step(planned.name)
        if called_back and step.phase is Phase.RUNNING and not step.recalled:
            return _recalled(planned.name, step, "the saga it belongs to turned back")
    if state.paused or state.full:
        return None
    if state.backward:
        return _next_backward(definition, state, now)
    if turning:
        in_flight = any(step.phase is Phase.RUNNING for step in state.steps.values())
        return None if in_flight else CompensationStarted()
    return _next_forward(definition, state, now)


def _recalled(name: str, step: StepState, reason: str) -> StepRecalled:
    return StepRecalled(step=name, attempt=step.attempt, reason=reason)


def _next_forward(definition: Definition, state: SagaState, now: datetime) -> Event | None:
    if state.not_before and now < state.not_before:
        return None
    done = True
    for planned in definition.steps:
        step = state.step(planned.name)
        if step.phase is Phase.SUCCEEDED:
            continue
        done = done and step.phase is Phase.SKIPPED
        due = step.phase is Phase.RETRYING and step.due_at is not None and step.due_at <= now
        ready = step.phase is Phase.PENDING and all(
            is_done(definition, state, name) for name in planned.after
        )
        if (due or ready) and _has_room(planned, definition, state):
            return (
                _dispatched(planned, state, "action", now) if due else _begun(planned, state, now)
            )
    return SagaCompleted() if done else None


def _begun(planned: PlannedStep, state: SagaState, now: datetime) -> Event:
    """What becomes of a step whose turn it is."""
    match payload.skipped(planned, state):
        case Failure() as problem:
            return StepRejected(step=planned.name, attempt=1, failure=problem)
        case True:
            return StepSkipped(step=planned.name, condition=True)
        case _:
            pass
    match payload.items_of(planned, state):
        case Failure() as problem:
            return StepRejected(step=planned.name, attempt=1, failure=problem)
        case int(items):
            return StepExpanded(step=planned.name, items=items)
        case _:
            pass
    if unresolved := payload.payload_problem(planned, state):
        return StepRejected(step=planned.name, attempt=1, failure=unresolved)
    return _dispatched(planned, state, "action", now)


def _has_room(planned: PlannedStep, definition: Definition, state: SagaState) -> bool:
    """Whether one more item of a list may be in flight."""
    if not planned.group or planned.items_at_once is None:
        return True
    flying = sum(
        other.group == planned.group and state.step(other.name).phase in IN_FLIGHT
        for other in definition.steps
    )
    return flying < planned.items_at_once


def _next_backward(definition: Definition, state: SagaState, now: datetime) -> Event | None:
    clear = cleared(definition, state)
    for planned in definition.steps:
        step = state.step(planned.name)
        undoable = planned.undo_task is not None and may_stand(step)
        if undoable and all(name in clear for name in definition.successors[planned.name]):
            return _dispatched(planned, state, "compensation", now)
        if step.phase is Phase.UNDO_RETRYING and step.due_at and step.due_at <= now:
            return _dispatched(planned, state, "compensation", now)
    return SagaCompensated() if len(clear) == len(definition.steps) else None


def _dispatched(
    planned: PlannedStep, state: SagaState, direction: Direction, now: datetime
) -> StepDispatched:
    return StepDispatched(
        step=planned.name,
        direction=direction,
        attempt=attempts(state.step(planned.name), direction) + 1,
        due_at=waits.due_at(planned, state, now),
    )
