"""What a step returned, checked against the type that its definition gives it.

It happened, so an output of another form is no refusal: the attempt has failed, nobody can go on
with what it returned, and it is undone like everything of which nobody knows.
"""

from typing import Any, Final

from orchestrator.core.definition import PlannedStep
from orchestrator.core.schema import mismatch
from shared.messages import Failed, Failure, Outcome, Succeeded

INVALID_OUTPUT: Final = "InvalidOutput"


def output_problem(planned: PlannedStep, output: Any) -> str:
    """Why an output is not what the step returns, in one sentence; empty where it is, or may be anything."""
    if planned.output_schema is None:
        return ""
    problem = mismatch(planned.output_schema, output)
    name = planned.output_schema.get("$ref", "").rpartition("/")[2] or "its type"
    return f"The output of step {planned.name!r} is no {name}: {problem}." if problem else ""


def outcome_of(planned: PlannedStep, outcome: Outcome) -> Outcome:
    """What an attempt of an action has come to: a success with another output is a failure for good.

    Another attempt would be answered by the barrier, with the same output.
    """
    if planned.output_schema is None or not isinstance(outcome, Succeeded):
        return outcome
    problem = output_problem(planned, outcome.output)
    if not problem:
        return outcome
    failure = Failure(kind=INVALID_OUTPUT, message=problem, retryable=False)
    return Failed(failure=failure, undo=outcome.undo)
