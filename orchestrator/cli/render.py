"""Sagas as lines and tables: pure functions from what is known to what is shown."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from orchestrator.cli.output import Block, Line, Piece, Table, line, one_line
from orchestrator.cli.times import away, duration, moment
from orchestrator.core.definition import Definition, PlannedStep, Retry
from orchestrator.core.state import Phase, Status
from orchestrator.ports import Control, DeadLetter, SagaSummary
from orchestrator.views import SagaView, StepView, TimelineEntry
from shared import tickets

STATUS_STYLES: Final = {
    Status.RUNNING: "cyan",
    Status.COMPENSATING: "yellow",
    Status.STUCK: "bold red",
    Status.COMPLETED: "green",
    Status.COMPENSATED: "yellow",
    Status.RESOLVED: "green",
}
PHASE_STYLES: Final = {
    Phase.PENDING: "dim",
    Phase.RUNNING: "cyan",
    Phase.RETRYING: "yellow",
    Phase.SUCCEEDED: "green",
    Phase.SKIPPED: "dim",
    Phase.REJECTED: "red",
    Phase.FAILED: "red",
    Phase.UNDOING: "cyan",
    Phase.UNDO_RETRYING: "yellow",
    Phase.UNDO_FAILED: "bold red",
    Phase.UNDONE: "yellow",
}
_EVENTS: Final = {
    ("step_dispatched", "action"): ("sent", ""),
    ("step_succeeded", "action"): ("succeeded", "green"),
    ("step_rejected", "action"): ("rejected", "red"),
    ("task_unknown", "action"): ("task unknown", "red"),
    ("step_failed", "action"): ("failed", "red"),
    ("step_timed_out", "action"): ("timed out", "red"),
    ("step_dispatched", "compensation"): ("undo sent", ""),
    ("step_succeeded", "compensation"): ("undone", "yellow"),
    ("step_failed", "compensation"): ("undo failed", "bold red"),
    ("step_timed_out", "compensation"): ("undo timed out", "bold red"),
}
_MILESTONES: Final = {
    "saga_completed": "green",
    "saga_compensated": "yellow",
    "saga_stuck": "bold red",
    "cancel_requested": "yellow",
    "deadline_exceeded": "red",
}
_BODY_CHARS_MAX: Final = 60


def status_piece(status: Status) -> Piece:
    """A status in its colour."""
    return Piece(status.value, STATUS_STYLES[status])


def phase_piece(phase: Phase, *, copied: bool = False) -> Piece:
    """Where a step stands, in its colour; and whether it was done by the saga of which it is a fork."""
    words = phase.value.replace("_", " ")
    return Piece(f"{words} (copied)" if copied else words, PHASE_STYLES[phase])


def event_piece(event: str, direction: str | None) -> Piece:
    """An event in words, in its colour."""
    known = _EVENTS.get((event, direction or ""))
    if known:
        return Piece(*known)
    words = event.removeprefix("saga_").replace("_", " ")
    return Piece(words, _MILESTONES.get(event, ""))


def headline(view: SagaView, now: datetime) -> Line:
    """Name, id and status of a saga in one line."""
    took = f"in {duration(view.duration_ms)}"
    if view.outcome is None:
        took = f"for {duration((now - view.started_at) / timedelta(milliseconds=1))}"
    return line(
        Piece(f"{view.name} v{view.version}", "bold"),
        f"  {view.saga_id}  ",
        status_piece(view.status),
        f" {took}",
    )


def error_line(view: SagaView) -> Line | None:
    """Why a saga did not complete."""
    error = view.error
    if error is None:
        return None
    where = f"{error.step} " if error.step else ""
    kind = f": {error.kind}" if error.kind and error.kind != "Cancelled" else ""
    return line(
        Piece(f"{where}{error.cause.replace('_', ' ')}{kind}", "red"),
        f": {one_line(error.message)}" if error.message else "",
    )


def saga_blocks(view: SagaView, now: datetime) -> Iterator[Block]:
    """All there is to say about a saga."""
    yield headline(view, now)
    for name, value in _facts(view, now):
        yield line(Piece(f"{name:<9}", "dim"), *value)
    yield ()
    yield steps_table(view.steps, now)
    yield ()
    yield timeline_table(view.timeline)


def _facts(view: SagaView, now: datetime) -> Iterator[tuple[str, Line]]:
    yield "trace", line(view.trace_id)
    if view.key is not None:
        yield "key", line(one_line(view.key))
    if view.fork is not None:
        yield "fork of", line(f"{view.fork.saga_id}, from step {view.fork.step}")
    if view.parent is not None:
        yield "part of", line(f"{view.parent.saga_id}, step {view.parent.step}")
    for heir in view.forks:
        yield "forked", line(f"as {heir}")
    yield "started", line(f"{moment(view.started_at, now)} ({away(view.started_at, now)})")
    if view.deadline_at is not None and view.outcome is None:
        yield "deadline", line(f"{moment(view.deadline_at, now)} ({away(view.deadline_at, now)})")
    shown_input = tickets.replaced(view.input, tickets.shown)
    yield "input", line(json.dumps(shown_input, ensure_ascii=False))
    error = error_line(view)
    if error:
        yield "error", error
    if view.paused:
        said = [one.detail for one in view.timeline if one.event == "saga_paused"]
        yield "paused", line(Piece(one_line(said[-1] if said else ""), "yellow"))
    if view.awaits_room:
        yield "begins", line(Piece("when there is room within the limit of its name", "yellow"))
    if view.next_timer is not None:
        at = view.next_timer.at
        yield "next", line(f"{view.next_timer.what}, {moment(at, now)} ({away(at, now)})")


def steps_table(steps: Sequence[StepView], now: datetime) -> Table:
    """Where each step stands."""
    return Table(
        ("STEP", "STATE", "ATTEMPTS", "UNDOS", "QUEUE", "NOTES"),
        [
            (
                Piece(step.name),
                Piece("waits for room", "yellow")
                if step.awaits_room
                else phase_piece(step.phase, copied=bool(step.copied_from)),
                Piece(_count(step.attempts)),
                Piece(_count(step.undo_attempts)),
                Piece(step.queue),
                Piece(one_line("; ".join(_notes(step, now)))),
            )
            for step in steps
        ],
        right=frozenset({"ATTEMPTS", "UNDOS"}),
    )


def _notes(step: StepView, now: datetime) -> Iterator[str]:
    """What a step waits for, how far it is, and what has gone wrong."""
    if step.sub_saga:
        yield f"saga {step.sub_saga}"
    if step.phase is Phase.RUNNING and step.action.startswith("signal "):
        yield f"waits for {step.action}"
    if step.phase is Phase.RUNNING and step.action == "sleep" and step.due_at:
        yield f"sleeps until {moment(step.due_at, now)}"
    if step.phase is Phase.RUNNING and step.accepted:
        yield "accepted, goes on elsewhere"
    if step.alive_at is not None:
        progress = (
            "alive" if step.progress is None else json.dumps(step.progress, ensure_ascii=False)
        )
        yield f"{progress}, {away(step.alive_at, now)}"
    if step.by_hand:
        yield "by hand"
    if step.error:
        yield step.error


def timeline_table(timeline: Sequence[TimelineEntry]) -> Table:
    """What happened, when, and how long it took."""
    return Table(
        ("AT", "EVENT", "STEP", "ATTEMPT", "TOOK", "DETAIL"),
        [
            (
                Piece(f"+{duration(entry.offset_ms)}"),
                event_piece(entry.event, entry.direction),
                Piece(entry.step),
                Piece(str(entry.attempt or "")),
                Piece("" if entry.duration_ms is None else duration(entry.duration_ms)),
                Piece(one_line(entry.detail)),
            )
            for entry in timeline
        ],
        right=frozenset({"AT", "ATTEMPT", "TOOK"}),
    )


def sagas_table(sagas: Sequence[SagaSummary], now: datetime) -> Table:
    """A list of sagas; why they cannot be read, where they were asked for because of that."""
    unreadable = any(one.unreadable for one in sagas)
    return Table(
        ("ID", "NAME", "STATUS", "STARTED", "TOOK", "KEY", *(["UNREADABLE"] * unreadable)),
        [
            (
                Piece(one.saga_id),
                Piece(f"{one.name} v{one.version}"),
                status_piece(one.status),
                Piece(moment(one.started_at, now)),
                Piece(_took(one, now)),
                Piece(one_line(one.key or "")),
                *([Piece(one_line(one.unreadable), "red")] * unreadable),
            )
            for one in sagas
        ],
        right=frozenset({"TOOK"}),
    )


def _took(saga: SagaSummary, now: datetime) -> str:
    end = saga.updated_at if saga.status.final else now
    return duration((end - saga.started_at) / timedelta(milliseconds=1))


def pause_line(pause: Control, now: datetime) -> str:
    """That all sagas of a name are paused."""
    why = f": {one_line(pause.reason)}" if pause.reason else ""
    return (
        f"{pause.name} is paused by {pause.by or 'an operator'} since {moment(pause.at, now)}"
        f"{why}. Sagas that start begin when it is resumed."
    )


def definition_blocks(definition: Definition) -> Iterator[Block]:
    """A definition with its steps."""
    deadline = definition.deadline
    yield line(
        Piece(f"{definition.name} v{definition.version}", "bold"),
        f"  deadline {duration(deadline / timedelta(milliseconds=1))}" if deadline else "",
    )
    properties: dict[str, Any] = _input_type(definition.input_schema).get("properties", {})
    required = _input_type(definition.input_schema).get("required", [])
    fields = (name if name in required else f"[{name}]" for name in properties)
    yield line(Piece("input  ", "dim"), ", ".join(fields))
    headers = ["STEP", "ACTION", "COMPENSATION", "QUEUE", "TIMEOUT", "ATTEMPTS", "AFTER"]
    rows = [
        [
            Piece(step.name, "bold" if step.pivot else ""),
            Piece(step.what),
            Piece(_compensation(step)),
            Piece(step.queue),
            Piece(duration(step.timeout / timedelta(milliseconds=1))),
            Piece(_attempts(step.retry)),
            Piece(", ".join(step.after)),
        ]
        for step in definition.steps
    ]
    if _is_in_order(definition):  # then "after" says nothing new
        headers, rows = headers[:-1], [row[:-1] for row in rows]
    yield Table(tuple(headers), rows, right=frozenset({"TIMEOUT", "ATTEMPTS"}))
    for step, limit in definition.limits.items():
        yield line(Piece("limit  ", "dim"), f"{step}: {limit}" if step else str(limit))
    if definition.pivot:
        yield line(Piece("pivot  ", "dim"), f"{definition.pivot.name}; after it only forward")


def _is_in_order(definition: Definition) -> bool:
    before = [(), *((step.name,) for step in definition.steps)]
    return all(step.after == one for step, one in zip(definition.steps, before, strict=False))


def _input_type(schema: dict[str, Any]) -> dict[str, Any]:
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    found: dict[str, Any] = schema.get("$defs", {}).get(name, schema)
    return found


def _compensation(step: PlannedStep) -> str:
    if step.undo_task:
        return step.undo_task
    return "nothing to undo" if step.compensation else "-"


def _attempts(retry: Retry) -> str:
    return "no limit" if retry.attempts is None else str(retry.attempts)


def dead_letters_table(letters: Sequence[DeadLetter], now: datetime) -> Table:
    """Messages that nobody could act on."""
    return Table(
        ("NO", "AT", "TASK", "SAGA", "REASON", "BODY"),
        [
            (
                Piece(str(letter.dead_letter_id)),
                Piece(moment(letter.at, now)),
                Piece(one_line(letter.task)),
                Piece(one_line(letter.saga_id or "")),
                Piece(one_line(letter.reason)),
                Piece(_shortened(one_line(letter.body))),
            )
            for letter in letters
        ],
        right=frozenset({"NO"}),
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _BODY_CHARS_MAX else text[: _BODY_CHARS_MAX - 1] + "…"


def _count(number: int) -> str:
    return str(number or "")
