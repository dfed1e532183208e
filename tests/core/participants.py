"""Participants as pure functions: what a command does to the world, and what is answered.

Two kinds. With the *barrier*, a failed attempt leaves nothing, a duplicate gets
the stored outcome, and an action that comes after its compensation is refused. *Plain* ones have none
of it, and what a failed attempt did stands; commands must reach them once and in order.
"""

from enum import Enum, IntEnum, auto

from shared.ids import Direction


class Effect(IntEnum):
    """What a participant with the barrier knows about one step of one saga."""

    NONE = auto()
    STANDS = auto()
    REFUSED = auto()
    """Said no, and keeps saying so."""
    UNDONE = auto()
    """Stood once; a duplicate of the action gets the stored success, and does nothing."""
    UNHEARD = auto()
    """No worker knows its task, and none ever will."""
    CLOSED = auto()
    """Undone before it came, or after it was refused: nothing can happen any more."""

    __hash__ = int.__hash__  # that of an enum is written in Python, and asked for all the time


class Choice(Enum):
    """How an attempt ends, as far as the participant may choose."""

    SUCCEED = auto()
    REJECT = auto()
    FAIL = auto()
    FAIL_AFTER_EFFECT = auto()
    """Plain participants only: the barrier rolls the effect back."""
    FAIL_FOR_GOOD = auto()
    NOT_KNOW = auto()
    """The worker does not know the task."""


class Answer(Enum):
    """What is replied."""

    SUCCEEDED = auto()
    REJECTED = auto()
    FAILED = auto()
    FAILED_FOR_GOOD = auto()
    UNKNOWN = auto()
    ACCEPTED = auto()

    __hash__ = object.__hash__  # as above


_ANSWER_OF = {
    Choice.SUCCEED: Answer.SUCCEEDED,
    Choice.REJECT: Answer.REJECTED,
    Choice.FAIL: Answer.FAILED,
    Choice.FAIL_AFTER_EFFECT: Answer.FAILED,
    Choice.FAIL_FOR_GOOD: Answer.FAILED_FOR_GOOD,
    Choice.NOT_KNOW: Answer.UNKNOWN,
}


def _answer(direction: Direction, choice: Choice) -> Answer:
    """What is replied to an attempt that ends so; an undo cannot be refused."""
    if direction == "compensation" and choice is Choice.NOT_KNOW:
        return Answer.FAILED_FOR_GOOD
    return _ANSWER_OF[choice]


_CHANGED = {
    Choice.SUCCEED: Effect.STANDS,
    Choice.REJECT: Effect.REFUSED,
    Choice.NOT_KNOW: Effect.UNHEARD,
}


def with_barrier(effect: Effect, direction: Direction, choice: Choice) -> tuple[Effect, Answer]:
    """What one delivery of a command does at a participant with the barrier."""
    answer = _answer(direction, choice)
    if direction == "compensation":
        if effect in {Effect.UNDONE, Effect.CLOSED}:
            return effect, Answer.SUCCEEDED
        if choice is not Choice.SUCCEED:
            return effect, answer
        return (Effect.UNDONE if effect is Effect.STANDS else Effect.CLOSED), answer
    match effect:
        case Effect.STANDS | Effect.UNDONE:
            return effect, Answer.SUCCEEDED
        case Effect.REFUSED | Effect.CLOSED:
            return effect, Answer.REJECTED
        case Effect.UNHEARD:
            return effect, Answer.UNKNOWN
        case Effect.NONE:
            return _CHANGED.get(choice, effect), answer


def plain(stands: bool, direction: Direction, choice: Choice) -> tuple[bool, Answer]:
    """What a command does at a participant without the barrier: whether the effect stands then."""
    happened = choice in {Choice.SUCCEED, Choice.FAIL_AFTER_EFFECT}
    return (direction == "action" if happened else stands), _answer(direction, choice)
