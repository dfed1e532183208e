"""Drives a definition through every single failure, and checks what is left of it in the world."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from orchestrator.core.definition import (
    Definition,
    NothingToUndo,
    PlannedStep,
    Retry,
    Saga,
    SubSaga,
    WaitFor,
    reachable,
)
from orchestrator.core.events import StepFailed, StepRejected, StepTimedOut, TaskUnknown
from orchestrator.core.plan import plan_of
from orchestrator.core.state import Phase, SagaState, Status
from orchestrator.testing.answers import (
    Answer,
    fails,
    late,
    rejects,
    succeeds,
    times_out,
    twice,
)
from orchestrator.testing.bench import Bench
from orchestrator.testing.coverage import NONE, NOTHING, Coverage, StepCoverage, reports
from orchestrator.testing.examples import example_signals
from orchestrator.testing.participants import Function
from orchestrator.testing.scenario import told
from shared.errors import NotAllowed
from shared.ids import Direction

ATTEMPTS_MAX: Final = 5
"""Attempts of a step at which a failure is tried: a policy without end has no last one."""
GIVE_UP_MAX: Final = 100
"""Attempts after which a policy counts as one without end."""

_UNKNOWN: Final[Mapping[str, Answer]] = {
    "fails": fails(),
    "times out undone": times_out(happened=False),
    "times out done": times_out(happened=True),
}
_ACTION: Final[Mapping[str, Answer]] = {
    **_UNKNOWN,
    "is rejected": rejects(),
    "fails for good": fails("Broken", retryable=False),
    "answers late": late(),
    "fails late": late(fails()),
    "comes twice": twice(),
}
_UNDO: Final[Mapping[str, Answer]] = {
    **_UNKNOWN,
    "fails for good": fails("Broken", retryable=False),
    "answers late": late(),
    "comes twice": twice(),
}

_NO_OTHERS: Final[Mapping[str, Definition]] = MappingProxyType({})

Script = tuple[str, Direction, tuple[Answer, ...]]


class Trial(NamedTuple):
    """One run: what goes wrong in it.

    Attributes:
        about: In words.
        scripts: How attempts go.
        cancel: The step, and direction, during whose first attempt the saga is cancelled.
        overdue: The same for the saga's deadline.
        signals: Signals that say something else than usual; None: it never comes.
    """

    about: str
    scripts: tuple[Script, ...] = ()
    cancel: tuple[str, Direction] | None = None
    overdue: tuple[str, Direction] | None = None
    signals: tuple[tuple[str, Any], ...] = ()


def assert_every_failure_is_undone(
    saga: Saga,
    input: Mapping[str, Any] | None = None,  # noqa: A002 - the field's name everywhere
    *,
    outputs: Mapping[str, Any] | None = None,
    participants: Mapping[str, Function] | None = None,
    signals: Mapping[str, Any] | None = None,
    also: Sequence[Saga] = (),
    may_be_stuck: Collection[str] | None = None,
) -> Coverage:
    """Let everything go wrong once, and check that nothing is left over.

    Each attempt of each step is rejected, fails, fails for good and times out (with its work done,
    and without), answers late and comes twice; the same for each compensation; the saga is cancelled
    during each step and each compensation, and overdue during each step. In the end every message
    comes once more. What must hold:

    * A saga ends, or is stuck: past its pivot, or because a compensation gave up.
    * Completed: what each step did stands, once. Compensated: nothing that can be undone stands.
    * Nothing happens twice, is undone twice, or is undone before what was built on it.

    Args:
        saga: Its definition.
        input: Fields of its input; for those that are missing something is made up.
        outputs: What steps return, by their names.
        participants: Functions that do the work of tasks, by task name.
        signals: What the signals say that steps wait for; by default approvals are given.
        also: Other definitions that it may start.
        may_be_stuck: Steps at which it may get stuck; by default any from the pivot on, and any
            whose compensation gives up.

    Returns:
        What was exercised. With the pytest plugin it is printed after the tests.

    Raises:
        AssertionError: Something is left over; each with its run.
    """
    definition = saga.definition
    coverage = Coverage(saga=saga.name, version=saga.version)
    coverage.steps = [_step(definition, planned) for planned in definition.steps]
    for trial in trials(definition, {one.name: one.definition for one in also}):
        bench = Bench(
            saga,
            input,
            outputs=outputs,
            participants=participants,
            signals=_signals(definition, signals, trial),
            also=also,
        )
        _drive(bench, trial)
        _count(coverage, bench)
        problems = [*_problems(bench, may_be_stuck)]
        _repeat(bench)
        for problem in problems or _problems(bench, may_be_stuck):
            lines = "\n    ".join(told(bench))
            coverage.problems.append(f"{trial.about}: {problem}\n    {lines}")
    reports.append(coverage)
    if coverage.problems:
        raise AssertionError(coverage.table())
    return coverage


def trials(definition: Definition, also: Mapping[str, Definition] = _NO_OTHERS) -> Iterator[Trial]:
    """Every run that is made of a definition.

    Args:
        definition: Of the saga.
        also: Definitions of the sagas that may be steps of it, by name.
    """
    yield Trial("all goes well")
    for planned in definition.steps:
        match planned.action:
            case WaitFor(signal=signal, approval=approval):
                yield Trial(f"nobody says {signal}", signals=((signal, None),))
                if approval:
                    denied = {"approved": False}
                    yield Trial(f"{signal} is denied", signals=((signal, denied),))
            case str():
                yield from _actions(planned)
            case SubSaga(name=name):
                for below in also[name].steps if name in also else ():
                    if below.task:
                        yield from _actions(below)
            case _:
                pass
        undoable = planned.task and planned.undo_task is not None
        if undoable and planned.name not in definition.beyond_pivot:
            yield from _undos(definition, planned)
        yield Trial(f"cancelled during {planned.name}", cancel=(planned.name, "action"))
        if definition.deadline is not None:
            yield Trial(f"overdue during {planned.name}", overdue=(planned.name, "action"))


def _actions(planned: PlannedStep) -> Iterator[Trial]:
    name, last = planned.name, _last_attempt(planned.retry)
    for attempt in range(1, min(last, ATTEMPTS_MAX) + 1):
        for how, answer in _ACTION.items():
            answers = (*[fails()] * (attempt - 1), answer)
            yield Trial(f"attempt {attempt} of {name} {how}", ((name, "action", answers),))
    if 1 < last < GIVE_UP_MAX:
        for how, answer in _UNKNOWN.items():
            yield Trial(f"{name} {how} every time", ((name, "action", (answer,) * last),))


def _undos(definition: Definition, planned: PlannedStep) -> Iterator[Trial]:
    name, last = planned.name, _last_attempt(planned.compensation_retry)
    cause = _cause(definition, planned)
    if cause is None:
        return
    for attempt in range(1, min(last, ATTEMPTS_MAX) + 1):
        for how, answer in _UNDO.items():
            answers = (*[fails()] * (attempt - 1), answer)
            undo: Script = (name, "compensation", answers)
            yield Trial(f"attempt {attempt} to undo {name} {how}", (cause, undo))
    if last < GIVE_UP_MAX:
        undo = (name, "compensation", (fails(),) * last)
        yield Trial(f"undoing {name} fails every time", (cause, undo))
    yield Trial(
        f"cancelled while {name} is undone", (cause,), cancel=(planned.name, "compensation")
    )


def _cause(definition: Definition, planned: PlannedStep) -> Script | None:
    """What makes the saga turn back when this step has been done."""
    upstream = reachable({one.name: one.after for one in definition.steps}, planned.name)
    for other in reversed(definition.steps):
        fit = other.name not in {planned.name, *upstream, *definition.beyond_pivot}
        if fit and not other.waits:
            return (other.name, "action", (rejects(),))
    last = _last_attempt(planned.retry)
    return (planned.name, "action", (times_out(),) * last) if last < GIVE_UP_MAX else None


def _last_attempt(retry: Retry) -> int:
    return GIVE_UP_MAX if retry.attempts is None else min(retry.attempts, GIVE_UP_MAX)


def _drive(bench: Bench, trial: Trial) -> None:
    for name, direction, answers in trial.scripts:
        bench.participants.script(name, direction, answers)
    moments = {trial.cancel, trial.overdue} - {None}
    while moments and bench.waiting:
        command = bench.waiting[0]
        moment = (command.step, command.direction)
        if moment in moments:
            moments.discard(moment)
            _strike(bench, trial, moment)
        bench.deliver()
        if not bench.waiting:
            bench.run_until_command()
    bench.run()


def _repeat(bench: Bench) -> None:
    """Let every command come once more, and its reply: nothing may happen twice."""
    for command in [*bench.participants.calls]:
        outcome = bench.participants.take(command, succeeds())
        bench.send(bench.reply_to(command, outcome))
    bench.run()


def _signals(
    definition: Definition, given: Mapping[str, Any] | None, trial: Trial
) -> Mapping[str, Any]:
    signals = {**(example_signals(definition) if given is None else given)}
    for name, data in trial.signals:
        if data is None:
            signals.pop(name, None)
        else:
            signals[name] = data
    return signals


def _strike(bench: Bench, trial: Trial, moment: tuple[str, Direction]) -> None:
    if trial.overdue == moment and (deadline_at := bench.state.deadline_at) is not None:
        bench.tick_at(deadline_at)
        return
    with suppress(NotAllowed):  # past the pivot: that it is refused is the rule
        bench.cancel()


# What must hold -------------------------------------------------------------------------------


def _problems(bench: Bench, may_be_stuck: Collection[str] | None) -> Iterator[str]:
    status, definition = bench.status, bench.definition
    if status is Status.STUCK:
        stuck = {name for name, step in bench.state.steps.items() if step.stuck}
        if may_be_stuck is not None and (more := sorted(stuck - {*may_be_stuck})):
            yield f"stuck at {', '.join(more)}"
    elif not status.final:
        yield f"it is still {status.value}, and nothing will ever move it"
    for below, state in bench.family():
        for planned in plan_of(below, state).steps:
            if planned.task:
                yield from _left_over(bench, state, planned)
        stands = state.status in {Status.COMPLETED, Status.RESOLVED}
        if state.parent and stands and status is Status.COMPENSATED:
            yield f"the step {state.parent.step} of a compensated saga is a saga that stands"
    successors = plan_of(definition, bench.state).successors
    order = [*bench.undone]
    for position, name in enumerate(order):
        built_on_it = reachable(successors, name)
        if built_on_it & {*order[position + 1 :]}:
            yield f"undone in the wrong order: {', '.join(order)}"


def _left_over(bench: Bench, state: SagaState, planned: PlannedStep) -> Iterator[str]:
    name, status = planned.name, state.status
    effects = bench.participants.effects
    mine = [one for one in effects if (one.saga_id, one.step) == (state.saga_id, name)]
    done = sum(effect.direction == "action" for effect in mine)
    undone = len(mine) - done
    times = f"was done {done} times and undone {undone} times"
    if done > 1 or undone > done:
        yield f"{name} {times}"
    if status is Status.COMPENSATED and planned.undo_task is not None and done != undone:
        yield f"{name} {times}, and the saga counts as compensated"
    succeeded = state.step(name).phase is Phase.SUCCEEDED
    if succeeded and status is Status.COMPLETED and (done, undone) != (1, 0):
        yield f"{name} {times}, and the saga counts as completed"


# What was exercised ---------------------------------------------------------------------------


def _step(definition: Definition, planned: PlannedStep) -> StepCoverage:
    why = ""
    if isinstance(planned.compensation, NothingToUndo):
        why = "nothing to undo" if not planned.waits else "it only waits"
    elif planned.name in definition.beyond_pivot:
        why = "after the pivot"
    elif planned.undo_task is None:
        why = "the pivot"
    kind = NOTHING if isinstance(planned.compensation, NothingToUndo) else NONE
    return StepCoverage(name=planned.name, compensation=planned.undo_task or kind, why_never=why)


def _count(coverage: Coverage, bench: Bench) -> None:
    coverage.runs += 1
    coverage.endings[bench.status.value] += 1
    failures = [
        (
            _plain(event.step),
            "action" if isinstance(event, StepRejected | TaskUnknown) else event.direction,
        )
        for event in bench.history
        if isinstance(event, StepRejected | TaskUnknown | StepFailed | StepTimedOut)
    ]
    steps = bench.state.steps
    # A sub-saga has no effect of its own; a step that runs for each item has several.
    undone = {*map(_plain, bench.undone)}
    undone |= {name for name, one in steps.items() if one.phase is Phase.UNDONE and one.success}
    for_nothing = {*map(_plain, bench.participants.undone_for_nothing)}
    stuck = {_plain(name) for name, one in steps.items() if one.stuck}
    for step in coverage.steps:
        step.failed += (step.name, "action") in failures
        step.undo_failed += (step.name, "compensation") in failures
        step.undone += step.name in undone
        step.undone_for_nothing += step.name in for_nothing
        step.stuck += step.name in stuck


def _plain(name: str) -> str:
    """Name of the step of which this is the run for one item, like pack[0]; else the name itself."""
    return name.partition("[")[0]
