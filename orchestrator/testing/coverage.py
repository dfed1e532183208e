"""What a walk through all failures has exercised, as numbers and as a table."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec


class StepCoverage(msgspec.Struct, kw_only=True):
    """One step.

    Attributes:
        compensation: Its task; ``nothing to undo`` or ``-`` where there is none.
        failed: Runs in which an attempt of it was rejected, failed or timed out.
        undone: Runs in which its effect was undone.
        undone_for_nothing: Runs in which its compensation found nothing to undo.
        undo_failed: Runs in which an attempt of its compensation failed.
        stuck: Runs in which an operator would have to decide about it.
        why_never: Why its compensation can never run; empty where it can.
    """

    name: str
    compensation: str
    failed: int = 0
    undone: int = 0
    undone_for_nothing: int = 0
    undo_failed: int = 0
    stuck: int = 0
    why_never: str = ""


class Coverage(msgspec.Struct, kw_only=True):
    """All runs of one definition.

    Attributes:
        endings: How many runs ended how.
        steps: In the order of the definition.
        problems: Rules that were broken, each with the run that broke it.
    """

    saga: str
    version: int
    runs: int = 0
    endings: Counter[str] = msgspec.field(default_factory=Counter)
    steps: list[StepCoverage] = []
    problems: list[str] = []

    @property
    def never(self) -> tuple[str, ...]:
        """Steps that have a compensation which no failure has made run."""
        return tuple(
            step.name
            for step in self.steps
            if step.compensation not in {NOTHING, NONE} and not step.undone
        )

    def table(self) -> str:
        """What it says, for people."""
        endings = ", ".join(f"{count} {ending}" for ending, count in self.endings.most_common())
        rows = [_HEADERS, *map(_row, self.steps)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"{self.saga} v{self.version}: {self.runs} runs: {endings}"]
        for row in rows:
            cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
            lines.append("  ".join(cells).rstrip())
        if self.never:
            lines.append(f"never exercised: {', '.join(self.never)}")
        lines += [f"BROKEN: {problem}" for problem in self.problems]
        return "\n".join(lines)


NOTHING: Final = "nothing to undo"
NONE: Final = "-"
_HEADERS: Final = (
    "STEP",
    "COMPENSATION",
    "FAILED",
    "UNDONE",
    "FOR NOTHING",
    "UNDO FAILED",
    "STUCK",
)

reports: list[Coverage] = []
"""Every walk of this process, for `orchestrator.pytest_plugin`."""


def _row(step: StepCoverage) -> Sequence[str]:
    undone = str(step.undone) if step.undone else f"never: {step.why_never or 'NOT EXERCISED'}"
    counts = (step.undone_for_nothing, step.undo_failed, step.stuck)
    return (step.name, step.compensation, str(step.failed), undone, *map(_count, counts))


def _count(number: int) -> str:
    return str(number or "")
