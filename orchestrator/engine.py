"""The imperative shell: load, decide, commit with the expected version, hand the commands over.

The only caller of the functional core. Everything goes through here: replies and timers from the
coordinator, starts and cancels from a client in any process.
"""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, assert_never

import msgspec
import structlog

from orchestrator import journal, metrics
from orchestrator.catalog import Catalog
from orchestrator.core.definition import Definition
from orchestrator.core.eventing import input_of, key_of
from orchestrator.core.events import Event, Recorded
from orchestrator.core.limits import Limits
from orchestrator.core.machine import NO_LIMITS, Decision, decide, why_not
from orchestrator.core.messages import (
    Cancel,
    CompensateNow,
    Complete,
    Heartbeat,
    Message,
    Operator,
    Pause,
    Resolve,
    Resume,
    RetryNow,
    Signal,
    Skip,
    Start,
    Tick,
    Undo,
)
from orchestrator.ports import Change, DeadLetter, Delivery, SagaRow, Store, Transport
from orchestrator.tracing import SagaTracing
from shared import codec, faults
from shared.clock import Clock
from shared.errors import (
    ConfigurationError,
    InputError,
    KeyConflict,
    NotAllowed,
    PayloadTooLarge,
    SagaError,
    UnavailableError,
    UnknownSaga,
)
from shared.ids import new_saga_id, new_secret, saga_id_from
from shared.messages import (
    PROGRESS_BYTES_MAX,
    CancelRequest,
    Command,
    CompleteRequest,
    Ended,
    EventArrived,
    Failed,
    Failure,
    HeartbeatRequest,
    Parent,
    Rejected,
    Reply,
    SignalRequest,
    StartRequest,
    Succeeded,
    Undecodable,
    UndoRequest,
)
from shared.telemetry.redaction import redacted_text
from shared.tokens import read_token

CONFLICTS_MAX: Final = 50
"""Times a change is decided anew because somebody else was faster, until something is wrong."""

SUB_SAGA_DEPTH_MAX: Final = 8
"""Sagas that may stand above a sub-saga: a saga that starts itself ends there."""

TRACE_RETRY: Final = timedelta(seconds=30)
"""How long an export of spans may take until it counts as lost."""

_IN_WORDS: Final[dict[type[Operator], str]] = {
    Pause: "be paused",
    Resume: "be resumed",
    RetryNow: "try again",
    Skip: "skip the step",
    Resolve: "be resolved",
    CompensateNow: "be compensated",
}

log = structlog.get_logger(__name__)


_ForASaga = Reply | CancelRequest | SignalRequest | CompleteRequest | HeartbeatRequest
"""Messages for a saga that exists."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A message for a saga.

    Attributes:
        delivery: How it came, when it came through the queue: if it is refused it goes to the
            dead letters.
        definition: Of a saga that this message begins.
    """

    saga_id: str
    message: Message
    delivery: Delivery | None = None
    definition: Definition | None = None


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
    """

    row: SagaRow
    events: tuple[Event, ...]
    commands: tuple[Command, ...]
    dry_run: bool


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
    ) -> None:
        self.store = store
        self.transport = transport
        self.catalog = catalog
        self._tracing = tracing
        self._clock = clock
        self._payload_bytes_max = payload_bytes_max
        self._limits = limits
        self._published: set[str] = set()
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
        """
        asked = [self._start_asked(request) for request in requests]
        found = [self._by_key(one) for one in asked]
        new = [one for one, row in zip(asked, found, strict=True) if row is None]
        changed, published = self._advance(new)
        started = []
        for one, row in zip(asked, found, strict=True):
            # Where it is neither found nor changed, somebody else was faster with id or key.
            created = one.saga_id in changed
            mine = changed[one.saga_id].row if created else row or self._twin(one)
            if created:
                self._tracing.started(mine)
            started.append(Started(row=mine, created=created, published=published))
        return started

    def starts_of(self, event: EventArrived) -> list[StartRequest]:
        """What an event starts, idempotent by its id; empty where no saga starts on it."""
        return [
            StartRequest(
                name=saga.name,
                input=input_of(saga, event.fields),
                key=key_of(saga, event.event_id, event.fields),
                saga_id=saga_id_from(f"{event.event_id}:{saga.name}"),
                traceparent=event.traceparent,
                tracestate=event.tracestate,
                baggage=event.baggage,
            )
            for saga in self.catalog.starting_on(event.name)
        ]

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
        """
        codec.check_size(data, self._payload_bytes_max, "The data of the signal")
        return self._ask(saga_id, Signal(name=name, data=data, by=by), "take the signal")

    def complete(self, token: str, outcome: Ended) -> Operated:
        """End an attempt that its participant accepted. Late or again it changes nothing.

        Raises:
            DecodeError: It is no token.
            UnknownSaga: Its saga does not exist.
            NotAllowed: It is not a token of its saga.
            PayloadTooLarge: Output or undo data are.
        """
        if isinstance(outcome, Succeeded):
            codec.check_size(outcome.output, self._payload_bytes_max, "The output")
            codec.check_size(outcome.undo, self._payload_bytes_max, "The undo data")
        complete = _completion(token, outcome)
        return self._ask(complete.reply.saga_id, complete, "complete the step")

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
        """
        match message:
            case RetryNow(payload=payload):
                codec.check_size(payload, self._payload_bytes_max, "The edited payload")
            case Skip(output=output):
                codec.check_size(output, self._payload_bytes_max, "The output")
            case _:
                pass
        return self._ask(saga_id, message, _IN_WORDS[type(message)], dry_run=dry_run)

    def _ask(
        self,
        saga_id: str,
        message: Cancel | Signal | Complete | Operator,
        wish: str,
        *,
        dry_run: bool = False,
    ) -> Operated:
        asked = [] if dry_run else [Asked(saga_id=saga_id, message=message)]
        change = self._advance(asked)[0].get(saga_id)
        if change is not None:
            events = tuple(recorded.event for recorded in change.events)
            return Operated(row=change.row, events=events, commands=change.commands, dry_run=False)
        # Asked after the decision and not before: the pivot may overtake a cancel.
        row = self.store.load([saga_id]).get(saga_id)
        if row is None:
            raise UnknownSaga(f"There is no saga {saga_id!r}.", hint="`saga list` shows them.")
        definition = self.definition_of(row)
        refused = why_not(definition, row.state, message)
        if refused:
            raise NotAllowed(f"Saga {saga_id} cannot {wish}. {refused}", saga_id=saga_id)
        if not dry_run:
            return Operated(row=row, events=(), commands=(), dry_run=False)
        batch = _Batch(self._clock(), {saga_id: row})
        decision = decide(
            definition,
            row.state,
            message,
            batch.now,
            limits=self._limits,
            history=row.sequence,
        )
        if decision.events:
            batch.add(row, decision, None)
        return Operated(
            row=batch.rows[saga_id],
            events=decision.events,
            commands=decision.commands,
            dry_run=True,
        )

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
                    work += self._start_sub_saga(request, None)
                case StartRequest() as request:
                    letters += self._start_or_letter(request, delivery)
                case EventArrived() as event:
                    letters += self._start_on(event, delivery)
                case UndoRequest() as request:
                    work += self._undo(request)
                case Undecodable(reason=reason):
                    letters.append(self._letter(reason, delivery))
                case request:
                    try:
                        work.append(self._told(request, delivery))
                    except SagaError as error:
                        letters.append(self._letter(str(error), delivery))
        self._advance(work, letters)

    def refusal(self, delivery: Delivery) -> str:
        """Why a message for a saga cannot be acted on now; empty when it can."""
        if isinstance(delivery.message, StartRequest | EventArrived | UndoRequest | Undecodable):
            return "It is for no saga."
        try:
            asked = self._told(delivery.message, delivery)
        except SagaError as error:
            return str(error)
        row = self.store.load([asked.saga_id]).get(asked.saga_id)
        if row is None:
            return f"There is no saga {asked.saga_id!r}."
        return why_not(self.definition_of(row), row.state, asked.message)

    def tick(self, limit: int) -> int:
        """Wake the sagas whose timers are due; returns how many there were, `limit` at most."""
        due = self.store.due(self._clock(), limit)
        self._advance([Asked(saga_id=saga_id, message=Tick()) for saga_id in due])
        return len(due)

    def settle(self) -> None:
        """Delete outbox rows that were published, and note spans that were exported."""
        traced = self._tracing.take_exported()
        if self._published or traced:
            published, self._published = self._published, set()
            self.store.commit((), published=published, traced=traced)

    def republish(self, older_than: timedelta, limit: int) -> int:
        """Send commands that a crash left in the outbox; returns how many."""
        now = self._clock()
        commands = self.store.claim_unpublished(now - older_than, now, limit)
        if commands:
            log.warning("outbox.republished", commands=len(commands))
            self._publish(commands)
        return len(commands)

    def retrace(self, limit: int) -> int:
        """Export spans anew whose export was never confirmed; returns of how many sagas."""
        now = self._clock()
        saga_ids = self.store.claim_untraced(now, now + TRACE_RETRY, limit)
        rows = self.store.load(saga_ids)
        self._trace(list(rows.values()), whole=rows.keys())
        given_up = {
            one: row.trace_due_at
            for one, row in rows.items()
            if row.trace_due_at and self._tracing.gives_up(row, now)
        }
        if given_up:
            self.store.commit((), traced=given_up)
        return len(saga_ids)

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
        state = row.state
        definition = self.catalog.pinned(self.store, state.name, state.version)
        if definition is None:
            raise ConfigurationError(
                f"The store has saga {state.saga_id}, but not its definition {state.name!r} "
                f"version {state.version}.",
                hint="Restore the table saga_definition, or put that version back into the code.",
            )
        return definition

    def close(self) -> None:
        """Give connections back."""
        if self._gauges is not None:
            self._gauges.close()
        self._tracing.close()
        self.transport.close()
        self.store.close()

    # Load, decide, commit, publish ----------------------------------------------------------

    def _advance(
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
            batch = _Batch(self._clock(), self.store.load({one.saga_id for one in work}))
            refused = [letter for one in work if (letter := self._decide(batch, one))]
            letters = [*letters, *refused]
            conflicts = self._commit(batch, letters)
            committed = [one for one in batch.changes() if one.row.saga_id not in conflicts]
            try:
                published &= self._publish([it for one in committed for it in one.commands])
            finally:
                # Afterwards: the participants need not wait for our lines, and are told in any case.
                self._tell(batch, committed, letters)
            due = [one.row for one in committed if one.row.trace_due_at]
            self._trace(due, whole=batch.untraced)
            changed |= {one.row.saga_id: one for one in committed}
            # A new saga that lost against its twin is not tried again: the caller looks it up.
            work = [one for one in work if one.saga_id in conflicts and not one.definition]
            letters = ()
        raise UnavailableError(f"{CONFLICTS_MAX} conflicts in a row on saga {work[0].saga_id}.")

    def _decide(self, batch: "_Batch", asked: Asked) -> DeadLetter | None:
        """Add a message's consequences to a batch; a refused one becomes a dead letter."""
        row = batch.rows.get(asked.saga_id)
        definition = self.definition_of(row) if row else asked.definition
        if definition is None:
            return self._refuse(f"There is no saga {asked.saga_id!r}.", asked)
        decision = decide(
            definition,
            row.state if row else None,
            asked.message,
            batch.now,
            limits=self._limits,
            history=row.sequence if row else 0,
        )
        if decision.refused:
            return self._refuse(decision.refused, asked)
        if decision.state and (decision.events or decision.beat):
            exported = self._tracing.is_milestone(decision.state, decision.events)
            if row and row.trace_due_at:
                batch.untraced.add(asked.saga_id)
            batch.add(row, decision, batch.now + TRACE_RETRY if exported else None)
        return None

    def _refuse(self, reason: str, asked: Asked) -> DeadLetter | None:
        return self._letter(reason, asked.delivery) if asked.delivery else None

    def _commit(self, batch: "_Batch", letters: Sequence[DeadLetter]) -> frozenset[str]:
        """Commit a batch; returns the sagas that somebody else has changed."""
        changes = batch.changes()
        if not (changes or letters):
            return frozenset()
        published, self._published = self._published, set()
        try:
            conflicts = self.store.commit(changes, published=published, dead_letters=letters)
        except UnavailableError:
            self._published |= published
            raise
        metrics.set_aside(conflicts=len(conflicts), letters=len(letters))
        return conflicts

    def _tell(
        self, batch: "_Batch", committed: Sequence[Change], letters: Sequence[DeadLetter]
    ) -> None:
        journal.narrate(committed, letters)
        metrics.committed(committed, batch.before, self.definition_of)

    def _publish(self, commands: Sequence[Command]) -> bool:
        if not commands:
            return True
        faults.reach("orchestrator:after-commit-before-publish")
        begun_at = self._clock()
        try:
            self.transport.publish(commands)
        except UnavailableError as error:
            # They stay in the outbox: whoever sweeps it next sends them.
            log.warning("outbox.publish_failed", commands=len(commands), error=str(error))
            metrics.published(0)
            return False
        ids = [command.id for command in commands]
        self._tracing.published(ids, begun_at, self._clock())
        metrics.published(len(ids))
        self._published.update(ids)
        return True

    def _trace(self, rows: Sequence[SagaRow], *, whole: Collection[str]) -> None:
        """Export the spans of sagas that came to an end, or got stuck.

        Args:
            rows: The sagas.
            whole: Ids of those of which an earlier export, made when they got stuck, may be lost.
        """
        if rows:
            histories = self.store.history([row.saga_id for row in rows])
            for row in rows:
                history = histories[row.saga_id]
                again = row.saga_id in whole
                self._tracing.ended(self.definition_of(row), row, history, whole=again)

    # Small parts ----------------------------------------------------------------------------

    def _start_asked(self, request: StartRequest, undo: Undo | None = None) -> Asked:
        saga = self.catalog.newest(request.name)
        checked = saga.check_input(request.input)
        codec.check_size(checked, self._payload_bytes_max, f"The input of {request.name!r}")
        self.catalog.keep(self.store, self._clock(), saga)
        saga_id = request.saga_id or new_saga_id()
        trace = self._tracing.begin(request)
        message = Start(
            saga_id=saga_id,
            input=checked,
            key=request.key,
            trace=trace,
            secret=new_secret(),
            not_before=request.not_before,
            parent=request.parent,
            undo=undo,
        )
        return Asked(saga_id=saga_id, message=message, definition=saga.definition)

    def _by_key(self, asked: Asked) -> SagaRow | None:
        start, definition = asked.message, asked.definition
        if not isinstance(start, Start) or start.key is None or definition is None:
            return None
        row = self.store.find_by_key(definition.name, start.key)
        if row and row.state.input != start.input:
            raise KeyConflict(
                f"The key {start.key!r} of saga {definition.name!r} belongs to {row.saga_id}, "
                "which was started with other input.",
                hint="Use another key, or the same input. Nothing was started.",
                saga_id=row.saga_id,
            )
        return row

    def _twin(self, asked: Asked) -> SagaRow:
        row = self.store.load([asked.saga_id]).get(asked.saga_id) or self._by_key(asked)
        if row is None:
            raise UnavailableError(f"Saga {asked.saga_id} was neither stored nor found.")
        return row

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
        except UnavailableError:
            raise
        except SagaError as error:
            return [self._letter(str(error), delivery)]
        return []

    # Sagas of sagas -------------------------------------------------------------------------

    def _start_sub_saga(self, request: StartRequest, undo: Undo | None) -> list[Asked]:
        """Start the saga of a step; one that cannot be started is a rejected step."""
        parent = request.parent
        assert parent is not None  # noqa: S101 - the caller has looked
        try:
            if parent.depth > SUB_SAGA_DEPTH_MAX:
                raise InputError(
                    f"Saga {request.name!r} would be the sub-saga of {parent.depth} others.",
                    hint=f"At most {SUB_SAGA_DEPTH_MAX} are allowed: does it start itself?",
                )
            asked = self._start_asked(request, undo)
        except UnavailableError:
            raise
        except SagaError as error:
            failure = Failure(kind="SubSagaRefused", message=str(error), retryable=False)
            return [_answered(parent, undo, Rejected(failure=failure))]
        changed = self._advance([asked])[0].get(asked.saga_id)
        if changed:
            self._tracing.started(changed.row)
        return []

    def _undo(self, request: UndoRequest) -> list[Asked]:
        """Undo a sub-saga, or see to it that it never begins: its start may come later."""
        undo = Undo(attempt=request.attempt, reason=request.reason)
        asked = Asked(saga_id=request.saga_id, message=undo)
        if request.start.parent is None or self.store.load([request.saga_id]):
            return [asked]
        if request.began:
            text = f"The sub-saga {request.saga_id} is not in the store any more."
            failure = Failure(kind="SubSagaGone", message=text, retryable=False)
            return [_answered(request.start.parent, undo, Failed(failure=failure))]
        # Whoever was faster with its start: the message above finds it.
        return [*self._start_sub_saga(request.start, undo), asked]

    def _told(self, request: _ForASaga, delivery: Delivery) -> Asked:
        """Which saga is told what.

        Raises:
            SagaError: It cannot be acted on.
        """
        message: Message
        match request:
            case Reply(saga_id=saga_id) as reply:
                message = self._checked(reply, delivery)
            case CancelRequest(saga_id=saga_id, reason=reason, by=by):
                message = Cancel(reason=reason, by=by)
            case SignalRequest(saga_id=saga_id, name=name, data=data, by=by):
                codec.check_size(data, self._payload_bytes_max, "The data of the signal")
                message = Signal(name=name, data=data, by=by)
            case CompleteRequest(token=token, outcome=outcome):
                told = _completion(token, outcome)
                reply = self._checked(told.reply, delivery)
                saga_id, message = reply.saga_id, Complete(reply=reply, proof=told.proof)
            case HeartbeatRequest(saga_id=saga_id):
                # The sign of life counts all the same.
                large = 4 * len(delivery.body) > PROGRESS_BYTES_MAX and (
                    len(codec.encode(request.progress)) > PROGRESS_BYTES_MAX
                )
                message = Heartbeat(
                    step=request.step,
                    direction=request.direction,
                    attempt=request.attempt,
                    progress=None if large else request.progress,
                )
            case _:
                assert_never(request)
        return Asked(saga_id=saga_id, message=message, delivery=delivery)

    def _checked(self, reply: Reply, delivery: Delivery) -> Reply:
        """A reply whose output is over the limit counts as a failure: it cannot be passed on.

        What a failure says to people is stored without secrets. The SDK has checked both already;
        a service without the SDK may not have.
        """
        outcome, limit = reply.outcome, self._payload_bytes_max
        if isinstance(outcome, Rejected | Failed):
            shown = msgspec.structs.replace(outcome, failure=_for_people(outcome.failure))
            return msgspec.structs.replace(reply, outcome=shown)
        # A character is four bytes at the most: a short body need not be encoded to be sure.
        if not isinstance(outcome, Succeeded) or 4 * len(delivery.body) <= limit:
            return reply
        try:
            codec.check_size(outcome.output, limit, "The result")
            codec.check_size(outcome.undo, limit, "The undo data")
        except PayloadTooLarge as error:
            failure = Failure(kind="ResultTooLarge", message=str(error), retryable=False)
            return msgspec.structs.replace(reply, outcome=Failed(failure=failure))
        return reply

    def _letter(self, reason: str, delivery: Delivery) -> DeadLetter:
        saga_id = getattr(delivery.message, "saga_id", None)
        return DeadLetter(
            reason=reason,
            task=delivery.task,
            saga_id=saga_id,
            body=delivery.body,
            at=self._clock(),
        )


def _completion(token: str, outcome: Ended) -> Complete:
    told = read_token(token)
    reply = Reply(
        saga_id=told.saga_id,
        step=told.step,
        direction=told.direction,
        attempt=told.attempt,
        outcome=outcome,
    )
    return Complete(reply=reply, proof=told.proof)


def _for_people(failure: Failure) -> Failure:
    return msgspec.structs.replace(
        failure,
        message=redacted_text(failure.message),
        traceback=redacted_text(failure.traceback),
    )


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


class _Batch:
    """Changes that will be one transaction: several messages may be about the same saga."""

    def __init__(self, now: datetime, rows: dict[str, SagaRow]) -> None:
        self.now = now
        self.before = dict(rows)
        self.rows = rows
        self.untraced: set[str] = set()
        """Ids of sagas of which an earlier export of spans is not confirmed."""
        self._changes: dict[str, Change] = {}

    def add(self, row: SagaRow | None, decision: Decision, trace_due_at: datetime | None) -> None:
        """Add a decision about a saga whose row before it is `row`."""
        assert decision.state is not None  # noqa: S101 - the caller has looked
        saga_id = decision.state.saga_id
        sequence = row.sequence if row else 0
        events = tuple(
            Recorded(sequence=number, at=self.now, event=event)
            for number, event in enumerate(decision.events, start=sequence + 1)
        )
        self.rows[saga_id] = SagaRow(
            sequence=events[-1].sequence if events else sequence,
            state=decision.state,
            wake_at=decision.wake_at,
            started_at=row.started_at if row else self.now,
            updated_at=self.now,
            trace_due_at=trace_due_at or (row.trace_due_at if row else None),
        )
        earlier = self._changes.get(saga_id)
        self._changes[saga_id] = Change(
            row=self.rows[saga_id],
            expected_sequence=earlier.expected_sequence if earlier else sequence,
            events=(earlier.events if earlier else ()) + events,
            commands=(earlier.commands if earlier else ()) + decision.commands,
        )

    def changes(self) -> tuple[Change, ...]:
        """One for each saga that changed."""
        return tuple(self._changes.values())
