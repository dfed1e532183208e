"""What a saga is: data. Frozen, checked when it is built, all mistakes reported at once.

`Saga` is what a team writes, with its input type. `Definition` is the part that decides what
happens, in a form that can be stored, compared and read back without the code that made it: a
saga finishes on the definition that it started with.
"""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import cached_property
from typing import Any, Final

import msgspec

from orchestrator.core.event_terms import PlannedPublication
from orchestrator.core.limits import Limit
from orchestrator.core.references import (
    Condition,
    Input,
    Item,
    Literal,
    Output,
    Reference,
    as_reference,
)
from orchestrator.core.work import Gather, Sleep, SubSaga, WaitFor, Work
from shared import codec
from shared.backoff import Backoff
from shared.errors import DefinitionError, InputError
from shared.fields import field_problems, fields_of
from shared.names import REPLIES_QUEUE, UNDO_TASK, participant_queue

__all__ = [
    "NOTHING_TO_UNDO",
    "TIMED_OUT",
    "Definition",
    "Gather",
    "Input",
    "Item",
    "Limit",
    "Literal",
    "NothingToUndo",
    "Output",
    "PlannedStep",
    "Retry",
    "Saga",
    "Sleep",
    "Step",
    "SubSaga",
    "Undo",
    "WaitFor",
    "Work",
    "planned_steps",
    "reachable",
]

TIMEOUT_DEFAULT: Final = timedelta(seconds=30)
NO_TIMEOUT: Final = timedelta(days=3650)
"""How long a sub-saga may take, unless its step says otherwise."""
TIMED_OUT: Final = "TimedOut"
"""Kind of a failure without a reply, in `Retry.by_kind` and `Retry.never_on`."""


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """When a failed or timed-out attempt is followed by another.

    Attributes:
        attempts: Most attempts, the first included; None means without end.
        backoff: The waits in between.
        never_on: Failure kinds that another attempt cannot mend.
        by_kind: Another policy for an attempt that failed in this way: by failure kind, `TIMED_OUT`
            for one without a reply. It says whether an attempt follows, of all that were made,
            and how long to wait for it.
    """

    attempts: int | None = 3
    backoff: Backoff = Backoff()
    never_on: tuple[str, ...] = ()
    by_kind: Mapping[str, "Retry"] = {}

    @staticmethod
    def forever(
        *,
        wait_max: timedelta = timedelta(minutes=5),
        by_kind: Mapping[str, "Retry"] | None = None,
    ) -> "Retry":
        """Without end, the wait growing up to `wait_max`."""
        return Retry(attempts=None, backoff=Backoff(wait_max=wait_max), by_kind=by_kind or {})

    def after(self, kind: str) -> "Retry":
        """The policy after an attempt that failed in this way."""
        return self.by_kind.get(kind, self)


class NothingToUndo(msgspec.Struct, frozen=True, tag="nothing"):
    """Says on purpose that a step leaves nothing behind."""


NOTHING_TO_UNDO: Final = NothingToUndo()


class Undo(msgspec.Struct, frozen=True, tag="undo"):
    """The stored form of a compensation: a task name."""

    task: str


class Step(msgspec.Struct, frozen=True):
    """One step: a Celery task and the task that undoes it, or a wait.

    Attributes:
        name: Unique in the saga; at most 64 characters.
        action: Celery task name, `WaitFor`, `Sleep` or `SubSaga`.
        compensation: Celery task name, or `NOTHING_TO_UNDO`; None only from the pivot on, for a
            wait, which leaves nothing, and for a sub-saga, which undoes itself.
        queue: Celery queue; by default what stands before the first dot of `action`.
        timeout: How long one attempt may take until its outcome counts as unknown, and how long a
            signal is waited for; 30 seconds for a task. A sub-saga that takes longer is called back.
        completes_within: How long a task that was accepted (`workers.sdk.Later`) may take to be
            completed; None means what is left of `timeout`.
        when: The step is skipped where this does not hold; see `references`.
        each: A list: the step runs once for each item, in parallel, and its output is the list of
            the outputs. Its payload refers to the item with `Item`.
        items_max: Longest list that is taken; a longer one rejects the step.
        items_at_once: Most items in flight at a time; None means all of them.
        limit: How much of it all sagas of the name may do together; None means any amount.
        retry: Policy of the action.
        compensation_retry: Policy of the compensation.
        pivot: Point of no return: before it a failure compensates, after it there is only forward.
        after: Names of the steps that must have succeeded; None means the step before this one.
        payload: Keyword arguments of the action as literals and references; None means the saga's
            input, field by field.
        output: Type of what the action returns, for each item where there is an `each`; of a wait
            the data of its signal, of a saga the outputs of its steps by name; None means anything.
            References into it are checked when the saga is built, and what comes is checked when
            it comes: an output of another form has failed, and is undone; a signal is refused.
    """

    name: str
    action: Work
    compensation: str | NothingToUndo | None = None
    queue: str = ""
    timeout: timedelta | None = None
    retry: Retry = Retry()
    compensation_retry: Retry = Retry(attempts=10)
    pivot: bool = False
    after: tuple[str, ...] | None = None
    payload: Mapping[str, Any] | None = None
    completes_within: timedelta | None = None
    when: Condition | None = None
    each: Input | Output | None = None
    items_max: int = 100
    items_at_once: int | None = None
    limit: Limit | None = None
    output: type[msgspec.Struct] | None = None


class PlannedStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step as it is stored: every default filled in, `after` and `queue` explicit.

    Attributes:
        group: Of a run for one item: the step with the list (see `plan`).
        output_schema: JSON Schema of what the action returns; None where it may return anything.
    """

    name: str
    action: Work
    compensation: Undo | NothingToUndo | None
    queue: str
    timeout: timedelta
    retry: Retry
    compensation_retry: Retry
    pivot: bool
    after: tuple[str, ...]
    payload: dict[str, Reference] | None = None
    completes_within: timedelta | None = None
    when: Condition | None = None
    each: Input | Output | None = None
    items_max: int = 100
    items_at_once: int | None = None
    group: str = ""
    limit: Limit | None = None
    output_schema: dict[str, Any] | None = None

    @property
    def waits(self) -> bool:
        """Whether it only waits: it begins nothing, and there is nothing to undo."""
        return isinstance(self.action, WaitFor | Sleep | Gather)

    @property
    def task(self) -> str:
        """Celery task name of the action; empty where it is none."""
        return self.action if isinstance(self.action, str) else ""

    @property
    def what(self) -> str:
        """Its work in a word or two: the task name, or what it waits for."""
        match self.action:
            case str(task):
                return task
            case WaitFor(signal):
                return f"signal {signal}"
            case Sleep():
                return "sleep"
            case SubSaga(name):
                return f"saga {name}"
            case Gather():
                return "gather"

    @property
    def undo_task(self) -> str | None:
        """Task name of the compensation, if there is one to send."""
        return self.compensation.task if isinstance(self.compensation, Undo) else None


class Definition(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Everything that decides, as data.

    Attributes:
        input_schema: JSON Schema of the input type, so that a change of it is seen.
        steps: In the order in which they were declared.
        publishes: Events at milestones.
        limit: How many sagas of the name may be in flight, and begin in a time.
    """

    name: str
    version: int
    deadline: timedelta | None
    input_schema: dict[str, Any]
    steps: tuple[PlannedStep, ...]
    publishes: tuple[PlannedPublication, ...] = ()
    limit: Limit | None = None

    @cached_property
    def limits(self) -> dict[str, Limit]:
        """What it limits: step to limit, the saga itself under the empty name."""
        declared = {"": self.limit, **{step.name: step.limit for step in self.steps}}
        return {name: limit for name, limit in declared.items() if limit is not None}

    @cached_property
    def plans(self) -> dict[tuple[tuple[str, int], ...], "Definition"]:
        """What it becomes when the lengths of its lists are known (see `plan`)."""
        return {}

    @cached_property
    def by_name(self) -> dict[str, PlannedStep]:
        """Step by name."""
        return {step.name: step for step in self.steps}

    @cached_property
    def without_task(self) -> tuple[PlannedStep, ...]:
        """Steps that are no task: waits, lists and sub-sagas."""
        return tuple(step for step in self.steps if not step.task)

    @cached_property
    def sub_sagas(self) -> tuple[PlannedStep, ...]:
        """Steps that are sagas."""
        return tuple(step for step in self.steps if isinstance(step.action, SubSaga))

    @cached_property
    def successors(self) -> dict[str, tuple[str, ...]]:
        """Direct successors of each step."""
        return {
            step.name: tuple(other.name for other in self.steps if step.name in other.after)
            for step in self.steps
        }

    @cached_property
    def queues(self) -> tuple[str, ...]:
        """Queues of participants, in the order of the steps: what some worker has to consume."""
        # A step that is a saga goes to the orchestrator's own queue.
        return tuple(dict.fromkeys(step.queue for step in self.steps if step.task))

    @cached_property
    def pivot(self) -> PlannedStep | None:
        """The point of no return, if the saga has one."""
        return next((step for step in self.steps if step.pivot), None)

    @cached_property
    def beyond_pivot(self) -> frozenset[str]:
        """Names of the steps that come after the pivot."""
        return reachable(self.successors, self.pivot.name) if self.pivot else frozenset()


class Saga(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A saga definition as a team writes it.

    Attributes:
        name: At most 64 characters: letters, digits, ``-``, ``_`` and ``.``.
        version: A whole number from 1; a definition that changes needs a new one.
        input: Type of the input; checked when a saga starts.
        steps: Run in order, unless they say `Step.after`.
        deadline: After this long a saga that has not passed its pivot is undone.
        starts_on: An event (a subclass of `shared.bus.Event`, or `StartsOn`) that starts a saga.
        publishes: Milestone to event, or to `Publish`: ``started``, ``completed``,
            ``compensated``, ``stuck``, or `eventing.succeeded` of a step.
        limit: How many sagas of the name may be in flight, and begin in a time; None means any
            number.

    Raises:
        DefinitionError: With every mistake, each named.
    """

    name: str
    version: int
    input: type[msgspec.Struct]
    steps: tuple[Step, ...]
    deadline: timedelta | None = None
    starts_on: Any = None
    publishes: Mapping[str, Any] = {}
    limit: Limit | None = None

    def __post_init__(self) -> None:
        """Report all mistakes at once."""
        # Here, since the checks need the types that are defined in this module.
        from orchestrator.core.checks import saga_problems

        problems = tuple(saga_problems(self))
        if problems:
            listed = "".join(f"\n  - {problem}" for problem in problems)
            raise DefinitionError(
                f"Saga {self.name!r} version {self.version} has {len(problems)} mistake(s):{listed}",
                problems=problems,
            )

    @cached_property
    def definition(self) -> Definition:
        """The part that is stored with the sagas that run on it."""
        from orchestrator.core.eventing import planned_publications  # as above

        return Definition(
            name=self.name,
            version=self.version,
            deadline=self.deadline,
            input_schema=msgspec.json.schema(self.input),
            steps=planned_steps(self.steps),
            publishes=planned_publications(self),
            limit=self.limit,
        )

    def check_input(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """Check an input against the input type.

        Returns:
            The input as plain JSON values, with the type's defaults filled in.

        Raises:
            InputError: Names every field that is missing, unknown or of another type.
        """
        problems = tuple(field_problems(self.input, value))
        if problems:
            raise InputError(
                f"The input does not fit {self.input.__name__} of saga {self.name!r}: "
                + "; ".join(problems)
                + ".",
                problems=problems,
                hint="Nothing was started.",
            )
        checked = msgspec.convert(value, self.input, str_keys=True)
        # Field by field: a type may leave out its defaults, or add a tag, when it is encoded.
        fields = {
            name: getattr(checked, field.name) for name, field in fields_of(self.input).items()
        }
        return codec.decode(codec.encode(fields), dict[str, Any])


def planned_steps(steps: Iterable[Step]) -> tuple[PlannedStep, ...]:
    """The stored form of steps, every default filled in."""
    previous: tuple[str, ...] = ()
    planned = []
    for step in steps:
        planned.append(_planned(step, previous))
        previous = (step.name,)
    return tuple(planned)


def _planned(step: Step, previous: tuple[str, ...]) -> PlannedStep:
    undo = Undo(step.compensation) if isinstance(step.compensation, str) else step.compensation
    task = step.action if isinstance(step.action, str) else ""
    queue, timeout, retry = step.queue or participant_queue(task), TIMEOUT_DEFAULT, step.retry
    if isinstance(step.action, SubSaga):
        undo = undo or Undo(UNDO_TASK)
        queue, timeout = REPLIES_QUEUE, NO_TIMEOUT
        if retry == Retry():
            # A whole saga is not done again unless somebody says so.
            retry = Retry(attempts=1)
    elif not task and undo is None:
        undo = NOTHING_TO_UNDO
    payload = None
    if step.payload is not None:
        payload = {name: as_reference(value) for name, value in step.payload.items()}
    return PlannedStep(
        name=step.name,
        action=step.action,
        compensation=undo,
        queue=queue,
        timeout=timeout if step.timeout is None else step.timeout,
        retry=retry,
        compensation_retry=step.compensation_retry,
        pivot=step.pivot,
        after=previous if step.after is None else tuple(step.after),
        payload=payload,
        completes_within=step.completes_within,
        when=step.when,
        each=step.each,
        items_max=step.items_max,
        items_at_once=step.items_at_once,
        limit=step.limit,
        output_schema=None if step.output is None else msgspec.json.schema(step.output),
    )


def reachable(edges: Mapping[str, tuple[str, ...]], start: str) -> frozenset[str]:
    """Every node that a walk along `edges` reaches from `start`; `start` only on a cycle."""
    found: set[str] = set()
    open_ends = [*edges[start]]
    while open_ends:
        name = open_ends.pop()
        if name not in found:
            found.add(name)
            open_ends += edges[name]
    return frozenset(found)
