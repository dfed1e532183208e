"""Starts, cancels and operates sagas, from any process that reaches the store.

A start is durable when the call returns: it goes through the same engine as everything else, so no
orchestrator needs to be up.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from orchestrator import dead_letters
from orchestrator.asking import Operated
from orchestrator.core.events import ForkedFrom
from orchestrator.core.messages import (
    CompensateNow,
    Operator,
    Pause,
    Resolve,
    Resume,
    RetryNow,
    Skip,
)
from orchestrator.core.state import Status
from orchestrator.forks import Forked
from orchestrator.ports import DeadLetter, SagaRow
from orchestrator.reader import Reader
from orchestrator.retention import LEFTOVERS_AGE_MIN, Archive, purge, sweep
from orchestrator.starts import Started
from shared.clock import utc_now
from shared.messages import (
    Failed,
    Failure,
    Rejected,
    StartRequest,
    Succeeded,
)
from shared.telemetry.header_propagator import current_baggage, current_parent

_COUNT_MAX = 1_000_000

_Answer = TypeVar("_Answer")


class Client(Reader):
    """What programs and the `saga` command use: all that a reader can, and all that changes something."""

    def start(
        self,
        name: str,
        input: Mapping[str, Any],  # noqa: A002 - the field's name everywhere
        *,
        key: str | None = None,
        traceparent: str | None = None,
        tracestate: str = "",
        not_before: datetime | None = None,
        baggage: Mapping[str, str] | None = None,
    ) -> Started:
        """Start a saga. Durable when this returns.

        Args:
            name: Saga name; its newest version is started.
            input: Fields of the input type, as JSON values.
            key: Business key: a second start with the same name and key gives the first saga.
            traceparent: Trace of the caller, continued; by default that of the running code: of the
                HTTP request, the task or the span that this is called in, if there is one.
            tracestate: Of the caller.
            not_before: When the first step begins, aware; at once where it is past or None.
            baggage: Of the caller; by default the current one.

        Raises:
            UnknownSaga: No definition of that name; names the nearest ones.
            InputError: The input does not fit, or is too large; nothing was stored.
            KeyConflict: The key belongs to a saga with other input; nothing was stored.
            UnavailableError: The store cannot be reached.
        """
        if traceparent is None:
            traceparent, tracestate = current_parent()
        request = StartRequest(
            name=name,
            input=dict(input),
            key=key,
            traceparent=traceparent or None,
            tracestate=tracestate,
            not_before=not_before,
            baggage=current_baggage() if baggage is None else dict(baggage),
        )
        return self.start_many([request])[0]

    def fork(
        self,
        saga_id: str,
        from_step: str,
        *,
        input: Mapping[str, Any] | None = None,  # noqa: A002 - as in `start`
        key: str | None = None,
        reason: str = "",
        by: str = "",
        dry_run: bool = False,
    ) -> Forked:
        """Start a saga that goes on from a step of one that has ended. Durable when this returns.

        What was done before that step, or does not depend on it, counts as done, and belongs to
        the new saga from then on: it undoes it when it turns back. The step and what comes after it
        is done anew, on the newest version of the definition.

        Args:
            saga_id: The saga that has ended.
            from_step: The first step that is done anew.
            input: Of the new saga; by default that of the old one. Copied outputs stay what they are.
            key: Business key of the new saga.
            reason: Kept in both histories.
            by: Who asks; kept in both histories.
            dry_run: Only say what would become of each step.

        Raises:
            UnknownSaga: No saga has that id, or no definition of its name is in the code.
            NotAllowed: It may still undo something, has undone something that the step needs, or
                an earlier fork owns something of it; says what to do.
            InputError: The input does not fit, or is too large; nothing was stored.
            KeyConflict: The key belongs to another saga; nothing was stored.
            UnavailableError: The store cannot be reached.
        """
        old = self.row(saga_id).state
        traceparent, tracestate = current_parent()
        request = StartRequest(
            name=old.name,
            input=old.input if input is None else dict(input),
            key=key,
            traceparent=traceparent or None,
            tracestate=tracestate,
            baggage=current_baggage(),
        )
        fork = ForkedFrom(saga_id=saga_id, step=from_step, reason=reason, by=by)
        return self._settled(self._engine.fork(fork, request, dry_run=dry_run))

    def start_many(self, requests: Sequence[StartRequest]) -> list[Started]:
        """Start several sagas in one transaction; as `start`."""
        return self._settled(self._engine.start(requests))

    def cancel(self, saga_id: str, *, reason: str, by: str = "") -> SagaRow:
        """Ask that a saga be undone; it lets the steps in flight end, then compensates.

        Raises:
            UnknownSaga: No saga has that id.
            NotAllowed: It is past its pivot, or has ended.
        """
        return self._settled(self._engine.cancel(saga_id, reason=reason, by=by))

    # What sagas wait for --------------------------------------------------------------------

    def signal(self, saga_id: str, name: str, data: Any = None, *, by: str = "") -> Operated:
        """Tell a saga that something has happened; the first signal of a name counts.

        Raises:
            UnknownSaga: No saga has that id.
            NotAllowed: It waits for no signal of that name, or has ended.
            PayloadTooLarge: The data are.
        """
        return self._settled(self._engine.signal(saga_id, name, data, by=by))

    def approve(
        self, saga_id: str, name: str, *, approved: bool = True, comment: str = "", by: str
    ) -> Operated:
        """Answer an approval: the signal that a step waits for with `WaitFor.approval`."""
        data = {"approved": approved, "comment": comment, "by": by}
        return self.signal(saga_id, name, data, by=by)

    def complete(self, token: str, output: Any = None, *, undo: Any = msgspec.UNSET) -> Operated:
        """Say that a step that was accepted has succeeded. Late or again it changes nothing.

        Args:
            token: As the participant got it.
            output: Of the step.
            undo: What its compensation gets; by default the output.

        Raises:
            DecodeError: It is no token.
            UnknownSaga: Its saga does not exist.
            NotAllowed: It is not a token of its saga.
            PayloadTooLarge: Output or undo data are.
        """
        known = output if undo is msgspec.UNSET else undo
        outcome = Succeeded(output=output, undo=known)
        return self._settled(self._engine.complete(token, outcome))

    def fail(
        self,
        token: str,
        kind: str,
        message: str = "",
        *,
        retryable: bool = True,
        rejected: bool = False,
    ) -> Operated:
        """Say that a step that was accepted has failed, or was rejected: nothing happened then.

        Raises:
            DecodeError: It is no token.
            UnknownSaga: Its saga does not exist.
            NotAllowed: It is not a token of its saga.
        """
        failure = Failure(kind=kind, message=message, retryable=retryable and not rejected)
        outcome = Rejected(failure=failure) if rejected else Failed(failure=failure)
        return self._settled(self._engine.complete(token, outcome))

    # Operators ------------------------------------------------------------------------------
    #
    # Each of these is kept in the history with its reason and who asked for it. Each raises
    # UnknownSaga for an unknown id, and NotAllowed with the reason where the saga forbids it.
    # With `dry_run` nothing is stored: the result says what would follow.

    def pause(self, saga_id: str, *, reason: str, by: str = "", dry_run: bool = False) -> Operated:
        """Begin nothing new until `resume`; replies of what is in flight are recorded."""
        return self.operate(saga_id, Pause(reason=reason, by=by), dry_run=dry_run)

    def resume(
        self, saga_id: str, *, reason: str, by: str = "", dry_run: bool = False
    ) -> Operated:
        """Go on after `pause`."""
        return self.operate(saga_id, Resume(reason=reason, by=by), dry_run=dry_run)

    def retry(
        self,
        saga_id: str,
        step: str = "",
        *,
        payload: Mapping[str, Any] | None = None,
        reason: str,
        by: str = "",
        dry_run: bool = False,
    ) -> Operated:
        """Make the next attempt now, or one more where a step or its undo has given up.

        Args:
            saga_id: Which saga.
            step: Which step; empty for all of which it can be asked.
            payload: Keyword arguments for this step instead of those of the definition.
            reason: Kept in the history.
            by: Who asks; kept in the history.
            dry_run: Only say what would follow.
        """
        edited = None if payload is None else dict(payload)
        message = RetryNow(step=step, payload=edited, reason=reason, by=by)
        return self.operate(saga_id, message, dry_run=dry_run)

    def skip(
        self,
        saga_id: str,
        step: str,
        *,
        output: Any = None,
        reason: str,
        by: str = "",
        dry_run: bool = False,
    ) -> Operated:
        """Go on as if a step, or its undo, had been done.

        Args:
            saga_id: Which saga.
            step: One that waits for an attempt, has given up, or has not begun.
            output: What later steps see as its output.
            reason: Kept in the history.
            by: Who asks; kept in the history.
            dry_run: Only say what would follow.
        """
        message = Skip(step=step, output=output, reason=reason, by=by)
        return self.operate(saga_id, message, dry_run=dry_run)

    def resolve(
        self, saga_id: str, *, reason: str, by: str = "", dry_run: bool = False
    ) -> Operated:
        """End a stuck saga that has been put right by hand."""
        return self.operate(saga_id, Resolve(reason=reason, by=by), dry_run=dry_run)

    def compensate(
        self, saga_id: str, *, reason: str, by: str = "", dry_run: bool = False
    ) -> Operated:
        """Give up going forward, also where nobody knows whether the pivot happened."""
        return self.operate(saga_id, CompensateNow(reason=reason, by=by), dry_run=dry_run)

    def operate(self, saga_id: str, message: Operator, *, dry_run: bool = False) -> Operated:
        """Do what an operator asks, given as a message."""
        return self._settled(self._engine.operate(saga_id, message, dry_run=dry_run))

    # Dead letters, and what has ended -------------------------------------------------------

    def requeue(self, number: int) -> DeadLetter:
        """Act on a dead letter once more; it is gone when this returns.

        Not over the broker: what follows is committed here, so that it is known what came of it.

        Raises:
            InputError: There is none of that number.
            NotAllowed: It still cannot be read or acted on; says why, and the letter stays.
            SagaError: As `start`, for a start; the letter stays.
        """
        letter = self._settled(dead_letters.requeue(self._engine, number))
        self._store.drop_dead_letters([number])
        return letter

    def drop_dead_letters(self, numbers: Collection[int]) -> int:
        """Delete dead letters for good; returns how many there were."""
        return self._store.drop_dead_letters(numbers)

    def purge(
        self,
        before: datetime,
        *,
        name: str | None = None,
        statuses: Collection[Status] = (),
        archive: Archive | None = None,
    ) -> Iterator[int]:
        """Delete sagas that ended before a moment, in batches, with their histories.

        What is late for them then goes to the dead letters, and their business keys are free.

        Yields:
            How many each batch deleted.

        Raises:
            SagaError: As `retention.purge`.
        """
        return purge(
            self._store,
            before,
            name=name,
            statuses=statuses,
            archive=archive,
            claims=self._engine.payloads.claims,
        )

    def sweep(self) -> int:
        """Delete what the payload store has of sagas that do not exist.

        It must be the payload store of this store alone. What was written in the last day is
        spared.

        Returns:
            Of how many sagas.

        Raises:
            ConfigurationError: There is no payload store.
            PayloadStoreUnavailable: It cannot be reached.
        """
        claims = self._engine.payloads.required()
        return sweep(self._store, claims, utc_now() - LEFTOVERS_AGE_MIN)

    def count_ended(
        self, before: datetime, *, name: str | None = None, statuses: Collection[Status] = ()
    ) -> int:
        """How many sagas `purge` would delete."""
        return len(self._store.ended(before, _COUNT_MAX, name=name, statuses=statuses))

    def _settled(self, answer: _Answer) -> _Answer:
        """What an engine has answered, once it has noted what it has sent."""
        self._engine.settle()
        return answer
