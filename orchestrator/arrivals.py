"""What comes through the queue: told to the saga that it is for, or kept with the reason why not."""

from collections.abc import Sequence

import structlog

from orchestrator import intake
from orchestrator.batch import Asked
from orchestrator.core.refusals import why_not
from orchestrator.loop import Loop
from orchestrator.ports import DeadLetter, Delivery, Store
from orchestrator.starts import Starts
from orchestrator.sub_sagas import SubSagas
from orchestrator.unreadable import row_of
from shared.clock import Clock
from shared.errors import DecodeError, PayloadStoreUnavailable, SagaError, UnavailableError
from shared.messages import EventArrived, Parent, StartRequest, Undecodable, UndoRequest

log = structlog.get_logger("orchestrator")


class Arrivals:
    """Acts on messages from the queue.

    Args:
        store: Where sagas are kept.
        loop: Decides and commits.
        starts: Starts sagas.
        sub_sagas: Acts on what one saga asks of another.
        clock: Tells the time.
        payload_bytes_max: Largest output and largest data of a signal, as JSON.
    """

    def __init__(
        self,
        *,
        store: Store,
        loop: Loop,
        starts: Starts,
        sub_sagas: SubSagas,
        clock: Clock,
        payload_bytes_max: int,
    ) -> None:
        self._store = store
        self._loop = loop
        self._starts = starts
        self._sub_sagas = sub_sagas
        self._clock = clock
        self._payload_bytes_max = payload_bytes_max

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
            row = row_of(self._store, asked.saga_id)
        except DecodeError as error:
            return str(error)
        if row is None:
            return f"There is no saga {asked.saga_id!r}."
        return why_not(self._loop.definition_of(row), row.state, asked.message)

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
        requests = self._starts.on(event)
        if not requests:
            # Nothing is lost: another version of the code may know one.
            reason = f"No saga of this orchestrator starts on the event {event.name!r}."
            return [self._letter(reason, delivery)]
        return [
            letter for request in requests for letter in self._start_or_letter(request, delivery)
        ]

    def _start_or_letter(self, request: StartRequest, delivery: Delivery) -> list[DeadLetter]:
        try:
            self._starts.start([request])
        except PayloadStoreUnavailable as error:
            return [self._letter(str(error), delivery)]  # else it would hold all others up
        except UnavailableError:
            raise
        except SagaError as error:
            return [self._letter(str(error), delivery)]
        return []

    def _letter(self, reason: str, delivery: Delivery) -> DeadLetter:
        return intake.letter(reason, delivery, self._clock())
