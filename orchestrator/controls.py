"""What operators say of all sagas of a name: limits in place of the definition's, and pauses."""

from collections.abc import Sequence

import structlog

from orchestrator.core.definition import Definition
from orchestrator.core.limits import Limit, limit_problems
from orchestrator.engine import Engine
from orchestrator.ports import Control, SagaRow
from orchestrator.rooms import GateView
from shared.clock import Clock
from shared.errors import InputError, UnknownSaga
from shared.guessing import guess, listed

log = structlog.get_logger("orchestrator")


class Controls:
    """Keeps what operators say, with who, when and why.

    Args:
        engine: Whose store it is kept in.
        clock: Tells the time.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._store = engine.store
        self._rooms = engine.rooms
        self._clock = clock

    def limits(self, name: str | None = None) -> Sequence[GateView]:
        """The limits in force, with how much of each is used, by name and step.

        Args:
            name: Only those of this saga.
        """
        known = [one for one in self._definitions() if name in {None, one.name}]
        if name is not None and not known:
            raise self._unknown(name)
        found = [(one.name, self._rooms.limits_of(one)) for one in known]
        limits = {(name, step): limit for name, of in found for step, limit in of.items()}
        return self._rooms.view(limits)

    def awaited(self, row: SagaRow) -> Sequence[GateView]:
        """What a saga waits for room in, and how many wait in front of it.

        Nothing where it has ended, or is limited no more.
        """
        limits = self._rooms.limits_of(self._engine.definition_of(row))
        awaited = () if row.state.status.final else row.state.awaited
        gates = {(row.state.name, step): limits[step] for step in awaited if step in limits}
        return self._rooms.view(gates, row) if gates else []

    def set_limit(
        self, name: str, limit: Limit, *, step: str = "", reason: str, by: str = ""
    ) -> Control:
        """Limit all sagas of a name, or one of their steps; it holds everywhere within a second.

        What is in flight stays there. What begins from then on waits until there is room.

        Args:
            name: Name of the saga.
            limit: In place of that of the definition; `Limit()` for none.
            step: Which step; empty for the saga.
            reason: Why; kept with it.
            by: Who asks; kept with it.

        Raises:
            UnknownSaga: No definition has that name.
            InputError: It has no such step, or one that only waits; or the limit is none.
        """
        self._require(name, step)
        problems = limit_problems(limit)
        if problems:
            raise InputError(f"The limit {'; '.join(problems)}.", hint="Nothing was changed.")
        control = Control(
            name=name, step=step, limit=limit, reason=reason, by=by, at=self._clock()
        )
        self._rooms.keep(control)
        log.info(
            "limit.set", saga_name=name, saga_step=step, limit=str(limit), reason=reason, by=by
        )
        return control

    def reset_limit(
        self, name: str, *, step: str = "", reason: str = "", by: str = ""
    ) -> Control | None:
        """Take back what `set_limit` said: the definition counts again; returns what it was.

        Args:
            name: Name of the saga.
            step: Which step; empty for the saga.
            reason: Why; in the log alone, since nothing is left to keep it with.
            by: Who asks; in the log.

        Raises:
            UnknownSaga: No definition has that name.
            InputError: It has no such step.
        """
        self._require(name, step)
        gone = self._rooms.drop(name, step, "limit")
        log.info("limit.reset", saga_name=name, saga_step=step, reason=reason, by=by)
        return gone

    def pause(self, name: str, *, reason: str, by: str = "") -> Control:
        """Have every saga of a name that starts from now on begin paused, until `resume`.

        Those that there are already are paused one by one (`Client.pause`).

        Raises:
            UnknownSaga: No definition has that name.
        """
        self._require(name, "")
        control = Control(name=name, reason=reason, by=by, at=self._clock())
        self._rooms.keep(control)
        log.info("name.paused", saga_name=name, reason=reason, by=by)
        return control

    def resume(self, name: str, *, reason: str = "", by: str = "") -> Control | None:
        """Let sagas of a name begin again when they start; returns the pause, if there was one.

        Args:
            name: Name of the saga.
            reason: Why; in the log, and in the history of the sagas that are resumed one by one.
            by: Who asks; likewise.

        Raises:
            UnknownSaga: No definition has that name.
        """
        self._require(name, "")
        gone = self._rooms.drop(name, "", "pause")
        log.info("name.resumed", saga_name=name, reason=reason, by=by)
        return gone

    def pauses(self) -> Sequence[Control]:
        """The names that are paused, with who said so, when and why."""
        return self._rooms.pauses()

    def _require(self, name: str, step: str) -> None:
        of_name = [one for one in self._definitions() if one.name == name]
        if not of_name:
            raise self._unknown(name)
        steps = {planned.name: planned for one in of_name for planned in one.steps}
        if step and step not in steps:
            raise InputError(
                f"Saga {name!r} has no step {step!r}.",
                hint=guess(step, steps) or f"It has {', '.join(steps)}.",
            )
        if step and steps[step].waits:
            raise InputError(f"Step {step!r} of {name!r} only waits, which takes no room.")

    def _unknown(self, name: str) -> UnknownSaga:
        known = {one.name for one in self._definitions()}
        hint = guess(name, known) or listed(known)
        return UnknownSaga(f"There is no saga named {name!r}.", hint=hint)

    def _definitions(self) -> list[Definition]:
        return self._engine.catalog.known(self._store)
