"""Sagas and events: a saga may start on one, and publishes others at its milestones.

Both are data. What is published stands in the stored definition, since it belongs to what a saga
does; what it starts on does not, since a saga that has started does not ask any more.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, assert_never, get_args

import msgspec

from orchestrator.core.definition import Definition, Saga, planned_steps, reachable
from orchestrator.core.event_terms import (
    FromEvent,
    FromSaga,
    PlannedPublication,
    Publish,
    SagaFact,
    StartsOn,
)
from orchestrator.core.events import (
    Event,
    SagaCompensated,
    SagaCompleted,
    SagaStarted,
    SagaStuck,
    StepSucceeded,
)
from orchestrator.core.payload import resolve
from orchestrator.core.references import Input, Literal, Output
from orchestrator.core.schema import inside
from orchestrator.core.state import SagaState
from shared.contract import Event as BusEvent
from shared.contract import wire_of
from shared.errors import DefinitionError
from shared.ids import derived_span_id
from shared.messages import Command
from shared.names import EVENTS_EXCHANGE

STARTED: Final = "started"
COMPLETED: Final = "completed"
COMPENSATED: Final = "compensated"
STUCK: Final = "stuck"
_MILESTONES: Final = (STARTED, COMPLETED, COMPENSATED, STUCK)
_SUCCEEDED: Final = "succeeded:"


def succeeded(step: str) -> str:
    """The milestone of a step's action that has succeeded, for `Saga.publishes`."""
    return _SUCCEEDED + step


# Published at a milestone ---------------------------------------------------------------------


def publications(
    definition: Definition, state: SagaState, events: Iterable[Event], now: datetime
) -> Iterator[Command]:
    """What is published because of some events; the outbox sends it as it sends commands.

    Args:
        definition: What the saga runs on.
        state: Its state after the events.
        events: What has just happened.
        now: When.
    """
    for event in events if definition.publishes else ():
        for planned, identity in published_by(definition, state.saga_id, event):
            yield Command(
                id=identity,
                saga_id=state.saga_id,
                saga_name=state.name,
                saga_version=state.version,
                step="",
                direction="action",
                attempt=0,
                task=planned.event,
                queue=EVENTS_EXCHANGE,
                payload={name: _value(one, state) for name, one in planned.payload.items()},
                deadline_at=now,
                traceparent=state.trace.parent(derived_span_id(identity, "send")),
                tracestate=state.trace.tracestate,
                baggage=dict(state.trace.baggage),
            )


def published_by(
    definition: Definition, saga_id: str, event: Event
) -> Iterator[tuple[PlannedPublication, str]]:
    """What one event publishes, each with its id: derived, so that twice is the same."""
    milestone, suffix = _milestone(event)
    for planned in definition.publishes if milestone else ():
        if planned.milestone == milestone:
            yield planned, f"{saga_id}:{milestone}{suffix}"


def _milestone(event: Event) -> tuple[str, str]:
    """The milestone that an event is, and what tells its repetitions apart."""
    match event:
        case SagaStarted():
            return STARTED, ""
        case SagaCompleted():
            return COMPLETED, ""
        case SagaCompensated():
            return COMPENSATED, ""
        case SagaStuck(step=step, direction=direction):
            return STUCK, f":{step}:{direction}"
        case StepSucceeded(step=step, direction="action"):
            return succeeded(step), ""
        case _:
            return "", ""


def _value(reference: Input | Output | Literal | FromSaga, state: SagaState) -> Any:
    """What a reference stands for; null where it leads to nothing: a milestone is no failure."""
    if isinstance(reference, FromSaga):
        failure = state.cause.failure if state.cause else None
        match reference.fact:
            case "saga_id":
                return state.saga_id
            case "key":
                return state.key
            case "error_kind":
                return failure.kind if failure else (state.cause.kind if state.cause else None)
            case "error_message":
                return failure.message if failure else None
            case _:
                assert_never(reference.fact)
    try:
        return resolve(reference, state)
    except LookupError:
        return None


def planned_publications(saga: Saga) -> tuple[PlannedPublication, ...]:
    """The stored form of `Saga.publishes`, every default filled in."""
    inputs = saga.input.__struct_encode_fields__
    planned = []
    for milestone, publish in _given(saga.publishes):
        payload = publish.payload
        if payload is None:
            payload = {name: Input(name) for name in _names(publish.event) if name in inputs}
        kept = {
            name: value if isinstance(value, _REFERENCES) else Literal(value)
            for name, value in payload.items()
        }
        planned.append(
            PlannedPublication(
                milestone=milestone, event=wire_of(publish.event).name, payload=kept
            )
        )
    return tuple(planned)


_REFERENCES: Final = (Input, Output, Literal, FromSaga)


def _given(publishes: Mapping[str, Any]) -> Iterator[tuple[str, Publish]]:
    for milestone, given in publishes.items():
        yield milestone, given if isinstance(given, Publish) else Publish(given)


# Started by an event --------------------------------------------------------------------------


def starts_on(saga: Saga) -> StartsOn | None:
    """What a saga starts on, in its full form."""
    given = saga.starts_on
    return given if given is None or isinstance(given, StartsOn) else StartsOn(given)


def event_of(saga: Saga) -> str:
    """Name of the event that a saga starts on; empty where there is none."""
    given = starts_on(saga)
    return wire_of(given.event).name if given else ""


def input_of(saga: Saga, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The input of a saga from the fields of the event that starts it; it is checked later."""
    given = starts_on(saga)
    if given is None or given.input is None:
        inputs = saga.input.__struct_encode_fields__
        return {name: value for name, value in fields.items() if name in inputs}
    found = {name: _of_event(one, fields) for name, one in given.input.items()}
    return {name: value for name, value in found.items() if value is not msgspec.UNSET}


def key_of(saga: Saga, event_id: str, fields: Mapping[str, Any]) -> str:
    """The business key of a saga that an event starts: the event's id, or what it is told to be."""
    given = starts_on(saga)
    found = _of_event(given.key, fields) if given and given.key else msgspec.UNSET
    return event_id if found is msgspec.UNSET else str(found)


def _of_event(reference: Any, fields: Mapping[str, Any]) -> Any:
    if not isinstance(reference, FromEvent):
        return reference
    value: Any = fields
    for part in reference.path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return msgspec.UNSET
        value = value[part]
    return value


# Checks ---------------------------------------------------------------------------------------


def eventing_problems(saga: Saga) -> list[str]:
    """Every mistake in what a saga starts on and publishes; the rest of it has been checked."""
    found = _start_problems(saga)
    steps = {step.name: step.after for step in planned_steps(saga.steps)}
    for milestone, publish in _given(saga.publishes):
        where = f"publishes {milestone!r}"
        step = milestone.removeprefix(_SUCCEEDED) if milestone.startswith(_SUCCEEDED) else None
        if step is None and milestone not in _MILESTONES:
            allowed = ", ".join(map(repr, (*_MILESTONES, f"{_SUCCEEDED}<step>")))
            found.append(f"{where}: there is no such milestone; expected one of {allowed}")
        elif step is not None and step not in steps:
            found.append(f"{where}: the saga has no step {step!r}")
        elif problem := _event_problem(publish.event):
            found.append(f"{where}: {problem}")
        else:
            known = _known_steps(milestone, step, steps)
            found += [f"{where}: {problem}" for problem in _payload(saga, publish, known)]
    return found


def _known_steps(
    milestone: str, step: str | None, steps: dict[str, tuple[str, ...]]
) -> frozenset[str]:
    """Steps whose output is certain to be there at a milestone."""
    if step is not None:
        return reachable(steps, step) | {step}
    return frozenset(steps) if milestone == COMPLETED else frozenset()


def _payload(saga: Saga, publish: Publish, known: frozenset[str]) -> Iterator[str]:
    inputs = saga.input.__struct_encode_fields__
    typed_outputs = {
        step.name: msgspec.json.schema(step.output)
        for step in saga.steps
        if step.output is not None and step.each is None
    }
    fields = {field.encode_name: field for field in msgspec.structs.fields(publish.event)}
    payload = publish.payload
    if payload is None:
        payload = {name: Input(name) for name in fields if name in inputs}
    for name, field in fields.items():
        if field.required and name not in payload:
            yield f"field {name!r} of {publish.event.__name__} is given no value; name it in payload"
    for name, reference in payload.items():
        if name not in fields:
            yield f"{publish.event.__name__} has no field {name!r}"
        match reference:
            case Input(path) if path.partition(".")[0] not in inputs:
                has = ", ".join(inputs) or "no fields"
                yield f"{name!r} is Input({path!r}), but the input has {has}"
            case Output(step, default=msgspec.UNSET) if step not in known:
                yield f"{name!r} is the output of {step!r}, which need not have succeeded by then"
            case Output(step, path) if (typed := typed_outputs.get(step)) and isinstance(
                known_fields := inside(typed, path), str
            ):
                yield f"{name!r} is Output({step!r}, {path!r}), but its output has {known_fields}"
            case FromSaga(fact) if fact not in get_args(SagaFact):
                yield f"{name!r} is FromSaga({fact!r}); there is {', '.join(get_args(SagaFact))}"
            case FromEvent():
                yield f"{name!r} is a FromEvent; only `starts_on` knows an event"
            case _:
                pass


def _start_problems(saga: Saga) -> list[str]:
    given = starts_on(saga)
    if given is None:
        return []
    if problem := _event_problem(given.event):
        return [f"starts_on: {problem}"]
    events = _names(given.event)
    inputs = {field.encode_name: field for field in msgspec.structs.fields(saga.input)}
    mapped: Mapping[str, Any] = (
        {name: FromEvent(name) for name in events if name in inputs}
        if given.input is None
        else given.input
    )
    found = [
        f"starts_on: field {name!r} of {saga.input.__name__} is given no value by "
        f"{given.event.__name__}; name it in input"
        for name, field in inputs.items()
        if field.required and name not in mapped
    ]
    found += [
        f"starts_on: the input has no field {name!r}" for name in mapped if name not in inputs
    ]
    references = [*mapped.items(), *([("key", given.key)] if given.key else [])]
    for name, reference in references:
        if isinstance(reference, FromEvent) and reference.path.partition(".")[0] not in events:
            has = ", ".join(events) or "no fields"
            found.append(
                f"starts_on: {name!r} is FromEvent({reference.path!r}), but the event has {has}"
            )
    return found


def _event_problem(event: object) -> str:
    if not (isinstance(event, type) and issubclass(event, BusEvent)):
        return f"{event!r} is no subclass of shared.bus.Event"
    try:
        wire_of(event)
    except DefinitionError as error:
        return str(error)
    return ""


def _names(event: type[msgspec.Struct]) -> tuple[str, ...]:
    return event.__struct_encode_fields__
