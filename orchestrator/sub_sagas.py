"""Sagas of sagas: how a step that is a saga begins, is undone, or turns out to be impossible.

A sub-saga answers like a participant: once, when it ends. One that does not exist cannot, and one
that has ended says nothing more. So their parents, who ask again, are answered from here.
"""

from collections.abc import Callable
from typing import Final

import structlog

from orchestrator.batch import Asked
from orchestrator.core.between import report
from orchestrator.core.definition import Definition, SubSaga
from orchestrator.core.messages import Undo
from orchestrator.core.plan import plan_of
from orchestrator.payloads import PAYLOAD_LOST, Payloads
from orchestrator.ports import SagaRow, Store
from orchestrator.starts import Starts
from shared.errors import (
    InputError,
    PayloadMissing,
    PayloadStoreUnavailable,
    SagaError,
    UnavailableError,
)
from shared.ids import sub_saga_id
from shared.messages import (
    Ended,
    Failed,
    Failure,
    Inbound,
    Parent,
    Rejected,
    Reply,
    StartRequest,
    Succeeded,
    UndoRequest,
)
from shared.tickets import tickets_in

SUB_SAGA_DEPTH_MAX: Final = 8
"""Sagas that may stand above a sub-saga: a saga that starts itself ends there."""


log = structlog.get_logger(__name__)


class SubSagas:
    """Acts on what one saga asks of another.

    Args:
        starts: Starts sagas.
        store: Knows which sagas there are.
        definition_of: What a saga runs on.
        payloads: Gives sagas what others keep.
    """

    def __init__(
        self,
        *,
        starts: Starts,
        store: Store,
        definition_of: Callable[[SagaRow], Definition],
        payloads: Payloads,
    ) -> None:
        self._starts = starts
        self._store = store
        self._definition_of = definition_of
        self._payloads = payloads

    def start(self, request: StartRequest, undo: Undo | None = None) -> list[Asked]:
        """Start the saga of a step; one that cannot be started is a rejected step.

        Args:
            request: From the parent, for the first time or again.
            undo: The parent wants it undone before it has begun.

        Returns:
            What the parent is told; nothing while the saga has only just begun.
        """
        parent, saga_id = request.parent, request.saga_id
        assert parent is not None  # noqa: S101 - the caller has looked
        assert saga_id is not None  # noqa: S101 - a parent names it
        if request.began:
            row = self._row(saga_id)
            return self._reports(row) if row else [_gone(saga_id, parent, undo)]
        try:
            if parent.depth > SUB_SAGA_DEPTH_MAX:
                raise InputError(
                    f"Saga {request.name!r} would be the sub-saga of {parent.depth} others.",
                    hint=f"At most {SUB_SAGA_DEPTH_MAX} are allowed: does it start itself?",
                )
            asked = self._starts.asked(request, undo)
            self._payloads.keep([asked])
        except PayloadMissing as error:
            if row := self._row(saga_id):
                return self._reports(row)
            failure = Failure(kind=PAYLOAD_LOST, message=str(error), retryable=False)
            log.error("payload_store.payload_missing", sub_saga=saga_id, error=str(error))  # noqa: TRY400 - told in one line
            return [_answered(parent, undo, Rejected(failure=failure))]
        except PayloadStoreUnavailable as error:
            log.warning("payload_store.unavailable", sub_saga=saga_id, error=str(error))
            return []  # the parent asks again
        except UnavailableError:
            raise
        except SagaError as error:
            if row := self._row(saga_id):
                return self._reports(row)  # a later version refuses what an earlier one took
            failure = Failure(kind="SubSagaRefused", message=str(error), retryable=False)
            return [_answered(parent, undo, Rejected(failure=failure))]
        if self._starts.begin(asked):
            return []
        row = self._row(saga_id)
        return self._reports(row) if row else []

    def undo(self, request: UndoRequest) -> list[Asked]:
        """Undo a sub-saga, or see to it that it never begins: its start may come later."""
        parent = request.start.parent
        undo = Undo(attempt=request.attempt, reason=request.reason, parent=parent)
        asked = Asked(saga_id=request.saga_id, message=undo)
        if parent is None:
            return [asked]
        if row := self._row(request.saga_id):
            return [asked, *self._reports(row)]
        if request.began:
            return [_gone(request.saga_id, parent, undo)]
        # Whoever was faster with its start: the message above finds it.
        return [*self.start(request.start, undo), asked]

    def adopted(self, message: Inbound) -> bool:
        """Whether a saga has what an answer of its sub-saga refers to; else the answer is dropped.

        Args:
            message: Any: what a participant's SDK sends says where it ran, and refers to nothing else.
        """
        match message:
            case Reply(execution=None, outcome=Succeeded(output=output)) as reply if (
                self._payloads.claims is not None and any(True for _ in tickets_in(output))
            ):
                row = self._row(reply.saga_id)
                if row is None:
                    return True
                planned = plan_of(self._definition_of(row), row.state).by_name.get(reply.step)
                if planned is None or not isinstance(planned.action, SubSaga):
                    return True
                by = row.state.done_by(reply.step)
                child = sub_saga_id(by, reply.step, reply.attempt)
                # Where something is lost, the saga is told when it asks again.
                return self._payloads.adopt(reply, child) is reply
            case _:
                return True

    def _row(self, saga_id: str) -> SagaRow | None:
        return self._store.load([saga_id]).get(saga_id)

    def _reports(self, row: SagaRow) -> list[Asked]:
        reply = report(self._definition_of(row), row.state)
        reply = self._payloads.adopt(reply, row.saga_id) if reply else None
        if reply is None:
            return []
        return [Asked(saga_id=reply.saga_id, message=reply)]


def _gone(saga_id: str, parent: Parent, undo: Undo | None) -> Asked:
    text = f"The sub-saga {saga_id} is not in the store any more."
    failure = Failure(kind="SubSagaGone", message=text, retryable=False)
    return _answered(parent, undo, Failed(failure=failure))


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
