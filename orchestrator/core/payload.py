"""What a step is called with: references resolved against a state."""

import operator
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, assert_never

import msgspec

from orchestrator.core.definition import PlannedStep, Sleep, SubSaga
from orchestrator.core.references import (
    AllOf,
    AnyOf,
    Compare,
    Condition,
    Element,
    Exists,
    Input,
    Item,
    Literal,
    Not,
    Operator,
    Output,
    Reference,
)
from orchestrator.core.state import Phase, SagaState
from shared.messages import AwareDatetime, Failure
from shared.tickets import PATH, into, is_ticket, or_else, tickets_in


def payload_of(planned: PlannedStep, state: SagaState) -> dict[str, Any]:
    """Keyword arguments of a step: an operator's, else the definition's, else the input.

    Raises:
        LookupError: A reference leads to nothing.
    """
    edited = state.step(planned.name).payload
    if edited is not None:
        return dict(edited)
    if planned.payload is None:
        return dict(state.input)
    return {name: resolve(value, state) for name, value in planned.payload.items()}


def payload_problem(planned: PlannedStep, state: SagaState) -> Failure | None:
    """Why a step cannot begin: its references lead to nothing; None when they do not."""
    what = "payload"
    try:
        match planned.action:
            case Sleep(until=reference) if reference is not None:
                what = "until"
                until_of(reference, state)
            case str() | SubSaga():
                payload_of(planned, state)
            case _:
                pass
    except (LookupError, TypeError, ValueError) as error:
        return _unresolved(planned, what, error)
    return None


def items_of(planned: PlannedStep, state: SagaState) -> int | Failure | None:
    """How many items the list of a step has; None for a step without a list."""
    if planned.each is None:
        return None
    try:
        items = _here(planned.each, state)
    except (LookupError, TypeError) as error:
        return _unresolved(planned, "each", error)
    if not isinstance(items, list):
        found = ValueError(f"{type(items).__name__} is no list")
        return _unresolved(planned, "each", found)
    if len(items) > planned.items_max:
        text = (
            f"each of step {planned.name!r} has {len(items)} items; "
            f"at most {planned.items_max} are allowed (items_max)"
        )
        return Failure(kind="TooManyItems", message=text, retryable=False)
    return len(items)


def skipped(planned: PlannedStep, state: SagaState) -> bool | Failure:
    """Whether a step is skipped because its condition does not hold."""
    try:
        return planned.when is not None and not holds(planned.when, state)
    except (LookupError, TypeError) as error:
        return _unresolved(planned, "when", error)


def holds(condition: Condition, state: SagaState) -> bool:
    """Whether a condition holds.

    Raises:
        LookupError: A reference that it compares leads to nothing.
        TypeError: Two values have no order, or one is in the payload store.
    """
    match condition:
        case Compare(op, left, right):
            return _COMPARE[op](_compared(left, state), _compared(right, state))
        case Exists(what):
            try:
                found = resolve(what, state)
            except LookupError:
                return False
            if is_ticket(found) and found.get(PATH):
                raise _away(what)
            return True
        case AllOf(of):
            return all(holds(one, state) for one in of)
        case AnyOf(of):
            return any(holds(one, state) for one in of)
        case Not(of):
            return not holds(of, state)
        case _:
            assert_never(condition)


_COMPARE: Final[dict[Operator, Callable[[Any, Any], bool]]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "in": lambda left, right: left in right,
}


def _unresolved(planned: PlannedStep, what: str, error: Exception) -> Failure:
    kind = "ConditionUnresolved" if what == "when" else "PayloadUnresolved"
    message = f"{what} of step {planned.name!r}: {error.args[0]}"
    return Failure(kind=kind, message=message, retryable=False)


def until_of(reference: Input | Output, state: SagaState) -> datetime:
    """The time that a reference leads to.

    Raises:
        LookupError: It leads to nothing.
        TypeError: It leads into a value in the payload store.
        ValueError: It leads to something that is no time, or to one without an offset.
    """
    value = _here(reference, state)
    try:
        return msgspec.convert(value, AwareDatetime)
    except msgspec.ValidationError:
        raise ValueError(f"{value!r} is no time with an offset, as 2026-03-01T09:00:00Z") from None


def _here(reference: Reference, state: SagaState) -> Any:
    """The value that a reference stands for, to be looked at now.

    Raises:
        LookupError: It leads to nothing.
        TypeError: It leads to a value in the payload store, or into one.
    """
    value = resolve(reference, state)
    if is_ticket(value):
        raise _away(reference)
    return value


def _compared(reference: Reference, state: SagaState) -> Any:
    """As `_here`; nor may anything in it be in the payload store, or nothing would equal it."""
    value = _here(reference, state)
    if isinstance(value, dict | list) and any(True for _ in tickets_in(value)):
        raise _away(reference)
    return value


def _away(reference: Reference) -> TypeError:
    match reference:
        case Input(path):
            what = f"the field {path!r} of the input"
        case Output(step, path):
            what = f"{path!r} of the output of {step!r}" if path else f"the output of {step!r}"
        case Element(of, index, path):
            return TypeError(f"item {index}, {path!r}: {_away(of).args[0]}")
        case _:
            what = "a value"
    return TypeError(
        f"{what} is in the payload store, or a part of it, since it is larger than "
        "SAGA_CLAIM_CHECK_BYTES; give what is looked at here a small field of its own"
    )


def resolve(reference: Reference, state: SagaState) -> Any:
    """The value that a reference stands for; a ticket for what is in the payload store.

    Raises:
        LookupError: It leads to nothing; says where.
    """
    match reference:
        case Literal(value):
            return value
        case Input(path):
            return _at(state.input, path, "the input")
        case Output(step, path, default):
            try:
                found = _at(_output(step, state), path, f"the output of {step!r}")
            except LookupError:
                if default is msgspec.UNSET:
                    raise
                return default
            return or_else(found, default) if is_ticket(found) else found
        case Element(of, index, path):
            return _at(resolve(of, state)[index], path, f"item {index}")
        case Item():
            raise LookupError("there is no item outside of a step with each")
        case _:
            assert_never(reference)


def _output(name: str, state: SagaState) -> Any:
    step = state.step(name)
    if step.phase is Phase.SKIPPED and not step.by_hand:
        raise LookupError(f"step {name!r} was skipped and has no output")
    return step.output


def _at(value: Any, path: str, where: str) -> Any:
    parts = path.split(".") if path else []
    for index, part in enumerate(parts):
        if is_ticket(value):
            return into(value, ".".join(parts[index:]))
        if not isinstance(value, Mapping) or part not in value:
            raise LookupError(f"{where} has no {path!r}")
        value = value[part]
    return value
