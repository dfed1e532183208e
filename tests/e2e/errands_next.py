"""Errands as their team has gone on with them: nobody has started a worker for what is new yet."""

from orchestrator.core.definition import NOTHING_TO_UNDO, Saga, Step
from tests.e2e.errands import ERRAND, Errand, Pile

ERRAND_2 = Saga(name="errand", version=2, input=Errand, steps=ERRAND.steps[:-1])

ATTIC = Saga(
    name="attic",
    version=1,
    input=Pile,
    steps=(Step("tidy", "attic.tidy", NOTHING_TO_UNDO, payload={}),),
)
