"""Runs one attempt of a step inside its Celery task, and answers for it.

    read the headers → do the step → commit → send the reply → return, which acknowledges

The reply goes out before the command is acknowledged: a crash in between repeats the step, and the
barrier answers the repetition, instead of losing the step.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import structlog
from celery import Task
from celery.exceptions import Ignore, Retry
from celery.exceptions import Reject as MessageReject

from shared import faults
from shared.clock import utc_now
from shared.errors import DecodeError
from shared.messages import Accepted, Execution, Failed, Failure, Outcome, Rejected, Succeeded
from shared.telemetry import current, logs
from shared.telemetry import names as vocabulary
from shared.telemetry.metrics.catalog import PARTICIPANT_DURATION
from workers.sdk.barrier import Verdict
from workers.sdk.command import StepCommand, command_of
from workers.sdk.outcome import Reject, failure, failure_of
from workers.sdk.reply import send_reply

IGNORED: Final = "Ignored"
MESSAGE_REJECTED: Final = "MessageRejected"

_OUTCOMES: Final[dict[type[Outcome], str]] = {
    Succeeded: "succeeded",
    Rejected: "rejected",
    Failed: "failed",
    Accepted: "accepted",
}

_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)


def command_from(task: Task[Any, Any]) -> StepCommand | None:
    """The step that the current message asks for; None, and a line in the log, if it is malformed.

    There is nobody to answer then, so the message is acknowledged.
    """
    try:
        return command_of(task.request.headers or {})
    except DecodeError as error:
        _log.error("step.malformed", task=task.name, reason=error.message)
        return None


def run_step(
    task: Task[Any, Any],
    command: StepCommand,
    perform: Callable[[], tuple[Verdict, Any]],
) -> Any:
    """Do a step and send the reply.

    Args:
        task: The running task.
        command: What its message asks for.
        perform: Does the step; returns the verdict and what the task returns.

    Returns:
        What `perform` said the task returns.

    Raises:
        Reject: The participant said no; Celery shows it as an expected failure.
        Exception: What `perform` raised, after the reply was sent; or the broker was away, and
            the step's timeout has to bring it back.
    """
    with _log_context(task):
        _log.info("step.started")
        started_at = utc_now()
        result: Any = None
        note = ""
        error: Exception | None = None
        outcome: Outcome
        try:
            (outcome, note), result = perform()
        except Retry:
            # Celery sends the message again, headers and all: the attempt goes on there.
            _log.info("step.retried_by_task")
            raise
        except MessageReject as again:
            if getattr(again, "requeue", False):
                _log.info("step.requeued_by_task")
                raise
            error = again
            outcome = _failed(MESSAGE_REJECTED, "The task rejected its message.")
        except Ignore as ignored:
            # Also what `replace` raises; the task that takes over carries no saga headers.
            error = ignored
            outcome = _failed(
                IGNORED, f"The task raised Ignore: its outcome is unknown. {ignored}"
            )
        except Exception as raised:  # noqa: BLE001 - the one place: a failure is a value
            error = raised
            outcome = _outcome_of(raised, command)
        faults.reach(faults.AFTER_COMMIT, task.name)
        ended_at = utc_now()
        execution = Execution(
            worker=str(task.request.hostname), started_at=started_at, ended_at=ended_at
        )
        send_reply(task.app, command, outcome, execution)
        faults.reach(faults.AFTER_REPLY, task.name)
        _say(outcome, note)
        PARTICIPANT_DURATION.record(
            (ended_at - started_at).total_seconds(),
            {
                vocabulary.SAGA_TASK: task.name,
                vocabulary.SAGA_DIRECTION: command.direction,
                vocabulary.SAGA_OUTCOME: note or _OUTCOMES[type(outcome)],
            },
        )
        if error is not None:
            raise error
        if isinstance(outcome, Rejected):
            raise Reject(outcome.failure.kind, outcome.failure.message)
        return result


def _outcome_of(error: Exception, command: StepCommand) -> Rejected | Failed:
    found = failure_of(error)
    if isinstance(error, Reject) and command.direction == "action":
        return Rejected(failure=found)
    return Failed(failure=found)


def _failed(kind: str, message: str) -> Failed:
    return Failed(failure=failure(kind, message, retryable=False))


def _say(outcome: Outcome, note: str) -> None:
    if note:
        _log.info(f"step.{note}")
    match outcome:
        case Succeeded():
            current.set_attributes({vocabulary.SAGA_OUTCOME: "succeeded"})
            _log.info("step.succeeded")
        case Rejected(failure=why):
            current.set_attributes({vocabulary.SAGA_OUTCOME: "rejected"})
            _log.info("step.rejected", **_fields(why))
        case Failed(failure=why):
            current.set_attributes({vocabulary.SAGA_OUTCOME: "failed"})
            _log.warning("step.failed", **_fields(why))
        case Accepted():
            current.set_attributes({vocabulary.SAGA_OUTCOME: "accepted"})
            _log.info("step.accepted")


def _fields(why: Failure) -> dict[str, Any]:
    return {"kind": why.kind, "reason": why.message, "retryable": why.retryable}


def _log_context(task: Task[Any, Any]) -> AbstractContextManager[None]:
    headers = task.request.headers or {}
    if logs.bound().get(vocabulary.LOG_SAGA_ID) == headers.get(vocabulary.LOG_SAGA_ID):
        return nullcontext()  # by the telemetry of the app
    return logs.saga_context(
        {
            **headers,
            vocabulary.LOG_TASK_ID: task.request.id,
            vocabulary.LOG_TASK_NAME: task.name,
        }
    )
