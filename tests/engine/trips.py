"""A trip whose hotel is a saga of its own, over one engine."""

from datetime import timedelta
from typing import Any

import msgspec

from orchestrator.core.definition import Input, Output, Retry, Saga, Step, SubSaga
from shared.ids import sub_saga_id
from tests.guide.shop import Shop, Task
from workers.sdk import Fail, Reject


class Trip(msgspec.Struct):
    """Input of the saga above."""

    hotel: str = "Ritz"


class Stay(msgspec.Struct):
    """Input of the saga below."""

    hotel: str


HOTEL = Saga(
    name="hotel",
    version=1,
    input=Stay,
    steps=(
        Step("room", "hotel.room", "hotel.free", retry=Retry(attempts=1)),
        Step("meals", "hotel.meals", "hotel.no-meals", retry=Retry(attempts=1)),
    ),
)


def trip(**options: Any) -> Saga:
    """A trip whose second step is the hotel."""
    every = {"payload": {"hotel": Input("hotel")}, **options}
    work = every.pop("action", SubSaga("hotel"))
    return Saga(
        name="trip",
        version=1,
        input=Trip,
        deadline=timedelta(hours=1),
        steps=(
            Step("flight", "air.book", "air.cancel"),
            Step("hotel", work, **every),
            Step("mail", "mail.send", "mail.sorry", payload={"hotel": Output("hotel", "room.id")}),
        ),
    )


class Story:
    """A shop that counts what stands, and may be told to go wrong."""

    def __init__(self, *sagas: Saga, **tasks: Task) -> None:
        self.stands: set[str] = set()
        self.mails: list[str] = []
        undos = {
            "hotel.room": "hotel.free",
            "hotel.meals": "hotel.no-meals",
            "air.book": "air.cancel",
        }
        made: dict[str, Task] = {}
        for action, undo in undos.items():
            made[action] = self._doing(action)
            made[undo] = self._undoing(action)
        made["mail.send"] = self._mail
        made["mail.sorry"] = lambda **_: None
        changed = {name.replace("_", "."): task for name, task in tasks.items()}
        self.shop = Shop(*(sagas or (trip(), HOTEL)), tasks={**made, **changed})

    def _doing(self, action: str) -> Task:
        def do(**_: Any) -> dict[str, str]:
            self.stands.add(action)
            return {"id": f"{action}-1"}

        return do

    def _undoing(self, action: str) -> Task:
        return lambda **_: self.stands.discard(action)

    def _mail(self, hotel: str) -> None:
        self.mails.append(hotel)

    def start(self) -> tuple[str, str]:
        """Start a trip; returns the ids of it and of its hotel."""
        saga_id = self.shop.start("trip")
        return saga_id, sub_saga_id(saga_id, "hotel", 1)

    def statuses(self, *saga_ids: str) -> list[str]:
        """Statuses of these sagas."""
        return [self.shop.status(saga_id) for saga_id in saga_ids]

    def error(self, saga_id: str) -> tuple[str, str]:
        """Step and kind of what stopped a saga."""
        error = self.shop.view(saga_id).error
        assert error is not None
        return error.step, error.kind


def refusing(kind: str) -> Task:
    """A task that says no."""

    def refuse(**_: Any) -> None:
        raise Reject(kind)

    return refuse


def failing(kind: str) -> Task:
    """A task that breaks."""

    def fail(**_: Any) -> None:
        raise Fail(kind)

    return fail
