"""The picture of the machine in the documentation."""

from functools import cache
from pathlib import Path

from orchestrator.core import diagram
from orchestrator.core.state import Phase, Status

document = cache(diagram.document)

PAGE = Path(__file__).parents[2] / "docs" / "state-machine.md"


def test_the_committed_picture_is_up_to_date() -> None:
    """Else: ``python -m orchestrator.core.diagram > docs/state-machine.md``."""
    assert PAGE.read_text() == document()


def test_the_picture_shows_every_status_and_every_phase() -> None:
    """But for the beginning of a step, all are reached."""
    arrows = [line.split() for line in document().splitlines() if "-->" in line]
    reached = {arrow[2].rstrip(":") for arrow in arrows}
    assert reached >= {*Status, *Phase} - {Phase.PENDING}
    assert all(arrow[0] in {*Status, *Phase, "[*]"} for arrow in arrows)
