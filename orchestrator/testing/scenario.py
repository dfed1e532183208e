"""``given(...).step(...).expect(...)``: a run as a sentence."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

from orchestrator.core.definition import Saga
from orchestrator.core.state import Status
from orchestrator.testing.answers import Answer
from orchestrator.testing.bench import Bench
from orchestrator.testing.participants import Function
from shared.errors import ConfigurationError
from shared.ids import Direction

_UNSET: Any = object()


def given(saga: Saga, **input: Any) -> "Scenario":  # noqa: A002 - the field's name everywhere
    """A run of this saga, with these fields of its input."""
    return Scenario(saga, input)


class Scenario:
    """What goes wrong in a run; `expect` makes it run.

    Args:
        saga: Its definition.
        input: Fields of its input; for those that are missing something is made up.
    """

    def __init__(self, saga: Saga, input: Mapping[str, Any]) -> None:  # noqa: A002 - as above
        self._saga = saga
        self._input = input
        self._scripts: dict[tuple[str, Direction], Sequence[Answer]] = {}
        self._cancels: set[tuple[str, Direction]] = set()
        self._options: dict[str, Any] = {}

    def step(self, name: str, *answers: Answer) -> Self:
        """Say how the attempts of a step go, from the first one on; the others succeed."""
        self._scripts[self._known(name), "action"] = answers
        return self

    def undo(self, name: str, *answers: Answer) -> Self:
        """Say how the attempts of a compensation go, from the first one on."""
        self._scripts[self._known(name), "compensation"] = answers
        return self

    def cancel_during(self, name: str, direction: Direction = "action") -> Self:
        """Cancel the saga while the first attempt of this step is in flight."""
        self._cancels.add((self._known(name), direction))
        return self

    def participants(self, **functions: Function) -> Self:
        """Functions that do the work of tasks; a dot in a task name is written as two underscores."""
        named = {name.replace("__", "."): one for name, one in functions.items()}
        self._options["participants"] = {**self._options.get("participants", {}), **named}
        return self

    def outputs(self, **outputs: Any) -> Self:
        """What steps return; a dash in a step's name is written as an underscore."""
        dashed = {name.replace("_", "-"): name for name in outputs}
        found = {
            step.name: outputs[dashed.get(step.name, step.name)]
            for step in self._saga.steps
            if step.name in outputs or step.name in dashed
        }
        self._options["outputs"] = {**self._options.get("outputs", {}), **found}
        return self

    def signals(self, **signals: Any) -> Self:
        """What the signals say that steps wait for; those that are not named never come."""
        self._options["signals"] = signals
        return self

    def also(self, *sagas: Saga) -> Self:
        """Definitions of the sagas that are steps of this one."""
        self._options["also"] = sagas
        return self

    def run(self) -> Bench:
        """Run it to its end, or until it waits for somebody."""
        bench = self.begin()
        pending = set(self._cancels)
        while bench.waiting and pending:
            command = bench.waiting[0]
            if (command.step, command.direction) in pending:
                pending.discard((command.step, command.direction))
                bench.cancel()
            bench.deliver()
        bench.run()
        return bench

    def begin(self) -> Bench:
        """Start it, and let the test drive it."""
        bench = Bench(self._saga, self._input, **self._options)
        for (name, direction), answers in self._scripts.items():
            bench.participants.script(name, direction, answers)
        return bench

    def expect(
        self,
        status: Status | str,
        *,
        done: Collection[str] = _UNSET,
        undone: Sequence[str] = _UNSET,
        never: Collection[str] = (),
        attempts: Mapping[str, int] | None = None,
        cause: str | None = None,
    ) -> Bench:
        """Run it and compare.

        Args:
            status: How it ends.
            done: Exactly the steps whose effect stands then.
            undone: Exactly the steps that were undone, in this order.
            never: Steps that were never begun.
            attempts: How many attempts steps took.
            cause: Why it turned back: ``rejected``, ``failed``, ``timed_out``, ``cancelled`` or
                ``deadline``; or the kind of failure.

        Returns:
            The run, for further questions.

        Raises:
            AssertionError: It went otherwise; says how, with its history.
        """
        bench = self.run()
        state = bench.state
        found: list[str] = []
        _compare(found, "status", Status(status).value, bench.status.value)
        if done is not _UNSET:
            _compare(found, "done", sorted(done), sorted(bench.done))
        if undone is not _UNSET:
            _compare(found, "undone", [*undone], [*bench.undone])
        begun = {command.step for command in bench.participants.calls}
        _compare(found, "never begun", sorted(never), sorted({*never} - begun))
        taken = {name: state.step(name).attempt for name in attempts or {}}
        _compare(found, "attempts", dict(attempts or {}), taken)
        if cause is not None:
            why = state.cause
            known = {why.kind.value, why.failure.kind if why.failure else ""} if why else set()
            if cause not in known:
                found.append(f"cause: expected {cause!r}, found {sorted(known) or None}")
        if found:
            raise AssertionError("\n".join([*found, "", *told(bench)]))
        return bench

    def _known(self, name: str) -> str:
        names = [step.name for step in self._saga.steps]
        if name not in names:
            raise ConfigurationError(
                f"Saga {self._saga.name!r} has no step {name!r}.",
                hint=f"Its steps are {', '.join(names)}.",
            )
        return name


def told(bench: Bench) -> list[str]:
    """A run in lines, for the message of an assertion."""
    return [
        f"{entry.offset_ms / 1000:10.3f} s  {entry.event} {entry.step} "
        f"{'' if entry.attempt is None else entry.attempt} {entry.detail}".rstrip()
        for entry in bench.view.timeline
    ]


def _compare(found: list[str], what: str, expected: object, actual: object) -> None:
    if expected != actual:
        found.append(f"{what}: expected {expected}, found {actual}")
