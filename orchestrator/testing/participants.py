"""Fake participants: scripts for what they answer, the barrier, and a ledger of what stands."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from orchestrator.testing.answers import Answer
from shared.ids import Direction
from shared.messages import Command, Ended, Failed, Failure, Rejected, Succeeded
from shared.names import UNDO_ARGUMENT

Function = Callable[..., Any]
_Key = tuple[str, str, Direction]

COMPENSATED_BEFORE: Final = Failure(
    kind="CompensatedBefore",
    message="The compensation of this step came first.",
    retryable=False,
)


class Effect(NamedTuple):
    """Something that happened in the world, for good."""

    saga_id: str
    step: str
    direction: Direction


class Participants:
    """All of them.

    A script says how the attempts of a step go, one after the other; when it is at its end they
    succeed. A function does the work itself: it gets the keyword arguments of the task. With both,
    the function is called for the attempts that succeed by the script.

    Attributes:
        effects: What happened, in order.
        calls: Every command that was delivered, in order.
        undone_for_nothing: Steps whose compensation found nothing to undo.
    """

    def __init__(
        self, outputs: Mapping[str, Any], functions: Mapping[str, Function] | None = None
    ) -> None:
        self.effects: list[Effect] = []
        self.calls: list[Command] = []
        self.undone_for_nothing: list[str] = []
        self._outputs = outputs
        self._functions = functions or {}
        self._scripts: dict[tuple[str, Direction], tuple[Answer, ...]] = {}
        self._attempts: dict[_Key, int] = {}
        self._known: dict[_Key, Succeeded | Rejected | None] = {}

    def script(self, step: str, direction: Direction, answers: Sequence[Answer]) -> None:
        """Say how the attempts of a step go, from the first one on."""
        self._scripts[step, direction] = tuple(answers)

    def answer_to(self, command: Command) -> Answer:
        """How an attempt goes."""
        # A step that runs for each item of a list: pack[0], or pack for all of them.
        names = (command.step, command.step.partition("[")[0])
        scripts = (self._scripts.get((name, command.direction)) for name in names)
        script = next(filter(None, scripts), ())
        return next(itertools.islice(script, command.attempt - 1, None), Answer())

    def take(self, command: Command, answer: Answer) -> Ended:
        """Deliver a command; the barrier answers what was done before."""
        self.calls.append(command)
        if not (answer.replied or answer.happened):
            return Failed(failure=Failure(kind="Died"))
        action: _Key = (command.saga_id, command.step, "action")
        if command.direction == "action":
            return self._act(command, answer)
        done: _Key = (command.saga_id, command.step, "compensation")
        if done in self._known:
            return Succeeded()
        standing = self._known.setdefault(action, None)
        if not isinstance(standing, Succeeded):
            self._known[action] = None
            self._known[done] = Succeeded()
            self.undone_for_nothing.append(command.step)
            return Succeeded()
        outcome = self._work(command, answer)
        if isinstance(outcome, Succeeded):
            self._known[done] = outcome
            self.effects.append(Effect(command.saga_id, command.step, "compensation"))
        return outcome

    def _act(self, command: Command, answer: Answer) -> Ended:
        key: _Key = (command.saga_id, command.step, command.direction)
        if key in self._known:
            known = self._known[key]
            # A later attempt is asked for after the one that was rejected: it runs.
            again = isinstance(known, Rejected) and self._attempts[key] < command.attempt
            if not again:
                return known or Rejected(failure=COMPENSATED_BEFORE)
        outcome = self._work(command, answer)
        if not isinstance(outcome, Failed):
            self._known[key] = outcome
            self._attempts[key] = command.attempt
        if isinstance(outcome, Succeeded):
            self.effects.append(Effect(command.saga_id, command.step, "action"))
        return outcome

    def _work(self, command: Command, answer: Answer) -> Ended:
        if answer.outcome is not None and not isinstance(answer.outcome, Succeeded):
            return answer.outcome
        function = self._functions.get(command.task)
        if function is not None:
            return _outcome_of(function, command)
        if answer.outcome is not None:
            return answer.outcome
        if command.direction == "compensation":
            return Succeeded()
        output = self._outputs.get(command.step.partition("[")[0])
        return Succeeded(output=output, undo=output)


def _outcome_of(function: Function, command: Command) -> Ended:
    try:
        result = function(**command.payload)
    except Exception as error:  # noqa: BLE001 - as in a worker, a failure is a value
        code = getattr(error, "code", None)
        if type(error).__name__ == "Reject" and isinstance(code, str):  # of the participants' SDK
            return Rejected(failure=Failure(kind=code, message=str(error), retryable=False))
        return Failed(failure=Failure(kind=type(error).__name__, message=str(error)))
    if type(result).__name__ == "StepResult":  # likewise
        return Succeeded(output=result.output, undo=getattr(result, UNDO_ARGUMENT, result.output))
    return Succeeded(output=result, undo=result)
