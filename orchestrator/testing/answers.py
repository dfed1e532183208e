"""What a fake participant makes of one attempt."""

from datetime import timedelta
from typing import Any

import msgspec

from shared.messages import Ended, Failed, Failure, Rejected, Succeeded

_replace = msgspec.structs.replace


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """How one attempt goes.

    Attributes:
        outcome: What comes of it; None stands for a success with the usual output.
        replied: Whether the orchestrator hears of it.
        happened: Whether the work is done where nobody hears of it.
        late: How long after the attempt's deadline the reply comes; None: at once.
        copies: How often the command is delivered.
    """

    outcome: Ended | None = None
    replied: bool = True
    happened: bool = True
    late: timedelta | None = None
    copies: int = 1


def succeeds(output: Any = None, *, undo: Any = msgspec.UNSET) -> Answer:
    """The work is done.

    Args:
        output: What later steps see.
        undo: What the compensation gets; by default the output.
    """
    return Answer(outcome=Succeeded(output=output, undo=output if undo is msgspec.UNSET else undo))


def rejects(kind: str = "Rejected", message: str = "") -> Answer:
    """The participant says no: nothing happened."""
    return Answer(outcome=Rejected(failure=Failure(kind=kind, message=message, retryable=False)))


def fails(kind: str = "Failed", message: str = "", *, retryable: bool = True) -> Answer:
    """An exception: the barrier rolls back what was done, and the orchestrator cannot know."""
    return Answer(outcome=Failed(failure=Failure(kind=kind, message=message, retryable=retryable)))


def times_out(*, happened: bool = True) -> Answer:
    """Nobody ever answers.

    Args:
        happened: Whether the work was done before the worker died.
    """
    return Answer(replied=False, happened=happened)


def late(answer: Answer | None = None, by: timedelta = timedelta(seconds=1)) -> Answer:
    """The reply comes when the attempt has timed out already.

    Args:
        answer: What it says; by default that the work is done.
        by: How long after the attempt's deadline it comes.
    """
    return _replace(answer or Answer(), late=by)


def twice(answer: Answer | None = None) -> Answer:
    """The command is delivered twice, as brokers do: the barrier answers the second one."""
    return _replace(answer or Answer(), copies=2)
