"""Says in a paragraph why a saga is where it is, and what it waits for. Pure: no store, no broker."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from orchestrator.core.definition import Definition, PlannedStep, Sleep, SubSaga, WaitFor
from orchestrator.core.events import Recorded, RoomAwaited, SagaPaused, StepDispatched
from orchestrator.core.plan import plan_of
from orchestrator.core.state import Cause, CauseKind, Phase, SagaState, Status, StepState
from orchestrator.core.terms import irrevocable, turning_back
from orchestrator.ports import Control, SagaRow
from orchestrator.rooms import GateView
from orchestrator.views import sub_saga_of
from shared.messages import TASK_UNKNOWN
from shared.names import ORCHESTRATOR_QUEUE

NO_ROWS: Final[Mapping[str, SagaRow]] = MappingProxyType({})


def explain(
    definition: Definition,
    row: SagaRow,
    history: Sequence[Recorded],
    now: datetime,
    *,
    consumed: Collection[str] | None,
    awaited: Sequence[GateView] = (),
    pauses: Sequence[Control] = (),
    below: Mapping[str, SagaRow] = NO_ROWS,
) -> str:
    """Why a saga is not moving, or that it has ended.

    Args:
        definition: What it runs on.
        row: The saga.
        history: All of it.
        now: The time.
        consumed: Queues that some worker consumes; None where nobody could be asked.
        awaited: What it waits for room in.
        pauses: Names that are paused.
        below: The sub-sagas that it waits for, and those that they wait for, by id.
    """
    name = row.state.name
    said = " ".join(
        [
            *_sentences(definition, row, history, now, consumed),
            *(
                f"All sagas of its name are paused since {_clock(one.at, now)}: "
                f"`saga resume --name {name}` lets them go on."
                for one in pauses
                if one.name == name and row.state.paused
            ),
            *(_room(gate, history, now) for gate in awaited if not row.state.paused),
            *(_held_up(one) for one in below.values() if one.state.status is Status.STUCK),
        ]
    )
    return said or "Nothing holds it up: an orchestrator moves it on in a moment."


def _held_up(row: SagaRow) -> str:
    """A saga that another one waits for, and that waits for an operator."""
    stuck = (
        f" at step {name!r}" + (f" ({step.failure.kind})" if step.failure else "")
        for name, step in row.state.steps.items()
        if step.stuck
    )
    return (
        f"The saga {row.saga_id} ({row.state.name}) that it waits for is stuck{next(stuck, '')}: "
        f"this one goes on when that one does. See `saga explain {row.saga_id}`."
    )


def _room(gate: GateView, history: Sequence[Recorded], now: datetime) -> str:
    """Who is where a saga waits to be let in."""
    what = f"`{gate.step}`" if gate.step else f"sagas `{gate.name}`"
    since = next(
        (
            f" since {_clock(one.at, now)}"
            for one in reversed(history)
            if isinstance(one.event, RoomAwaited) and one.event.step == gate.step
        ),
        "",
    )
    subject = f"Step {gate.step!r}" if gate.step else "It has not begun: it"
    limit, full = gate.limit, []
    if limit.in_flight is not None and gate.in_flight >= limit.in_flight:
        full.append(f"{gate.in_flight} of {limit.in_flight} {what} in flight")
    if gate.opens_at is not None:
        full.append(f"at most {limit.rate} begin, the next one at {_clock(gate.opens_at, now)}")
    ahead = f"{gate.ahead} wait in front of it" if gate.ahead else "it is the next one"
    why = f": {' and '.join(full)}" if full else ""
    return f"{subject} waits for room{since}{why}; {ahead} (`saga limit {gate.name}`)."


def _sentences(
    definition: Definition,
    row: SagaRow,
    history: Sequence[Recorded],
    now: datetime,
    consumed: Collection[str] | None,
) -> Iterator[str]:
    state = row.state
    definition = plan_of(definition, state)
    if state.status.final:
        yield f"It has ended: it is {state.status} since {_clock(row.updated_at, now)}."
        if state.cause:
            yield f"It turned back because {_because(state.cause)}."
        return
    yield from _direction(definition, state, history, now)
    if state.not_before and state.not_before > now and not state.steps:
        yield f"Its first step begins at {_clock(state.not_before, now)}."
    for planned in definition.steps:
        step = state.step(planned.name)
        sentence = _waits(planned, step, state, now)
        sentence = sentence or _step(definition, planned, state, history, now)
        if sentence:
            yield sentence
        in_flight = step.phase in {Phase.RUNNING, Phase.UNDOING} and not step.accepted
        if planned.task and in_flight and consumed is not None and planned.queue not in consumed:
            yield (
                f"No worker that answers listens on the queue {planned.queue!r}: "
                f"start one with `celery -A <your app> worker -Q {planned.queue}`."
            )
    if consumed is not None and ORCHESTRATOR_QUEUE not in consumed:
        yield (
            "No orchestrator answers: start one with `celery -A orchestrator worker`; "
            "until then nothing goes on."
        )
    elif row.wake_at is not None and now - row.wake_at > timedelta(seconds=10):
        late = _span(now - row.wake_at)
        yield f"A timer is {late} late: no orchestrator works, or they cannot keep up."


def _direction(
    definition: Definition, state: SagaState, history: Sequence[Recorded], now: datetime
) -> Iterator[str]:
    if state.paused:
        last = next((one for one in reversed(history) if isinstance(one.event, SagaPaused)), None)
        who = ""
        if last is not None and isinstance(last.event, SagaPaused):
            by, reason = last.event.by or "an operator", last.event.reason
            who = f" by {by} at {_clock(last.at, now)}" + (f" ({reason})" if reason else "")
        yield f"It was paused{who}: nothing new begins until `saga resume`."
    if state.full and state.status is Status.STUCK:
        yield (
            "It is stuck: its history has as many events as SAGA_HISTORY_EVENTS_MAX allows. Raise "
            "that and resume it, or resolve it."
        )
    elif state.status is Status.STUCK and (state.backward or not turning_back(definition, state)):
        yield "It is stuck: it can go neither on nor back without an operator."
    elif state.backward and state.cause:
        yield f"It is being undone, because {_because(state.cause)}."
    elif state.cause:
        yield (
            f"It turns back, because {_because(state.cause)}, "
            "as soon as the steps in flight have ended."
        )


def _because(cause: Cause) -> str:
    said = ""
    if cause.failure:
        kind, message = cause.failure.kind, cause.failure.message
        said = f" ({kind}: {message})" if message else f" ({kind})"
    match cause.kind:
        case CauseKind.DEADLINE:
            return "its deadline has passed"
        case CauseKind.CANCELLED:
            reason = cause.failure.message if cause.failure else ""
            return f"it was cancelled ({reason})" if reason else "it was cancelled"
        case CauseKind.TIMED_OUT:
            return f"step {cause.step!r} did not answer in time"
        case CauseKind.REJECTED:
            return f"step {cause.step!r} was rejected{said}"
        case CauseKind.FAILED:
            return f"step {cause.step!r} failed{said}"


def _waits(planned: PlannedStep, step: StepState, state: SagaState, now: datetime) -> str:
    """What a step waits for that is no reply; empty where it waits for one."""
    if isinstance(planned.action, SubSaga) and step.phase in {Phase.RUNNING, Phase.UNDOING}:
        child = sub_saga_of(planned, state)
        doing = "to be undone" if step.phase is Phase.UNDOING else "to end"
        inquiry = state.inquiries.get(planned.name)
        again = f" It asks again at {_clock(inquiry.at, now)}." if inquiry else ""
        return (
            f"Step {planned.name!r} waits for its saga {child} {doing}: "
            f"`saga explain {child}`.{again}"
        )
    if step.phase is not Phase.RUNNING:
        return ""
    until = f" until {_clock(step.due_at, now)}" if step.due_at else ""
    name = planned.name
    match planned.action:
        case WaitFor(signal=signal, approval=True):
            return (
                f"Step {name!r} waits{until} for somebody to approve: "
                f"`saga approve {state.saga_id} {signal}`, with --reject for no."
            )
        case WaitFor(signal=signal):
            return (
                f"Step {name!r} waits{until} for the signal {signal!r}: "
                f"`saga signal {state.saga_id} {signal}`."
            )
        case Sleep():
            return f"Step {name!r} sleeps{until}."
        case _ if step.accepted:
            beat = state.beats.get(name)
            alive = f" Its last sign of life came at {_clock(beat.at, now)}." if beat else ""
            return (
                f"Step {name!r} was accepted by its participant and goes on elsewhere: it waits"
                f"{until} for whoever has its token (`saga complete TOKEN`).{alive}"
            )
        case _:
            return ""


def _unknown_task(
    definition: Definition, planned: PlannedStep, state: SagaState, attempt: int
) -> str:
    """What to do where no worker knows the task that a step, or its undo, is stuck at."""
    undoing = state.step(planned.name).phase is Phase.UNDO_FAILED
    task = planned.undo_task if undoing else planned.task
    what = f"of step {planned.name!r}"
    give_up = f"give it up with `saga compensate {state.saga_id}`"
    if undoing:
        what = f"that undoes step {planned.name!r}"
        give_up = "`saga skip` it, or `saga resolve`, when it has been put right by hand"
    elif irrevocable(definition, state):
        give_up = "`saga skip` it, or `saga resolve`: there is no way back"
    return (
        f"No worker of the queue {planned.queue!r} knows the task {task!r} {what} (attempt "
        f"{attempt}): deploy one that does, then `saga retry {state.saga_id}`; or {give_up}."
    )


def _step(
    definition: Definition,
    planned: PlannedStep,
    state: SagaState,
    history: Sequence[Recorded],
    now: datetime,
) -> str:
    name, queue, step = planned.name, planned.queue, state.step(planned.name)
    failure = f" after {step.failure.kind}: {step.failure.message}" if step.failure else ""
    if step.stuck:
        undoing = step.phase is Phase.UNDO_FAILED
        what = f"Undoing step {name!r}" if undoing else f"Step {name!r}"
        times = step.undo_attempt if undoing else step.attempt
        if step.failure and step.failure.kind == TASK_UNKNOWN and planned.task:
            return _unknown_task(definition, planned, state, times)
        silent = f": nobody on the queue {queue!r} answered in time"
        return (
            f"{what} gave up{failure or silent} (attempt {times}). Look at it, then `saga retry`, "
            "`saga skip` or `saga resolve`."
        )
    match step.phase:
        case Phase.RUNNING | Phase.UNDOING:
            undoing = step.phase is Phase.UNDOING
            number = step.undo_attempt if undoing else step.attempt
            sent = _sent_at(name, "compensation" if undoing else "action", number, history)
            ago = f", sent {_span(now - sent)} ago" if sent else ""
            until = f", until {_clock(step.due_at, now)}" if step.due_at else ""
            what = "undo of step" if undoing else "step"
            return (
                f"It waits for the reply to attempt {number} of {what} {name!r} "
                f"on the queue {queue!r}{ago}{until}."
            )
        case Phase.RETRYING | Phase.UNDO_RETRYING:
            undoing = step.phase is Phase.UNDO_RETRYING
            number = (step.undo_attempt if undoing else step.attempt) + 1
            what = f"to undo step {name!r}" if undoing else f"of step {name!r}"
            at = _clock(step.due_at, now) if step.due_at else "its time"
            return f"It waits until {at} for attempt {number} {what}{failure}."
        case _:
            return ""


def _sent_at(
    name: str, direction: str, attempt: int, history: Sequence[Recorded]
) -> datetime | None:
    for recorded in reversed(history):
        event = recorded.event
        if isinstance(event, StepDispatched) and (
            (event.step, event.direction, event.attempt) == (name, direction, attempt)
        ):
            return recorded.at
    return None


def _clock(at: datetime, now: datetime) -> str:
    local = at.astimezone()
    same_day = local.date() == now.astimezone().date()
    return f"{local:%H:%M:%S}" if same_day else f"{local:%Y-%m-%d %H:%M:%S}"


def _span(length: timedelta) -> str:
    seconds = max(0, round(length.total_seconds()))
    for unit, word in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds // unit} {word}"
    return f"{seconds} seconds"
