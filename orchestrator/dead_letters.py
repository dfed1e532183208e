"""Messages that nobody could act on: looked up, and acted on once more."""

from orchestrator.engine import Engine
from orchestrator.ports import DeadLetter, Delivery, Store
from shared import codec, names
from shared.errors import InputError, NotAllowed
from shared.messages import EventArrived, StartRequest, Undecodable
from shared.sealing import open_message


def letter_of(store: Store, number: int) -> DeadLetter:
    """The dead letter of a number.

    Raises:
        InputError: There is none.
    """
    letter = store.dead_letter(number)
    if letter is None:
        raise InputError(f"There is no dead letter {number}.", hint="`saga dlq list` shows them.")
    return letter


def requeue(engine: Engine, number: int) -> DeadLetter:
    """Act on a dead letter; what follows is committed when this returns, and the letter stays.

    Raises:
        InputError: There is none of that number.
        NotAllowed: It still cannot be read or acted on; says why.
        SagaError: As `Starts.start`, for a start.
    """
    letter = letter_of(engine.store, number)
    identity = f"dead-letter-{number}"
    # Of an event only its name and its fields were kept.
    known = letter.task in engine.catalog.events()
    headers = {names.SAGA_EVENT_ID: identity} if known else {}
    message = open_message(
        codec.decode_inbound(letter.task, identity, letter.body.encode(), headers)
    )
    match message:
        case EventArrived():
            engine.start(engine.starts_of(message))
        case StartRequest():
            engine.start([message])
        case Undecodable(reason=reason):
            raise NotAllowed(f"Dead letter {number} still cannot be read: {reason}")
        case _:
            delivery = Delivery(message=message, task=letter.task, body=letter.body)
            _reconsider(engine, number, delivery)
    return letter


def _reconsider(engine: Engine, number: int, delivery: Delivery) -> None:
    if refused := engine.refusal(delivery):
        raise NotAllowed(
            f"Dead letter {number} still cannot be acted on. {refused}",
            saga_id=getattr(delivery.message, "saga_id", None),
        )
    engine.handle([delivery])
