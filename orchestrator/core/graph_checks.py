"""Checks of what steps say of each other: order, references, the pivot."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from orchestrator.core.definition import (
    Definition,
    PlannedStep,
    Saga,
    Sleep,
    WaitFor,
    planned_steps,
    reachable,
)
from orchestrator.core.references import AllOf, Input, Item, Output, Reference, references_in
from orchestrator.core.schema import Schema, inside, items_of


class _Place(NamedTuple):
    """Where a reference stands.

    Attributes:
        where: In words.
        missing: Whether it may lead to nothing.
        item: Whether it may be an `Item`.
    """

    where: str
    missing: bool = False
    item: bool = False


def graph_problems(saga: Saga, schema: dict[str, Any] | None) -> list[str]:
    """Mistakes in what the steps of a saga say of each other.

    Args:
        saga: Its steps have names of their own and the right types.
        schema: Of its input; None where that is no type with fields.
    """
    planned = planned_steps(saga.steps)
    known = {step.name for step in planned}
    found = [
        f"step {step.name!r}: after names {name!r}, which is no step of this saga"
        for step in planned
        for name in step.after
        if name not in known
    ]
    steps = tuple(
        msgspec.structs.replace(step, after=tuple(name for name in step.after if name in known))
        for step in planned
    )
    edges = {step.name: step.after for step in steps}
    upstream = {name: reachable(edges, name) for name in edges}
    by_name = {step.name: step for step in steps}
    for step in steps:
        before = {name: by_name[name] for name in upstream[step.name]}
        found += _reference_problems(schema, step, before)
    cyclic = [name for name, before in upstream.items() if name in before]
    if cyclic:
        return [*found, f"steps {', '.join(map(repr, cyclic))} wait for each other"]
    definition = Definition(
        name=saga.name, version=saga.version, deadline=saga.deadline, input_schema={}, steps=steps
    )
    return found + _pivot_problems(definition, upstream)


def _references(step: PlannedStep) -> Iterator[tuple[_Place, Reference]]:
    """Every reference of a step, with where it stands."""
    for argument, reference in (step.payload or {}).items():
        yield _Place(f"payload {argument!r}", item=step.each is not None), reference
    if isinstance(step.action, Sleep) and step.action.until is not None:
        yield _Place("until"), step.action.until
    if step.each is not None:
        yield _Place("each"), step.each
    if step.when is not None:
        for compared, missing in references_in(step.when):
            yield _Place("when", missing=missing), compared


def _reference_problems(
    schema: dict[str, Any] | None, step: PlannedStep, before: dict[str, PlannedStep]
) -> list[str]:
    found = []
    for place, reference in _references(step):
        where = f"step {step.name!r}: {place.where}"
        match reference:
            case Input(path) if schema and isinstance(has := inside(schema, path), str):
                found.append(f"{where} is Input({path!r}), but the input has {has}")
            case Output(other) if other not in before:
                found.append(f"{where} is the output of {other!r}, which is no step before it")
            case Output(other, default=msgspec.UNSET) if not place.missing:
                if not _has_output(before[other], step):
                    found.append(
                        f"{where} is the output of {other!r}, which may be skipped; "
                        "give it a default, or both steps the same when"
                    )
            case Item() if not place.item:
                found.append(f"{where} is an Item, which only the payload of a step with each has")
            case _:
                pass
        found += [f"{where} {problem}" for problem in _typed(reference, schema, step, before)]
    return found


def _typed(
    reference: Reference,
    schema: dict[str, Any] | None,
    step: PlannedStep,
    before: dict[str, PlannedStep],
) -> Iterator[str]:
    """What is wrong with a reference to something that has a type."""
    match reference:
        case Output(other, path) if other in before and before[other].output_schema:
            earlier = before[other]
            if path and earlier.each is not None:
                yield f"is Output({other!r}, {path!r}), but its output is a list: one for each item"
            elif isinstance(has := inside(earlier.output_schema or {}, path), str):
                yield f"is Output({other!r}, {path!r}), but its output has {has}"
        case Item(path) if step.each is not None:
            listed = _list_of(step.each, schema, before)
            items = listed and items_of(*listed)
            ways = [inside(listed[0], path, schema=one) for one in items or ()] if listed else []
            if ways and all(isinstance(way, str) for way in ways):
                yield f"is Item({path!r}), but an item has {ways[0]}"
        case _:
            pass
    if reference is step.each:
        listed = _list_of(step.each, schema, before)
        if listed and listed[1] and not items_of(*listed):
            yield f"is {reference!r}, which is no list"


def _list_of(
    reference: Input | Output, schema: dict[str, Any] | None, before: dict[str, PlannedStep]
) -> tuple[Schema, list[Schema]] | None:
    """What a reference leads to, as schemas, after the one in which they are; None if unknown."""
    root, path, many = schema, reference.path, False
    if isinstance(reference, Output):
        earlier = before.get(reference.step)
        root = earlier.output_schema if earlier else None
        many = bool(earlier and earlier.each is not None)
    if root is None:
        return None
    if many:
        return root, [{"type": "array", "items": root}]
    found = inside(root, path)
    return None if isinstance(found, str) else (root, found)


def _has_output(earlier: PlannedStep, step: PlannedStep) -> bool:
    """Whether a step that runs can rely on the output of an earlier one."""
    if earlier.when is None or earlier.when == step.when:
        return True
    return isinstance(step.when, AllOf) and earlier.when in step.when.of


def _pivot_problems(definition: Definition, upstream: dict[str, frozenset[str]]) -> list[str]:
    pivots = [step.name for step in definition.steps if step.pivot]
    if len(pivots) > 1:
        return [f"steps {', '.join(map(repr, pivots))} are all the pivot; a saga has at most one"]
    beyond = definition.beyond_pivot
    found = []
    for step in definition.steps:
        if step.name in beyond:
            if step.waits:
                found += _wait_beyond_problems(step)
            elif step.retry.attempts == 1:
                found.append(
                    f"step {step.name!r} comes after the pivot and is never retried; "
                    "only forward recovery exists there: give it a retry"
                )
            continue
        if not step.pivot and step.compensation is None:
            found.append(
                f"step {step.name!r} has no compensation; name a task, "
                "or say compensation=NOTHING_TO_UNDO"
            )
        if pivots and not step.pivot and step.name not in upstream[pivots[0]]:
            found.append(
                f"step {step.name!r} is neither before nor after the pivot {pivots[0]!r}; "
                "connect it with after=(...)"
            )
    return found


def _wait_beyond_problems(step: PlannedStep) -> list[str]:
    wait = step.action
    if isinstance(wait, WaitFor) and (wait.approval or wait.otherwise != "default"):
        where = f"step {step.name!r} comes after the pivot and may say no"
        advice = 'take approval away and say otherwise="default"'
        return [f"{where}; only forward recovery exists there: {advice}"]
    return []
