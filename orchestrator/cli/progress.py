"""Live progress of one saga on a terminal, step by step."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, Self

from orchestrator.cli.output import painted, width
from orchestrator.cli.render import PHASE_STYLES
from orchestrator.cli.times import duration
from orchestrator.core.state import Phase
from orchestrator.views import SagaView, StepView
from shared.clock import utc_now

_PER_SECOND: Final = 10
_MARKS: Final = {
    Phase.PENDING: "·",
    Phase.RUNNING: "▸",
    Phase.RETRYING: "↻",
    Phase.SUCCEEDED: "✓",
    Phase.REJECTED: "✗",
    Phase.FAILED: "✗",
    Phase.UNDOING: "◂",
    Phase.UNDO_RETRYING: "↻",
    Phase.UNDO_FAILED: "✗",
    Phase.UNDONE: "↶",
}


class Progress:
    """Shows a saga's steps while it moves; what is shown goes when it ends.

    Args:
        look: Gives the saga as it is now; called by whoever says that it changed.
    """

    def __init__(self, look: Callable[[], SagaView]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._look = look
        self._view: SagaView | None = None
        self._live = Live(
            console=Console(highlight=False, width=width()),
            get_renderable=self._picture,
            refresh_per_second=_PER_SECOND,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def changed(self) -> None:
        """Look again."""
        self._view = self._look()

    def _picture(self) -> Any:
        from rich.text import Text

        view = self._view
        if view is None:
            return Text("…")
        took = utc_now() - view.started_at
        text = Text.assemble(
            (view.name, "bold"),
            f"  {view.saga_id}  {view.status}  {duration(took / timedelta(milliseconds=1))}",
        )
        for step in view.steps:
            text.append("\n")
            text.append_text(painted(_step_line(step)))
        return text


def _step_line(step: StepView) -> Any:
    from orchestrator.cli.output import Piece, line, one_line

    style = PHASE_STYLES[step.phase]
    attempts = max(step.attempts, step.undo_attempts)
    again = f"  attempt {attempts}" if attempts > 1 else ""
    wait = ""
    if step.phase in {Phase.RETRYING, Phase.UNDO_RETRYING} and step.due_at is not None:
        left = max(step.due_at - utc_now(), timedelta(0))
        wait = f", again in {duration(left / timedelta(milliseconds=1))}"
    return line(
        Piece(f"  {_MARKS[step.phase]} {step.name:<28}", style),
        Piece(f"{step.phase.value.replace('_', ' ')}{again}{wait}", style),
        Piece(f"  {one_line(step.error)}" if step.error else "", "dim"),
    )
