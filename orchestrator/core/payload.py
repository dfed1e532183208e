"""What a step is called with: references resolved against a state."""

from collections.abc import Mapping
from typing import Any, assert_never

from orchestrator.core.definition import Input, Literal, Output, PlannedStep
from orchestrator.core.state import SagaState
from shared.messages import Failure


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
    """Why the arguments of a step cannot be made; None when they can."""
    try:
        payload_of(planned, state)
    except LookupError as error:
        message = f"payload of step {planned.name!r}: {error.args[0]}"
        return Failure(kind="PayloadUnresolved", message=message, retryable=False)
    return None


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
