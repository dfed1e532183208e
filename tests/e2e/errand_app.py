"""Who runs the errands of `errands`: what stands of them are files in ``SAGA_HOME``."""

from pathlib import Path

from shared.celery_app import make_app
from shared.settings import settings
from tests.waiting import wait_until
from workers.sdk import Fail, Later, Participant, StepContext

RESTED = "rested"
"""File in ``SAGA_HOME``: who naps wakes up when it is there."""

app = make_app("tests.e2e.errand_app", service="errand", settings=settings)
participant = Participant(app)


def booking(home: Path, saga_id: str, step: str) -> Path:
    """The file of a ride, which has the token of its step."""
    return home / "rides" / f"{saga_id}.{step}"


def book_ride(context: StepContext) -> None:
    """Write a ride down."""
    file = booking(settings().home, context.saga_id, context.step)
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.new")
    new.write_text(context.token)
    new.rename(file)


@participant.action("errand.quote")
def quote(context: StepContext, mood: str) -> dict[str, int]:
    """Nobody is there at first; those who are asked too often say so."""
    if mood == "closed" or (mood == "away" and context.attempt == 1):
        raise Fail(mood.capitalize(), "come back another time")
    if mood == "busy" and context.attempt <= 2:
        raise Fail("RateLimited", "one after the other")
    return {"price": 7}


@participant.action("errand.note")
def note(context: StepContext) -> None:
    """Make a note of it."""


@participant.action("errand.book")
def book(context: StepContext) -> None:
    """A ride that is there at once."""
    book_ride(context)


@participant.action("errand.nap")
def nap(context: StepContext) -> None:
    """Takes as long as it has to."""
    wait_until((settings().home / RESTED).exists, timeout=30, what="the end of the nap")


@participant.action("errand.ride")
def ride(context: StepContext, way: str) -> Later:
    """Somebody else says when it is over."""
    book_ride(context)
    return Later()


@participant.compensation("errand.call_off")
def call_off(context: StepContext) -> None:
    """Not any more."""
    booking(settings().home, context.saga_id, context.step).unlink(missing_ok=True)


@participant.action("errand.mail")
def mail(context: StepContext, to: str, weight: int) -> dict[str, str]:
    """Say that it is done; without an address that is hopeless."""
    if not to:
        raise Fail("NoAddress", "to whom?", retryable=False)
    if to == "eve" and context.attempt < 3:
        raise Fail("ServerAway", "try again")
    return {"to": to}
