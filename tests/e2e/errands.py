"""Errands: sagas that wait, are answered from outside, and go wrong in ways that people see."""

from datetime import datetime, timedelta

import msgspec

from orchestrator.core.definition import (
    NOTHING_TO_UNDO,
    Input,
    Item,
    Limit,
    Output,
    Retry,
    Saga,
    Sleep,
    Step,
    SubSaga,
    WaitFor,
)
from orchestrator.core.references import gt
from shared.backoff import Backoff

SOON = Backoff(wait_first=timedelta(milliseconds=10), wait_max=timedelta(milliseconds=10))
LATER = Backoff(wait_first=timedelta(minutes=10), wait_max=timedelta(minutes=10))
STAMPS_A_SECOND = 4


class Errand(msgspec.Struct, frozen=True):
    """What is to be done."""

    begin_at: datetime
    mood: str = "good"
    price: int = 10
    ways: tuple[str, ...] = ()
    to: str = "ada"


class Parcel(msgspec.Struct, frozen=True):
    """What the signal has to say."""

    weight: int


class Pile(msgspec.Struct, frozen=True):
    """What is to be done many times."""

    papers: tuple[int, ...] = ()


ERRAND = Saga(
    name="errand",
    version=1,
    input=Errand,
    steps=(
        Step(
            "quote",
            "errand.quote",
            NOTHING_TO_UNDO,
            payload={"mood": Input("mood")},
            retry=Retry(
                attempts=1,
                never_on=("Closed",),
                by_kind={
                    "RateLimited": Retry(attempts=None, backoff=SOON),
                    "Away": Retry(attempts=3, backoff=LATER),
                },
            ),
        ),
        Step(
            "insure",
            "errand.note",
            NOTHING_TO_UNDO,
            payload={},
            when=gt(Input("price"), 1_000),
        ),
        Step("begin", Sleep(until=Input("begin_at"))),
        Step(
            "opinion",
            WaitFor("opinion", approval=True, otherwise="default", default={"approved": True}),
            timeout=timedelta(milliseconds=200),
        ),
        Step(
            "rides",
            "errand.ride",
            "errand.call_off",
            each=Input("ways"),
            payload={"way": Item()},
            completes_within=timedelta(minutes=1),
        ),
        Step("parcel", WaitFor("parcel"), timeout=timedelta(minutes=1), output=Parcel),
        Step("confirm", "errand.note", payload={}, pivot=True),
        Step(
            "mail",
            "errand.mail",
            payload={"to": Input("to"), "weight": Output("parcel", "weight")},
            retry=Retry.forever(wait_max=timedelta(milliseconds=500)),
        ),
    ),
)

OUTING = Saga(
    name="outing",
    version=1,
    input=Errand,
    steps=(Step("errand", SubSaga("hurry"), payload={"begin_at": Input("begin_at")}),),
)

HASTY = Saga(
    name="hasty",
    version=1,
    input=Errand,
    deadline=timedelta(seconds=8),
    steps=OUTING.steps,
)

HURRY = Saga(
    name="hurry",
    version=1,
    input=Errand,
    steps=(
        Step("ride", "errand.book", "errand.call_off", payload={}),
        Step("parcel", WaitFor("parcel"), timeout=timedelta(minutes=1)),
    ),
)

PAPERWORK = Saga(
    name="paperwork",
    version=1,
    input=Pile,
    steps=(
        Step("papers", "errand.note", NOTHING_TO_UNDO, each=Input("papers"), payload={}),
        Step("file", "errand.note", NOTHING_TO_UNDO, payload={}),
    ),
)

NAP = Saga(
    name="nap",
    version=1,
    input=Pile,
    steps=(Step("nap", "errand.nap", NOTHING_TO_UNDO, payload={}),),
)

STAMP = Saga(
    name="stamp",
    version=1,
    input=Pile,
    steps=(
        Step(
            "stamp",
            "errand.note",
            NOTHING_TO_UNDO,
            payload={},
            limit=Limit(rate=f"{STAMPS_A_SECOND}/s"),
        ),
    ),
)
