"""A book: a saga whose input and whose output are too large for a message."""

import msgspec

from orchestrator.core.definition import NOTHING_TO_UNDO, Input, Output, Saga, Step
from orchestrator.core.references import gt


class Book(msgspec.Struct, frozen=True):
    """What is printed, and where it goes."""

    title: str
    text: str
    region: str = "earth"


PRINT_BOOK = Saga(
    name="print-book",
    version=1,
    input=Book,
    steps=(
        Step("render", "press.render", "press.shred", payload={"text": Input("text")}),
        Step(
            "bind",
            "press.bind",
            NOTHING_TO_UNDO,
            when=gt(Output("render", "pages"), 1),
            payload={"pdf": Output("render", "pdf")},
        ),
        Step(
            "ship",
            "press.ship",
            NOTHING_TO_UNDO,
            payload={"region": Input("region"), "cover": Output("render", "pdf.cover")},
        ),
    ),
)
