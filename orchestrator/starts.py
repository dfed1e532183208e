"""Starts: new sagas, what is stored of each, and which saga a start means that was made before."""

from collections.abc import Sequence

import msgspec

from orchestrator.batch import Asked
from orchestrator.catalog import Catalog
from orchestrator.core.eventing import input_of, key_of
from orchestrator.core.messages import Pause, Start, Undo
from orchestrator.loop import Loop
from orchestrator.payloads import Payloads, same_input
from orchestrator.ports import SagaRow, Store
from orchestrator.rooms import Rooms
from orchestrator.tracing import SagaTracing
from shared.clock import Clock
from shared.errors import KeyConflict, UnavailableError
from shared.ids import new_saga_id, new_secret, saga_id_from
from shared.messages import EventArrived, StartRequest


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


class Starts:
    """Starts sagas.

    Args:
        store: Knows which business keys are taken.
        loop: Decides and commits.
        catalog: Knows the definitions.
        tracing: Begins their traces.
        clock: Tells the time.
        rooms: Knows which names are paused.
        payloads: Takes large fields out of inputs.
    """

    def __init__(
        self,
        *,
        store: Store,
        loop: Loop,
        catalog: Catalog,
        tracing: SagaTracing,
        clock: Clock,
        rooms: Rooms,
        payloads: Payloads,
    ) -> None:
        self._store = store
        self._loop = loop
        self._catalog = catalog
        self._tracing = tracing
        self._clock = clock
        self._rooms = rooms
        self._payloads = payloads

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
        asked = [self.asked(request) for request in requests]
        found = [self.by_key(one) for one in asked]
        new = [one for one, row in zip(asked, found, strict=True) if row is None]
        self._payloads.keep(new)
        changed, published = self._loop.advance(new)
        started = []
        for one, row in zip(asked, found, strict=True):
            # Where it is neither found nor changed, somebody else was faster with id or key.
            created = one.saga_id in changed
            mine = changed[one.saga_id].row if created else row or self.twin(one)
            if created:
                self._tracing.started(mine)
            started.append(Started(row=mine, created=created, published=published))
        return started

    def begin(self, asked: Asked) -> bool:
        """Start one saga, unless there is one of its id; says whether it did."""
        changed = self._loop.advance([asked])[0].get(asked.saga_id)
        if changed:
            self._tracing.started(changed.row)
        return changed is not None

    def asked(self, request: StartRequest, undo: Undo | None = None, *, source: str = "") -> Asked:
        """What a start asks; its definition is kept in the store by then.

        Args:
            request: What to start.
            undo: For a sub-saga that is to be undone before it has begun.
            source: The saga that keeps what tickets in the input stand for, where one does; by
                default the parent.

        Raises:
            UnknownSaga: No definition of that name.
            InputError: The input does not fit, or is too large.
            PayloadStoreUnavailable: What `source` keeps cannot be fetched.
        """
        saga = self._catalog.newest(request.name)
        what = f"The input of {request.name!r}"
        source = source or (request.parent.saga_id if request.parent else "")
        given = saga.check_input(self._payloads.given(request.input, source))
        checked, parts = self._payloads.check_in(given, what)
        self._catalog.keep(self._store, self._clock(), saga)
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
            pause=self._pause(request.name),
        )
        return Asked(saga_id=saga_id, message=message, definition=saga.definition, parts=parts)

    def _pause(self, name: str) -> Pause | None:
        said = self._rooms.pause_of(name)
        return None if said is None else Pause(reason=said.reason, by=said.by)

    def by_key(self, asked: Asked) -> SagaRow | None:
        """The saga that a start's business key names; None where it is free, or there is none.

        Raises:
            KeyConflict: That saga was started with other input.
        """
        start, definition = asked.message, asked.definition
        if not isinstance(start, Start) or start.key is None or definition is None:
            return None
        row = self._store.find_by_key(definition.name, start.key)
        if row and not same_input(row.state.input, start.input):
            raise KeyConflict(
                f"The key {start.key!r} of saga {definition.name!r} belongs to {row.saga_id}, "
                "which was started with other input.",
                hint="Use another key, or the same input. Nothing was started.",
                saga_id=row.saga_id,
            )
        return row

    def twin(self, asked: Asked) -> SagaRow:
        """The saga that was faster with the id or the business key of a start."""
        row = self._store.load([asked.saga_id]).get(asked.saga_id) or self.by_key(asked)
        if row is None:
            raise UnavailableError(f"Saga {asked.saga_id} was neither stored nor found.")
        return row

    def on(self, event: EventArrived) -> list[StartRequest]:
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
            for saga in self._catalog.starting_on(event.name)
        ]
