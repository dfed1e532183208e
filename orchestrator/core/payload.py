"""What a step is called with: references resolved against a state."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, assert_never

import msgspec

from orchestrator.core.definition import Input, Literal, Output, PlannedStep, Sleep
from orchestrator.core.state import SagaState
from shared.messages import AwareDatetime, Failure


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
            case str():
                payload_of(planned, state)
            case _:
                pass
    except (LookupError, ValueError) as error:
        message = f"{what} of step {planned.name!r}: {error.args[0]}"
        return Failure(kind="PayloadUnresolved", message=message, retryable=False)
    return None


def until_of(reference: Input | Output, state: SagaState) -> datetime:
    """The time that a reference leads to.

    Raises:
        LookupError: It leads to nothing.
        ValueError: It leads to something that is no time, or to one without an offset.
    """
    value = resolve(reference, state)
    try:
        return msgspec.convert(value, AwareDatetime)
    except msgspec.ValidationError:
        raise ValueError(f"{value!r} is no time with an offset, as 2026-03-01T09:00:00Z") from None


def resolve(reference: Input | Output | Literal, state: SagaState) -> Any:
    """The value that a reference stands for.

    Raises:
        LookupError: It leads to nothing; says where.
    """
    match reference:
        case Literal(value):
            return value
        case Input(path):
            return _at(state.input, path, "the input")
        case Output(step, path):
            return _at(state.step(step).output, path, f"the output of {step!r}")
        case _:
            assert_never(reference)


def _at(value: Any, path: str, where: str) -> Any:
    for part in path.split(".") if path else ():
        if not isinstance(value, Mapping) or part not in value:
            raise LookupError(f"{where} has no {path!r}")
        value = value[part]
    return value
