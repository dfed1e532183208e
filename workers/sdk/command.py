"""The headers of a task message as the step that they ask for."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta, field

from shared import names
from shared.errors import DecodeError
from shared.ids import Direction, idempotency_key
from shared.telemetry import propagation
from shared.telemetry.propagation import format_traceparent

_Text = Annotated[str, Meta(min_length=1, max_length=255)]


class StepCommand(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a step, as a participant sees it.

    Attributes:
        reply_to: Queue of the orchestrator.
        deadline_at: When the orchestrator stops waiting for the reply.
        token: With it the attempt can be completed from elsewhere.
        origin_id: The saga whose effect a compensation undoes, where it is another one: the saga
            was forked from it.
    """

    saga_id: _Text = field(name=names.SAGA_ID)
    saga_name: str = field(name=names.SAGA_NAME, default="")
    step: _Text = field(name=names.SAGA_STEP)
    direction: Direction = field(name=names.SAGA_DIRECTION)
    attempt: Annotated[int, Meta(ge=1)] = field(name=names.SAGA_ATTEMPT)
    reply_to: _Text = field(name=names.SAGA_REPLY_TO, default=names.REPLIES_QUEUE)
    deadline_at: datetime | None = field(name=names.SAGA_DEADLINE, default=None)
    traceparent: str | None = field(name=names.TRACEPARENT, default=None)
    token: str = field(name=names.SAGA_TOKEN, default="")
    origin_id: str = field(name=names.SAGA_ORIGIN_ID, default="")

    @property
    def effect_of(self) -> str:
        """Id of the saga to which the participant has booked, or books, the effect."""
        return self.origin_id or self.saga_id

    @property
    def idempotency_key(self) -> str:
        """``saga:step:direction``, the same for every attempt, and in a fork."""
        return idempotency_key(self.effect_of, self.step, self.direction)


def is_command(headers: Mapping[str, Any] | None) -> bool:
    """Whether these are the headers of a saga step, well-formed or not.

    An event that a saga publishes names its saga, too, and is no step.
    """
    return headers is not None and names.SAGA_ID in headers and names.SAGA_MESSAGE not in headers


def command_of(headers: Mapping[str, Any]) -> StepCommand:
    """Read the headers of a saga step; headers of other origin are ignored.

    Raises:
        DecodeError: A header is missing or of another shape; names it. A trace context that
            cannot be read is no reason.
    """
    parent, _ = propagation.extract(headers, count=False)
    traceparent = parent and format_traceparent(
        parent.trace_id, parent.span_id, sampled=parent.sampled
    )
    try:
        # Not strict: some brokers and clients turn the number of an attempt into text.
        return msgspec.convert(
            {**headers, names.TRACEPARENT: traceparent}, StepCommand, strict=False
        )
    except msgspec.ValidationError as error:
        raise DecodeError(f"saga headers: {error}") from error
