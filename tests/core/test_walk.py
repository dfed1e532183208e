"""Everything that can happen to every small saga. See `walk` for how it stays small.

``SAGA_WALK_BOUND`` sets how far it goes: 1 (default) takes less than a minute, 2 (`make soak`) many
minutes.
"""

import gc
import os
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from itertools import combinations, islice, permutations, product
from typing import Any

import pytest

from orchestrator.core.definition import (
    Definition,
    Input,
    Item,
    Sleep,
    Step,
    SubSaga,
    WaitFor,
)
from orchestrator.core.references import eq
from orchestrator.core.state import CauseKind, Phase, Status
from tests.core.builders import NOTHING_TO_UNDO, Orders, Retry, saga, step, wait
from tests.core.participants import Answer
from tests.core.shapes import Shape, closure, shapes
from tests.core.walk import ALL_ANSWERS, ANSWERS, Barrier, Graph, Plain, Walk

BOUND = int(os.environ.get("SAGA_WALK_BOUND", "1"))
FOUR = 4
ONCE, TWICE = Retry(attempts=1), Retry(attempts=2)
NOTHING, NONE = {"compensation": NOTHING_TO_UNDO}, {"compensation": None}

Options = dict[str, Any]


@pytest.fixture(autouse=True)
def nothing_collected() -> Iterator[None]:
    """Places and nodes are kept until the end: looking for garbage among them finds none."""
    gc.disable()
    yield
    gc.enable()


def every_saga(size: int, *, same_retry: bool) -> Iterator[Definition]:
    """All sagas of so many steps in order.

    Args:
        size: Number of steps.
        same_retry: All steps that may choose get the same retry, instead of all combinations.
    """
    retries = [*product((ONCE, TWICE), repeat=size)]
    if same_retry:
        # A failure for good ends a step at its first attempt, too.
        retries = [(retry,) * size for retry in ((ONCE, TWICE) if size < FOUR else (TWICE,))]
    for pivot in (None, *range(size)):
        free = size if pivot is None else pivot
        for undos in product(({}, NOTHING), repeat=free):
            for pivots_undo in ({}, NOTHING, NONE) if pivot is not None else ({},):
                seen = []
                for retry in retries:
                    chosen = retry[: free + (pivot is not None)]
                    if chosen not in seen:
                        seen.append(chosen)
                        yield _linear(size, pivot, (*undos, pivots_undo), chosen)


def _linear(
    size: int, pivot: int | None, undos: tuple[Options, ...], retries: tuple[Retry, ...]
) -> Definition:
    steps: list[Step] = []
    for index in range(size):
        beyond = pivot is not None and index > pivot
        # One step beyond the pivot has a compensation all the same: it must never run.
        undo = undos[index] if not beyond else ({} if index % 2 else NONE)
        retry = TWICE if beyond else retries[index]
        options: Options = {"retry": retry, "compensation_retry": TWICE, **undo}
        steps.append(step(f"s{index}", pivot=index == pivot, **options))
    return saga(*steps, deadline=timedelta(hours=1)).definition


def graphs() -> dict[str, Definition]:
    """Small graphs whose steps are not all alike; `shapes` has all those where they are."""

    def part(name: str, *after: str, **options: Any) -> Step:
        every = {"retry": TWICE, "compensation_retry": TWICE, **options}
        return step(name, after=after, **every)

    once: Options = {"retry": ONCE, "compensation_retry": ONCE}
    shapes = {
        "two roots": (part("a"), part("b", **once)),
        "fork at a pivot": (part("p", pivot=True, **NONE), part("b", "p"), part("c", "p")),
        "join at a pivot": (
            part("a", **once),
            part("b", **once, **NOTHING),
            part("p", "a", "b", pivot=True, **NONE),
        ),
        "declared backwards": (part("c", "b", **once), part("b", "a", **once), part("a", **once)),
    }
    return {
        name: saga(*steps, deadline=timedelta(hours=1)).definition
        for name, steps in shapes.items()
    }


FEW = (Answer.SUCCEEDED, Answer.REJECTED, Answer.FAILED)
"""Where a failed step is not tried again anyway, a failure for good is like any other."""
FEWEST = (Answer.SUCCEEDED, Answer.REJECTED)
"""Unknown is then what has timed out alone."""


def shaped(shape: Shape) -> Definition:
    """A saga of this shape: an unsafe pivot, and steps beyond it that are tried twice."""
    steps = []
    for number in range(shape.size):
        options: Options = {"retry": ONCE, "compensation_retry": ONCE}
        if number == shape.pivot:
            options |= {**NONE, "pivot": True}
        elif shape.beyond(number):
            options |= {**NONE, "retry": TWICE}
        after = tuple(f"s{before}" for before in shape.after(number))
        steps.append(step(f"s{number}", after=after, **options))
    return saga(*steps, deadline=timedelta(hours=1)).definition


def width(shape: Shape) -> int:
    """How many steps can run at once."""
    ordered = closure(shape.edges)
    return max(
        size
        for size in range(1, shape.size + 1)
        for chosen in combinations(range(shape.size), size)
        if not ordered & {*permutations(chosen, 2)}
    )


def walk_all(
    definitions: Iterator[Definition],
    *,
    forgetful: bool,
    plain: bool = True,
    operated: bool = False,
    told: bool = False,
    child: bool = False,
    items: dict[str, int] | None = None,
    copied: tuple[str, ...] = (),
    irrevocable: tuple[str, ...] = (),
    answers: tuple[Answer, ...] = ANSWERS,
) -> Counter[str]:
    """Walk sagas in both kinds of world; returns what was counted."""
    counts: Counter[str] = Counter()
    for definition in definitions:
        graph = Graph(
            definition,
            forgetful=forgetful,
            operated=operated,
            told=told,
            child=child,
            items=items,
            copied=copied,
            answers=answers,
        )
        past_pivot = frozenset(map(graph.names.index, irrevocable))
        barrier_walk = Walk(graph, Barrier(answers, past_pivot))
        barrier_walk.run()
        counts["places"] += len(barrier_walk.places)
        if plain:
            plain_walk = Walk(graph, Plain(answers))
            plain_walk.run()
            counts["places"] += len(plain_walk.places)
        counts["sagas"] += 1
        counts["decisions"] += graph.decisions
        for node in graph.nodes.values():
            counts["states"] += 1
            counts[node.state.status] += 1
            counts["paused"] += node.state.paused
            counts["accepted"] += any(step.accepted for step in node.steps)
            counts[node.state.cause.kind if node.state.cause else "no cause"] += 1
            counts.update(step.phase for step in node.steps)
    print(dict(counts))
    return counts


@pytest.mark.parametrize("size", [1, 2])
def test_every_small_saga_keeps_the_invariants_and_ends(size: int) -> None:
    """One and two steps, nothing abstracted but time: every rule holds, in every world."""
    every = every_saga(size, same_retry=size > 1 and BOUND < 2)
    counts = walk_all(every, forgetful=False)
    never = {Status.RESOLVED, Phase.SKIPPED, *({Phase.PENDING} if size == 1 else ())}
    for wanted in {*Status, *CauseKind, *Phase} - never:
        assert counts[wanted], f"a walk that never saw {wanted}"


@pytest.mark.parametrize("size", [3, 4])
def test_every_saga_of_three_and_four_steps_keeps_the_invariants_and_ends(size: int) -> None:
    """Three and four steps; settled steps are taken as settled by their first attempt."""
    plain_too = size == 3 or BOUND > 1
    every = every_saga(size, same_retry=BOUND < 2)
    if BOUND < 2:
        every = islice(every, 0, None, 3)  # `shapes` has the pivot at every place
    counts = walk_all(every, forgetful=True, plain=plain_too)
    assert counts["sagas"] >= 20
    assert counts[Phase.UNDO_FAILED]


@pytest.mark.parametrize("shape", graphs())
def test_every_small_graph_keeps_the_invariants_and_ends(shape: str) -> None:
    """Steps that run in parallel: each time-out by itself and both at once, undone in parallel."""
    counts = walk_all(iter([graphs()[shape]]), forgetful=True, plain=BOUND > 1)
    assert counts[Status.COMPENSATED]
    assert counts[Status.COMPLETED]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_shape_of_up_to_four_steps_keeps_the_invariants_and_ends(size: int) -> None:
    """Every graph, the pivot at every place, a cancel and the deadline at every moment.

    Of four steps of which three or more run at once participants answer less (`FEWEST`); and an
    edge that follows from others is only there with the larger bound.
    """
    every = [*shapes(size, redundant=size < FOUR or BOUND > 1)]
    wide = [shape for shape in every if BOUND < 2 and size == FOUR and width(shape) > 2]
    narrow = [shape for shape in every if shape not in wide]
    counts = walk_all(map(shaped, narrow), forgetful=True, plain=BOUND > 1, answers=FEW)
    counts += walk_all(map(shaped, wide), forgetful=True, plain=False, answers=FEWEST)
    print(
        f"{size} steps: {len({shape.edges for shape in every})} graphs, {len(every)} shapes with "
        f"their pivots ({len(wide)} with success, refusal and time-out alone), "
        f"{counts['states']} states, {counts['places']} places, {counts['decisions']} decisions"
    )
    assert counts["sagas"] == len(every)
    known = {1: (1, 2), 2: (2, 4), 3: (6, 14), 4: (16, 30) if BOUND < 2 else (31, 85)}
    assert (len({shape.edges for shape in every}), len(every)) == known[size]


@pytest.mark.parametrize("size", [1, 2])
def test_operators_at_every_moment_keep_the_invariants(size: int) -> None:
    """Pause, resume, retry, skip, resolve and compensate, whenever they are allowed."""
    every = every_saga(size, same_retry=BOUND < 2)
    if size > 1 and BOUND < 2:
        every = islice(every, 1, None, 3)
    counts = walk_all(every, forgetful=size > 1, plain=False, operated=True)
    for wanted in (Status.RESOLVED, Phase.SKIPPED, "paused"):
        assert counts[wanted], f"a walk that never saw {wanted}"


def test_tasks_that_no_worker_knows_keep_the_invariants() -> None:
    """Stuck wherever it happens; retried after a deploy, given up, cancelled, out of time."""
    answers = ALL_ANSWERS if BOUND > 1 else (*FEWEST, Answer.UNKNOWN)
    for size in range(1, BOUND + 1):
        every = every_saga(size, same_retry=True)
        counts = walk_all(every, forgetful=size > 1, operated=True, answers=answers)
        for wanted in (Status.STUCK, Status.COMPENSATED, Status.COMPLETED):
            assert counts[wanted], f"a walk that never saw {wanted}"


def test_a_task_that_no_worker_knows_beside_another_branch_keeps_the_invariants() -> None:
    """The other branch goes on to its end, and whatever ends badly there turns the saga back."""
    every: Options = {"retry": TWICE, "compensation_retry": ONCE}
    a, b = step("a", after=(), **every), step("b", after=(), **every)
    pivot = step("p", after=("a", "b"), pivot=True, **{**every, **NONE})
    answers = (*(FEW if BOUND > 1 else FEWEST), Answer.UNKNOWN)
    for steps in ((a, b), (a, b, pivot)):
        definition = saga(*steps, deadline=timedelta(hours=1)).definition
        counts = walk_all(iter([definition]), forgetful=True, plain=False, answers=answers)
        assert counts[Status.STUCK]
        assert counts[Status.COMPENSATED]


def waiting() -> dict[str, Definition]:
    """Sagas with a wait of each kind, in each place."""
    every: Options = {"retry": TWICE, "compensation_retry": ONCE}
    a, b = step("a", **every), step("b", **every)
    pivot = step("p", pivot=True, **{**every, **NONE})
    maybe = WaitFor("ok", otherwise="default")
    shapes = {
        "first": (wait("w", WaitFor("ok", approval=True)), a),
        "last": (a, wait("w", WaitFor("ok", approval=True, otherwise="fail"))),
        "between": (a, wait("w", maybe), b),
        "sleep": (a, wait("w", Sleep(timedelta(minutes=1))), b),
        "beside": (
            step("a", after=(), **every),
            wait("w", WaitFor("ok"), after=()),
            step("b", after=("a", "w"), **every),
        ),
        "before the pivot": (a, wait("w", WaitFor("ok", approval=True)), pivot),
        "after the pivot": (pivot, wait("w", maybe), step("b", **{**every, **NONE})),
        "the same for two": (wait("v", maybe, after=()), wait("w", maybe, after=()), a),
    }
    return {
        name: saga(*steps, deadline=timedelta(hours=1)).definition
        for name, steps in shapes.items()
    }


def test_waits_and_signals_at_every_moment_keep_the_invariants() -> None:
    """Signals before, while and after a step waits; time-outs; attempts that are accepted."""
    counts = walk_all(iter(waiting().values()), forgetful=True, plain=False, told=True)
    for wanted in ("accepted", Status.COMPLETED, Status.COMPENSATED, Status.STUCK):
        assert counts[wanted], f"a walk that never saw {wanted}"


@pytest.mark.parametrize("shape", ["first", "last", "beside"])
def test_operators_of_sagas_that_wait_keep_the_invariants(shape: str) -> None:
    """A wait can be paused, skipped, and given up."""
    counts = walk_all(
        iter([waiting()[shape]]), forgetful=True, plain=False, told=BOUND > 1, operated=True
    )
    assert counts[Phase.SKIPPED]


def lists() -> dict[str, Definition]:
    """Sagas with a list of two, in each place, and with conditions."""
    every: Options = {"retry": ONCE, "compensation_retry": ONCE}
    two = {"each": Input("order_ids"), "payload": {"order_id": Item()}}
    a, b = step("a", **every), step("b", **every)
    listed = step("l", **{**every, **two})
    pivot = step("p", pivot=True, **{**every, **NONE})
    beyond = step("l", **{**every, **two, **NONE, "retry": TWICE})
    never = step("n", when=eq(Input("order_id"), "o-2"), **every)
    always = step("y", when=eq(Input("order_id"), "o-1"), **every)
    shapes = {
        "list first": (listed, b),
        "list last": (a, listed),
        "one at a time": (a, step("l", items_at_once=1, **{**every, **two}), b),
        "before the pivot": (listed, pivot),
        "after the pivot": (pivot, beyond),
        "list of waits": (wait("l", WaitFor("ok"), each=Input("order_ids")), b),
        "skipped": (a, never, b),
        "not skipped": (a, always, b),
        "all skipped": (never, step("m", when=eq(Input("order_id"), "o-2"), **every)),
        "a list that is skipped": (
            a,
            step("l", when=eq(Input("order_id"), "o-2"), **{**every, **two}),
            b,
        ),
    }
    return {
        name: saga(*steps, deadline=timedelta(hours=1), input=Orders).definition
        for name, steps in shapes.items()
    }


@pytest.mark.parametrize("shape", lists())
def test_lists_and_conditions_keep_the_invariants(shape: str) -> None:
    """One item fails, or comes late, while the other goes on; whatever is skipped is passed over."""
    length = 0 if shape in {"skipped", "not skipped", "all skipped"} else 2
    items = {"l": length} if length and shape != "a list that is skipped" else {}
    counts = walk_all(
        iter([lists()[shape]]),
        forgetful=True,
        plain=False,
        told=BOUND > 1 or shape == "list of waits",
        items=items,
    )
    assert counts[Status.COMPLETED]
    assert counts[Status.COMPENSATED] or shape == "all skipped"


def test_a_step_that_is_skipped_early_waits_for_its_turn() -> None:
    """Operators skip steps of a longer saga before they have begun: order holds all the same."""
    steps = [step(name, retry=ONCE, compensation_retry=ONCE) for name in "abc"]
    definition = saga(*steps, deadline=timedelta(hours=1)).definition
    counts = walk_all(iter([definition]), forgetful=True, plain=False, operated=True)
    assert counts[Phase.SKIPPED]


def nested() -> dict[str, Definition]:
    """Sagas with a sub-saga in each place: it takes commands like a participant with a barrier."""
    once: Options = {"compensation_retry": ONCE}
    every: Options = {"retry": TWICE, **once}
    a, b = step("a", **every), step("b", **every)
    child = Step("s", SubSaga("other"), timeout=timedelta(minutes=10), **once)
    again = Step("s", SubSaga("other"), retry=TWICE, timeout=timedelta(minutes=10), **once)
    shapes = {
        "first": (child, a),
        "last": (a, child),
        "tried twice": (again, a),
        "beside": (step("a", after=(), **every), Step("s", SubSaga("other"), after=(), **once)),
        "before the pivot": (child, step("p", pivot=True, **{**every, **NONE})),
        "the pivot": (a, Step("s", SubSaga("other"), pivot=True, **once), b),
        "after the pivot": (step("p", pivot=True, **{**every, **NONE}), again),
    }
    return {
        name: saga(*steps, deadline=timedelta(hours=1)).definition
        for name, steps in shapes.items()
    }


@pytest.mark.parametrize("shape", nested())
def test_sagas_with_a_sub_saga_keep_the_invariants(shape: str) -> None:
    """It is called back by a cancel, a deadline, a failure beside it and its own time-out."""
    counts = walk_all(iter([nested()[shape]]), forgetful=True, plain=False)
    assert counts[Status.COMPLETED]
    assert counts[Status.COMPENSATED]


@pytest.mark.parametrize("shape", ["last", "beside", "tried twice"])
def test_sagas_with_a_sub_saga_past_its_pivot_keep_the_invariants(shape: str) -> None:
    """It refuses to be undone: the saga is stuck with it, and never counts as compensated."""
    counts = walk_all(iter([nested()[shape]]), forgetful=True, plain=False, irrevocable=("s",))
    for wanted in (Status.COMPLETED, Status.COMPENSATED, Status.STUCK):
        assert counts[wanted], f"a walk that never saw {wanted}"


@pytest.mark.parametrize("size", [1, 2])
def test_sub_sagas_that_are_undone_at_every_moment_keep_the_invariants(size: int) -> None:
    """Before, while and after they run; past their pivot it is refused."""
    every = every_saga(size, same_retry=BOUND < 2)
    if size > 1 and BOUND < 2:
        every = islice(every, 0, None, 4)
    counts = walk_all(every, forgetful=True, plain=False, child=True)
    assert counts[Status.COMPENSATED]


def test_operators_of_a_saga_with_a_sub_saga_keep_the_invariants() -> None:
    """A paused one calls nothing back until it is resumed."""
    counts = walk_all(iter([nested()["last"]]), forgetful=True, plain=False, operated=True)
    assert counts["paused"]


@pytest.mark.parametrize("copied", [("s0",), ("s0", "s1")], ids=["one step", "two steps"])
def test_forks_keep_the_invariants_and_undo_what_they_copied(copied: tuple[str, ...]) -> None:
    """What another saga has done counts as done, and is gone when the fork is compensated."""
    every = every_saga(3, same_retry=True)
    if BOUND < 2:
        every = islice(every, 0, None, 6)
    counts = walk_all(every, forgetful=True, plain=BOUND > 1, copied=copied)
    assert counts[Status.COMPLETED]
    assert counts[Status.COMPENSATED]


@pytest.mark.parametrize("copied", ["a", "b"])
def test_forks_of_graphs_keep_the_invariants(copied: str) -> None:
    """Of two branches one has been done, and they are undone at once."""
    counts = walk_all(
        iter([graphs()["two roots"]]), forgetful=True, plain=BOUND > 1, copied=(copied,)
    )
    assert counts[Status.COMPENSATED]


def test_a_fork_undoes_a_sub_saga_that_it_copied() -> None:
    """It was started by another saga."""
    counts = walk_all(iter([nested()["first"]]), forgetful=True, plain=False, copied=("s",))
    assert counts[Status.COMPENSATED]
