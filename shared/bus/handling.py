"""Runs a handler inside its Celery task, and settles what comes of it.

    read the message → call the function → return, which acknowledges
                                │ it failed: send the message again, or bury it; then acknowledge

What follows a failure has reached the broker before the message is acknowledged: a crash in between
repeats the message instead of losing it.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, NoReturn

import msgspec
import structlog
from celery import Celery, Task
from celery.exceptions import Ignore, Retry
from celery.exceptions import Reject as MessageReject

from shared import codec, names
from shared.backoff import delay
from shared.bus import dead, replying
from shared.bus.envelope import task_headers
from shared.bus.policy import Refuse, failure, failure_of
from shared.bus.registry import Handling, Registry
from shared.bus.tracing import processing
from shared.clock import utc_now
from shared.contract import answer_type, decoded, wire_of
from shared.errors import DecodeError, InputError, PayloadTooLarge, UnavailableError
from shared.messages import Failed, Failure, Succeeded
from shared.settings import settings
from shared.telemetry.metrics import catalog
from shared.telemetry.names import BUS_MESSAGE_NAME

REQUEST: Final = "shared.bus.request:BusRequest"

ANSWER_NOT_AS_DECLARED: Final = "AnswerNotAsDeclared"
ANSWER_TOO_LARGE: Final = "AnswerTooLarge"

TOO_LATE_AFTER: Final = timedelta(seconds=5)
"""A query this long past its deadline is not answered; clocks differ by less."""

_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("shared.bus")


def register(registry: Registry, handling: Handling, **options: Any) -> None:
    """Make a function a task of the app.

    Args:
        registry: Of the app.
        handling: The function.
        options: Of the Celery task: ``time_limit``, ``rate_limit``, …

    Raises:
        DefinitionError: There is one for this command, query or subscriber already.
    """
    registry.add(handling)

    def run(task: Task[Any, Any], /, *_: Any, **fields: Any) -> Any:
        return _attempt(registry, handling, task, fields)

    # What Celery shows of a task is what it finds on its function; of the name it makes code.
    name = getattr(handling.function, "__name__", "")
    run.__name__ = name if name.isidentifier() else "handle"
    run.__module__ = handling.function.__module__
    run.__doc__ = handling.function.__doc__
    settled: dict[str, Any] = {
        "name": handling.task,
        "bind": True,
        "typing": False,
        "shared": False,
        "ignore_result": True,
        "acks_late": True,
        "reject_on_worker_lost": True,
        "acks_on_failure_or_timeout": True,
        "throws": (Refuse,),
        "Request": REQUEST,
    }
    registry.app.task(**{**options, **settled})(run)


def _attempt(
    registry: Registry, handling: Handling, task: Task[Any, Any], fields: dict[str, Any]
) -> None:
    request: Any = task.request
    headers = {
        **task_headers(handling.task, str(request.id), retries=request.retries),
        **(request.headers or {}),
    }
    with processing(registry.app, handling.queue, headers):
        if handling.kind == "query":
            _answer(registry, handling, headers, fields)
            return
        try:
            handling.function(decoded(handling.message, fields))
        except (Retry, Ignore, MessageReject):
            raise  # asked for by name: Celery settles the message
        except InputError as error:
            # Also one that the function raised itself: the same message will not fit later either.
            why = failure(type(error).__name__, error.message, retryable=False)
            _settle(registry, handling, headers, fields, why, error)
        except Exception as error:  # noqa: BLE001 - a failure is a value, and settled by policy
            _settle(registry, handling, headers, fields, failure_of(error), error)


def _settle(
    registry: Registry,
    handling: Handling,
    headers: Mapping[str, Any],
    fields: dict[str, Any],
    why: Failure,
    error: Exception,
) -> NoReturn:
    try:
        wait = follow_up(registry, handling, headers, codec.task_body(fields), why)
    except Exception as kept:  # noqa: BLE001 - see below
        # Whatever it was, the message is not acknowledged: it comes again, for the same attempt.
        _log.exception("message.not_settled")
        raise MessageReject(str(kept), requeue=True) from error
    if wait is None:
        raise error
    seconds: Any = round(wait.total_seconds(), 3)
    raise Retry(exc=error, when=seconds) from error


def follow_up(
    registry: Registry,
    handling: Handling,
    headers: Mapping[str, Any],
    body: bytes,
    why: Failure,
) -> timedelta | None:
    """Send a message whose attempt failed once more, or bury it.

    Returns:
        How long it waits for its next attempt; None when there is none.

    Raises:
        UnavailableError: The broker took neither; the message must not be acknowledged.
    """
    attempt = 1 + int(headers.get("retries") or 0)
    if handling.retry.gives_up(attempt, why):
        dead.bury(registry.publisher, body, headers, queue=handling.queue, why=why)
        return None
    wait = delay(handling.retry.backoff, attempt, str(headers["id"]))
    wait = min(wait, _longest_hold(registry.app))
    again = {
        **headers,
        "task": handling.task,
        "retries": attempt,
        "eta": (utc_now() + wait).isoformat(),
    }
    registry.publisher.send(handling.queue, body, again)
    catalog.BUS_RETRIES.add(1, {BUS_MESSAGE_NAME: wire_of(handling.message).name})
    _log.warning(
        "message.retried",
        kind=why.kind,
        reason=why.message,
        attempt=attempt,
        wait_seconds=round(wait.total_seconds(), 3),
    )
    return wait


def _longest_hold(app: Celery[Any]) -> timedelta:
    """How long a worker may hold a message that waits for its time."""
    visible: Any = app.conf.broker_transport_options.get("visibility_timeout", 3600)
    return timedelta(seconds=float(visible) / 2)


# Queries --------------------------------------------------------------------------------------


def _answer(
    registry: Registry, handling: Handling, headers: Mapping[str, Any], fields: dict[str, Any]
) -> None:
    deadline = codec.instant(headers.get(names.SAGA_DEADLINE))
    if deadline is not None and utc_now() > deadline + TOO_LATE_AFTER:
        _log.warning("query.too_late", deadline=deadline)
        return
    raised: Exception | None = None
    outcome: Succeeded | Failed
    try:
        result = handling.function(decoded(handling.message, fields))
        outcome = Succeeded(output=_checked(handling, result))
    except InputError as error:
        raised = error
        outcome = Failed(failure=failure(type(error).__name__, error.message, retryable=False))
    except Exception as error:  # noqa: BLE001 - a failure is a value
        raised = error
        why = failure_of(error)
        # The traceback stays in the log of this service.
        outcome = Failed(failure=msgspec.structs.replace(why, traceback=""))
    try:
        replying.reply(registry.publisher, headers, outcome)
    except UnavailableError as away:
        # Asked again it would come too late.
        _log.error("query.not_answered", reason=away.message)
    if isinstance(outcome, Failed):
        _log.warning("query.failed", kind=outcome.failure.kind, reason=outcome.failure.message)
    if raised is not None:
        raise raised


def _checked(handling: Handling, result: Any) -> Any:
    """The answer as plain JSON values, as the query declares it.

    Raises:
        Refuse: It is of another type, not JSON, or too large.
    """
    wanted = answer_type(handling.message)
    name = wire_of(handling.message).name
    try:
        raw = codec.encode(result)
        codec.check_bytes(raw, settings().payload_bytes_max, f"The answer to {name!r}")
        msgspec.json.decode(raw, type=wanted)
    except PayloadTooLarge as error:
        raise Refuse(ANSWER_TOO_LARGE, str(error)) from error
    except (DecodeError, msgspec.ValidationError) as error:
        shown = getattr(wanted, "__name__", wanted)
        raise Refuse(
            ANSWER_NOT_AS_DECLARED, f"The handler of {name!r} returned no {shown}: {error}"
        ) from error
    return msgspec.Raw(raw)
