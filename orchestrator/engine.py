"""The imperative shell: everything goes through here.

Starts and cancels from a client in any process, replies and timers from the coordinator: each is
turned into a message for a saga, and `Loop` loads, decides, commits and publishes. The engine puts
the parts together: `Starts`, `Forks` and `Asking` serve clients, `Arrivals` the coordinator.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import structlog

from orchestrator import journal, metrics
from orchestrator.arrivals import Arrivals
from orchestrator.asking import Asking, Operated
from orchestrator.batch import Asked
from orchestrator.catalog import Catalog
from orchestrator.core.definition import Definition
from orchestrator.core.events import ForkedFrom
from orchestrator.core.limits import Limits
from orchestrator.core.machine import NO_LIMITS
from orchestrator.core.messages import Operator, Tick
from orchestrator.forks import Forked, Forks
from orchestrator.loop import Loop
from orchestrator.outbox import Outbox
from orchestrator.payloads import Payloads
from orchestrator.ports import Delivery, SagaRow, Store, Transport
from orchestrator.rooms import Rooms
from orchestrator.starts import Started, Starts
from orchestrator.sub_sagas import SubSagas
from orchestrator.tracing import SagaTracing
from shared import codec
from shared.claims import Claims
from shared.clock import Clock
from shared.messages import Ended, EventArrived, StartRequest

log = structlog.get_logger(__name__)


class Engine:
    """Advances sagas.

    Args:
        store: Where they are kept.
        transport: Takes their commands.
        catalog: Knows their definitions.
        tracing: Makes their spans.
        clock: Tells the time.
        payload_bytes_max: Largest input and largest output, as JSON.
        limits: How much one saga may do.
        claims: Where large payloads are kept; None for nowhere.
        narrate: Tells what was committed; by default the log does.

    Attributes:
        store: As given.
        transport: As given.
        catalog: As given.
        payloads: What sagas keep in the payload store.
        rooms: The limits that sagas share.
    """

    def __init__(
        self,
        *,
        store: Store,
        transport: Transport,
        catalog: Catalog,
        tracing: SagaTracing,
        clock: Clock,
        payload_bytes_max: int = codec.PAYLOAD_BYTES_MAX_DEFAULT,
        limits: Limits = NO_LIMITS,
        claims: Claims | None = None,
        narrate: journal.Narrator = journal.narrate,
    ) -> None:
        self.store = store
        self.transport = transport
        self.catalog = catalog
        self._tracing = tracing
        self._clock = clock
        self.payloads = Payloads(claims, store, payload_bytes_max)
        self.rooms = Rooms(store=store, catalog=catalog, clock=clock)
        self._outbox = Outbox(transport=transport, tracing=tracing, clock=clock)
        self._loop = Loop(
            store=store,
            outbox=self._outbox,
            catalog=catalog,
            tracing=tracing,
            clock=clock,
            limits=limits,
            rooms=self.rooms,
            narrate=narrate,
        )
        self._starts = Starts(
            store=store,
            loop=self._loop,
            catalog=catalog,
            tracing=tracing,
            clock=clock,
            rooms=self.rooms,
            payloads=self.payloads,
        )
        self._forks = Forks(
            store=store,
            catalog=catalog,
            starts=self._starts,
            loop=self._loop,
            tracing=tracing,
            payloads=self.payloads,
        )
        self._asking = Asking(store=store, loop=self._loop, payloads=self.payloads)
        self._arrivals = Arrivals(
            store=store,
            loop=self._loop,
            starts=self._starts,
            sub_sagas=SubSagas(
                starts=self._starts,
                store=store,
                definition_of=self.definition_of,
                payloads=self.payloads,
            ),
            clock=clock,
            payload_bytes_max=payload_bytes_max,
        )
        self._gauges: metrics.StoreGauges | None = None

    # From clients ---------------------------------------------------------------------------

    def start(self, requests: Sequence[StartRequest]) -> list[Started]:
        """Start sagas, all in one transaction; see `Starts.start`."""
        return self._starts.start(requests)

    def starts_of(self, event: EventArrived) -> list[StartRequest]:
        """What an event starts, idempotent by its id; empty where no saga starts on it."""
        return self._starts.on(event)

    def fork(self, fork: ForkedFrom, request: StartRequest, *, dry_run: bool = False) -> Forked:
        """Start a saga from a copy of the history of another one; see `Forks.fork`."""
        return self._forks.fork(fork, request, dry_run=dry_run)

    def cancel(self, saga_id: str, *, reason: str, by: str) -> SagaRow:
        """Ask that a saga be undone; see `Asking.cancel`."""
        return self._asking.cancel(saga_id, reason=reason, by=by)

    def signal(self, saga_id: str, name: str, data: Any, *, by: str) -> Operated:
        """Tell a saga that something has happened; see `Asking.signal`."""
        return self._asking.signal(saga_id, name, data, by=by)

    def complete(self, token: str, outcome: Ended) -> Operated:
        """End an attempt that its participant accepted; see `Asking.complete`."""
        return self._asking.complete(token, outcome)

    def operate(self, saga_id: str, message: Operator, *, dry_run: bool = False) -> Operated:
        """Do what an operator asks; see `Asking.operate`."""
        return self._asking.operate(saga_id, message, dry_run=dry_run)

    # Messages and timers, from the coordinator ----------------------------------------------

    def handle(self, deliveries: Sequence[Delivery]) -> None:
        """Act on a batch of messages in one transaction; see `Arrivals.handle`."""
        self._arrivals.handle(deliveries)

    def refusal(self, delivery: Delivery) -> str:
        """Why a message for a saga cannot be acted on now; empty when it can."""
        return self._arrivals.refusal(delivery)

    def tick(self, limit: int) -> int:
        """Wake the sagas whose timers are due; returns how many there were, `limit` at most."""
        due = self.store.due(self._clock(), limit)
        self._loop.advance([Asked(saga_id=saga_id, message=Tick()) for saga_id in due])
        return len(due)

    def admit(self) -> timedelta | None:
        """Let in sagas that wait for room and have it now.

        Returns:
            How long it takes until a rate lets the next one in; None where nobody waits for that.
        """
        return self._loop.admit()

    def audit(self, limit: int) -> bool:
        """Put right what somebody did who did not know yet of a limit, or of a pause of a name.

        Returns:
            Whether there may be more to do than `limit`.
        """
        return self._loop.audit(limit)

    def settle(self) -> None:
        """Delete outbox rows that were published, and note spans that were exported."""
        traced = self._tracing.take_exported()
        if self._outbox.published or traced:
            self.store.commit((), published=self._outbox.take_published(), traced=traced)

    def republish(self, older_than: timedelta, limit: int) -> int:
        """Send commands that a crash left in the outbox; returns how many."""
        now = self._clock()
        commands = self.store.claim_unpublished(now - older_than, now, limit)
        if commands:
            log.warning("outbox.republished", commands=len(commands))
            self._outbox.publish(commands, again=True)
        return len(commands)

    def retrace(self, limit: int) -> int:
        """Export spans anew whose export was never confirmed; returns of how many sagas."""
        return self._loop.retrace(limit)

    def survey(self) -> None:
        """Look how the store is doing, for the metrics."""
        if self._gauges is None:
            self._gauges = metrics.StoreGauges(self._clock)
        self._gauges.look(self.store)

    def definition_of(self, row: SagaRow) -> Definition:
        """The definition that a saga started with.

        Raises:
            ConfigurationError: The store has lost it.
        """
        return self._loop.definition_of(row)

    def close(self) -> None:
        """Give connections back."""
        if self._gauges is not None:
            self._gauges.close()
        self._tracing.close()
        self.transport.close()
        self.store.close()
