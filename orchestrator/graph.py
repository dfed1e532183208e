"""Draws a definition, and how far a saga has got on it: Mermaid, Graphviz, or plain text."""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from orchestrator.core.definition import Definition, PlannedStep
from orchestrator.core.plan import plan_of
from orchestrator.core.state import Phase, SagaState

MARKS: Final[Mapping[Phase, str]] = {
    Phase.PENDING: "·",
    Phase.RUNNING: "▶",
    Phase.RETRYING: "↻",
    Phase.SUCCEEDED: "✔",
    Phase.SKIPPED: "∅",
    Phase.REJECTED: "✘",
    Phase.FAILED: "✘",
    Phase.UNDOING: "◀",
    Phase.UNDO_RETRYING: "↺",
    Phase.UNDO_FAILED: "‼",
    Phase.UNDONE: "↩",
}
"""What stands before a step in plain text."""

_GREEN, _YELLOW, _RED, _BLUE, _GREY = "#c8e6c9", "#fff3c4", "#ffcdd2", "#bbdefb", "#eeeeee"
COLOURS: Final[Mapping[Phase, str]] = {
    Phase.PENDING: _GREY,
    Phase.RUNNING: _BLUE,
    Phase.RETRYING: _YELLOW,
    Phase.SUCCEEDED: _GREEN,
    Phase.SKIPPED: _GREY,
    Phase.REJECTED: _RED,
    Phase.FAILED: _RED,
    Phase.UNDOING: _BLUE,
    Phase.UNDO_RETRYING: _YELLOW,
    Phase.UNDO_FAILED: _RED,
    Phase.UNDONE: _YELLOW,
}


class Box(NamedTuple):
    """One step, to be drawn.

    Attributes:
        id: A name that every format takes.
        phase: Where it stands; None where no saga was asked about.
        copied: Another saga has done it, of which this one is a fork.
    """

    id: str
    step: PlannedStep
    phase: Phase | None
    attempts: int
    stuck: bool
    copied: bool = False

    @property
    def lines(self) -> Iterator[str]:
        """What stands in it."""
        yield self.step.name + (" (pivot)" if self.step.pivot else "")
        yield self.step.what
        if self.step.undo_task:
            yield f"undo: {self.step.undo_task}"
        if self.phase is not None and self.phase is not Phase.PENDING:
            again = f", attempt {self.attempts}" if self.attempts > 1 else ""
            stuck = ", STUCK" if self.stuck else ""
            copied = ", copied" if self.copied else ""
            yield f"{self.phase.value.replace('_', ' ')}{again}{stuck}{copied}"


def boxes(definition: Definition, state: SagaState | None = None) -> list[Box]:
    """The steps of a definition; those of a saga with where they stand."""
    drawn = []
    definition = plan_of(definition, state)
    for number, step in enumerate(definition.steps):
        if state is None:
            drawn.append(Box(f"s{number}", step, None, 0, stuck=False))
            continue
        one = state.step(step.name)
        attempts = max(one.attempt, one.undo_attempt)
        copied = one.origin is not None
        drawn.append(Box(f"s{number}", step, one.phase, attempts, one.stuck, copied))
    return drawn


def mermaid(definition: Definition, state: SagaState | None = None) -> str:
    """A Mermaid flowchart."""
    drawn = boxes(definition, state)
    lines = ["flowchart TD"]
    for box in drawn:
        text = "<br/>".join(_entity(part) for part in box.lines)
        lines.append(
            f'    {box.id}{{{{"{text}"}}}}' if box.step.pivot else f'    {box.id}["{text}"]'
        )
    lines += [f"    {a} --> {b}" for a, b in _edges(drawn)]
    lines += [
        f"    style {box.id} fill:{COLOURS[box.phase]}" for box in drawn if box.phase is not None
    ]
    return "\n".join(lines)


def dot(definition: Definition, state: SagaState | None = None) -> str:
    """A Graphviz digraph."""
    drawn = boxes(definition, state)
    lines = [f"digraph {_quoted(definition.name)} {{", "    node [shape=box, style=filled];"]
    for box in drawn:
        label = r"\n".join(_escaped(part) for part in box.lines)
        colour = _GREY if box.phase is None else COLOURS[box.phase]
        shape = ", shape=hexagon" if box.step.pivot else ""
        lines.append(f'    {box.id} [label="{label}", fillcolor="{colour}"{shape}];')
    lines += [f"    {a} -> {b};" for a, b in _edges(drawn)]
    return "\n".join([*lines, "}"])


def ascii_art(definition: Definition, state: SagaState | None = None) -> str:
    """Plain text: steps that can run at the same time stand on one level, arrows by name."""
    definition = plan_of(definition, state)
    drawn = boxes(definition, state)
    by_name = {box.step.name: box for box in drawn}
    levels = _levels(definition)
    wide = max(len(name) for name in by_name)
    lines = []
    for number, level in enumerate(levels):
        for place, name in enumerate(level):
            box = by_name[name]
            mark = "○" if box.phase is None else MARKS[box.phase]
            branch = _branch(place, len(level))
            first, *more = box.lines
            said = "  ".join([first.ljust(wide + len(" (pivot)") * _has_pivot(definition)), *more])
            after = (
                ""
                if _follows(levels, number, box.step)
                else f"  after {', '.join(box.step.after)}"
            )
            lines.append(f"{branch}{mark} {said}{after}".rstrip())
        if number + 1 < len(levels):
            lines.append("│")
    return "\n".join(lines)


def _levels(definition: Definition) -> list[list[str]]:
    """Names by how many steps must come before, at the least."""
    level: dict[str, int] = {}
    while len(level) < len(definition.steps):
        for step in definition.steps:
            if all(name in level for name in step.after):
                level[step.name] = 1 + max((level[name] for name in step.after), default=-1)
    rows: list[list[str]] = [[] for _ in range(max(level.values()) + 1)]
    for step in definition.steps:
        rows[level[step.name]].append(step.name)
    return rows


def _follows(levels: list[list[str]], number: int, step: PlannedStep) -> bool:
    """Whether the level above is just what a step comes after, so that no more need be said."""
    return {*step.after} == ({*levels[number - 1]} if number else set())


def _branch(place: int, size: int) -> str:
    if size == 1:
        return ""
    return "├─" if place < size - 1 else "└─"


def _has_pivot(definition: Definition) -> bool:
    return definition.pivot is not None


def _edges(drawn: list[Box]) -> Iterator[tuple[str, str]]:
    ids = {box.step.name: box.id for box in drawn}
    for box in drawn:
        for name in box.step.after:
            yield ids[name], box.id


def _entity(text: str) -> str:
    # What would end a label in Mermaid; names of tasks may hold anything.
    for character in '#"<>':
        text = text.replace(character, f"#{ord(character)};" if character != "#" else "#35;")
    return text


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
