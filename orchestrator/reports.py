"""What came of what somebody asked for, for programs: the same from the `saga` command and over HTTP."""

from typing import Any

from orchestrator.asking import Operated
from orchestrator.core.events import tag_of
from orchestrator.forks import Forked
from orchestrator.starts import Started


def start_report(started: Started | Forked) -> dict[str, Any]:
    """A new saga."""
    state = started.row.state
    return {
        "saga_id": state.saga_id,
        "trace_id": state.trace.trace_id,
        "name": state.name,
        "version": state.version,
        "status": state.status,
        "key": state.key,
        "created": started.created,
        "published": started.published,
    }


def fork_report(saga_id: str, step: str, forked: Forked) -> dict[str, Any]:
    """A fork of a saga from a step, or what it would be."""
    plan = forked.plan
    said: dict[str, Any] = {"forked_from": saga_id, "from_step": step}
    if plan is not None:
        said |= {
            "copied": plan.names,
            "taken_over": plan.taken,
            "anew": plan.anew,
            "left": plan.left,
        }
    if not forked.dry_run:
        said = {**start_report(forked), **said}
    return {**said, "dry_run": forked.dry_run}


def operation_report(operated: Operated) -> dict[str, Any]:
    """What followed for one saga, or would follow."""
    state = operated.row.state
    return {
        "saga_id": operated.row.saga_id,
        "trace_id": state.trace.trace_id,
        "status": state.status.value,
        "paused": state.paused,
        "events": [tag_of(event) for event in operated.events],
        "commands": [
            {"step": one.step, "direction": one.direction, "attempt": one.attempt}
            for one in operated.commands
        ],
        "dry_run": operated.dry_run,
        "published": operated.published,
        "refused": "",
    }


def refusal_report(saga_id: str, why: str) -> dict[str, Any]:
    """One of several sagas of which it could not be asked."""
    return {"saga_id": saga_id, "refused": why, "events": [], "commands": []}
