"""Pictures of the machine, made by walking it: they cannot show what it does not do.

    python -m orchestrator.core.diagram > docs/state-machine.md

The walk asks `decide` for everything that can arrive at small sagas, from participants that may
answer anything, and draws each change of a status or of a phase that came out.
"""

import sys
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec

from orchestrator.core.definition import Definition, Output, Retry, Saga, Step, WaitFor
from orchestrator.core.events import Trace, tag_of
from orchestrator.core.machine import Decision, decide
from orchestrator.core.messages import (
    Cancel,
    CompensateNow,
    Message,
    Pause,
    Resolve,
    Resume,
    RetryNow,
    Signal,
    Skip,
    Start,
    Tick,
)
from orchestrator.core.state import FINAL, Phase, SagaState, Status, evolve
from orchestrator.core.timers import wake_at
from shared.ids import Direction
from shared.messages import TASK_UNKNOWN, Failed, Failure, Outcome, Rejected, Reply, Succeeded

_BEGIN: Final = datetime(2000, 1, 1, tzinfo=UTC)
_BROKEN: Final = Failure(kind="Broken")
_OUTCOMES: Final[tuple[Outcome, ...]] = (
    Succeeded(),
    Rejected(failure=_BROKEN),
    Failed(failure=_BROKEN),
)
_UNHEARD: Final = "unheard"
"""The sample whose task is not known to every worker."""
_TWICE: Final = Retry(attempts=2)
_ATTEMPTS_MAX: Final = 3
"""Beyond so many attempts no operator asks for another: the walk has to end."""

_PAGE: Final = """\
# The state machine

Generated from `orchestrator/core/machine.py` by `python -m orchestrator.core.diagram`; a test compares
it. Every arrow is an event that was seen while the machine was walked.

## A saga

{sagas}

`resolved` is what an operator makes of a stuck saga. One whose task no worker knows is stuck before its pivot too, and
may still turn back. A saga of any active status may be paused: nothing
new begins then until it is resumed.

## A step

`rejected` means that nothing happened, for certain; `failed` that nobody knows. What is `succeeded`
or `failed` may stand in the world and is undone on the way back. A `rejected` or `failed` step whose task no worker knew
is no reason to turn back. The saga goes on after a `skipped` step
as if it had been done.

{steps}
"""


class _NoInput(msgspec.Struct, frozen=True):
    pass


class Arrow(NamedTuple):
    """A change that was seen."""

    source: str
    target: str
    event: str


def document() -> str:
    """The page: Markdown with two Mermaid diagrams, of the statuses and of the phases."""
    statuses: set[Arrow] = set()
    phases: set[Arrow] = set()
    for definition in _samples():
        for before, decision in _walk(definition):
            _collect(definition, before, decision, statuses, phases)
    return _PAGE.format(
        sagas=_mermaid([status.value for status in Status], statuses, {*FINAL}),
        steps=_mermaid([phase.value for phase in Phase], phases, set()),
    )


def _samples() -> Iterator[Definition]:
    """One that can be undone as a whole, one with a pivot, one whose payload leads to nothing, one that waits, one whose task is not known."""

    def step(name: str, **options: Any) -> Step:
        every = {"compensation": "undo", "retry": _TWICE, "compensation_retry": _TWICE}
        return Step(name, "do", **{**every, **options})

    pivot = step("b", compensation=None, pivot=True)
    wait = Step("w", WaitFor("ok", approval=True), timeout=timedelta(hours=1))
    for name, steps in (
        ("reversible", (step("a"), step("b"))),
        ("pivot", (step("a"), pivot, step("c", compensation=None))),
        ("unresolved", (step("a"), step("b", payload={"x": Output("a", "missing")}))),
        ("waits", (wait, step("b"))),
        (_UNHEARD, (step("a"),)),
    ):
        saga = Saga(name=name, version=1, input=_NoInput, steps=steps, deadline=timedelta(hours=1))
        yield saga.definition


def _walk(definition: Definition) -> Iterator[tuple[SagaState | None, Decision]]:
    """Every decision that leads somewhere, breadth first."""
    trace = Trace(trace_id="0" * 31 + "1", root_span_id="0" * 15 + "1")
    start = Start(saga_id="saga", input={}, trace=trace)
    first = decide(definition, None, start, _BEGIN)
    yield None, first
    todo = deque([(first.state, _BEGIN)])
    seen = {_without_times(first.state)}
    while todo:
        state, now = todo.popleft()
        if state is None or state.status.final:
            continue
        for message, at in _arrivals(definition, state, now):
            decision = decide(definition, state, message, at)
            if not decision.events:
                continue
            yield state, decision
            key = _without_times(decision.state)
            if key not in seen:
                seen.add(key)
                todo.append((decision.state, at))


def _arrivals(
    definition: Definition, state: SagaState, now: datetime
) -> Iterator[tuple[Message, datetime]]:
    for name, step in state.steps.items():
        attempts: dict[Direction, int] = {
            "action": step.attempt,
            "compensation": step.undo_attempt,
        }
        for direction, sent in attempts.items():
            for attempt in range(1, sent + 1):
                for outcome in _outcomes(definition):
                    reply = Reply(
                        saga_id=state.saga_id,
                        step=name,
                        direction=direction,
                        attempt=attempt,
                        outcome=outcome,
                    )
                    yield reply, now
    for message in (Cancel(), Pause(), Resume(), Resolve(), CompensateNow()):
        yield message, now
    for planned in definition.steps:
        yield Skip(step=planned.name), now
        if isinstance(planned.action, WaitFor):
            yield Signal(name=planned.action.signal, data={"approved": True}), now
            yield Signal(name=planned.action.signal), now
    if all(max(step.attempt, step.undo_attempt) < _ATTEMPTS_MAX for step in state.steps.values()):
        yield RetryNow(), now
    for at in (wake_at(definition, state), state.deadline_at):
        if at is not None:
            yield Tick(), max(now, at)


def _outcomes(definition: Definition) -> tuple[Outcome, ...]:
    if definition.name != _UNHEARD:
        return _OUTCOMES
    return (*_OUTCOMES, Rejected(failure=Failure(kind=TASK_UNKNOWN)))


def _without_times(state: SagaState | None) -> str:
    if state is None:
        return ""
    steps = [
        (name, one.phase, one.attempt, one.undo_attempt, one.success, one.stuck)
        for name, one in state.steps.items()
    ]
    return repr((state.status, state.backward, state.paused, state.cause is None, steps))


def _collect(
    definition: Definition,
    state: SagaState | None,
    decision: Decision,
    statuses: set[Arrow],
    phases: set[Arrow],
) -> None:
    for event in decision.events:
        before, state = state, evolve(state, event)
        source = before.status.value if before else "[*]"
        if source != state.status:
            statuses.add(Arrow(source, state.status.value, tag_of(event)))
        for planned in definition.steps:
            was = before.step(planned.name).phase if before else Phase.PENDING
            now = state.step(planned.name).phase
            if was is not now:
                phases.add(Arrow(was.value, now.value, tag_of(event)))


def _mermaid(order: list[str], arrows: set[Arrow], ends: set[Status]) -> str:
    """A state diagram; arrows between the same two states are one with all their events."""
    places = {name: place for place, name in enumerate(["[*]", *order])}
    events: dict[tuple[str, str], list[str]] = {}
    for source, target, event in sorted(arrows):
        events.setdefault((source, target), []).append(event)
    pairs = sorted(events, key=lambda pair: (places[pair[0]], places[pair[1]]))
    lines = [f"    {a} --> {b}: {', '.join(events[a, b])}" for a, b in pairs]
    drawn = {target for _, target in pairs}
    lines += [f"    {end} --> [*]" for end in order if end in ends and end in drawn]
    return "\n".join(("```mermaid", "stateDiagram-v2", *lines, "```"))


if __name__ == "__main__":
    sys.stdout.write(document())
