"""What a saga is: data. Frozen, checked when it is built, all mistakes reported at once.

`Saga` is what a team writes, with its input type. `Definition` is the part that decides what
happens, in a form that can be stored, compared and read back without the code that made it: a
saga finishes on the definition that it started with.
"""

import re
from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property
from typing import Any, Final

import msgspec

from shared import codec
from shared.backoff import Backoff
from shared.errors import DecodeError, DefinitionError, InputError
from shared.names import UNDO_ARGUMENT, participant_queue

STEPS_MAX: Final = 100
NAME_CHARS_MAX: Final = 64
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]*", re.IGNORECASE)


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """When a failed or timed-out attempt is followed by another.

    Attributes:
        attempts: Most attempts, the first included; None means without end.
        backoff: The waits in between.
        never_on: Failure kinds that another attempt cannot mend.
    """

    attempts: int | None = 3
    backoff: Backoff = Backoff()
    never_on: tuple[str, ...] = ()

    @staticmethod
    def forever(*, wait_max: timedelta = timedelta(minutes=5)) -> "Retry":
        """Without end, the wait growing up to `wait_max`."""
        return Retry(attempts=None, backoff=Backoff(wait_max=wait_max))


class Input(msgspec.Struct, frozen=True, tag="input"):
    """Reference to a field of the saga's input, or to a path inside it (``"address.city"``)."""

    path: str


class Output(msgspec.Struct, frozen=True, tag="output"):
    """Reference to the output of an earlier step, or to a path inside it; empty: all of it."""

    step: str
    path: str = ""


class Literal(msgspec.Struct, frozen=True, tag="literal"):
    """A value that stands in a payload as it is."""

    value: Any


class NothingToUndo(msgspec.Struct, frozen=True, tag="nothing"):
    """Says on purpose that a step leaves nothing behind."""


NOTHING_TO_UNDO: Final = NothingToUndo()


class Undo(msgspec.Struct, frozen=True, tag="undo"):
    """The stored form of a compensation: a task name."""

    task: str


class Step(msgspec.Struct, frozen=True):
    """One step: a Celery task and the task that undoes it.

    Attributes:
        name: Unique in the saga; at most 64 characters.
        action: Celery task name.
        compensation: Celery task name, or `NOTHING_TO_UNDO`; None only from the pivot on.
        queue: Celery queue; by default what stands before the first dot of `action`.
        timeout: How long one attempt may take until its outcome counts as unknown.
        retry: Policy of the action.
        compensation_retry: Policy of the compensation.
        pivot: Point of no return: before it a failure compensates, after it there is only forward.
        after: Names of the steps that must have succeeded; None means the step before this one.
        payload: Keyword arguments of the action as literals and references; None means the saga's
            input, field by field.
    """

    name: str
    action: str
    compensation: str | NothingToUndo | None = None
    queue: str = ""
    timeout: timedelta = timedelta(seconds=30)
    retry: Retry = Retry()
    compensation_retry: Retry = Retry(attempts=10)
    pivot: bool = False
    after: tuple[str, ...] | None = None
    payload: Mapping[str, Any] | None = None


class PlannedStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step as it is stored: every default filled in, `after` and `queue` explicit."""

    name: str
    action: str
    compensation: Undo | NothingToUndo | None
    queue: str
    timeout: timedelta
    retry: Retry
    compensation_retry: Retry
    pivot: bool
    after: tuple[str, ...]
    payload: dict[str, Input | Output | Literal] | None = None

    @property
    def undo_task(self) -> str | None:
        """Task name of the compensation, if there is one to send."""
        return self.compensation.task if isinstance(self.compensation, Undo) else None


class Definition(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Everything that decides, as data.

    Attributes:
        input_schema: JSON Schema of the input type, so that a change of it is seen.
        steps: In the order in which they were declared.
    """

    name: str
    version: int
    deadline: timedelta | None
    input_schema: dict[str, Any]
    steps: tuple[PlannedStep, ...]

    @cached_property
    def by_name(self) -> dict[str, PlannedStep]:
        """Step by name."""
        return {step.name: step for step in self.steps}

    @cached_property
    def successors(self) -> dict[str, tuple[str, ...]]:
        """Direct successors of each step."""
        return {
            step.name: tuple(other.name for other in self.steps if step.name in other.after)
            for step in self.steps
        }

    @cached_property
    def pivot(self) -> PlannedStep | None:
        """The point of no return, if the saga has one."""
        return next((step for step in self.steps if step.pivot), None)

    @cached_property
    def beyond_pivot(self) -> frozenset[str]:
        """Names of the steps that come after the pivot."""
        return _reachable(self.successors, self.pivot.name) if self.pivot else frozenset()


class Saga(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A saga definition as a team writes it.

    Attributes:
        name: At most 64 characters: letters, digits, ``-``, ``_`` and ``.``.
        version: A whole number from 1; a definition that changes needs a new one.
        input: Type of the input; checked when a saga starts.
        steps: Run in order, unless they say `Step.after`.
        deadline: After this long a saga that has not passed its pivot is undone.

    Raises:
        DefinitionError: With every mistake, each named.
    """

    name: str
    version: int
    input: type[msgspec.Struct]
    steps: tuple[Step, ...]
    deadline: timedelta | None = None

    def __post_init__(self) -> None:
        """Report all mistakes at once."""
        problems = tuple(_problems(self))
        if problems:
            listed = "".join(f"\n  - {problem}" for problem in problems)
            raise DefinitionError(
                f"Saga {self.name!r} version {self.version} has {len(problems)} mistake(s):{listed}",
                problems=problems,
            )

    @cached_property
    def definition(self) -> Definition:
        """The part that is stored with the sagas that run on it."""
        previous: tuple[str, ...] = ()
        planned = []
        for step in self.steps:
            planned.append(_planned(step, previous))
            previous = (step.name,)
        return Definition(
            name=self.name,
            version=self.version,
            deadline=self.deadline,
            input_schema=msgspec.json.schema(self.input),
            steps=tuple(planned),
        )

    def check_input(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """Check an input against the input type.

        Returns:
            The input as plain JSON values, with the type's defaults filled in.

        Raises:
            InputError: Names every field that is missing, unknown or of another type.
        """
        problems = tuple(_input_problems(self.input, value))
        if problems:
            raise InputError(
                f"The input does not fit {self.input.__name__} of saga {self.name!r}: "
                + "; ".join(problems)
                + ".",
                problems=problems,
                hint="Nothing was started.",
            )
        checked = msgspec.convert(value, self.input)
        return dict(msgspec.to_builtins(checked))


def _planned(step: Step, previous: tuple[str, ...]) -> PlannedStep:
    undo = Undo(step.compensation) if isinstance(step.compensation, str) else step.compensation
    payload = None
    if step.payload is not None:
        payload = {
            name: value if isinstance(value, Input | Output | Literal) else Literal(value)
            for name, value in step.payload.items()
        }
    return PlannedStep(
        name=step.name,
        action=step.action,
        compensation=undo,
        queue=step.queue or participant_queue(step.action),
        timeout=step.timeout,
        retry=step.retry,
        compensation_retry=step.compensation_retry,
        pivot=step.pivot,
        after=previous if step.after is None else step.after,
        payload=payload,
    )


# Checks of a definition ----------------------------------------------------------------------


def _problems(saga: Saga) -> list[str]:
    found = [*_name_problems("the saga", saga.name)]
    if saga.version < 1:
        found.append(f"version is {saga.version}; it must be 1 or more")
    if saga.deadline is not None and saga.deadline <= timedelta(0):
        found.append(f"deadline is {saga.deadline}; it must be positive")
    if not _is_struct_type(saga.input):
        found.append(f"input is {saga.input!r}; it must be a subclass of msgspec.Struct")
        return found
    if UNDO_ARGUMENT in saga.input.__struct_fields__:
        found.append(
            f"input has a field {UNDO_ARGUMENT!r}; compensations get undo data by that name"
        )
    if not 1 <= len(saga.steps) <= STEPS_MAX:
        found.append(f"it has {len(saga.steps)} steps; between 1 and {STEPS_MAX} are allowed")
        return found
    names = [step.name for step in saga.steps]
    for name in sorted({name for name in names if names.count(name) > 1}):
        found.append(f"step {name!r}: the name is used {names.count(name)} times")
    for step in saga.steps:
        found += [f"step {step.name!r}: {problem}" for problem in _step_problems(step)]
    return found or _graph_problems(saga)


def _is_struct_type(value: object) -> bool:
    # msgspec does not check what is passed to a constructor.
    return isinstance(value, type) and issubclass(value, msgspec.Struct)


def _name_problems(what: str, name: str) -> list[str]:
    if len(name) > NAME_CHARS_MAX or not _NAME.fullmatch(name):
        return [
            f"{what} is named {name!r}; a name has 1 to {NAME_CHARS_MAX} letters, digits, "
            "'-', '_' or '.', and begins with a letter or a digit"
        ]
    return []


def _step_problems(step: Step) -> list[str]:
    found = _name_problems("it", step.name)
    if not step.action:
        found.append("action is empty; it must be a Celery task name")
    if step.compensation == "":
        found.append("compensation is empty; name a Celery task or NOTHING_TO_UNDO")
    if step.timeout <= timedelta(0):
        found.append(f"timeout is {step.timeout}; it must be positive")
    for field, retry in (("retry", step.retry), ("compensation_retry", step.compensation_retry)):
        if retry.attempts is not None and retry.attempts < 1:
            found.append(f"{field}.attempts is {retry.attempts}; it must be 1 or more, or None")
        if retry.backoff.wait_first < timedelta(0) or retry.backoff.wait_max < timedelta(0):
            found.append(f"{field}.backoff waits less than nothing")
        if retry.backoff.factor < 1:
            found.append(f"{field}.backoff.factor is {retry.backoff.factor}; it must be 1 or more")
    return found


def _graph_problems(saga: Saga) -> list[str]:
    definition = saga.definition
    known = definition.by_name
    found = [
        f"step {step.name!r}: after names {name!r}, which is no step of this saga"
        for step in definition.steps
        for name in step.after
        if name not in known
    ]
    if found:
        return found
    upstream = {step.name: _upstream(known, step.name) for step in definition.steps}
    cyclic = [name for name, before in upstream.items() if name in before]
    if cyclic:
        return [f"steps {', '.join(map(repr, cyclic))} wait for each other"]
    for step in definition.steps:
        found += _payload_problems(saga.input, step, upstream[step.name])
    return found + _pivot_problems(definition, upstream)


def _payload_problems(
    input_type: type[msgspec.Struct], step: PlannedStep, upstream: frozenset[str]
) -> list[str]:
    found = []
    fields = input_type.__struct_encode_fields__
    for argument, reference in (step.payload or {}).items():
        where = f"step {step.name!r}: payload {argument!r}"
        match reference:
            case Input(path) if path.partition(".")[0] not in fields:
                found.append(f"{where} is Input({path!r}), but the input has {', '.join(fields)}")
            case Output(other) if other not in upstream:
                found.append(f"{where} is the output of {other!r}, which is no step before it")
            case Literal(value):
                try:
                    codec.encode(value)
                except DecodeError as error:
                    found.append(f"{where} is {error}")
            case _:
                pass
        if argument == UNDO_ARGUMENT:
            found.append(f"{where}: compensations get undo data by that name; choose another")
    return found


def _pivot_problems(definition: Definition, upstream: dict[str, frozenset[str]]) -> list[str]:
    pivots = [step.name for step in definition.steps if step.pivot]
    if len(pivots) > 1:
        return [f"steps {', '.join(map(repr, pivots))} are all the pivot; a saga has at most one"]
    beyond = definition.beyond_pivot
    found = []
    for step in definition.steps:
        if step.name in beyond:
            if step.retry.attempts == 1:
                found.append(
                    f"step {step.name!r} comes after the pivot and is never retried; "
                    "only forward recovery exists there: give it a retry"
                )
            continue
        if not step.pivot and step.compensation is None:
            found.append(
                f"step {step.name!r} has no compensation; name a task, "
                "or say compensation=NOTHING_TO_UNDO"
            )
        if pivots and not step.pivot and step.name not in upstream[pivots[0]]:
            found.append(
                f"step {step.name!r} is neither before nor after the pivot {pivots[0]!r}; "
                "connect it with after=(...)"
            )
    return found


def _upstream(steps: Mapping[str, PlannedStep], name: str) -> frozenset[str]:
    return _reachable({step.name: step.after for step in steps.values()}, name)


def _reachable(edges: Mapping[str, tuple[str, ...]], start: str) -> frozenset[str]:
    """Every node that a walk along `edges` reaches from `start`; `start` only on a cycle."""
    found: set[str] = set()
    open_ends = [*edges[start]]
    while open_ends:
        name = open_ends.pop()
        if name not in found:
            found.add(name)
            open_ends += edges[name]
    return frozenset(found)


# Checks of an input --------------------------------------------------------------------------


def _input_problems(input_type: type[msgspec.Struct], value: Mapping[str, Any]) -> list[str]:
    """Every field that is wrong: msgspec itself stops at the first."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(input_type)}
    found = [
        f"{name}: unknown field (the input has {', '.join(fields)})"
        for name in value
        if name not in fields
    ]
    for name, field in fields.items():
        if name in value:
            try:
                msgspec.convert(value[name], field.type)
            except msgspec.ValidationError as error:
                found.append(f"{name}: {_first_lower(str(error))}")
        elif field.required:
            found.append(f"{name}: missing")
    if not found:
        # What no single field shows: __post_init__ of the type, tags, forbidden combinations.
        try:
            msgspec.convert(value, input_type)
        except msgspec.ValidationError as error:
            found.append(_first_lower(str(error)))
    return found


def _first_lower(text: str) -> str:
    return text[:1].lower() + text[1:]
