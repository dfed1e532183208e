"""What a message from the queue asks, and of which saga; the one that nobody can act on is kept.

The SDK has checked what it sends. A service without the SDK may not have, so all is checked here.
"""

from datetime import datetime
from typing import assert_never

import msgspec

from orchestrator.batch import Asked
from orchestrator.core.messages import Cancel, Complete, Heartbeat, Message, Signal
from orchestrator.ports import DeadLetter, Delivery
from shared import codec
from shared.errors import PayloadTooLarge
from shared.messages import (
    PROGRESS_BYTES_MAX,
    CancelRequest,
    CompleteRequest,
    Ended,
    Failed,
    Failure,
    HeartbeatRequest,
    Rejected,
    Reply,
    SignalRequest,
    Succeeded,
)
from shared.telemetry.redaction import redacted_text
from shared.tokens import read_token

ForASaga = Reply | CancelRequest | SignalRequest | CompleteRequest | HeartbeatRequest
"""Messages for a saga that exists."""


def told(request: ForASaga, delivery: Delivery, payload_bytes_max: int) -> Asked:
    """Which saga is told what.

    Args:
        request: What came.
        delivery: How it came.
        payload_bytes_max: Largest output and largest data of a signal, as JSON.

    Raises:
        SagaError: It cannot be acted on.
    """
    message: Message
    match request:
        case Reply(saga_id=saga_id) as reply:
            message = _checked(reply, delivery, payload_bytes_max)
        case CancelRequest(saga_id=saga_id, reason=reason, by=by):
            message = Cancel(reason=reason, by=by)
        case SignalRequest(saga_id=saga_id, name=name, data=data, by=by):
            codec.check_size(data, payload_bytes_max, "The data of the signal")
            message = Signal(name=name, data=data, by=by)
        case CompleteRequest(token=token, outcome=outcome):
            complete = completion(token, outcome)
            reply = _checked(complete.reply, delivery, payload_bytes_max)
            saga_id, message = reply.saga_id, Complete(reply=reply, proof=complete.proof)
        case HeartbeatRequest(saga_id=saga_id):
            # The sign of life counts all the same.
            large = 4 * len(delivery.body) > PROGRESS_BYTES_MAX and (
                len(codec.encode(request.progress)) > PROGRESS_BYTES_MAX
            )
            message = Heartbeat(
                step=request.step,
                direction=request.direction,
                attempt=request.attempt,
                progress=None if large else request.progress,
            )
        case _:
            assert_never(request)
    return Asked(saga_id=saga_id, message=message, delivery=delivery)


def completion(token: str, outcome: Ended) -> Complete:
    """How the attempt of a token ended.

    Raises:
        DecodeError: It is no token.
    """
    parts = read_token(token)
    reply = Reply(
        saga_id=parts.saga_id,
        step=parts.step,
        direction=parts.direction,
        attempt=parts.attempt,
        outcome=outcome,
    )
    return Complete(reply=reply, proof=parts.proof)


def letter(reason: str, delivery: Delivery, now: datetime) -> DeadLetter:
    """A message that nobody could act on, as it is kept."""
    return DeadLetter(
        reason=reason,
        task=delivery.task,
        saga_id=getattr(delivery.message, "saga_id", None),
        body=delivery.body,
        at=now,
    )


def _checked(reply: Reply, delivery: Delivery, limit: int) -> Reply:
    """A reply whose output is over the limit counts as a failure: it cannot be passed on.

    What a failure says to people is stored without secrets.
    """
    outcome = reply.outcome
    if isinstance(outcome, Rejected | Failed):
        shown = msgspec.structs.replace(outcome, failure=_for_people(outcome.failure))
        return msgspec.structs.replace(reply, outcome=shown)
    # A character is four bytes at the most: a short body need not be encoded to be sure.
    if not isinstance(outcome, Succeeded) or 4 * len(delivery.body) <= limit:
        return reply
    try:
        codec.check_size(outcome.output, limit, "The result")
        codec.check_size(outcome.undo, limit, "The undo data")
    except PayloadTooLarge as error:
        failure = Failure(kind="ResultTooLarge", message=str(error), retryable=False)
        return msgspec.structs.replace(reply, outcome=Failed(failure=failure))
    return reply


def _for_people(failure: Failure) -> Failure:
    return msgspec.structs.replace(
        failure,
        message=redacted_text(failure.message),
        traceback=redacted_text(failure.traceback),
    )
