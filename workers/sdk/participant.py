"""Step functions as Celery tasks."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Final, ParamSpec, TypeVar

import sqlalchemy as sa
from celery import Celery, Task

from shared import faults
from shared.errors import ConfigurationError
from shared.ids import Direction
from shared.messages import Accepted, Rejected, Succeeded
from shared.names import UNDO_ARGUMENT
from workers.sdk.arguments import Arguments
from workers.sdk.barrier import Barrier, Verdict
from workers.sdk.command import StepCommand, is_command
from workers.sdk.context import StepContext
from workers.sdk.heartbeat import Pulse
from workers.sdk.install import prepare
from workers.sdk.outcome import Reject, failure_of
from workers.sdk.payloads import encoded, fetched, in_clear
from workers.sdk.request import STRATEGY
from workers.sdk.results import checked, result_type
from workers.sdk.runner import command_from, run_step

DIRECTION_MISMATCH: Final = "DirectionMismatch"

Database = str | sa.Engine | Callable[[], str]

P = ParamSpec("P")
R = TypeVar("R")


class Participant:
    """A service that takes part in sagas.

        participant = Participant(app, "postgresql+psycopg://…/inventory")

        @participant.action("inventory.reserve")
        def reserve(context: StepContext, sku: str, quantity: int) -> dict[str, str]:
            context.connection.execute(...)
            return {"reservation_id": ...}

    A function's first parameter is the `StepContext`. The others are the payload's fields that it
    names, checked against their annotations; what it does not name it does not get. What it
    returns is its output, and by default the undo data of its compensation.

    Args:
        app: The service's Celery app.
        database: SQLAlchemy URL, a function that returns one when it is first needed, or an engine
            for SQLite or PostgreSQL: where the steps work, and where the barrier stands. None for steps that are idempotent by their
            `StepContext.idempotency_key`; their compensations always run, even where the action
            never did.
    """

    def __init__(self, app: Celery[Any], database: Database | None = None) -> None:
        self._app = app
        self._database = database
        prepare(app)

    @property
    def engine(self) -> sa.Engine:
        """The engine of the participant's database.

        Raises:
            ConfigurationError: It has none.
        """
        return self._guard().engine

    def create_tables(self, *more: sa.MetaData) -> None:
        """Create the barrier's table, and those of other metadata beside it.

        Does nothing where they exist; safe in several processes at once.

        Raises:
            ConfigurationError: The participant has no database.
        """
        self._guard().create_tables(*more)

    def action(self, name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Register a function as an action: the Celery task `name`.

        Returns:
            A decorator that leaves the function as it is, for tests to call.

        Raises:
            TypeError: The function's parameters do not fit.
        """
        return self._step(name, "action")

    def compensation(self, name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Register a function as a compensation: the Celery task `name`.

        It gets the action's arguments and, if it names it, ``undo``: what the action returned.
        With a database it is called only when there is something to undo.

        Raises:
            TypeError: The function's parameters do not fit.
        """
        return self._step(name, "compensation")

    def _step(self, name: str, direction: Direction) -> Callable[[Callable[P, R]], Callable[P, R]]:
        def register(function: Callable[P, R]) -> Callable[P, R]:
            step = _Step(function, name, direction, self)
            self._app.task(
                name=name,
                bind=True,
                typing=False,
                shared=False,
                ignore_result=True,
                acks_late=True,
                reject_on_worker_lost=True,
                acks_on_failure_or_timeout=True,
                throws=(Reject,),
                Strategy=STRATEGY,
            )(step.body)
            return function

        return register

    @cached_property
    def barrier(self) -> Barrier | None:
        """The barrier in the participant's database; None without one."""
        if self._database is None:
            return None
        return Barrier(self._database() if callable(self._database) else self._database)

    def _guard(self) -> Barrier:
        if self.barrier is None:
            raise ConfigurationError(
                "This participant has no database.",
                hint='Give it one: Participant(app, "sqlite:///inventory.db").',
            )
        return self.barrier


class _Step:
    """One registered function."""

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        direction: Direction,
        participant: Participant,
    ) -> None:
        self._function = function
        self._name = name
        self._direction: Direction = direction
        self._participant = participant
        self._arguments = Arguments(function, skip=1, convert=True)
        self._result_type = result_type(function)

    @property
    def body(self) -> Callable[..., Any]:
        """The body of the Celery task."""

        def run(task: Task[Any, Any], /, *_: Any, **payload: Any) -> Any:
            if not is_command(task.request.headers):
                return self._plainly(task, payload)
            command = command_from(task)
            if command is None:
                return None
            return run_step(task, command, lambda: self._perform(task, command, payload))

        # What Celery shows of a task is what it finds on its function; of the name it makes code.
        name = getattr(self._function, "__name__", "")
        run.__name__ = name if name.isidentifier() else "step"
        run.__module__ = self._function.__module__
        run.__doc__ = self._function.__doc__
        return run

    def _perform(
        self, task: Task[Any, Any], command: StepCommand, payload: Mapping[str, Any]
    ) -> tuple[Verdict, Any]:
        payload = in_clear(payload, self._arguments.wants, command.saga_id)

        def work(connection: sa.Connection | None, stored_undo: Any) -> Succeeded | Accepted:
            if command.direction != self._direction:
                raise Reject(
                    DIRECTION_MISMATCH,
                    f"Task {self._name!r} is registered as {self._direction}, "
                    f"and was sent as {command.direction}.",
                )
            context = StepContext(
                saga_id=command.effect_of,
                saga_name=command.saga_name,
                step=command.step,
                direction=command.direction,
                attempt=command.attempt,
                task=self._name,
                task_id=str(task.request.id),
                deadline_at=command.deadline_at,
                traceparent=command.traceparent,
                _connection=connection,
                _token=command.token,
                _pulse=Pulse(task.app, command),
            )
            arguments = self._with_undo(payload, command, stored_undo)
            return self._call(context, arguments, command.saga_id)

        barrier = self._participant.barrier
        if barrier is not None:
            verdict = barrier.run(command, work)
        elif command.direction == "compensation":
            verdict = Verdict(work(None, None))
        else:
            try:
                verdict = Verdict(work(None, None))
            except Reject as rejection:
                verdict = Verdict(Rejected(failure=failure_of(rejection)))
        return verdict, _output(verdict.outcome)

    def _with_undo(
        self, payload: Mapping[str, Any], command: StepCommand, stored: Any
    ) -> Mapping[str, Any]:
        """A compensation's arguments; the stored undo data where the orchestrator knew of none."""
        if command.direction == "action" or not self._arguments.wants(UNDO_ARGUMENT):
            return payload
        known = payload.get(UNDO_ARGUMENT)
        if known is None:
            known = fetched(stored, command.effect_of)  # that saga keeps it
        return {**payload, UNDO_ARGUMENT: known}

    def _plainly(self, task: Task[Any, Any], payload: Mapping[str, Any]) -> Any:
        """A call from outside of any saga: no barrier, no reply, only the function."""
        context = StepContext(
            saga_id="",
            saga_name="",
            step=self._name,
            direction=self._direction,
            attempt=1 + task.request.retries,
            task=self._name,
            task_id=str(task.request.id),
        )
        barrier = self._participant.barrier
        if barrier is None:
            return _output(self._call(context, payload))
        with barrier.transaction() as connection:
            return _output(self._call(context.with_connection(connection), payload))

    def _call(
        self, context: StepContext, payload: Mapping[str, Any], saga_id: str = ""
    ) -> Succeeded | Accepted:
        arguments = self._arguments.select(payload)
        result = self._function(context, **arguments)
        faults.reach(faults.IN_ACTION, self._name)
        return encoded(checked(result, self._result_type), saga_id)


def _output(outcome: Succeeded | Rejected | Accepted) -> Any:
    return outcome.output if isinstance(outcome, Succeeded) else None
