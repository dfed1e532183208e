"""What somebody asks of one saga, and what comes of it: a cancel, a signal, an operator's wish.

Whoever asks waits for the answer: what a saga does not allow is refused, with the reason.
"""

from typing import Any, Final

import msgspec

from orchestrator import intake
from orchestrator.batch import Asked
from orchestrator.core.events import Event
from orchestrator.core.messages import (
    Cancel,
    CompensateNow,
    Complete,
    Operator,
    Pause,
    Resolve,
    Resume,
    RetryNow,
    Signal,
    Skip,
)
from orchestrator.core.refusals import why_not
from orchestrator.loop import Loop
from orchestrator.payloads import Payloads
from orchestrator.ports import SagaRow, Store
from orchestrator.unreadable import known_row, row_of
from shared.errors import NotAllowed
from shared.messages import Command, Ended, Succeeded

_IN_WORDS: Final[dict[type[Operator], str]] = {
    Pause: "be paused",
    Resume: "be resumed",
    RetryNow: "try again",
    Skip: "skip the step",
    Resolve: "be resolved",
    CompensateNow: "be compensated",
}


class Operated(msgspec.Struct, frozen=True, kw_only=True):
    """What followed from an operator's message, or would follow.

    Attributes:
        row: The saga after it.
        events: What it led to; empty when it changed nothing, such as a second pause.
        commands: What was sent, or would be.
        dry_run: Nothing was stored, and nothing was sent.
        published: False when the broker could not be reached: an orchestrator sends the commands
            as soon as it can.
    """

    row: SagaRow
    events: tuple[Event, ...]
    commands: tuple[Command, ...]
    dry_run: bool
    published: bool = True


class Asking:
    """Asks things of sagas that exist.

    Args:
        store: Where they are kept.
        loop: Decides and commits.
        payloads: Keeps what is large.
    """

    def __init__(self, *, store: Store, loop: Loop, payloads: Payloads) -> None:
        self._store = store
        self._loop = loop
        self._payloads = payloads

    def cancel(self, saga_id: str, *, reason: str, by: str) -> SagaRow:
        """Ask that a saga be undone. It is a stored fact when this returns.

        Raises:
            UnknownSaga: No saga has that id.
            NotAllowed: It is past its pivot, or has ended.
        """
        return self._ask(saga_id, Cancel(reason=reason, by=by), "be cancelled").row

    def signal(self, saga_id: str, name: str, data: Any, *, by: str) -> Operated:
        """Tell a saga that something has happened. It is a stored fact when this returns.

        Raises:
            UnknownSaga: No saga has that id.
            NotAllowed: It waits for no signal of that name, or has ended.
            PayloadTooLarge: The data are.
            PayloadStoreUnavailable: They are large, and cannot be kept.
        """
        wish = "take the signal"
        self._refuse_early(saga_id, Signal(name=name, data=data, by=by), wish)
        kept = self._payloads.take(saga_id, data, "The data of the signal")
        return self._ask(saga_id, Signal(name=name, data=kept, by=by), wish)

    def complete(self, token: str, outcome: Ended) -> Operated:
        """End an attempt that its participant accepted. Late or again it changes nothing.

        Raises:
            DecodeError: It is no token.
            UnknownSaga: Its saga does not exist.
            NotAllowed: It is not a token of its saga.
            PayloadTooLarge: Output or undo data are.
            PayloadStoreUnavailable: They are large, and cannot be kept.
        """
        complete = intake.completion(token, outcome)
        saga_id, wish = complete.reply.saga_id, "complete the step"
        self._refuse_early(saga_id, complete, wish)
        if isinstance(outcome, Succeeded):
            output = self._payloads.take(saga_id, outcome.output, "The output")
            undo = self._payloads.take(saga_id, outcome.undo, "The undo data")
            complete = intake.completion(token, Succeeded(output=output, undo=undo))
        return self._ask(saga_id, complete, wish)

    def operate(self, saga_id: str, message: Operator, *, dry_run: bool = False) -> Operated:
        """Do what an operator asks. It is a stored fact when this returns.

        Args:
            saga_id: Which saga.
            message: What is asked.
            dry_run: Only say what would follow.

        Raises:
            UnknownSaga: No saga has that id.
            NotAllowed: The saga or its step does not allow it; says why.
            PayloadTooLarge: The edited payload or the output is.
            DecodeError: It is not JSON.
            PayloadStoreUnavailable: It is large, and cannot be kept.
        """
        wish, take = _IN_WORDS[type(message)], self._payloads.take
        self._refuse_early(saga_id, message, wish)
        match message:
            case RetryNow(payload=dict() as payload):
                what = "The edited payload"
                kept = take(saga_id, payload, what, edited=True, dry_run=dry_run)
                message = msgspec.structs.replace(message, payload=kept)
            case Skip(output=output):
                kept = take(saga_id, output, "The output", edited=True, dry_run=dry_run)
                message = msgspec.structs.replace(message, output=kept)
            case _:
                pass
        return self._ask(saga_id, message, wish, dry_run=dry_run)

    def _ask(
        self,
        saga_id: str,
        message: Cancel | Signal | Complete | Operator,
        wish: str,
        *,
        dry_run: bool = False,
    ) -> Operated:
        asked = [] if dry_run else [Asked(saga_id=saga_id, message=message)]
        changed, published = self._loop.advance(asked)
        change = changed.get(saga_id)
        if change is not None:
            return Operated(
                row=change.row,
                events=tuple(recorded.event for recorded in change.events),
                commands=change.commands,
                dry_run=False,
                published=published,
            )
        # Asked after the decision and not before: the pivot may overtake a cancel.
        row = known_row(self._store, saga_id)
        self._refuse(row, message, wish)
        if not dry_run:
            return Operated(row=row, events=(), commands=(), dry_run=False)
        decision, after = self._loop.preview(row, message)
        return Operated(
            row=after, events=decision.events, commands=decision.commands, dry_run=True
        )

    def _refuse_early(
        self, saga_id: str, message: Signal | Complete | Operator, wish: str
    ) -> None:
        """Refuse what will be refused before any of it is kept, and by its real values.

        Where there is no payload store, the message has them still when it is decided.
        """
        if self._payloads.claims is None:
            return
        row = row_of(self._store, saga_id)
        if row is not None:
            self._refuse(row, message, wish)

    def _refuse(
        self, row: SagaRow, message: Cancel | Signal | Complete | Operator, wish: str
    ) -> None:
        refused = why_not(self._loop.definition_of(row), row.state, message)
        if refused:
            saga_id = row.saga_id
            raise NotAllowed(f"Saga {saga_id} cannot {wish}. {refused}", saga_id=saga_id)
