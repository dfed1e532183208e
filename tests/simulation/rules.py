"""What must hold of a run, looked at from outside: from the store, the world and the spans."""

from collections.abc import Iterator, Mapping, Sequence

from orchestrator.core.definition import Definition, NothingToUndo, SubSaga
from orchestrator.core.eventing import published_by
from orchestrator.core.events import (
    CompensationRequested,
    CompensationStarted,
    Recorded,
    RoomAwaited,
    SagaCompensated,
    SagaCompleted,
    SagaForked,
    SagaResolved,
    SagaStuck,
    StepCopied,
    StepDispatched,
    StepFailed,
    StepRejected,
    StepSucceeded,
    StepTimedOut,
    TaskUnknown,
    UndoRefused,
    UndoRequested,
)
from orchestrator.core.plan import plan_of
from orchestrator.core.state import Phase, Status, fold
from orchestrator.ports import SagaRow
from shared.ids import sub_saga_id
from shared.telemetry.names import SAGA_ID, room_span, saga_span, step_span
from tests.core.invariants import IN_FLIGHT, check_rest, descendants, of_history
from tests.simulation.world import World


def broken_rules(world: World, definitions: dict[tuple[str, int], Definition]) -> Iterator[str]:
    """Every rule that does not hold at the end of a run."""
    yield from world.problems
    yield from world.database.ledger.problems
    everything = world.store.everything()
    rows = {saga_id: row for saga_id, (row, _) in everything.items()}
    held = held_up(rows)
    for saga_id, (row, history) in everything.items():
        definition = definitions[row.state.name, row.state.version]
        for problem in _of_one(world, definition, row, history, held=saga_id in held):
            yield f"{saga_id}: {problem}"
    for saga_id, row in rows.items():
        parent = row.state.parent and rows.get(row.state.parent.saga_id)
        if parent and row.state.parent and row.state.status is Status.COMPLETED:
            plan = plan_of(definitions[parent.state.name, parent.state.version], parent.state)
            name = row.state.parent.step
            stays = isinstance(plan.by_name[name].compensation, NothingToUndo)
            excused = stays or parent.state.step(name).by_hand
            if parent.state.status is Status.COMPENSATED and not excused:
                yield f"{saga_id} stands, though the saga that it is a step of is undone"
        yield from _fork_problems(definitions[row.state.name, row.state.version], row, rows)
    for letter in world.store.dead_letters(1000):
        if letter.task == "saga.reply":
            yield f"a reply in the dead letters: {letter.reason}"
    told = {
        identity
        for saga_id, (row, history) in everything.items()
        for one in history
        for _, identity in published_by(
            definitions[row.state.name, row.state.version], saga_id, one.event
        )
    }
    if told != {event.id for event in world.broker.events}:
        yield f"published {len({event.id for event in world.broker.events})}, not {len(told)}"
    keys = [(row.name, row.key) for row in world.store.list_sagas(limit=1000) if row.key]
    if len(keys) != len(set(keys)):
        yield f"two sagas with one key: {keys}"


def held_up(rows: Mapping[str, SagaRow], *, paused: bool = False) -> set[str]:
    """Sagas that wait for a sub-saga that is stuck, or is held up itself.

    With `paused` also those that are paused, and those that wait for them.
    """
    held = {saga_id for saga_id, row in rows.items() if paused and row.state.paused}
    for saga_id, row in rows.items():
        stopped = row.state.status is Status.STUCK or saga_id in held
        below: SagaRow | None = row if stopped else None
        while below and (parent := below.state.parent):
            above = rows.get(parent.saga_id)
            if above is None or above.state.step(parent.step).phase not in IN_FLIGHT:
                break
            held.add(above.saga_id)
            below = above
    return held


def _fork_problems(
    definition: Definition, row: SagaRow, rows: Mapping[str, SagaRow]
) -> Iterator[str]:
    """What can be undone belongs to one saga: to the last one that has taken it over.

    And that one undoes it; what a participant has done is counted, what a sub-saga has is here.
    """
    plan = plan_of(definition, row.state)
    for name, step in row.state.steps.items():
        if plan.by_name[name].undo_task is None:
            continue
        if row.state.status is Status.COMPENSATED and step.origin and step.success:
            below = isinstance(plan.by_name[name].action, SubSaga) and not step.by_hand
            copied = rows.get(sub_saga_id(step.origin.saga_id, name, step.success))
            if below and (copied is None or copied.state.status is Status.COMPLETED):
                yield f"{row.saga_id} is undone, but not {name}, which it copied: {copied}"
        heir = rows.get(step.heir) if step.heir else None
        if step.heir and (heir is None or heir.state.step(name).origin is None):
            yield f"{row.saga_id}: {name} belongs to {step.heir}, which does not have it"
        if step.origin and step.success and not step.heir:
            others = [
                other.saga_id
                for other in rows.values()
                if other.saga_id != row.saga_id
                and other.state.done_by(name) == step.origin.saga_id
                and other.state.step(name).success
                and not other.state.step(name).heir
            ]
            if others:
                yield f"{name} of {step.origin.saga_id} belongs to {row.saga_id} and to {others}"


def _of_one(
    world: World,
    definition: Definition,
    row: SagaRow,
    history: Sequence[Recorded],
    *,
    held: bool,
) -> Iterator[str]:
    state, events = row.state, [one.event for one in history]
    if fold(events) != of_history(state):
        yield "the row is not the fold of its history"
    if [one.sequence for one in history] != list(range(1, row.sequence + 1)):
        yield "the history has a gap"
    if not (state.status.final or state.status is Status.STUCK):
        # The one excuse: its sub-saga is stuck, and nothing else is left to do.
        if not held:
            yield f"it neither ends nor is stuck: {state.status}"
        elif not world.store.only_asks(state):
            yield f"it waits for a sub-saga that is stuck, and for something else: {row.wake_at}"
    ends = [index for index, event in enumerate(events) if isinstance(event, _ENDS)]
    for index in ends:
        # A saga that had ended may be forked; a sub-saga is undone when its parent wants that, or
        # says that it cannot be.
        noted = SagaForked | UndoRefused
        later = [one for one in events[index + 1 :] if not isinstance(one, noted)]
        if later and not isinstance(later[0], UndoRequested):
            yield f"something happens after the end: {later}"
    try:
        check_rest(plan_of(definition, state), state, row.wake_at)
    except AssertionError as error:
        yield f"at rest: {error}"
    yield from _stuck_problems(state.status, history)
    too_long = [one for one in history if one.sequence > world.limits.events_max]
    if any(isinstance(one.event, StepDispatched) for one in too_long):
        yield f"something begins after {world.limits.events_max} events"
    yield from _pivot_problems(definition, history)
    yield from _effect_problems(world, definition, row)
    if not held:
        yield from _span_problems(world, row, history)


_ENDS = (SagaCompleted, SagaCompensated, SagaResolved)


_REASONS = (StepRejected, TaskUnknown, StepFailed, StepTimedOut, CompensationRequested)


def _stuck_problems(status: Status, history: Sequence[Recorded]) -> Iterator[str]:
    """Stuck needs a reason: an attempt of that step, in that direction, that was the last one."""
    events = [one.event for one in history]
    for event in events if status is Status.STUCK else ():
        if isinstance(event, SagaStuck) and not any(
            # Or an operator vouched that a pivot had not happened, and it had.
            isinstance(other, _REASONS)
            and other.step == event.step
            and getattr(other, "retry_at", None) is None
            for other in events
        ):
            yield f"stuck without a reason at {event.step}"


def _pivot_problems(definition: Definition, history: Sequence[Recorded]) -> Iterator[str]:
    passed = backward = False
    for recorded in history:
        match recorded.event:
            case StepSucceeded(step=step, direction="action") if not backward:
                passed = passed or (definition.pivot is not None and step == definition.pivot.name)
            case StepCopied(step=step):
                passed = passed or (definition.pivot is not None and step == definition.pivot.name)
            case CompensationStarted():
                backward = True
                if passed:
                    yield "it turns back after the pivot"
            case StepDispatched(direction="compensation") if not backward or passed:
                yield "a compensation after the pivot, or without a reason"
            case _:
                pass


def _effect_problems(world: World, definition: Definition, row: SagaRow) -> Iterator[str]:
    state, ledger = row.state, world.database.ledger
    for planned in plan_of(definition, state).steps:
        if not planned.task:
            continue
        name, phase = planned.name, state.step(planned.name).phase
        if state.step(name).heir:
            continue  # it is looked at in the saga to which it belongs by now
        doer = state.done_by(name)
        done, undone = (ledger.count(doer, name, what) for what in ("do", "undo"))
        if done > 1 or undone > 1:
            yield f"{name} happened {done} times and was undone {undone} times"
        if state.step(name).by_hand:
            continue  # an operator's word; what really happened may be something else
        if phase is Phase.SUCCEEDED and (done, undone) != (1, 0):
            yield f"{name} counts as done; it was done {done} and undone {undone} times"
        if state.status is Status.COMPLETED and phase not in {Phase.SUCCEEDED, Phase.SKIPPED}:
            yield f"completed, but {name} is {phase}"
        gone = not isinstance(planned.compensation, NothingToUndo)
        if state.status is Status.COMPENSATED and gone and done != undone:
            yield f"compensated, but {name} was done {done} and undone {undone} times"
        known = bool(state.step(name).success) or state.status.final or phase is Phase.UNDONE
        if (row.saga_id, name) in world.successes and not known:
            yield f"{name} said that it succeeded, and nobody wrote it down"
    order = [name for name in ledger.undone(row.saga_id) if not state.step(name).by_hand]
    for position, name in enumerate(order):
        if descendants(plan_of(definition, state), name) & {*order[position + 1 :]}:
            yield f"undone in the wrong order: {order}"


def _span_problems(world: World, row: SagaRow, history: Sequence[Recorded]) -> Iterator[str]:
    state = row.state
    spans = world.spans.get(state.trace.trace_id, {})
    roots = [
        span
        for span in spans.values()
        if span.name == saga_span(state.name) and span.attributes[SAGA_ID] == row.saga_id
    ]
    wrong = state.went_wrong or state.status is not Status.COMPLETED
    wanted = int(state.trace.sampled or wrong)
    if len(roots) != wanted:
        yield f"{len(roots)} root spans instead of {wanted}"
    # A stalled orchestrator may send an older one after it.
    if any(state.status.value not in world.statuses[root.span_id] for root in roots):
        yield "the root span is older than the saga's end"
    if any(root.span_id != state.trace.root_span_id for root in roots):
        yield "a root span with another id than the one that was reserved"
    if wanted and state.status.final:  # one that is stuck may have gone on elsewhere
        names = [span.name for span in spans.values() if span.attributes[SAGA_ID] == row.saga_id]
        missing = [
            event.step
            for event in (one.event for one in history)
            if isinstance(event, StepDispatched)
            and step_span(event.step, event.direction) not in names
        ]
        if missing:
            yield f"steps without a span: {missing}"
        waits = sum(isinstance(one.event, RoomAwaited) for one in history)
        if waits != (found := sum(name.startswith(room_span("")) for name in names)):
            yield f"{found} spans for {waits} waits for room"
    # A parent may have no trace when only its sub-saga has failed; one that is stuck goes on elsewhere.
    if state.parent or not state.status.final:
        return
    known = {*spans, state.trace.parent_span_id}
    lost = [span.name for span in spans.values() if span.parent_span_id not in known]
    if lost and roots:
        yield f"spans without a parent: {lost}"
