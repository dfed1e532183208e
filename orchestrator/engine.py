"""The imperative shell: everything goes through here.

Replies and timers from the coordinator, starts and cancels from a client in any process: each is
turned into a message for a saga, and `Loop` loads, decides, commits and publishes.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import msgspec
import structlog

from orchestrator import intake, journal, metrics
from orchestrator.batch import Asked
from orchestrator.catalog import Catalog
from orchestrator.core.definition import Definition
from orchestrator.core.events import Event, ForkedFrom
from orchestrator.core.limits import Limit, Limits
from orchestrator.core.machine import NO_LIMITS
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
    Tick,
)
from orchestrator.core.refusals import why_not
from orchestrator.forks import Forked, Forks
from orchestrator.loop import Loop
from orchestrator.outbox import Outbox
from orchestrator.payloads import Payloads
from orchestrator.ports import Control, DeadLetter, Delivery, SagaRow, Store, Transport
from orchestrator.rooms import GateView, Rooms
from orchestrator.starts import Starts
from orchestrator.sub_sagas import SubSagas
from orchestrator.tracing import SagaTracing
from orchestrator.unreadable import known_row, row_of
from shared import codec
from shared.claims import Claims
from shared.clock import Clock
from shared.errors import (
    DecodeError,
    NotAllowed,
    PayloadStoreUnavailable,
    SagaError,
    UnavailableError,
)
from shared.messages import (
    Command,
    Ended,
    EventArrived,
    Parent,
    StartRequest,
    Succeeded,
    Undecodable,
    UndoRequest,
)

_IN_WORDS: Final[dict[type[Operator], str]] = {
    Pause: "be paused",
    Resume: "be resumed",
    RetryNow: "try again",
    Skip: "skip the step",
    Resolve: "be resolved",
    CompensateNow: "be compensated",
}

log = structlog.get_logger(__name__)


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a start.

    Attributes:
        row: The saga, durable.
        created: False when its business key had been started before.
        published: False when the broker could not be reached: an orchestrator sends its first
            commands as soon as it can.
    """

    row: SagaRow
    created: bool
    published: bool = True


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
        self._payload_bytes_max = payload_bytes_max
        self._outbox = Outbox(transport=transport, tracing=tracing, clock=clock)
        self.payloads = Payloads(claims, store, payload_bytes_max)
        self._rooms = Rooms(store=store, catalog=catalog, clock=clock)
        self._starts = Starts(
            store=store,
            catalog=catalog,
            tracing=tracing,
            clock=clock,
            rooms=self._rooms,
            payloads=self.payloads,
        )
        self._loop = Loop(
            store=store,
            outbox=self._outbox,
            catalog=catalog,
            tracing=tracing,
            clock=clock,
            limits=limits,
            rooms=self._rooms,
            narrate=narrate,
        )
        self._forks = Forks(
            store=store,
            catalog=catalog,
            starts=self._starts,
            loop=self._loop,
            tracing=tracing,
            payloads=self.payloads,
        )
        self._sub_sagas = SubSagas(
            starts=self._starts,
            store=store,
            begin=self._begin,
            definition_of=self.definition_of,
            payloads=self.payloads,
        )
        self._gauges: metrics.StoreGauges | None = None

    # Starts and cancels, from a client ------------------------------------------------------

    def start(self, requests: Sequence[StartRequest]) -> list[Started]:
        """Start sagas, all in one transaction. Durable when this returns.

        Args:
            requests: What to start; a business key at most once.

        Returns:
            For each request its saga: a new one, or the one that its key names.

        Raises:
            UnknownSaga: No definition of that name.
            InputError: The input does not fit, or is too large. Nothing was stored.
            KeyConflict: The key belongs to a saga with other input. Nothing was stored.
            PayloadStoreUnavailable: A large field cannot be kept. No saga was stored.
        """
        asked = [self._starts.asked(request) for request in requests]
        found = [self._starts.by_key(one) for one in asked]
        new = [one for one, row in zip(asked, found, strict=True) if row is None]
        self.payloads.keep(new)
        changed, published = self._loop.advance(new)
        started = []
        for one, row in zip(asked, found, strict=True):
            # Where it is neither found nor changed, somebody else was faster with id or key.
            created = one.saga_id in changed
            mine = changed[one.saga_id].row if created else row or self._starts.twin(one)
            if created:
                self._tracing.started(mine)
            started.append(Started(row=mine, created=created, published=published))
        return started

    def fork(self, fork: ForkedFrom, request: StartRequest, *, dry_run: bool = False) -> Forked:
        """Start a saga from a copy of the history of another one; see `Forks.fork`."""
        return self._forks.fork(fork, request, dry_run=dry_run)

    def starts_of(self, event: EventArrived) -> list[StartRequest]:
        """What an event starts, idempotent by its id; empty where no saga starts on it."""
        return self._starts.on(event)

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
        kept = self.payloads.take(saga_id, data, "The data of the signal")
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
            output = self.payloads.take(saga_id, outcome.output, "The output")
            undo = self.payloads.take(saga_id, outcome.undo, "The undo data")
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
        wish, take = _IN_WORDS[type(message)], self.payloads.take
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
        row = known_row(self.store, saga_id)
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
        if self.payloads.claims is None:
            return
        row = row_of(self.store, saga_id)
        if row is not None:
            self._refuse(row, message, wish)

    def _refuse(
        self, row: SagaRow, message: Cancel | Signal | Complete | Operator, wish: str
    ) -> None:
        refused = why_not(self.definition_of(row), row.state, message)
        if refused:
            saga_id = row.saga_id
            raise NotAllowed(f"Saga {saga_id} cannot {wish}. {refused}", saga_id=saga_id)

    # Messages and timers, from the coordinator ----------------------------------------------

    def handle(self, deliveries: Sequence[Delivery]) -> None:
        """Act on a batch of messages in one transaction.

        When this returns, what follows from them is committed, and they can be acknowledged.
        """
        work: list[Asked] = []
        letters: list[DeadLetter] = []
        for delivery in deliveries:
            match delivery.message:
                case StartRequest(parent=Parent()) as request:
                    work += self._between(request)
                case StartRequest() as request:
                    letters += self._start_or_letter(request, delivery)
                case EventArrived() as event:
                    letters += self._start_on(event, delivery)
                case UndoRequest() as request:
                    work += self._between(request)
                case Undecodable(reason=reason):
                    letters.append(self._letter(reason, delivery))
                case request:
                    if not self._sub_sagas.adopted(request):
                        continue
                    try:
                        work.append(intake.told(request, delivery, self._payload_bytes_max))
                    except SagaError as error:
                        letters.append(self._letter(str(error), delivery))
        self._loop.advance(work, letters)

    def refusal(self, delivery: Delivery) -> str:
        """Why a message for a saga cannot be acted on now; empty when it can."""
        if isinstance(delivery.message, StartRequest | EventArrived | UndoRequest | Undecodable):
            return "It is for no saga."
        try:
            asked = intake.told(delivery.message, delivery, self._payload_bytes_max)
        except SagaError as error:
            return str(error)
        try:
            row = row_of(self.store, asked.saga_id)
        except DecodeError as error:
            return str(error)
        if row is None:
            return f"There is no saga {asked.saga_id!r}."
        return why_not(self.definition_of(row), row.state, asked.message)

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

    # Limits that sagas share ----------------------------------------------------------------

    def limits_of(self, definition: Definition) -> Mapping[str, Limit]:
        """The limits in force for sagas on a definition, by step; the empty name is the saga."""
        self._rooms.gates()
        return self._rooms.limits_of(definition)

    def gates(self, definitions: Sequence[Definition]) -> list[GateView]:
        """The limits in force for sagas on these definitions, and how much of each is used."""
        found = [(one.name, self.limits_of(one)) for one in definitions]
        limits = {(name, step): limit for name, of in found for step, limit in of.items()}
        return self._rooms.view(limits)

    def awaited(self, row: SagaRow) -> list[GateView]:
        """What a saga waits for room in; nothing where it has ended or has a limit no more."""
        limits = self.limits_of(self.definition_of(row))
        awaited = () if row.state.status.final else row.state.awaited
        gates = {(row.state.name, step): limits[step] for step in awaited if step in limits}
        return self._rooms.view(gates, row) if gates else []

    def pauses(self) -> list[Control]:
        """The names that are paused."""
        return self._rooms.pauses()

    def control(self, control: Control) -> None:
        """Keep what an operator says of a name."""
        self.store.put_control(control)
        self._rooms.forget()

    def uncontrol(self, name: str, step: str, kind: str) -> Control | None:
        """Take back what an operator said of a name; returns what it was."""
        gone = self.store.drop_control(name, step, kind)
        self._rooms.forget()
        return gone

    def close(self) -> None:
        """Give connections back."""
        if self._gauges is not None:
            self._gauges.close()
        self._tracing.close()
        self.transport.close()
        self.store.close()

    # Small parts ----------------------------------------------------------------------------

    def _between(self, request: StartRequest | UndoRequest) -> list[Asked]:
        """What a saga asks of its sub-saga; nothing where that cannot be read: it asks again."""
        try:
            if isinstance(request, UndoRequest):
                return self._sub_sagas.undo(request)
            return self._sub_sagas.start(request)
        except DecodeError as error:
            log.error("saga.unreadable", saga_id=request.saga_id, reason=str(error))  # noqa: TRY400 - told in one line
            return []

    def _start_on(self, event: EventArrived, delivery: Delivery) -> list[DeadLetter]:
        requests = self.starts_of(event)
        if not requests:
            # Nothing is lost: another version of the code may know one.
            reason = f"No saga of this orchestrator starts on the event {event.name!r}."
            return [self._letter(reason, delivery)]
        return [
            letter for request in requests for letter in self._start_or_letter(request, delivery)
        ]

    def _start_or_letter(self, request: StartRequest, delivery: Delivery) -> list[DeadLetter]:
        try:
            self.start([request])
        except PayloadStoreUnavailable as error:
            return [self._letter(str(error), delivery)]  # else it would hold all others up
        except UnavailableError:
            raise
        except SagaError as error:
            return [self._letter(str(error), delivery)]
        return []

    def _begin(self, asked: Asked) -> bool:
        changed = self._loop.advance([asked])[0].get(asked.saga_id)
        if changed:
            self._tracing.started(changed.row)
        return changed is not None

    def _letter(self, reason: str, delivery: Delivery) -> DeadLetter:
        return intake.letter(reason, delivery, self._clock())
