"""Values and paths against a JSON Schema, as far as msgspec writes one.

A definition is stored with the schema of a type and not with the type, so a saga is checked against
what it started with, also after the code has moved on.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Final

import msgspec

from shared.messages import AwareDatetime
from shared.tickets import is_ticket

Schema = Mapping[str, Any] | bool

_CHECKED: Final = frozenset(
    {
        *("$ref", "$defs", "type", "enum", "const", "anyOf", "discriminator", "properties"),
        *("required", "additionalProperties", "propertyNames", "minProperties", "maxProperties"),
        *("items", "prefixItems", "minItems", "maxItems", "minLength", "maxLength", "pattern"),
        *("format", "contentEncoding", "minimum", "maximum", "exclusiveMinimum"),
        *("exclusiveMaximum", "multipleOf"),
        # These say nothing that a value could break: what is twice in a set is in it.
        *("title", "description", "default", "examples", "uniqueItems"),
    }
)
_FORMATS: Final[Mapping[str, Any]] = {
    "date-time": AwareDatetime,
    "date": date,
    "time": time,
    "duration": timedelta,
    # The module of the type makes random ones, and the core may not.
    "uuid": Annotated[
        str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}$")
    ],
    "decimal": Decimal,
}
_WORDS: Final[Mapping[str, str]] = {
    "object": "an object",
    "array": "a list",
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}


def unchecked(schema: Schema) -> Iterator[str]:
    """Keywords of a schema that this module does not look at."""
    if isinstance(schema, bool):
        return
    yield from (name for name in schema if name not in _CHECKED)
    for name in ("$defs", "properties"):
        for inner in schema.get(name, {}).values():
            yield from unchecked(inner)
    for name in ("anyOf", "prefixItems"):
        for inner in schema.get(name, ()):
            yield from unchecked(inner)
    for name in ("items", "additionalProperties", "propertyNames"):
        yield from unchecked(schema.get(name, True))


def required(schema: Schema) -> tuple[str, ...]:
    """The fields that a value has to have."""
    found = _resolved(schema, schema)
    return () if isinstance(found, bool) else tuple(found.get("required", ()))


def mismatch(schema: Schema, value: Any) -> str:
    """The first thing in a value that does not fit, with where it is; empty where all of it does.

    Args:
        schema: Of the whole value; what it refers to stands in its ``$defs``.
        value: Plain JSON values.
    """
    return next(_Value(schema).problems(schema, value, ""), "")


class _Value:
    """Checks one value.

    Args:
        root: Where the definitions stand.
    """

    def __init__(self, root: Schema) -> None:
        self._root = root

    def problems(self, schema: Schema, value: Any, path: str) -> Iterator[str]:
        schema = _resolved(schema, self._root)
        if schema is False:
            yield f"{path}: nothing is expected here"
        if isinstance(schema, bool) or is_ticket(value):
            return  # what a ticket stands for is where the core does not look
        if "anyOf" in schema:
            yield from self._one_of(schema, value, path)
        allowed = [schema["const"]] if "const" in schema else schema.get("enum")
        if allowed is not None and not any(_same(one, value) for one in allowed):
            yield _at(path, f"one of {', '.join(map(_shown, allowed))} is wanted", value)
        wanted = schema.get("type")
        if wanted is None:
            return
        if not _is(wanted, value):
            yield _at(path, f"{_WORDS[wanted]} is wanted", value)
        elif wanted == "object":
            yield from self._object(schema, value, path)
        elif wanted == "array":
            yield from self._array(schema, value, path)
        elif wanted == "string":
            yield from _text(schema, value, path)
        elif wanted in {"integer", "number"}:
            yield from _number(schema, value, path)

    def _one_of(self, schema: Mapping[str, Any], value: Any, path: str) -> Iterator[str]:
        tag = schema.get("discriminator", {}).get("propertyName")
        known = schema.get("discriminator", {}).get("mapping", {})
        if tag and isinstance(value, Mapping) and str(value.get(tag)) in known:
            chosen = {"$ref": known[str(value[tag])]}
            yield from self.problems(chosen, value, path)
            return
        found = [[*self.problems(one, value, path)] for one in schema["anyOf"]]
        if all(found):
            # Of `T | None` the problem with T says more; of others the shortest list is the nearest.
            yield min(found, key=lambda lines: lines[0] == _at(path, "null is wanted", value))[0]

    def _object(
        self, schema: Mapping[str, Any], value: Mapping[str, Any], path: str
    ) -> Iterator[str]:
        known = schema.get("properties", {})
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{_inside(path, name)}: missing"
        for name, inner in value.items():
            other = schema.get("additionalProperties", True)
            yield from self.problems(known.get(name, other), inner, _inside(path, name))
            if "propertyNames" in schema:
                yield from self.problems(schema["propertyNames"], name, _inside(path, name))
        yield from _length(schema, len(value), path, "Properties", "fields")

    def _array(self, schema: Mapping[str, Any], value: list[Any], path: str) -> Iterator[str]:
        first = schema.get("prefixItems", ())
        for index, inner in enumerate(value):
            one = first[index] if index < len(first) else schema.get("items", True)
            yield from self.problems(one, inner, f"{path}[{index}]")
        yield from _length(schema, len(value), path, "Items", "items")


def _text(schema: Mapping[str, Any], value: str, path: str) -> Iterator[str]:
    yield from _length(schema, len(value), path, "Length", "characters")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield _at(path, f"a text like {schema['pattern']} is wanted", value)
    form = schema.get("format")
    wanted = bytes if schema.get("contentEncoding") == "base64" else _FORMATS.get(form or "")
    if wanted is not None:
        try:
            msgspec.convert(value, wanted)
        except msgspec.ValidationError:
            yield _at(path, f"a {form or 'base64'} is wanted", value)


def _number(schema: Mapping[str, Any], value: float, path: str) -> Iterator[str]:
    least, most = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if least is not None and value < least:
        yield _at(path, f"at least {least} is wanted", value)
    if most is not None and value > most:
        yield _at(path, f"at most {most} is wanted", value)
    if above is not None and value <= above:
        yield _at(path, f"more than {above} is wanted", value)
    if below is not None and value >= below:
        yield _at(path, f"less than {below} is wanted", value)
    multiple = schema.get("multipleOf")
    if multiple and value % multiple:
        yield _at(path, f"a multiple of {multiple} is wanted", value)


def _length(
    schema: Mapping[str, Any], length: int, path: str, what: str, words: str
) -> Iterator[str]:
    least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}", length)
    if not least <= length <= most:
        limit = f"at least {least}" if length < least else f"at most {most}"
        yield f"{path or 'it'}: {limit} {words} are wanted, not {length}"


# Paths ----------------------------------------------------------------------------------------


def inside(root: Schema, path: str, *, schema: Schema | None = None) -> list[Schema] | str:
    """The schemas that a path leads to, one for each alternative; where to none, what there is.

    Args:
        root: Where the definitions stand.
        path: Names of fields, with dots.
        schema: Where the path begins; by default `root`.
    """
    found = _alternatives(root if schema is None else schema, root)
    gone = ""
    for name in path.split(".") if path else ():
        fields = [_field(one, name) for one in found]
        inner = [one for one in fields if one is not None and one is not False]
        if not inner:
            known = [name for one in found if not isinstance(one, bool) for name in _names(one)]
            has = ", ".join(dict.fromkeys(known)) or "no fields"
            return f"{has} in {gone!r}" if gone else has
        found = [one for each in inner for one in _alternatives(each, root)]
        gone = f"{gone}.{name}" if gone else name
    return found


def items_of(root: Schema, schemas: list[Schema]) -> list[Schema]:
    """The schemas of what a list may hold; empty where none of these is a list."""
    found: list[Schema] = []
    for schema in schemas:
        if _is_anything(schema):
            found.append(True)
        elif isinstance(schema, Mapping) and schema.get("type") == "array":
            for one in (*schema.get("prefixItems", ()), schema.get("items", True)):
                found += _alternatives(one, root) if one is not False else []
    return found


def _alternatives(schema: Schema, root: Schema) -> list[Schema]:
    """What a value may be, but null: that leads nowhere, and whoever refers to it knows."""
    schema = _resolved(schema, root)
    if isinstance(schema, bool) or "anyOf" not in schema:
        return [schema]
    every = [one for inner in schema["anyOf"] for one in _alternatives(inner, root)]
    return [one for one in every if one != {"type": "null"}]


def _is_anything(schema: Schema) -> bool:
    return schema is True or (
        isinstance(schema, Mapping) and not schema.keys() & {"type", "enum", "const"}
    )


def _names(schema: Mapping[str, Any]) -> Iterator[str]:
    yield from schema.get("properties", {})


def _field(schema: Schema, name: str) -> Schema | None:
    """What a field of a value holds; None where a value has no fields, or not this one."""
    if _is_anything(schema):
        return True
    if isinstance(schema, bool) or schema.get("type") != "object":
        return None
    known: Mapping[str, Any] = schema.get("properties", {})
    if name in known:
        inner: Schema = known[name]
        return inner
    other: Schema | None = schema.get("additionalProperties")
    return other


# Words ----------------------------------------------------------------------------------------


def _resolved(schema: Schema, root: Schema) -> Schema:
    while not isinstance(schema, bool) and "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        schema = root["$defs"][name] if not isinstance(root, bool) else True
    return schema


def _is(wanted: str, value: Any) -> bool:
    match wanted:
        case "object":
            return isinstance(value, Mapping)
        case "array":
            return isinstance(value, list)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer":
            whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            return whole and not isinstance(value, bool)
        case _:
            return isinstance(value, int | float) and not isinstance(value, bool)


def _same(one: Any, value: Any) -> bool:
    return isinstance(one, bool) == isinstance(value, bool) and bool(one == value)


def _at(path: str, wanted: str, value: Any) -> str:
    """What is wrong, without the value: it may be a secret."""
    if value is None:
        return f"{path or 'it'}: {wanted}, not null"
    kinds = ("boolean", "object", "array", "string", "integer", "number")
    kind = next(one for one in kinds if _is(one, value))
    other = _WORDS[kind]
    return f"{path or 'it'}: {wanted}" + ("" if other in wanted else f", not {other}")


def _inside(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shown(value: Any) -> str:
    return msgspec.json.encode(value).decode()
