"""Inputs and outputs for a run that does not care what they are."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from orchestrator.core.definition import Definition, Output, Saga, Sleep, WaitFor
from orchestrator.core.schema import inside
from shared.errors import InputError

LONG_AGO: Final = "2000-01-01T00:00:00Z"


def example_input(saga: Saga, given: Mapping[str, Any]) -> dict[str, Any]:
    """An input with the fields that are given, and something for those that must be.

    Raises:
        InputError: Nothing simple fits; names the fields.
    """
    schema = msgspec.json.schema(saga.input)
    value = _example(schema, schema.get("$defs", {}))
    example = {**value, **given} if isinstance(value, dict) else dict(given)
    try:
        return saga.check_input(example)
    except InputError as error:
        raise InputError(
            f"No example of the input of saga {saga.name!r} could be made up: {error.message}",
            problems=error.problems,
            hint="Give those fields yourself.",
        ) from error


def example_outputs(definition: Definition) -> dict[str, Any]:
    """For each step an output that has every path that another step refers to."""
    outputs: dict[str, Any] = {step.name: _output(step.output_schema) for step in definition.steps}
    typed = {step.name: step.output_schema for step in definition.steps if step.output_schema}
    for step in definition.steps:
        times = isinstance(step.action, Sleep)
        for reference in _references(step):
            if reference.step in typed:
                _put_typed(outputs[reference.step], reference, typed[reference.step])
                continue
            _put(outputs, reference, LONG_AGO if times else f"{reference.step}.{reference.path}")
    return outputs


def example_signals(definition: Definition) -> dict[str, Any]:
    """What the signals say that steps wait for: approvals are given, and what has a type fits it."""
    said: dict[str, Any] = {}
    for planned in definition.steps:
        wait = planned.action
        if not isinstance(wait, WaitFor):
            continue
        known = said.get(wait.signal) or {}
        if planned.output_schema:
            known = {**_output(planned.output_schema), **known}
        said[wait.signal] = {**known, "approved": True} if wait.approval else known or None
    return said


def _output(schema: dict[str, Any] | None) -> Any:
    return {} if schema is None else _example(schema, schema.get("$defs", {}))


def _put_typed(output: Any, reference: Output, schema: dict[str, Any]) -> None:
    """See that the output has what is referred to, though its type would do without."""
    *parents, last = reference.path.split(".")
    inner, path = output, ""
    for part in (*parents, last):
        path = f"{path}.{part}" if path else part
        led = inside(schema, path)
        if not isinstance(inner, dict) or isinstance(led, str):
            return
        if inner.get(part) is None:
            inner[part] = (
                "" if isinstance(led[0], bool) else _example(led[0], schema.get("$defs", {}))
            )
        inner = inner[part]


def _put(outputs: dict[str, Any], reference: Output, value: str) -> None:
    if not reference.path:
        outputs[reference.step] = outputs[reference.step] or value
        return
    inner = outputs[reference.step]
    *parents, last = reference.path.split(".")
    for part in parents:
        inner = inner.setdefault(part, {})
    inner.setdefault(last, value)


def _references(value: object) -> Iterator[Output]:
    """Every reference to an output in a step, wherever it stands."""
    match value:
        case Output():
            yield value
        case msgspec.Struct():
            for name in value.__struct_fields__:
                yield from _references(getattr(value, name))
        case Mapping():
            for inner in value.values():
                yield from _references(inner)
        case list() | tuple():
            for inner in value:
                yield from _references(inner)
        case _:
            return


def _example(schema: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """The simplest value of a JSON Schema as msgspec writes them."""
    match schema:
        case {"$ref": reference}:
            return _example(known[reference.rpartition("/")[2]], known)
        case {"default": default}:
            return default
        case {"enum": [first, *_]} | {"const": first}:
            return first
        case {"anyOf": [first, *_]}:
            return _example(first, known)
        case {"type": "object", "properties": properties}:
            required = schema.get("required", ())
            return {name: _example(properties[name], known) for name in required}
        case {"type": "object"}:
            return {}
        case {"type": "array"}:
            return [
                _example(schema.get("items") or {}, known)
                for _ in range(schema.get("minItems", 0))
            ]
        case {"type": "string"}:
            return _text(schema)
        case {"type": "integer" | "number"}:
            return _number(schema)
        case {"type": "boolean"}:
            return False
        case _:
            return None


def _text(schema: Mapping[str, Any]) -> str:
    match schema.get("format"):
        case "date-time":
            return LONG_AGO
        case "date":
            return datetime(2000, 1, 1, tzinfo=UTC).date().isoformat()
        case _:
            return "x" * max(1, int(schema.get("minLength", 1)))


def _number(schema: Mapping[str, Any]) -> float:
    if "exclusiveMinimum" in schema:
        return float(schema["exclusiveMinimum"]) + 1
    number: float = schema.get("minimum", min(1, schema.get("maximum", 1)))
    return number
