"""Definitions: what is refused when one is built, and what is refused when a saga starts."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from orchestrator.core.checks import DURATION_MAX, FACTOR_MAX, STEPS_MAX
from orchestrator.core.definition import (
    NOTHING_TO_UNDO,
    Definition,
    Gather,
    Input,
    Item,
    Limit,
    Literal,
    Output,
    Retry,
    Saga,
    Sleep,
    Step,
    SubSaga,
    Undo,
    WaitFor,
)
from orchestrator.core.limits import Bounds, Limits
from shared import codec
from shared.backoff import Backoff
from shared.errors import DefinitionError, InputError
from tests.core.builders import Order, step


class Address(msgspec.Struct, frozen=True):
    city: str
    zip: str = ""


class Purchase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    order_id: str
    amount: int
    address: Address
    tags: list[str] = []


class Unencodable:
    pass


class WithObject(msgspec.Struct, frozen=True):
    thing: Unencodable


class WithUndo(msgspec.Struct, frozen=True):
    undo: str


class WithHiddenUndo(msgspec.Struct, frozen=True):
    back: str = msgspec.field(name="undo")


class Empty(msgspec.Struct, frozen=True):
    pass


class Array(msgspec.Struct, frozen=True, array_like=True):
    order_id: str


def problems(*steps: Any, **options: Any) -> list[str]:
    """What is wrong with a definition."""
    fields: dict[str, Any] = {"name": "s", "version": 1, "input": Order, "steps": steps, **options}
    with pytest.raises(DefinitionError) as caught:
        Saga(**fields)
    return [*caught.value.problems]


def purchase(*steps: Step) -> Saga:
    """A saga with an input of several fields."""
    return Saga(name="buy", version=1, input=Purchase, steps=steps or (step("a"),))


# What is refused when a definition is built ---------------------------------------------------

SEVEN = timedelta(days=-7)
HALF = Retry(attempts=1.5)  # type: ignore[arg-type]
FAR = DURATION_MAX + timedelta(days=1)
NESTED = "has a reference inside a value; a reference is the whole value of an argument"
NAME_RULE = (
    "a name has 1 to 64 letters, digits, '-', '_' or '.', and begins with a letter or a digit"
)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": ""}, f"the saga is named ''; {NAME_RULE}"),
        ({"name": "-x"}, f"the saga is named '-x'; {NAME_RULE}"),
        ({"name": "a" * 65}, f"the saga is named '{'a' * 65}'; {NAME_RULE}"),
        ({"name": "two words"}, f"the saga is named 'two words'; {NAME_RULE}"),
        ({"name": "x\n"}, f"the saga is named 'x\\n'; {NAME_RULE}"),
        ({"version": 0}, "version is 0; it must be 1 or more"),
        ({"version": "1"}, "version is '1'; expected `int`, got `str`"),
        ({"version": True}, "version is True; expected `int`, got `bool`"),
        ({"deadline": timedelta(0)}, "deadline is 0:00:00; it must be positive"),
        ({"deadline": FAR}, "deadline is 3651 days, 0:00:00; at most 3650 days are allowed"),
        ({"limit": Limit(in_flight=0)}, "limit.in_flight is 0; it must be 1 or more, or None"),
        ({"deadline": 60}, "deadline is 60; expected `duration | null`, got `int`"),
        ({"input": dict}, "input is <class 'dict'>; it must be a subclass of msgspec.Struct"),
        ({"input": "Order"}, "input is 'Order'; it must be a subclass of msgspec.Struct"),
        (
            {"input": WithUndo},
            "input has a field 'undo'; compensations get undo data by that name",
        ),
        (
            {"input": WithHiddenUndo},
            "input has a field 'undo'; compensations get undo data by that name",
        ),
        ({"steps": ()}, f"it has 0 steps; between 1 and {STEPS_MAX} are allowed"),
        (
            {"steps": tuple(step(f"s{n}") for n in range(STEPS_MAX + 1))},
            f"it has {STEPS_MAX + 1} steps; between 1 and {STEPS_MAX} are allowed",
        ),
    ],
)
def test_a_wrong_saga_is_refused(options: dict[str, Any], expected: str) -> None:
    """Each field of the saga itself, with what is allowed."""
    assert problems(step("a"), **options) == [expected]


def test_what_is_just_allowed() -> None:
    """The longest names and times, the fewest of everything, and waits of no time at all."""
    at_once = Backoff(wait_first=timedelta(0), wait_max=timedelta(0), factor=1)
    once = Retry(attempts=1, backoff=at_once)
    limit = Limit(in_flight=1)
    last = step("b" * 64, retry=once, timeout=DURATION_MAX, items_max=1, limit=limit)
    edge = Saga(
        name="s" * 64,
        version=1,
        input=Order,
        deadline=DURATION_MAX,
        steps=(step("a", retry=Retry(backoff=Backoff(factor=FACTOR_MAX))), last),
        limit=limit,
    )
    assert edge.definition.limits == {"": limit, "b" * 64: limit}
    most = tuple(step(f"s{number}") for number in range(STEPS_MAX))
    assert len(Saga(name="s", version=1, input=Order, steps=most).steps) == STEPS_MAX


def test_the_name_of_a_step_is_a_name_as_well() -> None:
    """It stands in headers and in span names."""
    assert problems(step("two words")) == [
        f"step 'two words': it is named 'two words'; {NAME_RULE}"
    ]


def test_an_input_type_that_json_cannot_describe_is_refused() -> None:
    """With the type that it fails at."""
    (problem,) = problems(step("a"), input=WithObject)
    assert "has no JSON form" in problem
    assert "Unencodable" in problem


def test_an_input_type_without_names_is_refused() -> None:
    """Its fields become keyword arguments."""
    (problem,) = problems(step("a"), input=Array)
    assert problem.endswith("is array_like; an input is an object with fields")


def test_a_forgotten_comma_is_refused_in_words() -> None:
    """`steps=(Step(...))` is a step, not a tuple."""
    (problem,) = problems(steps=step("a"))
    assert problem.endswith("expected `array`, got `Step`")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"action": ""}, "action is empty; it must be a Celery task name"),
        ({"compensation": ""}, "compensation is empty; name a Celery task or NOTHING_TO_UNDO"),
        (
            {"compensation": None},
            "has no compensation; name a task, or say compensation=NOTHING_TO_UNDO",
        ),
        ({"timeout": timedelta(0)}, "timeout is 0:00:00; it must be positive"),
        ({"timeout": FAR}, "timeout is 3651 days, 0:00:00; at most 3650 days are allowed"),
        ({"timeout": 30}, "timeout is 30; expected `duration | null`, got `int`"),
        ({"timeout": "PT30S"}, "timeout is 'PT30S'; it is not of the declared type"),
        ({"after": "reserve"}, "after is 'reserve'; expected `array | null`, got `str`"),
        ({"pivot": 1}, "pivot is 1; expected `bool`, got `int`"),
        ({"retry": Retry(attempts=0)}, "retry.attempts is 0; it must be 1 or more, or None"),
        (
            {"compensation_retry": Retry(attempts=0)},
            "compensation_retry.attempts is 0; it must be 1 or more, or None",
        ),
        (
            {"retry": Retry(by_kind={"Busy": Retry(attempts=0)})},
            "retry.by_kind['Busy'].attempts is 0; it must be 1 or more, or None",
        ),
        (
            {"retry": Retry(by_kind={"Busy": Retry(by_kind={"Busy": Retry()})})},
            "retry.by_kind['Busy'] has a by_kind of its own; leave it out",
        ),
        ({"retry": 3}, "retry is 3; expected `object`, got `int`"),
        (
            {"compensation_retry": HALF},
            "compensation_retry.attempts is 1.5; expected `int | null`, got `float`",
        ),
        (
            {"retry": Retry(backoff=5)},  # type: ignore[arg-type]
            "retry.backoff is 5; expected `object`, got `int`",
        ),
        (
            {"retry": Retry(backoff=Backoff(wait_first=5))},  # type: ignore[arg-type]
            "retry.backoff.wait_first is 5; expected `duration`, got `int`",
        ),
        (
            {"retry": Retry(by_kind=[])},  # type: ignore[arg-type]
            "retry.by_kind is []; expected `object`, got `array`",
        ),
        (
            {"retry": Retry(by_kind={"Busy": 7})},  # type: ignore[dict-item]
            "retry.by_kind is {'Busy': 7}; expected `object`, got `int` - at `$[...]`",
        ),
        (
            {"retry": Retry(by_kind={"Busy": HALF})},
            "retry.by_kind['Busy'].attempts is 1.5; expected `int | null`, got `float`",
        ),
        ({"limit": Limit(rate="fast")}, "limit.rate is 'fast'; write it as 10/s, 600/m or 5000/h"),
        ({"retry": HALF}, "retry.attempts is 1.5; expected `int | null`, got `float`"),
        (
            {"retry": Retry(backoff=Backoff(wait_first=SEVEN))},
            "retry.backoff.wait_first is -7 days, 0:00:00; it must not be negative",
        ),
        (
            {"retry": Retry(backoff=Backoff(wait_max=SEVEN))},
            "retry.backoff.wait_max is -7 days, 0:00:00; it must not be negative",
        ),
        (
            {"retry": Retry(backoff=Backoff(wait_max=FAR))},
            "retry.backoff.wait_max is 3651 days, 0:00:00; at most 3650 days are allowed",
        ),
        (
            {"retry": Retry(backoff=Backoff(factor=0.5))},
            f"retry.backoff.factor is 0.5; it must be between 1 and {FACTOR_MAX}",
        ),
        (
            {"retry": Retry(backoff=Backoff(factor=float("inf")))},
            f"retry.backoff.factor is inf; it must be between 1 and {FACTOR_MAX}",
        ),
        (
            {"retry": Retry(backoff=Backoff(factor=float("nan")))},
            f"retry.backoff.factor is nan; it must be between 1 and {FACTOR_MAX}",
        ),
    ],
)
def test_a_wrong_step_is_refused(options: dict[str, Any], expected: str) -> None:
    """Each field of a step, with the name of the step."""
    assert problems(step("a", **options)) == [
        (f"step 'a' {expected}" if expected.startswith("has no") else f"step 'a': {expected}")
    ]


def test_a_name_that_is_used_twice_is_refused() -> None:
    """Once, with how often."""
    twice = "step 'a': the name is used 2 times"
    assert problems(step("a"), step("b"), step("a")) == [twice]


def test_a_graph_of_steps_of_the_wrong_type_is_not_looked_at() -> None:
    """Whichever step it is: the type is the mistake."""
    expected = "step 'a': after is 5; expected `array | null`, got `int`"
    assert problems(step("a", after=5), step("b", after=("x",))) == [expected]


def test_an_unknown_step_in_after_is_refused() -> None:
    """With both names."""
    expected = "step 'b': after names 'x', which is no step of this saga"
    assert problems(step("a"), step("b", after=("a", "x"))) == [expected]


@pytest.mark.parametrize("after", [("c",), ("b",)])
def test_steps_that_wait_for_each_other_are_refused(after: tuple[str, ...]) -> None:
    """All of the cycle, and none that only come after it."""
    (problem,) = problems(step("b", after=after), step("c", after=("b",)), step("d"))
    expected = (
        "steps 'b', 'c' wait for each other"
        if after == ("c",)
        else "steps 'b' wait for each other"
    )
    assert problem == expected


def test_two_pivots_are_refused() -> None:
    """There is one point of no return."""
    expected = "steps 'a', 'b' are all the pivot; a saga has at most one"
    assert problems(step("a", pivot=True), step("b", pivot=True)) == [expected]


def test_a_step_beside_the_pivot_is_refused() -> None:
    """Nobody could say whether it is undone."""
    expected = "step 'b' is neither before nor after the pivot 'p'; connect it with after=(...)"
    assert problems(step("p", pivot=True), step("b", after=())) == [expected]


def test_a_step_after_the_pivot_that_is_never_retried_is_refused() -> None:
    """Only forward recovery exists there."""
    expected = (
        "step 'b' comes after the pivot and is never retried; "
        "only forward recovery exists there: give it a retry"
    )
    assert problems(step("p", pivot=True), step("b", retry=Retry(attempts=1))) == [expected]


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"x": Input("amount")}, "payload 'x' is Input('amount'), but the input has order_id"),
        ({"x": Output("z", "id")}, "payload 'x' is the output of 'z', which is no step before it"),
        ({"x": Output("b")}, "payload 'x' is the output of 'b', which is no step before it"),
        ({"x": Output("c")}, "payload 'x' is the output of 'c', which is no step before it"),
        (
            {"undo": 1},
            "payload 'undo': compensations get undo data by that name; choose another",
        ),
        (
            {"x": [Input("order_id")]},
            f"payload 'x' {NESTED}",
        ),
        (
            {"x": Literal({"y": (Output("a"),)})},
            f"payload 'x' {NESTED}",
        ),
        ({"x": [1, Item(), 2]}, f"payload 'x' {NESTED}"),
        ({"x": {"y": 1, "z": Literal(2)}}, f"payload 'x' {NESTED}"),
        ({"x": {Input("order_id")}}, f"payload 'x' {NESTED}"),
        ({"x": frozenset({Input("order_id")})}, f"payload 'x' {NESTED}"),
        ({"x": Output("a", default=[Input("order_id")])}, f"payload 'x' {NESTED}"),
        (
            {"x": Output("a", default=object())},
            "payload 'x' is not JSON: Encoding objects of type object is unsupported",
        ),
        (
            {"x": object()},
            "payload 'x' is not JSON: Encoding objects of type object is unsupported",
        ),
    ],
)
def test_a_wrong_payload_is_refused(payload: dict[str, Any], expected: str) -> None:
    """References lead into the input, or to a step that has ended for certain by then."""
    found = problems(step("a"), step("b", payload=payload), step("c"))
    assert found == [f"step 'b': {expected}"]


def test_a_reference_into_an_input_without_fields_is_refused() -> None:
    """In words that can be read."""
    found = problems(step("a", payload={"x": Input("y")}), input=Empty)
    assert found == ["step 'a': payload 'x' is Input('y'), but the input has no fields"]


def test_a_reference_into_an_input_of_the_wrong_type_is_no_mistake_of_its_own() -> None:
    """The type is the mistake."""
    (problem,) = problems(step("a", payload={"x": Input("y")}), input=dict)
    assert problem.startswith("input is <class 'dict'>")


def test_all_mistakes_are_reported_at_once() -> None:
    """Those of the saga, of its steps, of the graph and of the payloads, in one error."""
    with pytest.raises(DefinitionError) as caught:
        Saga(
            name="two words",
            version=0,
            input=dict,  # type: ignore[arg-type]
            deadline=timedelta(0),
            steps=(
                step("a", timeout=timedelta(0)),
                step("b", after=("x",), compensation=None),
                step("c", payload={"y": Output("nowhere")}),
            ),
        )
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        "the saga is named 'two words'",
        "version is 0",
        "deadline is 0:00:00",
        "input is <class 'dict'>",
        "step 'a': timeout is 0:00:00",
        "step 'b': after names 'x', which is no step of this saga",
        "step 'c': payload 'y' is the output of 'nowhere', which is no step before it",
        "step 'b' has no compensation",
    ]
    assert str(caught.value).startswith(
        "Saga 'two words' version 0 has 8 mistake(s):\n  - the saga"
    )


# What a definition is made into ---------------------------------------------------------------


def test_the_stored_form_has_every_default_filled_in() -> None:
    """`after`, the queue and the form of the compensation are explicit."""
    saga = purchase(
        Step("a", "inventory.reserve", "inventory.release"),
        Step("b", "log", NOTHING_TO_UNDO, queue="audit"),
    )
    first, second = saga.definition.steps
    assert (first.after, first.queue, first.compensation) == (
        (),
        "inventory",
        Undo("inventory.release"),
    )
    assert (second.after, second.queue, second.compensation) == (("a",), "audit", NOTHING_TO_UNDO)
    assert (first.undo_task, second.undo_task) == ("inventory.release", None)


def test_the_defaults_are_those_that_are_documented() -> None:
    """Teams rely on them without writing them down: another one is another version of all sagas."""
    (plan,) = purchase(step("a")).definition.steps
    assert (plan.timeout, plan.pivot, plan.items_max) == (timedelta(seconds=30), False, 100)
    assert (plan.retry.attempts, plan.compensation_retry.attempts) == (3, 10)
    assert Retry.forever().backoff.wait_max == timedelta(minutes=5)
    assert (Limits().events_max, Limits().in_flight_max) == (10_000, 100)
    assert Bounds() == Bounds(steps_max=100, branches_max=50, items_max=1_000)
    assert (WaitFor("ok").approval, WaitFor("ok").otherwise) == (False, "reject")
    assert SubSaga("hotel").trace == "same"


def test_the_stored_form_of_a_sub_saga() -> None:
    """It goes to the orchestrators' queue, undoes itself, has time, and is done once; unless told."""
    plain, told = purchase(
        Step("a", SubSaga("hotel")),
        Step(
            "b",
            SubSaga("hotel"),
            NOTHING_TO_UNDO,
            timeout=timedelta(hours=1),
            retry=Retry(attempts=2),
        ),
    ).definition.steps
    assert (plain.queue, plain.compensation) == ("saga.replies", Undo("saga.undo"))
    assert (plain.timeout, plain.retry) == (timedelta(days=3650), Retry(attempts=1))
    assert (told.queue, told.compensation) == ("saga.replies", NOTHING_TO_UNDO)
    assert (told.timeout, told.retry) == (timedelta(hours=1), Retry(attempts=2))


def test_what_a_step_does_in_a_word() -> None:
    """In a graph and in the view of a saga."""
    works = ("mail.send", WaitFor("ok"), Sleep(timedelta(1)), SubSaga("hotel"), Gather(("a", "b")))
    (plan,) = purchase(step("a")).definition.steps
    what = [msgspec.structs.replace(plan, action=work).what for work in works]
    assert what == ["mail.send", "signal ok", "sleep", "saga hotel", "gather"]


def test_workers_have_to_consume_the_queues_of_tasks() -> None:
    """Each once; a sub-saga is started by an orchestrator, and a wait by nobody."""
    saga = purchase(
        Step("a", "mail.send", "mail.sorry"),
        Step("b", SubSaga("hotel")),
        Step("c", Sleep(timedelta(1))),
        Step("d", "air.book", "air.cancel"),
        Step("e", "mail.again", "mail.sorry"),
    )
    assert saga.definition.queues == ("mail", "air")


@pytest.mark.parametrize(
    "value",
    [1, "x", None, (1, (2, 3)), {"a": (1,)}, {1: "one"}, timedelta(hours=1), frozenset({1})],
)
def test_a_definition_is_the_same_after_it_was_stored(value: object) -> None:
    """Else a start would be refused since the definition had "changed"."""
    one = purchase(
        step("a", payload={"x": value, "y": Literal(value), "z": Input("order_id")}),
        step("b", after=["a"], payload={"all": Output("a"), "d": Output("a", "x", default=value)}),
        step("p", pivot=True, compensation=NOTHING_TO_UNDO, retry=Retry.forever()),
    ).definition
    assert codec.decode(codec.encode(one), Definition) == one


def test_retry_forever_has_no_last_attempt() -> None:
    """Its waits grow up to the given ceiling."""
    policy = Retry.forever(wait_max=timedelta(hours=1))
    assert (policy.attempts, policy.backoff.wait_max) == (None, timedelta(hours=1))
    assert policy.after("Busy") is policy
    busy = Retry(attempts=1)
    assert Retry.forever(by_kind={"Busy": busy}).after("Busy") is busy


# What is refused when a saga starts -----------------------------------------------------------


def input_problems(value: Any) -> list[str]:
    """What is wrong with an input."""
    with pytest.raises(InputError) as caught:
        purchase().check_input(value)
    assert caught.value.hint == "Nothing was started."
    return [*caught.value.problems]


def test_an_input_that_fits_is_completed_with_defaults() -> None:
    """As plain JSON values."""
    given = {"order_id": "o", "amount": 1, "address": {"city": "Oslo"}}
    completed = {**given, "address": {"city": "Oslo", "zip": ""}, "tags": []}
    assert purchase().check_input(given) == completed


def test_every_wrong_field_of_an_input_is_named() -> None:
    """Missing, unknown, of another type, and wrong deep inside: all in one error."""
    found = input_problems({"amount": "7", "address": {"city": 1}, "color": "red"})
    assert found == [
        "color: unknown field (the input has order_id, amount, address, tags)",
        "order_id: missing",
        "amount: expected `int`, got `str`",
        "address: expected `str`, got `int` - at `$.city`",
    ]


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_an_input_that_is_no_object_is_refused(value: object) -> None:
    """Every kind of JSON that has no fields."""
    assert input_problems(value) == [f"an object is wanted, not {type(value).__name__}"]


def test_a_rule_of_the_input_type_over_several_fields_is_checked() -> None:
    """What `__post_init__` says is part of the error."""

    class Span(msgspec.Struct, frozen=True):
        first: int
        last: int

        def __post_init__(self) -> None:
            if self.last < self.first:
                raise ValueError("last is before first")

    saga = Saga(name="s", version=1, input=Span, steps=(step("a"),))
    with pytest.raises(InputError, match="last is before first"):
        saga.check_input({"first": 2, "last": 1})


@pytest.mark.parametrize("options", [{"omit_defaults": True}, {"tag": "t"}, {"rename": "camel"}])
def test_the_way_an_input_type_is_encoded_does_not_change_the_input(
    options: dict[str, Any],
) -> None:
    """Defaults are filled in and nothing is added, or a payload would not find its fields."""
    kind = msgspec.defstruct(
        "Kind", [("a", int), ("b", int, 2), ("c", dict[int, str], {})], **options
    )
    saga = Saga(name="s", version=1, input=kind, steps=(step("a", payload={"x": Input("b")}),))
    assert saga.check_input({"a": 1}) == {"a": 1, "b": 2, "c": {}}


def test_an_input_is_stored_as_json_gives_it_back() -> None:
    """Keys are text, times are text: what is decided on now is what is loaded later."""

    class Odd(msgspec.Struct, frozen=True):
        by_number: dict[int, str]
        wait: timedelta

    saga = Saga(name="s", version=1, input=Odd, steps=(step("a"),))
    checked = saga.check_input({"by_number": {"1": "one"}, "wait": "PT1S"})
    assert checked == {"by_number": {"1": "one"}, "wait": "PT1S"}


@pytest.mark.parametrize(
    "build",
    [lambda: Output("a"), lambda: Input("x"), lambda: Literal(1)],
    ids=["output", "input", "literal"],
)
def test_references_are_values(build: Callable[[], object]) -> None:
    """Equal when they say the same."""
    assert build() == build()
