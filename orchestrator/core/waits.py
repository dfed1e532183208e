"""Steps that only wait: when they end, and with which outcome."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, assert_never

from orchestrator.core.definition import Gather, PlannedStep, Sleep, WaitFor
from orchestrator.core.events import StepRejected, StepSucceeded, StepTimedOut
from orchestrator.core.payload import until_of
from orchestrator.core.state import Phase, SagaState
from shared.messages import Failure

WaitEnded = StepSucceeded | StepRejected | StepTimedOut

NOT_APPROVED = "NotApproved"
NO_SIGNAL = "NoSignal"
RECALLED = "Recalled"


def due_at(planned: PlannedStep, state: SagaState, now: datetime) -> datetime:
    """When a step that begins now is over, or given up, at the latest."""
    match planned.action:
        case Sleep(lasts=lasts, until=until):
            if until is not None:
                return until_of(until, state)
            return now + lasts if lasts else now
        case _:
            return now + planned.timeout


def ended(
    planned: PlannedStep, state: SagaState, now: datetime, *, turning: bool
) -> WaitEnded | None:
    """How a step that waits has ended; None while it waits on, and for all other steps.

    Args:
        planned: The step.
        state: Of its saga.
        now: The time.
        turning: The saga turns back: whatever waits ends at once, and nothing has happened.
    """
    step = state.step(planned.name)
    wait = planned.action
    if not isinstance(wait, WaitFor | Sleep | Gather) or step.phase is not Phase.RUNNING:
        return None
    if isinstance(wait, Gather):
        return _succeeded(planned, [state.step(name).output for name in wait.steps])
    due = step.due_at is not None and step.due_at <= now
    if isinstance(wait, WaitFor) and wait.signal in state.signals:
        return _signalled(planned, wait, state.signals[wait.signal])
    if turning:
        return _rejected(planned, RECALLED, "The saga turned back while it waited.")
    match wait:
        case _ if not due:
            return None
        case WaitFor():
            return _unanswered(planned, wait)
        case Sleep():
            return _succeeded(planned, None)
        case _:
            assert_never(wait)


def denies(wait: WaitFor, data: Any) -> bool:
    """Whether an approval is asked for, and the data of its signal do not give it."""
    said = data if isinstance(data, Mapping) else {}
    return wait.approval and said.get("approved") is not True


def _signalled(planned: PlannedStep, wait: WaitFor, data: Any) -> WaitEnded:
    if denies(wait, data):
        comment = data.get("comment") if isinstance(data, Mapping) else None
        text = comment if isinstance(comment, str) else f"Signal {wait.signal!r} did not approve."
        return _rejected(planned, NOT_APPROVED, text)
    return _succeeded(planned, data)


def _unanswered(planned: PlannedStep, wait: WaitFor) -> WaitEnded:
    match wait.otherwise:
        case "default":
            return _succeeded(planned, wait.default)
        case "reject":
            text = f"No signal {wait.signal!r} came in {planned.timeout}."
            return _rejected(planned, NO_SIGNAL, text)
        case "fail":
            return StepTimedOut(step=planned.name, direction="action", attempt=1)
        case _:
            assert_never(wait.otherwise)


def _succeeded(planned: PlannedStep, output: Any) -> StepSucceeded:
    return StepSucceeded(step=planned.name, direction="action", attempt=1, output=output)


def _rejected(planned: PlannedStep, kind: str, message: str) -> StepRejected:
    failure = Failure(kind=kind, message=message, retryable=False)
    return StepRejected(step=planned.name, attempt=1, failure=failure)
