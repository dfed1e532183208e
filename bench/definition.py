"""The same five no-op steps as a saga."""

import msgspec

from bench import names
from orchestrator.core.definition import NOTHING_TO_UNDO, Saga, Step


class Nothing(msgspec.Struct, frozen=True, kw_only=True):
    """The number of a run."""

    number: str = ""


NOOP = Saga(
    name="bench-noop",
    version=1,
    input=Nothing,
    steps=(
        *(
            Step(f"step-{number}", action="bench.step", compensation=NOTHING_TO_UNDO)
            for number in range(1, names.STEPS)
        ),
        Step(f"step-{names.STEPS}", action="bench.last", compensation=NOTHING_TO_UNDO),
    ),
)
