"""The log lines that tell what the orchestrator decided: one for each event, with its trace id."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Literal, NamedTuple

import structlog

from orchestrator.core.events import (
    CancelRequested,
    CompensationRequested,
    Event,
    HistoryFull,
    RetryRequested,
    SagaForked,
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
    TaskUnknown,
    UndoRefused,
    UndoRequested,
    about,
    tag_of,
)
from orchestrator.core.state import SagaState
from orchestrator.ports import Change, DeadLetter
from orchestrator.projection import step_span_id
from shared.ids import command_id

log = structlog.get_logger("orchestrator")

_BY_OPERATORS: Final = (
    SagaPaused,
    SagaResumed,
    RetryRequested,
    StepSkipped,
    CompensationRequested,
    SagaResolved,
    SagaForked,
)
_WARNINGS: Final = (
    StepRejected,
    TaskUnknown,
    StepFailed,
    StepTimedOut,
    CancelRequested,
    UndoRefused,
    *_BY_OPERATORS,
)


class Line(NamedTuple):
    """What one log line says.

    Attributes:
        level: How bad it is.
        event: Its name.
        fields: Everything else.
    """

    level: Literal["info", "warning", "error"]
    event: str
    fields: dict[str, Any]


Narrator = Callable[[Iterable[Change], Iterable[DeadLetter]], None]
"""Tells what was committed: the changes, and the dead letters."""


def narrate(changes: Iterable[Change], letters: Iterable[DeadLetter]) -> None:
    """Write what was committed to the log."""
    for level, event, fields in lines(changes, letters):
        if level == "info":
            log.info(event, **fields)
        elif level == "warning":
            log.warning(event, **fields)
        else:
            log.error(event, **fields)


def lines(changes: Iterable[Change], letters: Iterable[DeadLetter]) -> Iterator[Line]:
    """Tell what was committed, line by line."""
    for change in changes:
        state = change.row.state
        for recorded in change.events:
            event = recorded.event
            fields = {**_context(state, event), **_details(event), "status": state.status.value}
            name = tag_of(event).replace("_", ".", 1)
            yield Line(_level(event), name, fields)
    for letter in letters:
        said = {"reason": letter.reason, "task": letter.task, "saga_id": letter.saga_id}
        yield Line("error", "message.dead_lettered", said)


def _level(event: Event) -> Literal["info", "warning", "error"]:
    if isinstance(event, SagaStuck | HistoryFull):
        return "error"
    ordinary = isinstance(event, StepSkipped) and event.condition
    return "warning" if isinstance(event, _WARNINGS) and not ordinary else "info"


def _context(state: SagaState, event: Event) -> dict[str, Any]:
    context: dict[str, Any] = {
        "trace_id": state.trace.trace_id,
        "span_id": state.trace.root_span_id,
        "saga_id": state.saga_id,
        "saga_name": state.name,
    }
    subject = about(event)
    if subject is None:
        return context
    step, direction, attempt = subject
    context |= {
        "span_id": step_span_id(state.saga_id, step, direction),
        "saga_step": step,
        "saga_direction": direction,
    }
    if attempt is not None:
        context["saga_attempt"] = attempt
        context["task_id"] = command_id(state.saga_id, step, direction, attempt)
    return context


def _details(  # noqa: C901, PLR0912 - one case for each event
    event: Event,
) -> dict[str, Any]:
    match event:
        case SagaStarted(version=version, key=key, deadline_at=deadline_at, fork=fork):
            told = {"saga_version": version, "key": key, "deadline_at": deadline_at}
            if fork is None:
                return told
            why = {"reason": fork.reason, "by": fork.by}
            return {**told, "forked_from": fork.saga_id, "from_step": fork.step, **why}
        case StepCopied(origin=origin):
            return {"done_by": origin.saga_id}
        case SagaForked(to=to, step=step, steps=steps, reason=reason, by=by):
            handed = {"to": to, "from_step": step, "handed_over": steps}
            return {**handed, "reason": reason, "by": by}
        case StepDispatched(due_at=due_at) | StepAccepted(due_at=due_at):
            return {"due_at": due_at}
        case (
            StepRecalled(reason=reason) | UndoRequested(reason=reason) | UndoRefused(reason=reason)
        ):
            return {"reason": reason}
        case HistoryFull(events_max=events_max):
            return {"events_max": events_max, "setting": "SAGA_HISTORY_EVENTS_MAX"}
        case StepExpanded(items=items):
            return {"items": items}
        case StepSkipped(condition=True):
            return {"why": "its condition does not hold"}
        case SignalReceived(name=name, by=by):
            return {"signal": name, "by": by}
        case StepSucceeded(execution=execution):
            return {"worker": execution.worker if execution else None}
        case StepRejected(failure=failure) | TaskUnknown(failure=failure):
            return {"kind": failure.kind, "error": failure.message}
        case StepFailed(failure=failure, retry_at=retry_at):
            return {"kind": failure.kind, "error": failure.message, "retry_at": retry_at}
        case StepTimedOut(retry_at=retry_at):
            return {"retry_at": retry_at}
        case RetryRequested(payload=payload, reason=reason, by=by):
            return {"reason": reason, "by": by, "payload_edited": payload is not None}
        case (
            CancelRequested(reason=reason, by=by)
            | SagaPaused(reason=reason, by=by)
            | SagaResumed(reason=reason, by=by)
            | StepSkipped(reason=reason, by=by)
            | CompensationRequested(reason=reason, by=by)
            | SagaResolved(reason=reason, by=by)
        ):
            return {"reason": reason, "by": by}
        case _:
            return {}
