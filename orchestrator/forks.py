"""Forks: a new saga that goes on from a step of one that has ended, with a copy of its history.

What is copied, and whose the effects are from then on, is decided in `core.forking`. The start of
the new saga and the hand-over in the history of the old one are one transaction: an effect never
belongs to two sagas, or to none.
"""

from typing import Final

import msgspec

from orchestrator.batch import Asked
from orchestrator.catalog import Catalog
from orchestrator.core.events import ForkedFrom
from orchestrator.core.forking import ForkPlan, fork_plan
from orchestrator.core.messages import HandOver, Start
from orchestrator.loop import Loop
from orchestrator.payloads import Payloads
from orchestrator.ports import SagaRow, Store
from orchestrator.starts import Starts
from orchestrator.tracing import SagaTracing
from orchestrator.unreadable import known_row
from shared.errors import KeyConflict, NotAllowed, UnavailableError
from shared.messages import StartRequest

CONFLICTS_MAX: Final = 50
"""Times a fork is decided anew because somebody else was faster, until something is wrong."""


class Forked(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a fork.

    Attributes:
        row: The new saga, durable; the old one for a dry run.
        plan: What becomes of each step; None for a fork that its business key had made before.
        created: False when its business key had made the same fork before.
        published: False when the broker could not be reached: an orchestrator sends its first
            commands as soon as it can.
        dry_run: Nothing was stored, and nothing was sent.
    """

    row: SagaRow
    plan: ForkPlan | None
    created: bool = True
    published: bool = True
    dry_run: bool = False


class Forks:
    """Forks sagas.

    Args:
        store: Where they are kept.
        catalog: Knows the definitions that forks run on.
        starts: Makes the first message of the new saga.
        loop: Commits it.
        tracing: Makes the span that shows the new saga.
        payloads: Gives it what the old one keeps.
    """

    def __init__(
        self,
        *,
        store: Store,
        catalog: Catalog,
        starts: Starts,
        loop: Loop,
        tracing: SagaTracing,
        payloads: Payloads,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._starts = starts
        self._loop = loop
        self._tracing = tracing
        self._payloads = payloads

    def fork(self, fork: ForkedFrom, request: StartRequest, *, dry_run: bool = False) -> Forked:
        """Start a saga from a copy of the history of another one. Durable when this returns.

        Args:
            fork: From which saga, and from which step on everything is done anew.
            request: How the new saga starts; its name is that of the old one.
            dry_run: Only say what would become of each step.

        Raises:
            UnknownSaga: No saga has that id, or no definition of its name is in the code.
            NotAllowed: It cannot be forked there; says why.
            InputError: The input does not fit, or is too large.
            KeyConflict: The business key belongs to another saga.
            UnavailableError: The store or the payload store cannot be reached.
        """
        for _ in range(CONFLICTS_MAX):
            old = known_row(self._store, fork.saga_id)
            asked = self._starts.asked(request, source=fork.saga_id)
            known = self._by_key(asked, fork)
            if known:
                return Forked(row=known, plan=None, created=False)
            plan = self._plan(fork, old)
            if dry_run:
                return Forked(row=old, plan=plan, dry_run=True)
            assert isinstance(asked.message, Start)  # noqa: S101 - what `asked` makes
            trace = old.state.trace
            linked = msgspec.structs.replace(
                asked.message.trace, link=trace.parent(trace.root_span_id)
            )
            start = msgspec.structs.replace(
                asked.message, trace=linked, fork=fork, copied=plan.copied
            )
            over = HandOver(
                to=asked.saga_id, step=fork.step, steps=plan.taken, reason=fork.reason, by=fork.by
            )
            self._payloads.keep([asked])
            self._payloads.hand_over(plan.copied, old.saga_id, asked.saga_id)
            changed, published = self._loop.advance_together(
                old,
                [
                    Asked(saga_id=old.saga_id, message=over),
                    msgspec.structs.replace(asked, message=start),
                ],
            )
            if changed:
                row = changed[asked.saga_id].row
                self._tracing.started(row)
                return Forked(row=row, plan=plan, published=published)
        raise UnavailableError(f"{CONFLICTS_MAX} conflicts in a row on saga {fork.saga_id}.")

    def _plan(self, fork: ForkedFrom, old: SagaRow) -> ForkPlan:
        newest = self._catalog.newest(old.state.name).definition
        plan = fork_plan(newest, self._loop.definition_of(old), old.state, fork.step)
        if isinstance(plan, str):
            raise NotAllowed(
                f"Saga {old.saga_id} cannot be forked from step {fork.step!r}. {plan}",
                saga_id=old.saga_id,
            )
        return plan

    def _by_key(self, asked: Asked, fork: ForkedFrom) -> SagaRow | None:
        """The same fork, made before with this business key; None where the key is free."""
        row = self._starts.by_key(asked)
        if row is None:
            return None
        made = row.state.fork
        if made is None or (made.saga_id, made.step) != (fork.saga_id, fork.step):
            raise KeyConflict(
                f"The key {row.state.key!r} of saga {row.state.name!r} belongs to {row.saga_id}, "
                "which is not the same fork.",
                hint="Use another key. Nothing was started.",
                saga_id=row.saga_id,
            )
        return row
