"""Checks of a saga definition: all mistakes at once, each named.

They run when a `Saga` is built, never while one runs.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, TypeGuard

import msgspec

from orchestrator.core.definition import Gather, Retry, Saga, Sleep, Step, SubSaga, WaitFor
from orchestrator.core.eventing import eventing_problems
from orchestrator.core.graph_checks import graph_problems
from orchestrator.core.limits import limit_problems
from orchestrator.core.references import Input, Item, Literal, Output, references_in
from orchestrator.core.schema import mismatch, unchecked
from shared import codec
from shared.backoff import Backoff
from shared.errors import DecodeError
from shared.fields import fields_of
from shared.names import UNDO_ARGUMENT

STEPS_MAX: Final = 300
"""Steps for which the machine is quick enough; `Bounds.steps_max` allows fewer."""
ITEMS_MAX: Final = 1_000
"""The same for the longest list that a step may run over."""
NAME_CHARS_MAX: Final = 64
FACTOR_MAX: Final = 100
"""Largest factor of a back-off: beyond it the wait would overflow within the first attempts."""
DURATION_MAX: Final = timedelta(days=3650)
"""Longest time-out, wait and deadline: adding it to the time of day stays within the calendar."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]*", re.IGNORECASE)
_ZERO: Final = timedelta(0)


def saga_problems(saga: Saga) -> list[str]:
    """Every mistake in a definition, in words that name the step and the field."""
    found = _type_problems(saga, skip="input")
    if found:
        return found
    found += _name_problems("the saga", saga.name)
    if saga.version < 1:
        found.append(f"version is {saga.version}; it must be 1 or more")
    if saga.deadline is not None:
        found += _duration_problems("deadline", saga.deadline)
    if saga.limit is not None:
        found += [f"limit.{problem}" for problem in limit_problems(saga.limit)]
    found += _input_type_problems(saga.input)
    if not 1 <= len(saga.steps) <= STEPS_MAX:
        found.append(f"it has {len(saga.steps)} steps; between 1 and {STEPS_MAX} are allowed")
        return found
    names = [step.name for step in saga.steps]
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    found += [f"step {name!r}: the name is used {names.count(name)} times" for name in twice]
    typed = True
    for step in saga.steps:
        mistyped = _step_type_problems(step)
        typed = typed and not mistyped
        problems = mistyped or _step_problems(step)
        found += [f"step {step.name!r}: {problem}" for problem in problems]
    # Without names and types that hold, the graph would be another one than the one that is meant.
    if twice or not typed:
        return found
    found += graph_problems(saga, _input_schema(saga.input))
    # The events are checked against a graph and an input that hold.
    return found or eventing_problems(saga)


# One value ------------------------------------------------------------------------------------


def _type_problems(struct: msgspec.Struct, *, skip: str = "", prefix: str = "") -> list[str]:
    # msgspec does not check what is passed to a constructor: `timeout=30` would get here.
    found = []
    for field in fields_of(type(struct)).values():
        value = getattr(struct, field.name)
        if field.name == skip:
            continue
        try:
            converted = msgspec.convert(value, field.type)
            # Not a number is not even itself; the check of the value names it.
            fits = converted == _as_tuple(value) or value != value  # noqa: PLR0124
            wanted = "it is not of the declared type"
        except msgspec.ValidationError as error:
            fits, wanted = False, _first_lower(str(error))
        if not fits:
            found.append(f"{prefix}{field.name} is {value!r}; {wanted}")
    return found


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _step_type_problems(step: Step) -> list[str]:
    found = _type_problems(step, skip="output")
    found += _output_type_problems(step)
    for field, retry in (("retry", step.retry), ("compensation_retry", step.compensation_retry)):
        if isinstance(retry, Retry):
            found += _retry_type_problems(field, retry)
    return found


def _retry_type_problems(field: str, retry: Retry) -> list[str]:
    found = _type_problems(retry, prefix=f"{field}.")
    if isinstance(retry.backoff, Backoff):
        found += _type_problems(retry.backoff, prefix=f"{field}.backoff.")
    if isinstance(retry.by_kind, Mapping):
        for kind, policy in retry.by_kind.items():
            if isinstance(policy, Retry):
                found += _retry_type_problems(f"{field}.by_kind[{kind!r}]", policy)
    return found


def _name_problems(what: str, name: str) -> list[str]:
    if len(name) > NAME_CHARS_MAX or not _NAME.fullmatch(name):
        rule = "letters, digits, '-', '_' or '.', and begins with a letter or a digit"
        return [f"{what} is named {name!r}; a name has 1 to {NAME_CHARS_MAX} {rule}"]
    return []


def _duration_problems(field: str, value: timedelta, *, zero: bool = False) -> list[str]:
    if value < _ZERO or (value == _ZERO and not zero):
        return [f"{field} is {value}; it must {'not be negative' if zero else 'be positive'}"]
    if value > DURATION_MAX:
        return [f"{field} is {value}; at most {DURATION_MAX.days} days are allowed"]
    return []


def _input_type_problems(input_type: object) -> list[str]:
    if not _is_struct_type(input_type):
        return [f"input is {input_type!r}; it must be a subclass of msgspec.Struct"]
    found = []
    if input_type.__struct_config__.array_like:
        found.append(f"input {input_type!r} is array_like; an input is an object with fields")
    if UNDO_ARGUMENT in _fields(input_type):
        found.append(
            f"input has a field {UNDO_ARGUMENT!r}; compensations get undo data by that name"
        )
    try:
        msgspec.json.schema(input_type)
    except TypeError as error:
        reason = str(error).strip().splitlines()[-1]
        found.append(f"input {input_type!r} has no JSON form: {reason}")
    return found


def _output_type_problems(step: Step) -> list[str]:
    """They are asked for with the types: the graph is checked with the schema."""
    if step.output is None:
        return []
    if not _is_struct_type(step.output):
        return [f"output is {step.output!r}; it must be a subclass of msgspec.Struct"]
    if isinstance(step.action, Sleep):
        return ["it sleeps, which returns nothing, and has an output=; leave it out"]
    try:
        schema = msgspec.json.schema(step.output)
    except TypeError as error:
        reason = str(error).strip().splitlines()[-1]
        return [f"output {step.output!r} has no JSON form: {reason}"]
    words = ", ".join(sorted(set(unchecked(schema))))
    if words:
        return [f"output {step.output!r} says {words}, which cannot be checked"]
    wait = step.action
    if isinstance(wait, WaitFor) and wait.otherwise == "default":
        problem = mismatch(schema, wait.default)
        return [f"default is no {step.output.__name__}: {problem}"] if problem else []
    return []


def _is_struct_type(value: object) -> TypeGuard[type[msgspec.Struct]]:
    return isinstance(value, type) and issubclass(value, msgspec.Struct)


def _input_schema(input_type: object) -> dict[str, Any] | None:
    """None where it has none, which is a mistake of its own."""
    if not _is_struct_type(input_type):
        return None
    with suppress(TypeError):
        return msgspec.json.schema(input_type)
    return None


def _fields(input_type: type[msgspec.Struct]) -> tuple[str, ...]:
    return input_type.__struct_encode_fields__


# One step -------------------------------------------------------------------------------------


def _step_problems(step: Step) -> list[str]:
    found = _name_problems("it", step.name)
    found += _work_problems(step)
    if step.compensation == "":
        found.append("compensation is empty; name a Celery task or NOTHING_TO_UNDO")
    for where, value in (("timeout", step.timeout), ("completes_within", step.completes_within)):
        found += _duration_problems(where, value) if value is not None else []
    for field, retry in (("retry", step.retry), ("compensation_retry", step.compensation_retry)):
        found += _retry_problems(field, retry)
        for kind, policy in retry.by_kind.items():
            found += _retry_problems(f"{field}.by_kind[{kind!r}]", policy)
            if policy.by_kind:
                found.append(f"{field}.by_kind[{kind!r}] has a by_kind of its own; leave it out")
    found += _each_problems(step)
    if step.limit is not None:
        found += [f"limit.{problem}" for problem in limit_problems(step.limit)]
        if isinstance(step.action, WaitFor | Sleep):
            found.append("it only waits, which takes no room; leave the limit out")
    for argument, value in (step.payload or {}).items():
        found += [f"payload {argument!r} {problem}" for problem in _argument_problems(value)]
        if argument == UNDO_ARGUMENT:
            found.append(
                f"payload {argument!r}: compensations get undo data by that name; choose another"
            )
    return found


def _work_problems(step: Step) -> list[str]:
    match step.action:
        case str(task):
            return [] if task else ["action is empty; it must be a Celery task name"]
        case WaitFor() | Sleep():
            return _wait_problems(step, step.action)
        case SubSaga():
            return _sub_saga_problems(step, step.action)
        case Gather():
            return ["action is Gather, which is made for a step with each="]


def _sub_saga_problems(step: Step, work: SubSaga) -> list[str]:
    found = _name_problems("its saga", work.name)
    if isinstance(step.compensation, str):
        found.append("it is a saga, which undoes itself; leave the compensation out")
    if step.queue:
        found.append("it is a saga and has no queue; leave the queue out")
    return found


def _each_problems(step: Step) -> list[str]:
    found = []
    if not 1 <= step.items_max <= ITEMS_MAX:
        found.append(f"items_max is {step.items_max}; between 1 and {ITEMS_MAX} are allowed")
    if step.items_at_once is not None and step.items_at_once < 1:
        found.append(f"items_at_once is {step.items_at_once}; it must be 1 or more, or None")
    for compared, _ in references_in(step.when) if step.when is not None else ():
        found += [f"when {problem}" for problem in _argument_problems(compared)]
    if step.pivot and step.when is not None:
        found.append("it is the pivot and has a when; the point of no return is never skipped")
    if step.each is None:
        return found
    if step.pivot:
        found.append("it is the pivot and has an each; there is one point of no return")
    if isinstance(step.action, str) and step.payload is None:
        found.append("it has an each; say with payload= where the Item() goes")
    return found


def _wait_problems(step: Step, wait: WaitFor | Sleep) -> list[str]:
    found = []
    if isinstance(step.compensation, str):
        found.append("it only waits, so there is nothing to undo; leave the compensation out")
    if step.payload is not None:
        found.append("it only waits and calls nothing; leave the payload out")
    if step.pivot:
        found.append("it only waits and cannot be the pivot")
    match wait:
        case WaitFor(signal, _, otherwise, default):
            found += _name_problems("its signal", signal)
            if step.timeout is None:
                found.append("it waits for a signal; say how long with timeout=")
            if default is not None and otherwise != "default":
                found.append('it has a default; say otherwise="default", or leave it out')
            found += [f"default {problem}" for problem in _argument_problems(default)]
        case Sleep(lasts, until):
            if (lasts is None) == (until is None):
                found.append("Sleep wants either a time that it lasts or until=")
            if lasts is not None:
                found += _duration_problems("Sleep", lasts)
    return found


def _retry_problems(field: str, retry: Retry) -> list[str]:
    found = []
    if retry.attempts is not None and retry.attempts < 1:
        found.append(f"{field}.attempts is {retry.attempts}; it must be 1 or more, or None")
    backoff, where = retry.backoff, f"{field}.backoff"
    found += _duration_problems(f"{where}.wait_first", backoff.wait_first, zero=True)
    found += _duration_problems(f"{where}.wait_max", backoff.wait_max, zero=True)
    if not 1 <= backoff.factor <= FACTOR_MAX:
        found.append(f"{where}.factor is {backoff.factor}; it must be between 1 and {FACTOR_MAX}")
    return found


def _argument_problems(value: object) -> list[str]:
    match value:
        case Output(default=default) if default is not msgspec.UNSET:
            plain = default
        case Input() | Output() | Item():
            return []
        case Literal(plain):
            pass
        case plain:
            pass
    if _holds_reference(plain):
        return ["has a reference inside a value; a reference is the whole value of an argument"]
    try:
        codec.encode(plain)
    except DecodeError as error:
        return [f"is {error}"]
    return []


def _holds_reference(value: object) -> bool:
    match value:
        case Input() | Output() | Item() | Literal():
            return True
        case Mapping():
            return any(map(_holds_reference, value.values()))
        case list() | tuple() | set() | frozenset():
            return any(map(_holds_reference, value))
        case _:
            return False


def _first_lower(text: str) -> str:
    return text[:1].lower() + text[1:]
