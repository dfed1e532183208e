"""Sagas of sagas: how a step that is a saga begins, is undone, or turns out to be impossible.

A sub-saga answers like a participant. One that does not exist cannot, so its parent is answered
from here.
"""

from collections.abc import Callable
from typing import Final

from orchestrator.batch import Asked
from orchestrator.core.messages import Undo
from orchestrator.ports import Store
from orchestrator.starts import Starts
from shared.errors import InputError, SagaError, UnavailableError
from shared.messages import (
    Ended,
    Failed,
    Failure,
    Parent,
    Rejected,
    Reply,
    StartRequest,
    Succeeded,
    UndoRequest,
)

SUB_SAGA_DEPTH_MAX: Final = 8
"""Sagas that may stand above a sub-saga: a saga that starts itself ends there."""


class SubSagas:
    """Acts on what one saga asks of another.

    Args:
        starts: Makes the first message of a saga.
        store: Knows which sagas there are.
        begin: Starts a new saga, unless there is one of its id.
    """

    def __init__(self, *, starts: Starts, store: Store, begin: Callable[[Asked], None]) -> None:
        self._starts = starts
        self._store = store
        self._begin = begin

    def start(self, request: StartRequest, undo: Undo | None = None) -> list[Asked]:
        """Start the saga of a step; one that cannot be started is a rejected step."""
        parent = request.parent
        assert parent is not None  # noqa: S101 - the caller has looked
        try:
            if parent.depth > SUB_SAGA_DEPTH_MAX:
                raise InputError(
                    f"Saga {request.name!r} would be the sub-saga of {parent.depth} others.",
                    hint=f"At most {SUB_SAGA_DEPTH_MAX} are allowed: does it start itself?",
                )
            asked = self._starts.asked(request, undo)
        except UnavailableError:
            raise
        except SagaError as error:
            failure = Failure(kind="SubSagaRefused", message=str(error), retryable=False)
            return [_answered(parent, undo, Rejected(failure=failure))]
        self._begin(asked)
        return []

    def undo(self, request: UndoRequest) -> list[Asked]:
        """Undo a sub-saga, or see to it that it never begins: its start may come later."""
        parent = request.start.parent
        undo = Undo(attempt=request.attempt, reason=request.reason, parent=parent)
        asked = Asked(saga_id=request.saga_id, message=undo)
        if parent is None or self._store.load([request.saga_id]):
            return [asked]
        if request.began:
            text = f"The sub-saga {request.saga_id} is not in the store any more."
            failure = Failure(kind="SubSagaGone", message=text, retryable=False)
            return [_answered(parent, undo, Failed(failure=failure))]
        # Whoever was faster with its start: the message above finds it.
        return [*self.start(request.start, undo), asked]


def _answered(parent: Parent, undo: Undo | None, outcome: Rejected | Failed) -> Asked:
    """What the parent of a sub-saga that does not exist is told."""
    undone = undo is not None and undo.attempt > 0
    ended: Ended = outcome
    if undone and isinstance(outcome, Rejected):
        ended = Succeeded()  # what could never begin is undone
    reply = Reply(
        saga_id=parent.saga_id,
        step=parent.step,
        direction="compensation" if undone and undo else "action",
        attempt=undo.attempt if undone and undo else parent.attempt,
        outcome=ended,
    )
    return Asked(saga_id=parent.saga_id, message=reply)
