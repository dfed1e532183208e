"""The picture of the machine in the documentation."""

from pathlib import Path

from orchestrator.core.diagram import document
from orchestrator.core.state import Phase, Status

PAGE = Path(__file__).parents[2] / "docs" / "state-machine.md"


def test_the_committed_picture_is_up_to_date() -> None:
    """Else: ``python -m orchestrator.core.diagram > docs/state-machine.md``."""
    assert PAGE.read_text() == document()


def test_the_picture_shows_every_status_and_every_phase() -> None:
    """All but `resolved`, which no event leads to yet."""
    arrows = [line.split() for line in document().splitlines() if "-->" in line]
    reached = {arrow[2].rstrip(":") for arrow in arrows}
    assert reached >= {*Status, *Phase} - {Status.RESOLVED, Phase.PENDING}
    assert all(arrow[0] in {*Status, *Phase, "[*]"} for arrow in arrows)
