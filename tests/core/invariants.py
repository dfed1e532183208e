"""What must hold of every decision, written without the machine's own helpers.

Ordering rules say what must never be; each has a completeness rule beside it that says what must
have been done: a machine that does nothing at all keeps every ordering rule.
"""

from datetime import datetime
from functools import reduce

from msgspec.structs import replace

from orchestrator.core.definition import (
    Definition,
    Gather,
    NothingToUndo,
    PlannedStep,
    Retry,
    Sleep,
    SubSaga,
    WaitFor,
)
from orchestrator.core.events import (
    CancelRequested,
    CompensationRequested,
    CompensationStarted,
    DeadlineExceeded,
    Event,
    RetryRequested,
    SagaCompensated,
    SagaCompleted,
    SagaPaused,
    SagaResolved,
    SagaResumed,
    SagaStarted,
    SagaStuck,
    SignalReceived,
    StepAccepted,
    StepCopied,
    StepDispatched,
    StepExpanded,
    StepFailed,
    StepRecalled,
    StepRejected,
    StepSkipped,
    StepSucceeded,
    StepTimedOut,
    SubSagaBegan,
    TaskUnknown,
    UndoRefused,
    UndoRequested,
)
from orchestrator.core.machine import Cancel, Decision, Message, Tick, decide
from orchestrator.core.messages import (
    CompensateNow,
    Complete,
    Heartbeat,
    Pause,
    Resolve,
    Resume,
    RetryNow,
    Signal,
    Skip,
    Start,
    Undo,
)
from orchestrator.core.plan import plan_of
from orchestrator.core.state import Phase, SagaState, Status, StepState, evolve
from shared.messages import Accepted, Command, Failed, Failure, Rejected, Reply, Succeeded

IN_FLIGHT = {Phase.RUNNING, Phase.UNDOING}
WAITING = {Phase.RETRYING, Phase.UNDO_RETRYING}
GONE = {Phase.PENDING, Phase.REJECTED, Phase.UNDONE}
UNKNOWN_OR_DONE = {Phase.SUCCEEDED, Phase.FAILED}
FOLLOWED = {Phase.SUCCEEDED, Phase.SKIPPED}
STARTS = (StepDispatched, CompensationStarted, SagaCompleted, SagaCompensated)


def check_decision(
    definition: Definition,
    before: SagaState | None,
    message: Message,
    now: datetime,
    decision: Decision,
) -> None:
    """Check a decision that `decide` has made from these arguments.

    Raises:
        AssertionError: An invariant does not hold.
    """
    raw, definition = definition, plan_of(definition, decision.state)
    if not decision.events:
        if decision.beat and isinstance(message, Tick):
            _check_asked(definition, before, now, decision)
            return
        if decision.beat:
            _check_beat(before, message, now, decision)
            return
        assert decision.state == before, "the state changed without an event"
        assert not decision.commands
        _check_ignored(before, message, decision)
        return
    assert not decision.beat
    assert decision == decide(raw, before, message, now), "decided twice, differently"
    if before is not None:
        assert decision.state is not None
        assert reduce(evolve, decision.events, of_history(before)) == of_history(decision.state)
        assert not before.status.final or isinstance(message, Undo), "it happened after the end"
    dispatched = [event for event in decision.events if isinstance(event, StepDispatched)]
    asked = [event for event in dispatched if not definition.by_name[event.step].waits]
    commands = [
        one for one in decision.commands if one.id.count(":") == 3 and not between_sagas(one)
    ]
    assert [
        (f"{command.saga_id}:{event.step}:{event.direction}:{event.attempt}", event.due_at)
        for event, command in zip(asked, commands, strict=True)
    ] == [(command.id, command.deadline_at) for command in commands]
    for command in commands:
        planned = definition.by_name[command.step]
        assert command.queue == planned.queue
        task = planned.task or "saga.start"
        assert command.task == (task if command.direction == "action" else planned.undo_task)
    _check_told(before, decision)
    assert len({event.step for event in dispatched}) == len(dispatched), "two attempts at a time"
    state = before
    for event in decision.events:
        after = evolve(state, event)
        _check_event(definition, state, event, message, now)
        state = after
    assert decision.state is not None
    check_rest(definition, decision.state, decision.wake_at)
    if isinstance(message, Tick) and decision.wake_at is not None:
        assert decision.wake_at > now, "a timer that is due already: a busy loop"


def check_rest(definition: Definition, state: SagaState, wake_at: datetime | None) -> None:
    """Check a state between two decisions: all that can be done has been done."""
    assert state.status is _status(definition, state)
    phases = {planned.name: state.step(planned.name).phase for planned in definition.steps}
    if state.status.final:
        assert wake_at is None, "an ended saga wants to be woken"
        return
    back = _turning_back(definition, state)
    for planned in definition.steps:
        if isinstance(planned.action, WaitFor) and phases[planned.name] is Phase.RUNNING:
            assert planned.action.signal not in state.signals, "it waits for what has come"
        if isinstance(planned.action, SubSaga):
            _check_sub_saga(planned.name, state, back=back)
        if planned.waits:
            assert not (back and phases[planned.name] is Phase.RUNNING), "it waits in vain"
            assert phases[planned.name] not in {Phase.RETRYING, Phase.UNDOING}
    flying = [name for name, phase in phases.items() if phase in IN_FLIGHT | WAITING]
    if state.paused or state.full:
        _check_paused(definition, state, wake_at)
        return
    if wake_at is None:
        never = [one for one in flying if not (back and phases[one] is Phase.RETRYING)]
        assert not never, "an attempt that is never timed out, or a retry that is never made"
        assert state.status is Status.STUCK, "a saga that nothing will ever move again"
    else:
        late = wake_at == state.deadline_at and state.cause is None
        assert flying or state.not_before or late, "woken for nothing"
        asked_at = [inquiry.at for inquiry in state.inquiries.values()]
        assert wake_at <= min(asked_at, default=wake_at), "asked too late"
    if not state.backward:
        assert not (back and Phase.RUNNING not in phases.values()), "compensation did not begin"
        for planned in definition.steps:
            ready = all(_followed(definition, state, name) for name in planned.after)
            waits = phases[planned.name] is Phase.PENDING and ready
            waits = waits and not _crowded(definition, state, planned)
            begun = any(step.attempt for step in state.steps.values())
            assert back or not waits or (state.not_before and not begun), (
                f"{planned.name} could have begun"
            )
        return
    for planned in definition.steps:
        if planned.undo_task and _may_stand(state.step(planned.name)):
            held = [
                name
                for name in descendants(definition, planned.name)
                if not _nothing_left(definition.by_name[name], state.step(name))
            ]
            assert held, f"the undo of {planned.name} could have begun"


def _check_sub_saga(name: str, state: SagaState, *, back: bool) -> None:
    """It is called back when it should be, and asked until it has said how it ended."""
    step = state.step(name)
    if step.phase is Phase.RUNNING:
        assert step.recalled or state.paused or not back, "its sub-saga goes on in vain"
    asked = name in state.inquiries
    assert asked == (step.phase in IN_FLIGHT), "nobody asks how its sub-saga ended"


def between_sagas(command: Command) -> bool:
    """Whether it is what one saga tells another, beside the commands of its steps."""
    return any(mark in command.id for mark in (":recall:", ":parent:", ":again:"))


def of_history(state: SagaState) -> SagaState:
    """What of a state is the fold of its history."""
    return replace(state, beats={}, inquiries={})


def _check_told(before: SagaState | None, decision: Decision) -> None:
    """A parent is told exactly once how its sub-saga ended, or that it is undone."""
    told = [one for one in decision.commands if ":parent:" in one.id]
    after = decision.state
    assert after is not None
    ended = after.status.final and not (before and before.status.final)
    undone = any(isinstance(event, UndoRequested | UndoRefused) for event in decision.events)
    late = after.status.final and undone
    refused = any(isinstance(event, UndoRefused) for event in decision.events)
    assert len(told) == (1 if after.parent and (ended or late or refused) else 0)
    recalled = [one for one in decision.events if isinstance(one, StepRecalled)]
    sent = [one for one in decision.commands if ":again:" not in one.id]
    assert len(recalled) == sum(":recall:" in one.id for one in sent)


def _check_paused(definition: Definition, state: SagaState, wake_at: datetime | None) -> None:
    """It wakes for what is in flight and for its deadline, and for nothing that it may not begin."""
    times = []
    for name, step in state.steps.items():
        asked = isinstance(definition.by_name[name].action, SubSaga)
        if step.phase in IN_FLIGHT and not (step.recalled or (asked and state.backward)):
            assert step.due_at is not None
            beat = state.beats.get(name)
            times.append(max(step.due_at, beat.due_at) if beat else step.due_at)
    if state.deadline_at and not (
        state.cause or state.backward or _passed_pivot(definition, state)
    ):
        times.append(state.deadline_at)
    assert wake_at == min(times, default=None)


def _check_ignored(state: SagaState | None, message: Message, decision: Decision) -> None:
    """Only what is stale or a duplicate may be ignored, and only what was never asked for refused."""
    if isinstance(message, Complete):
        message = message.reply
    if state is None or state.status.final or decision.refused:
        return
    if isinstance(message, Signal):
        assert message.name in state.signals, "a signal was dropped"
    if not isinstance(message, Reply):
        return
    step = state.step(message.step)
    forward = message.direction == "action"
    match message.outcome:
        case Succeeded():
            known = step.success or step.phase is Phase.UNDONE
            assert known if forward else step.phase is Phase.UNDONE, "a success was dropped"
        case Rejected() | Failed():
            current = message.attempt == (step.attempt if forward else step.undo_attempt)
            flying = step.phase is (Phase.RUNNING if forward else Phase.UNDOING)
            said_no = isinstance(message.outcome, Rejected) and step.phase is Phase.RETRYING
            assert not (current and (flying or (forward and said_no))), "an answer was dropped"
        case Accepted():
            current = message.attempt == (step.attempt if forward else step.undo_attempt)
            flying = step.phase is (Phase.RUNNING if forward else Phase.UNDOING)
            seen = step.accepted or step.began
            assert not (current and flying and not seen), "it was not noted"


def _check_beat(
    before: SagaState | None, message: Message, now: datetime, decision: Decision
) -> None:
    """A sign of life moves a deadline and leaves everything else as it was."""
    assert isinstance(message, Heartbeat)
    assert before is not None
    assert decision.state is not None
    assert (decision.events, decision.commands) == ((), ())
    assert replace(decision.state, beats={}) == replace(before, beats={})
    beat = decision.state.beats[message.step]
    assert before.step(message.step).phase in IN_FLIGHT
    assert (beat.at, beat.progress) == (now, message.progress)
    assert beat.due_at > now


def _check_asked(
    definition: Definition, before: SagaState | None, now: datetime, decision: Decision
) -> None:
    """Sub-sagas are asked again that have not answered, and everything else stays as it was."""
    after = decision.state
    assert before is not None
    assert after is not None
    assert of_history(after) == of_history(before)
    assert not before.paused
    assert not before.full
    overdue = {name for name, one in before.inquiries.items() if one.at <= now}
    assert overdue == {command.step for command in decision.commands}
    for command in decision.commands:
        step, planned = after.step(command.step), definition.by_name[command.step]
        assert isinstance(planned.action, SubSaga)
        assert step.phase in IN_FLIGHT
        start = step.phase is Phase.RUNNING and not step.recalled
        assert command.task == ("saga.start" if start else "saga.undo")
        assert command.id.endswith(f":again:{after.inquiries[command.step].times}")
    assert decision.wake_at is not None
    assert decision.wake_at > now


def _check_event(  # noqa: C901, PLR0912, PLR0915 - one case for each event
    definition: Definition,
    state: SagaState | None,
    event: Event,
    message: Message,
    now: datetime,
) -> None:
    if state is None:
        assert isinstance(event, SagaStarted)
        return
    of_undo = isinstance(event, UndoRequested | UndoRefused)
    assert not state.status.final or of_undo, "something happened after the end"
    assert not (state.paused and isinstance(event, STARTS)), "it began something while paused"
    match event:
        case StepDispatched(direction="action"):
            _check_action_dispatched(definition, state, event, message, now)
        case StepDispatched():
            _check_undo_dispatched(definition, state, event, message, now)
        case StepSucceeded(direction="action"):
            assert not state.step(event.step).success, "succeeded twice"
            assert 1 <= event.attempt <= state.step(event.step).attempt
            _check_wait_ended(definition, state, event, now)
        case StepCopied():
            assert isinstance(message, Start)
            assert state.fork, "copied, and it is no fork"
            assert state.step(event.step).phase is Phase.PENDING, "copied twice, or too late"
            before = definition.by_name[event.step].after
            assert all(state.step(name).phase in FOLLOWED for name in before), "out of order"
        case StepAccepted():
            step = state.step(event.step)
            assert step.phase in IN_FLIGHT
            assert not step.accepted, "accepted twice"
        case StepRecalled():
            step = state.step(event.step)
            assert isinstance(definition.by_name[event.step].action, SubSaga)
            assert step.phase is Phase.RUNNING
            assert not step.recalled, "called back twice"
            due = step.due_at is not None and step.due_at <= now
            assert due or _turning_back(definition, state), "called back without a reason"
        case SubSagaBegan():
            step = state.step(event.step)
            assert isinstance(definition.by_name[event.step].action, SubSaga)
            assert step.phase is Phase.RUNNING
            assert not step.began, "seen for the first time twice"
        case UndoRequested():
            assert isinstance(message, Undo | Start)
            known = state.undo_attempt
            assert known is None or event.attempt > known, "asked twice"
        case UndoRefused():
            assert isinstance(message, Undo)
            assert event.attempt > 0
            assert _passed_pivot(definition, state)
        case StepExpanded():
            assert event.step not in state.items, "spread out twice"
            assert state.step(event.step).phase is Phase.PENDING
            _check_turn_of(definition, state, f"{event.step}[0]" if event.items else event.step)
        case SignalReceived():
            assert isinstance(message, Signal)
            assert event.name not in state.signals, "the first one counts"
        case StepSucceeded():
            assert state.step(event.step).phase is not Phase.UNDONE, "undone twice"
            assert 1 <= event.attempt <= state.step(event.step).undo_attempt
        case StepRejected():
            assert not state.backward
            assert state.step(event.step).phase in {Phase.RUNNING, Phase.RETRYING, Phase.PENDING}
            if event.attempt > state.step(event.step).never_ran + 1:
                after = evolve(state, event).step(event.step).phase
                assert after is Phase.FAILED, "the earlier attempts may have done it"
        case TaskUnknown():
            assert not state.backward
            assert definition.by_name[event.step].task
            assert state.step(event.step).phase in {Phase.RUNNING, Phase.RETRYING}
            told = evolve(state, event)
            assert told.cause == state.cause, "a reason to turn back, though nobody said no"
        case StepTimedOut() if definition.by_name[event.step].waits:
            _check_wait_ended(definition, state, event, now)
        case StepFailed() | StepTimedOut():
            _check_failed(definition, state, event, now)
        case _:
            _check_turning_point(definition, state, event, message, now)


def _check_turning_point(
    definition: Definition, state: SagaState, event: Event, message: Message, now: datetime
) -> None:
    match event:
        case CancelRequested():
            assert isinstance(message, Cancel)
            assert state.cause is None
        case DeadlineExceeded():
            assert isinstance(message, Tick)
            assert state.cause is None
            assert state.deadline_at is not None
            assert state.deadline_at <= now
            assert not _passed_pivot(definition, state)
        case CompensationStarted():
            _check_turn(definition, state)
        case SagaStuck():
            _check_stuck(definition, state, event)
        case SagaCompleted():
            assert all(state.step(planned.name).phase in FOLLOWED for planned in definition.steps)
        case SagaCompensated():
            assert state.backward
            assert all(
                _nothing_left(planned, state.step(planned.name)) for planned in definition.steps
            )
        case _:
            _check_operated(definition, state, event, message, now)


def _check_operated(
    definition: Definition, state: SagaState, event: Event, message: Message, now: datetime
) -> None:
    """An operator's word is kept, and only where it may be given."""
    match event:
        case SagaPaused():
            assert isinstance(message, Pause)
            assert not state.paused
        case SagaResumed():
            assert isinstance(message, Resume)
            assert state.paused
        case RetryRequested():
            assert isinstance(message, RetryNow)
            assert (event.due_at, state.paused) == (now, False)
            waits = {"action": Phase.RETRYING, "compensation": Phase.UNDO_RETRYING}
            step = state.step(event.step)
            assert step.stuck or step.phase is waits[event.direction]
        case StepSkipped(condition=True):
            assert definition.by_name[event.step].when is not None
            assert state.step(event.step).phase is Phase.PENDING
            assert not state.backward
            _check_turn_of(definition, state, event.step)
        case StepSkipped():
            assert isinstance(message, Skip)
            step = state.step(event.step)
            assert (event.direction == "compensation") == state.backward
            if event.direction == "action":
                waiting = definition.by_name[event.step].waits and step.phase is Phase.RUNNING
                assert waiting or step.phase not in IN_FLIGHT | FOLLOWED
            else:
                assert step.stuck or step.phase is Phase.UNDO_RETRYING
        case CompensationRequested(step=vouched):
            assert isinstance(message, CompensateNow)
            assert not state.backward
            if vouched:
                assert _unsafe(definition.by_name[vouched])
                assert state.step(vouched).phase in {Phase.RETRYING, Phase.FAILED}
            else:
                assert not _passed_pivot(definition, state)
        case SagaResolved():
            assert isinstance(message, Resolve)
            assert state.status is Status.STUCK
            assert all(step.phase not in IN_FLIGHT for step in state.steps.values())
        case _:
            raise AssertionError(f"{event!r} is out of place")


def _check_action_dispatched(
    definition: Definition,
    state: SagaState,
    event: StepDispatched,
    message: Message,
    now: datetime,
) -> None:
    planned, step = definition.by_name[event.step], state.step(event.step)
    assert step.phase in {Phase.PENDING, Phase.RETRYING}
    if step.phase is Phase.RETRYING:
        assert step.due_at is not None
        assert step.due_at <= now, "a retry before its wait was over"
    assert event.attempt == step.attempt + 1
    _check_allowed(planned.retry, event.attempt, message)
    assert not state.backward, "a step began on the way back"
    _check_turn_of(definition, state, event.step)
    assert not _crowded(definition, state, planned), "more items at once than allowed"
    if state.cause is not None:
        again = _unsafe(planned) and event.attempt > 1
        assert again or _passed_pivot(definition, state), "a step began after a cause had come up"
    lasts = planned.timeout
    if isinstance(planned.action, Sleep) and planned.action.lasts:
        lasts = planned.action.lasts
    assert event.due_at == now + lasts


def _check_turn_of(definition: Definition, state: SagaState, name: str) -> None:
    """Everything before a step is done, at any distance: also before one that is skipped."""
    for earlier in definition.steps:
        if name in descendants(definition, earlier.name):
            assert state.step(earlier.name).phase in FOLLOWED, "a step began before its turn"


def _followed(definition: Definition, state: SagaState, name: str) -> bool:
    before = [one.name for one in definition.steps if name in descendants(definition, one.name)]
    return all(state.step(one).phase in FOLLOWED for one in (name, *before))


def _crowded(definition: Definition, state: SagaState, planned: PlannedStep) -> bool:
    if planned.items_at_once is None or not planned.group:
        return False
    flying = [
        one
        for one in definition.steps
        if one.group == planned.group and state.step(one.name).phase in IN_FLIGHT
    ]
    return len(flying) >= planned.items_at_once


def _check_wait_ended(
    definition: Definition, state: SagaState, event: StepSucceeded | StepTimedOut, now: datetime
) -> None:
    """A wait ends by its signal or by its time, and by nothing else."""
    planned, step = definition.by_name[event.step], state.step(event.step)
    if not planned.waits:
        return
    assert step.phase is Phase.RUNNING
    if isinstance(planned.action, Gather):
        outputs = [state.step(name).output for name in planned.action.steps]
        assert isinstance(event, StepSucceeded)
        assert event.output == outputs
        return
    due = step.due_at is not None and step.due_at <= now
    signalled = isinstance(planned.action, WaitFor) and planned.action.signal in state.signals
    assert due or signalled, "it ended without a reason"
    assert not (signalled and isinstance(event, StepTimedOut))


def _check_undo_dispatched(
    definition: Definition,
    state: SagaState,
    event: StepDispatched,
    message: Message,
    now: datetime,
) -> None:
    planned, step = definition.by_name[event.step], state.step(event.step)
    assert state.backward
    assert planned.undo_task
    assert step.attempt > 0, "undone without ever having been sent"
    assert _may_stand(step) or step.phase is Phase.UNDO_RETRYING
    if step.phase is Phase.UNDO_RETRYING:
        assert step.due_at is not None
        assert step.due_at <= now, "a retry before its wait was over"
    assert event.attempt == step.undo_attempt + 1
    _check_allowed(planned.compensation_retry, event.attempt, message)
    for name in descendants(definition, event.step):
        later = definition.by_name[name]
        wrong_word = state.step(name).by_hand  # an operator's; it came out in the meantime
        gone = wrong_word or _nothing_left(later, state.step(name))
        assert gone, "undone before what came after it"
    assert event.due_at == now + planned.timeout


def _check_allowed(retry: Retry, attempt: int, message: Message) -> None:
    limits = [policy.attempts for policy in (retry, *retry.by_kind.values())]
    within = any(limit is None or attempt <= limit for limit in limits)
    assert within or isinstance(message, RetryNow), "more attempts than allowed"


def _check_failed(
    definition: Definition, state: SagaState, event: StepFailed | StepTimedOut, now: datetime
) -> None:
    planned, step = definition.by_name[event.step], state.step(event.step)
    forward = event.direction == "action"
    assert step.phase is (Phase.RUNNING if forward else Phase.UNDOING)
    assert event.attempt == (step.attempt if forward else step.undo_attempt)
    if isinstance(event, StepTimedOut):
        assert step.due_at is not None
        assert step.due_at <= now, "timed out before its time"
        beat = state.beats.get(event.step)
        assert beat is None or beat.due_at <= now, "timed out although it lives"
    retry = planned.retry if forward else planned.compensation_retry
    failure: Failure | None = event.failure if isinstance(event, StepFailed) else None
    kind = failure.kind if failure else "TimedOut"
    never = kind in retry.never_on
    retry = retry.by_kind.get(kind, retry)
    exhausted = retry.attempts is not None and event.attempt >= retry.attempts
    never = never or kind in retry.never_on
    hopeless = never or (failure is not None and not failure.retryable)
    given_up = exhausted or hopeless
    if event.retry_at is not None:
        assert not given_up, "a retry that the policy forbids"
        back = _turning_back(definition, state) and not _unsafe(planned)
        assert not (forward and back), "a retry is announced that will not be made"
        assert now <= event.retry_at <= now + retry.backoff.wait_max
    elif not given_up:
        assert forward, "an undo given up while its policy allows another attempt"
        assert state.cause is not None, "a step given up while its policy allows another attempt"
        assert not _passed_pivot(definition, state)


def _check_turn(definition: Definition, state: SagaState) -> None:
    assert state.cause is not None, "turned back without a cause"
    assert not state.backward
    for planned in definition.steps:
        phase = state.step(planned.name).phase
        assert phase is not Phase.RUNNING, "did not wait for the step in flight"
        if planned.pivot:
            assert phase is not Phase.SUCCEEDED, "turned back behind the pivot"
        if _unsafe(planned):
            known = phase is Phase.RETRYING and not _may_have_run(state.step(planned.name))
            assert known or phase in {Phase.PENDING, Phase.REJECTED}, (
                "turned back at an unknown pivot"
            )


def _check_stuck(definition: Definition, state: SagaState, event: SagaStuck) -> None:
    planned, step = definition.by_name[event.step], state.step(event.step)
    assert not step.stuck, "stuck twice"
    assert _given_up(definition, state, planned)
    assert event.direction == ("compensation" if state.backward else "action")


# The same facts in our own words --------------------------------------------------------------


def descendants(definition: Definition, name: str) -> set[str]:
    """Names of all steps that come after a step, at any distance."""
    found = {planned.name for planned in definition.steps if name in planned.after}
    size = 0
    while size != len(found):  # steps may be declared in any order
        size = len(found)
        found |= {planned.name for planned in definition.steps if found & set(planned.after)}
    return found


def _may_have_run(step: StepState) -> bool:
    return step.attempt > step.never_ran


def _may_stand(step: StepState) -> bool:
    sent_and_skipped = step.phase is Phase.SKIPPED and _may_have_run(step)
    return step.phase in UNKNOWN_OR_DONE or sent_and_skipped


def _nothing_left(planned: PlannedStep, step: StepState) -> bool:
    declared = isinstance(planned.compensation, NothingToUndo) and _may_stand(step)
    never_sent = step.phase is Phase.SKIPPED and not _may_have_run(step)
    return declared or never_sent or step.phase in GONE


def _unsafe(planned: PlannedStep) -> bool:
    return planned.pivot and planned.compensation is None


def _passed_pivot(definition: Definition, state: SagaState) -> bool:
    """Whether the saga is past its pivot, or perhaps past it."""
    for planned in definition.steps:
        step = state.step(planned.name)
        if planned.pivot and not state.backward:
            flying = step.phase is Phase.RUNNING
            unknown = step.phase in {Phase.RETRYING, Phase.FAILED} or flying
            unknown = unknown and step.attempt - flying > step.never_ran
            return step.phase in FOLLOWED or (_unsafe(planned) and unknown)
    return False


def _turning_back(definition: Definition, state: SagaState) -> bool:
    return state.cause is not None and not _passed_pivot(definition, state)


def _given_up(definition: Definition, state: SagaState, planned: PlannedStep) -> bool:
    phase = state.step(planned.name).phase
    if state.backward:
        lost = planned.compensation is None and _may_stand(state.step(planned.name))
        return phase is Phase.UNDO_FAILED or lost
    if state.cause is None:
        return phase in {Phase.FAILED, Phase.REJECTED}
    if _unsafe(planned):
        return phase is Phase.FAILED
    pivot = definition.pivot
    beyond = pivot is not None and planned.name in descendants(definition, pivot.name)
    return beyond and phase in {Phase.FAILED, Phase.REJECTED}


def _status(definition: Definition, state: SagaState) -> Status:
    """The status that the phases of the steps ask for."""
    # Stuck before the pivot, and with a cause by now: until what is in flight has ended.
    until_it_turns = not state.backward and any(one.stuck for one in state.steps.values())
    if (
        state.full
        or until_it_turns
        or any(_given_up(definition, state, one) for one in definition.steps)
    ):
        resolved = state.status is Status.RESOLVED
        return Status.RESOLVED if resolved else Status.STUCK
    steps = [state.step(planned.name) for planned in definition.steps]
    if state.backward:
        gone = all(map(_nothing_left, definition.steps, steps))
        return Status.COMPENSATED if gone and not state.paused else Status.COMPENSATING
    done = all(step.phase in FOLLOWED for step in steps)
    back = _turning_back(definition, state)
    return Status.COMPLETED if done and not (back or state.paused) else Status.RUNNING
