"""What is wrong with an object, field by field: msgspec itself stops at the first."""

from collections.abc import Mapping
from functools import cache

import msgspec
from msgspec.structs import FieldInfo


@cache
def fields_of(struct: type[msgspec.Struct]) -> Mapping[str, FieldInfo]:
    """Its fields by their names in JSON; msgspec reads the annotations anew each time."""
    return {field.encode_name: field for field in msgspec.structs.fields(struct)}


def field_problems(
    wanted: type[msgspec.Struct], value: object, *, unknown_allowed: bool = False
) -> list[str]:
    """Every field that is wrong.

    Args:
        wanted: What the object should be.
        value: Plain JSON values.
        unknown_allowed: Whether fields that the type does not have are ignored.

    Returns:
        One line for each, which begins with the field's name; empty when it fits.
    """
    if not isinstance(value, Mapping):
        return [f"an object is wanted, not {type(value).__name__}"]
    fields = fields_of(wanted)
    found = [
        f"{name}: unknown field (the input has {', '.join(fields)})"
        for name in value
        if name not in fields and not unknown_allowed
    ]
    for name, field in fields.items():
        if name in value:
            try:
                msgspec.convert(value[name], field.type, str_keys=True)
            except msgspec.ValidationError as error:
                found.append(f"{name}: {_first_lower(str(error))}")
        elif field.required:
            found.append(f"{name}: missing")
    if not found:
        # What no single field shows: __post_init__ of the type, tags, forbidden combinations.
        try:
            msgspec.convert(value, wanted, str_keys=True)
        except msgspec.ValidationError as error:
            found.append(_first_lower(str(error)))
    return found


def _first_lower(text: str) -> str:
    return text[:1].lower() + text[1:]
