"""The one loop: load, decide, commit with the expected version, hand the commands over.

The only caller of the functional core's `decide`. On a conflict somebody else was faster, and it is
decided anew; an empty decision ends there.
"""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Final

import msgspec
import structlog

from orchestrator import intake, metrics
from orchestrator.batch import NOTHING_UNREADABLE, Asked, Batch
from orchestrator.catalog import Catalog
from orchestrator.core.definition import Definition
from orchestrator.core.events import Recorded
from orchestrator.core.limits import Limits
from orchestrator.core.machine import Decision, decide
from orchestrator.core.messages import Message, Pause, Start, Tick
from orchestrator.journal import Narrator
from orchestrator.outbox import Outbox
from orchestrator.ports import NO_GATES, Change, DeadLetter, Gate, SagaRow, Store
from orchestrator.rooms import NO_SHARES, Rooms
from orchestrator.tracing import SagaTracing
from orchestrator.unreadable import READ_AGAIN, Aside, refusal
from shared.clock import Clock
from shared.errors import ConfigurationError, DecodeError, InputError, UnavailableError

log = structlog.get_logger("orchestrator")

CONFLICTS_MAX: Final = 50
"""Times a change is decided anew because somebody else was faster, until something is wrong."""

ADMISSIONS_MAX: Final = 20
"""Times in a row that one who waits for room may be followed by the next."""

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
        rooms: Knows how much all sagas of a name may do.
        narrate: Tells what was committed.
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
        rooms: Rooms,
        narrate: Narrator,
    ) -> None:
        self._store = store
        self._outbox = outbox
        self._catalog = catalog
        self._tracing = tracing
        self._clock = clock
        self._limits = limits
        self._rooms = rooms
        self._narrate = narrate
        self._aside = Aside(store, self.definition_of)

    def advance(
        self, work: Sequence[Asked], letters: Sequence[DeadLetter] = ()
    ) -> tuple[dict[str, Change], bool]:
        """Decide and commit until nobody else was faster.

        Returns:
            The sagas that changed and how, and whether their commands reached the broker.
        """
        freed: set[Gate] = set()
        done = self._advance(work, letters, freed)
        if freed:
            self.admit(freed)
        return done

    def _advance(
        self, work: Sequence[Asked], letters: Sequence[DeadLetter], freed: set[Gate]
    ) -> tuple[dict[str, Change], bool]:
        changed: dict[str, Change] = {}
        published = True
        for _ in range(CONFLICTS_MAX):
            if not (work or letters):
                return changed, published
            batch = self._batch(work)
            refused = [letter for one in work if (letter := self._add(batch, one))]
            letters = [*letters, *refused, *self._aside.letters()]
            try:
                conflicts = self._commit(batch, letters)
            except InputError as error:
                apart, sent = self._one_by_one(work, letters, freed, error)
                return changed | apart, published and sent
            committed = [one for one in batch.changes() if one.row.saga_id not in conflicts]
            published &= self._follow(batch, committed, letters)
            changed |= {one.row.saga_id: one for one in committed}
            work = [one for one in work if one.saga_id in conflicts and self._again(batch, one)]
            letters = ()
            if batch.floor is not None:
                freed |= batch.floor.freed
        raise UnavailableError(f"{CONFLICTS_MAX} conflicts in a row on saga {work[0].saga_id}.")

    def _one_by_one(
        self,
        work: Sequence[Asked],
        letters: Sequence[DeadLetter],
        freed: set[Gate],
        error: InputError,
    ) -> tuple[dict[str, Change], bool]:
        """Commit saga by saga what the store refuses as a whole; put aside what it refuses alone.

        Raises:
            InputError: The caller waits for an answer: it is theirs.
        """
        told = all(one.delivery or isinstance(one.message, Tick) for one in work)
        if not (work and told):
            raise error
        saga_ids = dict.fromkeys(one.saga_id for one in work)
        if len(saga_ids) > 1:
            changed, published = self._advance((), letters, freed)
            for saga_id in saga_ids:
                mine = [one for one in work if one.saga_id == saga_id]
                more, sent = self._advance(mine, (), freed)
                changed, published = changed | more, published and sent
            return changed, published
        now = self._clock()
        (saga_id,) = saga_ids
        log.error("saga.refused_by_store", saga_id=saga_id, reason=str(error))
        self._store.postpone([saga_id], now + READ_AGAIN)
        refused = [letter for one in work if (letter := self._refuse(str(error), one))]
        return self._advance((), [*letters, *refused], freed)

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
        batch = self._batch(work, {row.saga_id: row})
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

    def admit(self, gates: Collection[Gate] | None = None) -> timedelta | None:
        """Let in those who wait for room and have it now: the longest waiting sagas first.

        Args:
            gates: Where there may be room; by default all that this process knows of.

        Returns:
            How long it takes until a rate lets the next one in; None where nobody waits for that.
        """
        limits = self._rooms.gates()
        asked = {
            gate: limits[gate] for gate in (limits if gates is None else gates) if gate in limits
        }
        for _ in range(ADMISSIONS_MAX if asked else 0):
            saga_ids, opens_at = self._rooms.to_admit(asked)
            if not saga_ids:
                return None if opens_at is None else opens_at - self._clock()
            # With their slots written anew: one that cannot go on must not stay in front.
            ticks = [Asked(saga_id=one, message=Tick(), recount=True) for one in saga_ids]
            self._advance(ticks, (), set())
        return None

    def audit(self, limit: int) -> bool:
        """Put right what somebody did who did not know of a limit or a pause.

        Returns:
            Whether there may be more.
        """
        control, late = self._rooms.to_pause(limit)
        if control is not None:
            pause = Pause(reason=control.reason, by=control.by)
            self.advance([Asked(saga_id=one, message=pause) for one in late])
        saga_ids = self._rooms.to_count(limit)
        self.advance([Asked(saga_id=one, message=Tick(), recount=True) for one in saga_ids])
        return len(saga_ids) == limit

    def preview(self, row: SagaRow, message: Message) -> tuple[Decision, SagaRow]:
        """What a message would lead to, and the saga after it; nothing is stored or sent."""
        asked = Asked(saga_id=row.saga_id, message=message)
        batch = self._batch([asked], {row.saga_id: row})
        decision = self._decide(self.definition_of(row), row, message, batch)
        if decision.events:
            batch.add(row, decision, None)
        return decision, batch.rows[row.saga_id]

    def retrace(self, limit: int) -> int:
        """Export spans anew whose export was never confirmed; returns of how many sagas."""
        now = self._clock()
        saga_ids = self._store.claim_untraced(now, now + TRACE_RETRY, limit)
        rows, _ = self._aside.load(saga_ids, now) if saga_ids else ({}, None)
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
        if asked.saga_id in batch.unreadable:
            reason = refusal(asked.saga_id, batch.unreadable[asked.saga_id])
            return self._refuse(reason, asked)
        row = batch.rows.get(asked.saga_id)
        definition = self.definition_of(row) if row else asked.definition
        if definition is None:
            return self._refuse(f"There is no saga {asked.saga_id!r}.", asked)
        decision = self._decide(definition, row, asked.message, batch)
        if decision.refused:
            return self._refuse(decision.refused, asked)
        shares = None
        if batch.floor is not None:
            started_at = row.started_at if row else batch.now
            shares = batch.floor.shares(definition, row, decision, started_at)
        if shares is None and asked.recount:
            shares = NO_SHARES
        # A timer that turns out to be none any more is set anew, or it would go off for ever.
        moved = (
            row is not None
            and isinstance(asked.message, Tick)
            and (decision.wake_at != row.wake_at or asked.recount)
        )
        if decision.state and (decision.events or decision.beat or moved):
            exported = bool(decision.events) and self._tracing.is_milestone(
                decision.state, decision.events
            )
            if row and row.trace_due_at:
                batch.untraced.add(asked.saga_id)
            batch.add(row, decision, batch.now + TRACE_RETRY if exported else None, shares)
        return None

    def _batch(self, work: Sequence[Asked], rows: dict[str, SagaRow] | None = None) -> Batch:
        now = self._clock()
        unreadable = NOTHING_UNREADABLE
        if rows is None:
            rows, unreadable = self._aside.load({one.saga_id for one in work}, now)
        begun = [one.definition for one in work if one.definition and one.saga_id not in rows]
        definitions = [*map(self.definition_of, rows.values()), *begun]
        return Batch(now, rows, self._rooms.floor(definitions, now), unreadable)

    def _decide(
        self, definition: Definition, row: SagaRow | None, message: Message, batch: Batch
    ) -> Decision:
        limits = self._limits
        if batch.floor is not None and (room := batch.floor.room(definition, row, batch.now)):
            limits = msgspec.structs.replace(limits, room=room)
        return decide(
            definition,
            row.state if row else None,
            message,
            batch.now,
            limits=limits,
            history=row.sequence if row else 0,
        )

    def _again(self, batch: Batch, asked: Asked) -> bool:
        """Whether what was not committed is decided anew."""
        if asked.definition is None:
            return True
        # A new saga that lost against its twin is not: the caller looks it up.
        begun = any(one.begun for one in batch.changes() if one.row.saga_id == asked.saga_id)
        key = asked.message.key if isinstance(asked.message, Start) else None
        taken = begun and key and self._store.find_by_key(asked.definition.name, key)
        return begun and not taken

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
                changes,
                published=published,
                dead_letters=letters,
                together=together,
                gates=batch.floor.limits if batch.floor else NO_GATES,
            )
        except (UnavailableError, InputError):
            self._outbox.published |= published
            raise
        metrics.set_aside(conflicts=len(conflicts), letters=len(letters))
        return conflicts

    def _tell(
        self, batch: Batch, committed: Sequence[Change], letters: Sequence[DeadLetter]
    ) -> None:
        self._narrate(committed, letters)
        metrics.committed(committed, batch.before, self.definition_of)

    def _trace(self, rows: Sequence[SagaRow], *, whole: Collection[str]) -> None:
        """Export the spans of sagas that came to an end, or got stuck.

        Args:
            rows: The sagas.
            whole: Ids of those of which an earlier export, made when they got stuck, may be lost.
        """
        if rows:
            histories = self._histories(rows)
            for row in (one for one in rows if one.saga_id in histories):
                # Somebody else may have moved it on already: that is for their export to say.
                history = histories[row.saga_id][: row.sequence]
                again = row.saga_id in whole
                self._tracing.ended(self.definition_of(row), row, history, whole=again)

    def _histories(self, rows: Sequence[SagaRow]) -> dict[str, list[Recorded]]:
        """The histories that can be read: a trace is not worth that the others are held up."""
        try:
            return self._store.history([row.saga_id for row in rows])
        except DecodeError:
            pass  # of one of them: which one is found out below
        found: dict[str, list[Recorded]] = {}
        for row in rows:
            try:
                found |= self._store.history([row.saga_id])
            except DecodeError as error:
                log.error("saga.history_unreadable", saga_id=row.saga_id, reason=str(error))  # noqa: TRY400 - told in one line
        return found
