"""The participant: the SDK without a database, so without a barrier, as no-ops need none."""

import os

from bench import done, names
from shared.celery_app import make_app
from shared.settings import settings
from workers.sdk import Participant, StepContext

app = make_app("bench.steps", service="bench", settings=settings, default_queue=names.QUEUE)
participant = Participant(app)


@participant.action("bench.step")
def step(context: StepContext) -> None:
    """Do nothing."""


@participant.action("bench.last")
def last(context: StepContext, number: str) -> None:
    """Say that the steps are done."""
    done.tell(os.getpid(), number)
