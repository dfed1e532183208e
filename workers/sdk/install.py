"""Turns the unmodified tasks of an existing Celery app into saga steps.

A task's class is replaced by a subclass of it whose ``__call__`` looks at the message first: with
saga headers the task's own call is wrapped in `run_step`, without them nothing is different. The
subclass sits outside of everything: a ``__call__`` of the application's own (Flask, Django), the
wrapper of ``autoretry_for``, Pydantic. Signals would come too late to pick the arguments, and what
a handler raises is swallowed.
"""

from collections.abc import Mapping
from typing import Any, Final
from weakref import WeakSet

import structlog
from celery import Celery, Task, signals
from celery.app.registry import TaskRegistry
from celery.utils.dispatch import Signal
from typing_extensions import override

from shared import faults
from shared.errors import DecodeError
from shared.messages import TASK_UNKNOWN, Failed, Outcome, Rejected
from shared.telemetry import logs
from workers.sdk.arguments import Arguments
from workers.sdk.barrier import Verdict
from workers.sdk.command import StepCommand, command_of, is_command
from workers.sdk.outcome import Reject, failure, failure_of
from workers.sdk.payloads import encoded, everything, in_clear
from workers.sdk.reply import send_reply
from workers.sdk.request import STRATEGY
from workers.sdk.runner import command_from, run_step

_TAKEN: Final = "saga_taken"
"""Set on a request that is being run as a step, so that a task that calls itself replies once."""

_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)
_prepared: WeakSet[Celery[Any]] = WeakSet()
_installed: WeakSet[Celery[Any]] = WeakSet()


def install(app: Celery[Any]) -> None:
    """Make every task of an app usable as a saga step, those that are registered later too.

    A task is called with the payload's fields that its signature names, and what it returns is its
    output; it may raise `Reject` and `Fail`. While it retries itself (``self.retry``,
    ``autoretry_for``) no reply is sent. Messages without saga headers are handled as before.

    There is no barrier: a step that may run twice must be idempotent.

    Args:
        app: The app; a second call for it does nothing.
    """
    if app in _installed:
        return
    _installed.add(app)
    prepare(app)

    def adopt_all(**_: Any) -> None:
        registry = app.tasks
        for task in registry.values():
            _adopt(task)
        # Modules that are imported later register more tasks. No signal tells of them, and
        # `worker_init` is not sent in a child that was spawned.
        registry.__class__ = type("AdoptingRegistry", (_AdoptingRegistry, type(registry)), {})

    if getattr(app, "finalized", False):  # the stubs leave it out
        adopt_all()
    else:
        # Not now: looking at the tasks would read the app's configuration.
        finalized: Signal = app.on_after_finalize
        finalized.connect(adopt_all, weak=False)


def prepare(app: Celery[Any]) -> None:
    """What every app with saga steps needs: an answer for tasks that it does not know."""
    if not _prepared:
        signals.task_unknown.connect(_answer_unknown, weak=False)
    _prepared.add(app)


class _AdoptingRegistry(TaskRegistry):
    """The tasks of an app, adopted as they come."""

    @override
    def __setitem__(self, name: str, task: Task[Any, Any]) -> None:
        _adopt(task)
        super().__setitem__(name, task)


class _AdoptedTask(Task[Any, Any]):
    """What is put in front of a task's own class."""

    @override
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        request = self.request
        if getattr(request, _TAKEN, False) or not is_command(request.headers):
            return super().__call__(*args, **kwargs)
        setattr(request, _TAKEN, True)
        command = command_from(self)
        if command is None:
            return None
        return run_step(self, command, lambda: self._perform(command, args, kwargs))

    def _perform(
        self, command: StepCommand, args: tuple[Any, ...], payload: Mapping[str, Any]
    ) -> tuple[Verdict, Any]:
        arguments = None if args else _arguments_of(self)
        wanted = arguments.wants if arguments else everything
        try:
            payload = in_clear(payload, wanted, command.saga_id)
            chosen = arguments.select(payload) if arguments else payload
            result = super().__call__(*args, **chosen)
        except Reject as rejection:
            if command.direction == "compensation":
                raise
            return Verdict(Rejected(failure=failure_of(rejection))), None
        faults.reach(faults.IN_ACTION, self.name)
        return Verdict(encoded(result, command.saga_id)), result


def _adopt(task: Task[Any, Any]) -> None:
    if isinstance(task, _AdoptedTask) or task.name.startswith("celery.") or _is_step(task):
        return
    own: type[Task[Any, Any]] = type(task)
    name = str(own.__name__)
    task.__class__ = type(name, (_AdoptedTask, own), {"__module__": own.__module__})
    task.throws = (*task.throws, Reject)
    vars(task)["saga_original_strategy"] = task.Strategy
    task.Strategy = STRATEGY


def _is_step(task: Task[Any, Any]) -> bool:
    return bool(task.Strategy == STRATEGY)


def _arguments_of(task: Task[Any, Any]) -> Arguments:
    known: Arguments | None = vars(task).get("saga_arguments")
    if known is None:
        known = Arguments(task.run, convert=False)
        vars(task)["saga_arguments"] = known
    return known


def _answer_unknown(sender: Any, message: Any, name: str, **_: Any) -> None:
    """``task_unknown``: Celery has discarded the message; the orchestrator is told why."""
    if not is_command(message.headers):
        return
    queue = (message.delivery_info or {}).get("routing_key", "")
    text = f"No worker of queue {queue!r} knows the task {name!r}."
    refusal = failure(TASK_UNKNOWN, text, retryable=False)
    with logs.saga_context({**message.headers, "task_name": name}):
        try:
            command = command_of(message.headers)
        except DecodeError as error:
            _log.error("step.malformed", reason=error.message)
            return
        outcome: Outcome = Failed(failure=refusal)
        if command.direction == "action":
            outcome = Rejected(failure=refusal)
        send_reply(sender.app, command, outcome)
        _log.error("step.task_unknown", queue=queue)
