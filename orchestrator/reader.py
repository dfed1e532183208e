"""Reads sagas, from any process that reaches the store; no broker is needed."""

from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any

from orchestrator import dead_letters
from orchestrator.controls import Controls
from orchestrator.core.definition import Definition
from orchestrator.core.events import Recorded
from orchestrator.core.plan import plan_of
from orchestrator.core.state import Status
from orchestrator.core.terms import IN_FLIGHT
from orchestrator.engine import Engine
from orchestrator.ports import DeadLetter, SagaRow, SagaSummary
from orchestrator.search import Filter, Found, Older, find, summaries
from orchestrator.sub_sagas import SUB_SAGA_DEPTH_MAX
from orchestrator.unreadable import known_row
from orchestrator.views import SagaView, outcome_of, saga_view, sub_saga_of
from shared.clock import monotonic, pause, utc_now

_POLL_FIRST_S = 0.005
_POLL_MAX_S = 0.2


class Reader:
    """What one can look at.

    Args:
        engine: Made by `orchestrator.bootstrap`. Not for use by several threads at once.

    Attributes:
        controls: What operators say of all sagas of a name.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = engine.store
        self.controls = Controls(engine, utc_now)

    # One saga -------------------------------------------------------------------------------

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

    # Many sagas -----------------------------------------------------------------------------

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

    def find(self, wanted: Filter, limit: int = 50) -> Sequence[SagaRow]:
        """Sagas that fit a filter, newest first."""
        return [*islice(find(self._store, wanted), limit)]

    def summaries(
        self,
        wanted: Filter,
        limit: int = 50,
        *,
        older: Older | None = None,
        looked_at_max: int | None = None,
    ) -> Found:
        """Sagas that fit a filter as a list shows them, newest first, page by page.

        Args:
            wanted: Which.
            limit: Most of a page.
            older: Where the page before has ended (`Found.older`).
            looked_at_max: Most that are read for a page; see `search.summaries`.
        """
        return summaries(
            self._store,
            wanted,
            limit=limit,
            older=older,
            looked_at_max=looked_at_max,
        )

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
        return self._engine.catalog.known(self._store)

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

    # The connection -------------------------------------------------------------------------

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
