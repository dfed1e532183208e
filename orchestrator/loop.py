"""The one loop: load, decide, commit with the expected version, hand the commands over.

The only caller of the functional core's `decide`. On a conflict somebody else was faster, and it is
decided anew; an empty decision ends there.
"""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Final

from orchestrator import intake, journal, metrics
from orchestrator.batch import Asked, Batch
from orchestrator.catalog import Catalog
from orchestrator.core.definition import Definition
from orchestrator.core.limits import Limits
from orchestrator.core.machine import Decision, decide
from orchestrator.core.messages import Message
from orchestrator.outbox import Outbox
from orchestrator.ports import Change, DeadLetter, SagaRow, Store
from orchestrator.tracing import SagaTracing
from shared.clock import Clock
from shared.errors import ConfigurationError, UnavailableError

CONFLICTS_MAX: Final = 50
"""Times a change is decided anew because somebody else was faster, until something is wrong."""

TRACE_RETRY: Final = timedelta(seconds=30)
"""How long an export of spans may take until it counts as lost."""


class Loop:
    """Advances sagas by messages.

    Args:
        store: Where they are kept.
        outbox: Sends their commands.
        catalog: Knows their definitions.
        tracing: Makes their spans.
        clock: Tells the time.
        limits: How much one saga may do.
    """

    def __init__(
        self,
        *,
        store: Store,
        outbox: Outbox,
        catalog: Catalog,
        tracing: SagaTracing,
        clock: Clock,
        limits: Limits,
    ) -> None:
        self._store = store
        self._outbox = outbox
        self._catalog = catalog
        self._tracing = tracing
        self._clock = clock
        self._limits = limits

    def advance(
        self, work: Sequence[Asked], letters: Sequence[DeadLetter] = ()
    ) -> tuple[dict[str, Change], bool]:
        """Decide and commit until nobody else was faster.

        Returns:
            The sagas that changed and how, and whether their commands reached the broker.
        """
        changed: dict[str, Change] = {}
        published = True
        for _ in range(CONFLICTS_MAX):
            if not (work or letters):
                return changed, published
            batch = Batch(self._clock(), self._store.load({one.saga_id for one in work}))
            refused = [letter for one in work if (letter := self._add(batch, one))]
            letters = [*letters, *refused]
            conflicts = self._commit(batch, letters)
            committed = [one for one in batch.changes() if one.row.saga_id not in conflicts]
            published &= self._follow(batch, committed, letters)
            changed |= {one.row.saga_id: one for one in committed}
            # A new saga that lost against its twin is not tried again: the caller looks it up.
            work = [one for one in work if one.saga_id in conflicts and not one.definition]
            letters = ()
        raise UnavailableError(f"{CONFLICTS_MAX} conflicts in a row on saga {work[0].saga_id}.")

    def advance_together(
        self, row: SagaRow, work: Sequence[Asked]
    ) -> tuple[dict[str, Change], bool]:
        """Decide about an old saga and new ones, and commit all of it or nothing.

        Args:
            row: The old saga, as it was when it was decided what to ask.
            work: What is asked of it and of sagas that begin.

        Returns:
            As `advance`; nothing has changed where somebody else was faster with one of them.
        """
        batch = Batch(self._clock(), {row.saga_id: row})
        for one in work:
            self._add(batch, one)
        if self._commit(batch, (), together=True):
            return {}, True
        published = self._follow(batch, batch.changes(), ())
        return {one.row.saga_id: one for one in batch.changes()}, published

    def _follow(
        self, batch: Batch, committed: Sequence[Change], letters: Sequence[DeadLetter]
    ) -> bool:
        """Send, tell and export what was committed; returns whether the broker could be reached."""
        try:
            published = self._outbox.publish([it for one in committed for it in one.commands])
        finally:
            # Afterwards: the participants need not wait for our lines, and are told in any case.
            self._tell(batch, committed, letters)
        # One that only moves on, or is forked, while an earlier export is awaited is not exported.
        due_at = batch.now + TRACE_RETRY
        due = [one.row for one in committed if one.row.trace_due_at == due_at]
        self._trace(due, whole=batch.untraced)
        return published

    def preview(self, row: SagaRow, message: Message) -> tuple[Decision, SagaRow]:
        """What a message would lead to, and the saga after it; nothing is stored or sent."""
        batch = Batch(self._clock(), {row.saga_id: row})
        decision = self._decide(self.definition_of(row), row, message, batch.now)
        if decision.events:
            batch.add(row, decision, None)
        return decision, batch.rows[row.saga_id]

    def retrace(self, limit: int) -> int:
        """Export spans anew whose export was never confirmed; returns of how many sagas."""
        now = self._clock()
        saga_ids = self._store.claim_untraced(now, now + TRACE_RETRY, limit)
        rows = self._store.load(saga_ids)
        self._trace(list(rows.values()), whole=rows.keys())
        given_up = {
            one: row.trace_due_at
            for one, row in rows.items()
            if row.trace_due_at and self._tracing.gives_up(row, now)
        }
        if given_up:
            self._store.commit((), traced=given_up)
        return len(saga_ids)

    def definition_of(self, row: SagaRow) -> Definition:
        """The definition that a saga started with.

        Raises:
            ConfigurationError: The store has lost it.
        """
        state = row.state
        definition = self._catalog.pinned(self._store, state.name, state.version)
        if definition is None:
            raise ConfigurationError(
                f"The store has saga {state.saga_id}, but not its definition {state.name!r} "
                f"version {state.version}.",
                hint="Restore the table saga_definition, or put that version back into the code.",
            )
        return definition

    def _add(self, batch: Batch, asked: Asked) -> DeadLetter | None:
        """Add a message's consequences to a batch; a refused one becomes a dead letter."""
        row = batch.rows.get(asked.saga_id)
        definition = self.definition_of(row) if row else asked.definition
        if definition is None:
            return self._refuse(f"There is no saga {asked.saga_id!r}.", asked)
        decision = self._decide(definition, row, asked.message, batch.now)
        if decision.refused:
            return self._refuse(decision.refused, asked)
        if decision.state and (decision.events or decision.beat):
            exported = self._tracing.is_milestone(decision.state, decision.events)
            if row and row.trace_due_at:
                batch.untraced.add(asked.saga_id)
            batch.add(row, decision, batch.now + TRACE_RETRY if exported else None)
        return None

    def _decide(
        self, definition: Definition, row: SagaRow | None, message: Message, now: datetime
    ) -> Decision:
        return decide(
            definition,
            row.state if row else None,
            message,
            now,
            limits=self._limits,
            history=row.sequence if row else 0,
        )

    def _refuse(self, reason: str, asked: Asked) -> DeadLetter | None:
        return intake.letter(reason, asked.delivery, self._clock()) if asked.delivery else None

    def _commit(
        self, batch: Batch, letters: Sequence[DeadLetter], *, together: bool = False
    ) -> frozenset[str]:
        """Commit a batch; returns the sagas that somebody else has changed."""
        changes = batch.changes()
        if not (changes or letters):
            return frozenset()
        published = self._outbox.take_published()
        try:
            conflicts = self._store.commit(
                changes, published=published, dead_letters=letters, together=together
            )
        except UnavailableError:
            self._outbox.published |= published
            raise
        metrics.set_aside(conflicts=len(conflicts), letters=len(letters))
        return conflicts

    def _tell(
        self, batch: Batch, committed: Sequence[Change], letters: Sequence[DeadLetter]
    ) -> None:
        journal.narrate(committed, letters)
        metrics.committed(committed, batch.before, self.definition_of)

    def _trace(self, rows: Sequence[SagaRow], *, whole: Collection[str]) -> None:
        """Export the spans of sagas that came to an end, or got stuck.

        Args:
            rows: The sagas.
            whole: Ids of those of which an earlier export, made when they got stuck, may be lost.
        """
        if rows:
            histories = self._store.history([row.saga_id for row in rows])
            for row in rows:
                history = histories[row.saga_id]
                again = row.saga_id in whole
                self._tracing.ended(self.definition_of(row), row, history, whole=again)
