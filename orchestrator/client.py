"""Starts, cancels and reads sagas, from any process that reaches the store.

A start is durable when the call returns: it goes through the same engine as everything else, so no
orchestrator needs to be up.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import msgspec

from orchestrator import dead_letters
from orchestrator.asking import Operated
from orchestrator.controls import Controls
from orchestrator.core.definition import Definition
from orchestrator.core.events import ForkedFrom, Recorded
from orchestrator.core.messages import (
    CompensateNow,
    Operator,
    Pause,
    Resolve,
    Resume,
    RetryNow,
    Skip,
)
from orchestrator.core.plan import plan_of
from orchestrator.core.state import Status
from orchestrator.core.terms import IN_FLIGHT
from orchestrator.engine import Engine
from orchestrator.forks import Forked
from orchestrator.ports import DeadLetter, SagaRow, SagaSummary
from orchestrator.retention import LEFTOVERS_AGE_MIN, Archive, purge, sweep
from orchestrator.search import Filter, find
from orchestrator.starts import Started
from orchestrator.sub_sagas import SUB_SAGA_DEPTH_MAX
from orchestrator.unreadable import known_row
from orchestrator.views import SagaView, outcome_of, saga_view, sub_saga_of
from shared.clock import monotonic, pause, utc_now
from shared.messages import (
    Ended,
    Failed,
    Failure,
    Rejected,
    StartRequest,
    Succeeded,
)
from shared.telemetry.header_propagator import current_baggage, current_parent

_POLL_FIRST_S = 0.005
_POLL_MAX_S = 0.2
_COUNT_MAX = 1_000_000


class Client:
    """What programs and the `saga` command use.

    Args:
        engine: Made by `orchestrator.bootstrap`. Not for use by several threads at once.

    Attributes:
        controls: What operators say of all sagas of a name.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = engine.store
        self.controls = Controls(engine, utc_now)

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
        forked = self._engine.fork(fork, request, dry_run=dry_run)
        self._engine.settle()
        return forked

    def start_many(self, requests: Sequence[StartRequest]) -> list[Started]:
        """Start several sagas in one transaction; as `start`."""
        started = self._engine.start(requests)
        self._engine.settle()
        return started

    def cancel(self, saga_id: str, *, reason: str, by: str = "") -> SagaRow:
        """Ask that a saga be undone; it lets the steps in flight end, then compensates.

        Raises:
            UnknownSaga: No saga has that id.
            NotAllowed: It is past its pivot, or has ended.
        """
        row = self._engine.cancel(saga_id, reason=reason, by=by)
        self._engine.settle()
        return row

    # What sagas wait for --------------------------------------------------------------------

    def signal(self, saga_id: str, name: str, data: Any = None, *, by: str = "") -> Operated:
        """Tell a saga that something has happened; the first signal of a name counts.

        Raises:
            UnknownSaga: No saga has that id.
            NotAllowed: It waits for no signal of that name, or has ended.
            PayloadTooLarge: The data are.
        """
        told = self._engine.signal(saga_id, name, data, by=by)
        self._engine.settle()
        return told

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
        return self._complete(token, Succeeded(output=output, undo=known))

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
        return self._complete(token, outcome)

    def _complete(self, token: str, outcome: Ended) -> Operated:
        told = self._engine.complete(token, outcome)
        self._engine.settle()
        return told

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
        operated = self._engine.operate(saga_id, message, dry_run=dry_run)
        self._engine.settle()
        return operated

    # Reading --------------------------------------------------------------------------------

    def row(self, saga_id: str) -> SagaRow:
        """A saga as it is stored.

        Raises:
            UnknownSaga: No saga has that id.
            DecodeError: It cannot be read.
        """
        return known_row(self._store, saga_id)

    def view(self, saga_id: str) -> SagaView:
        """A saga with its steps and its time line.

        Raises:
            UnknownSaga: No saga has that id.
        """
        return saga_view(*self.story(saga_id))

    def payload(self, saga_id: str, step: str = "", *, undo: bool = False) -> Any:
        """The input of a saga, or what a step has returned, with what is in the payload store.

        Args:
            saga_id: Which saga.
            step: Whose output; empty for the input.
            undo: Its undo data instead.

        Raises:
            UnknownSaga: No saga has that id.
            SagaError: As `Payloads.whole`.
        """
        row = self.row(saga_id)
        definition = self._engine.definition_of(row)
        return self._engine.payloads.whole(definition, row.state, step, undo=undo)

    def story(self, saga_id: str) -> tuple[Definition, SagaRow, Sequence[Recorded]]:
        """A saga with the definition that it runs on and all of its history.

        Raises:
            UnknownSaga: No saga has that id.
        """
        row = self.row(saga_id)
        return self._engine.definition_of(row), row, self._store.history([saga_id])[saga_id]

    def below(self, row: SagaRow) -> dict[str, SagaRow]:
        """The sub-sagas that a saga waits for, and those that they wait for, by their ids."""
        found: dict[str, SagaRow] = {}
        above = [row]
        for _ in range(SUB_SAGA_DEPTH_MAX):
            awaited = [
                sub_saga_of(planned, one.state)
                for one in above
                for planned in plan_of(self._engine.definition_of(one), one.state).sub_sagas
                if one.state.step(planned.name).phase in IN_FLIGHT
            ]
            above = [*self._store.load(awaited).values()] if awaited else []
            found.update({one.saga_id: one for one in above})
        return found

    def wait(
        self,
        saga_id: str,
        timeout: timedelta | None = None,
        on_change: Callable[[SagaRow], None] | None = None,
    ) -> SagaRow:
        """Wait until a saga has ended or got stuck.

        Args:
            saga_id: Which.
            timeout: None waits without end.
            on_change: Called with each new state that is seen.

        Returns:
            The saga as it was when the wait ended; it may still be moving after a timeout.
        """
        deadline = None if timeout is None else monotonic() + timeout.total_seconds()
        seen, pause_s = 0, _POLL_FIRST_S
        while True:
            row = self.row(saga_id)
            if row.sequence != seen:
                seen, pause_s = row.sequence, _POLL_FIRST_S
                if on_change:
                    on_change(row)
            left = None if deadline is None else deadline - monotonic()
            if outcome_of(row.state.status) or (left is not None and left <= 0):
                return row
            pause(pause_s if left is None else min(pause_s, left))
            pause_s = min(pause_s * 1.5, _POLL_MAX_S)

    def list(
        self,
        *,
        statuses: Collection[Status] = (),
        name: str | None = None,
        key: str | None = None,
        limit: int = 50,
    ) -> Sequence[SagaSummary]:
        """Sagas, newest first; an empty `statuses` means all."""
        return self._store.list_sagas(statuses=statuses, name=name, key=key, limit=limit)

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

    def ids_from(self, beginning: str, limit: int) -> Sequence[str]:
        """Ids of sagas that begin so, in order: of those that the product has made."""
        return self._store.ids_from(beginning, limit)

    def by_trace(self, trace_id: str) -> Sequence[SagaSummary]:
        """Sagas of a trace, oldest first."""
        return self._store.find_by_trace(trace_id)

    def stored_definitions(self) -> Sequence[Definition]:
        """Definitions in the store, by name and version."""
        return self._store.definitions()

    def definitions(self) -> Sequence[Definition]:
        """Definitions in the store and in code, by name and version."""
        stored = {(one.name, one.version): one for one in self._store.definitions()}
        in_code = {(saga.name, saga.version): saga.definition for saga in self._engine.catalog}
        return [one for _, one in sorted({**in_code, **stored}.items())]

    def find(self, wanted: Filter, limit: int = 50) -> Sequence[SagaRow]:
        """Sagas that fit a filter, newest first."""
        return [*islice(find(self._store, wanted), limit)]

    # Dead letters ---------------------------------------------------------------------------

    def dead_letters(self, limit: int = 50) -> Sequence[DeadLetter]:
        """Messages that nobody could act on, newest first."""
        return self._store.dead_letters(limit)

    def dead_letter(self, number: int) -> DeadLetter:
        """One of them.

        Raises:
            InputError: There is none of that number.
        """
        return dead_letters.letter_of(self._store, number)

    def requeue(self, number: int) -> DeadLetter:
        """Act on a dead letter once more; it is gone when this returns.

        Not over the broker: what follows is committed here, so that it is known what came of it.

        Raises:
            InputError: There is none of that number.
            NotAllowed: It still cannot be read or acted on; says why, and the letter stays.
            SagaError: As `start`, for a start; the letter stays.
        """
        letter = dead_letters.requeue(self._engine, number)
        self._engine.settle()
        self._store.drop_dead_letters([number])
        return letter

    def drop_dead_letters(self, numbers: Collection[int]) -> int:
        """Delete dead letters for good; returns how many there were."""
        return self._store.drop_dead_letters(numbers)

    def check(self) -> None:
        """Check that the store answers and has the schema of this version.

        Raises:
            UnavailableError: It does not answer.
            ConfigurationError: Its schema is older or newer.
        """
        self._store.check()

    def close(self) -> None:
        """Give connections back."""
        self._engine.close()
