"""Forks over one engine: whose the effects are, whatever becomes of the two sagas."""

import itertools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from typing_extensions import override

from orchestrator.catalog import Catalog
from orchestrator.cli.output import as_text
from orchestrator.cli.render import saga_blocks
from orchestrator.core.definition import NOTHING_TO_UNDO, Input, Retry, Saga, Step, SubSaga
from orchestrator.graph import ascii_art
from orchestrator.projection import project
from orchestrator.replay import replay
from shared.errors import InputError, KeyConflict, NotAllowed, UnknownSaga
from shared.messages import Command
from shared.telemetry.spans import SpanRecord
from tests.core.builders import saga, step
from tests.guide.shop import Shop
from workers.sdk import Reject

ORDER = ("service.a", "service.b", "service.c")


class Ledger(Shop):
    """A shop whose participants have a barrier: an effect stands under the saga that it was done for.

    Attributes:
        stands: Saga and step of each effect.
        refuses: Actions that say no.
        breaks: Compensations that fail for good.
    """

    def __init__(self, *sagas: Saga) -> None:
        self.stands: set[tuple[str, str]] = set()
        self.refuses: set[str] = set()
        self.breaks: set[str] = set()
        tasks: dict[str, Callable[..., Any]] = {}
        for one in sagas:
            for planned in one.definition.steps:
                if planned.task:
                    tasks[planned.task] = self._do
                if planned.undo_task and planned.task:
                    tasks[planned.undo_task] = self._undo
        super().__init__(*sagas, tasks=tasks)

    @override
    def _run(self, command: Command) -> None:
        self._now = command
        super()._run(command)

    def _do(self, **_: Any) -> dict[str, str]:
        if self._now.step in self.refuses:
            raise Reject("No")
        effect = (self._now.saga_id, self._now.step)
        assert effect not in self.stands, "done twice"
        self.stands.add(effect)
        return {"by": self._now.saga_id}

    def _undo(self, undo: Any, **_: Any) -> None:
        if self._now.step in self.breaks:
            raise Reject("Broken")
        effect = (self._now.origin_id or self._now.saga_id, self._now.step)
        assert undo == {"by": effect[0]}, "the undo data of another saga"
        self.stands.remove(effect)  # fails where it was undone already

    def fork(self, saga_id: str, at: str, **options: Any) -> str:
        """Fork a saga, and let the fork get as far as it comes."""
        forked = self.client.fork(saga_id, at, reason="why", by="ada", **options)
        self.settle()
        return forked.row.saga_id


LINE = saga(step("a"), step("b"), step("c"))


def shapes() -> list[Saga]:
    """Every graph of three steps."""
    found = []
    for of_b, of_c in itertools.product([(), ("a",)], [(), ("a",), ("b",), ("a", "b")]):
        found.append(saga(step("a", after=()), step("b", after=of_b), step("c", after=of_c)))
    return found


@pytest.mark.parametrize("shape", shapes(), ids=lambda one: str([s.after for s in one.steps]))
def test_no_effect_is_undone_twice_and_none_is_left_behind(shape: Saga) -> None:
    """Every graph, every step to fork from, every step that is refused, and the fork of a fork."""
    for at, refused in itertools.product("abc", ["", *"abc"]):
        shop = Ledger(shape)
        old = shop.start("test")
        of_old = {(old, name) for name in "abc"}
        shop.refuses = {refused}
        fork = shop.fork(old, at)
        copied = {name for name, one in shop.client.row(fork).state.steps.items() if one.origin}
        anew = {*"abc"} - copied
        if refused in anew:
            assert shop.status(fork) == "compensated"
            assert shop.stands == {(old, name) for name in anew}
            continue
        assert shop.status(fork) == "completed"
        assert shop.stands == of_old | {(fork, name) for name in anew}
        if copied:  # they are the fork's by now
            with pytest.raises(NotAllowed, match=fork):
                shop.client.fork(old, at)
        before, shop.refuses = {*shop.stands}, {*"abc"}
        last = shop.fork(fork, at)
        # Undone with all that was copied twice; what the fork did itself it keeps.
        assert shop.status(last) == "compensated"
        assert shop.stands == before - {(old, name) for name in copied}


def test_both_histories_tell_of_the_fork() -> None:
    """Which saga, from where, why, who; and what was done there."""
    shop = Ledger(LINE)
    old = shop.start("test")
    ended_at = shop.client.row(old).updated_at
    shop.wait(timedelta(hours=1))
    fork = shop.fork(old, "c", key="k")
    seen, new = shop.view(old), shop.view(fork)
    assert (seen.status, seen.updated_at, seen.forks) == ("completed", ended_at, (fork,))
    assert seen.timeline[-1].detail == (
        f"by ada: why: {fork} goes on from c, which undoes a, b from now on"
    )
    assert {"a": fork, "b": fork, "c": ""} == {one.name: one.heir for one in seen.steps}
    assert new.fork is not None
    assert (new.fork.saga_id, new.fork.step) == (old, "c")
    assert new.timeline[0].detail == f"key k, forked from {old} at c, by ada: why"
    assert [one.detail for one in new.timeline[1:3]] == [f"done by {old}"] * 2
    assert {"a": old, "b": old, "c": ""} == {one.name: one.copied_from for one in new.steps}
    assert f"forked   as {fork}" in as_text(saga_blocks(seen, shop.now))
    assert "succeeded (copied)" in as_text(saga_blocks(new, shop.now))
    definition, row, _ = shop.client.story(fork)
    assert "succeeded, copied" in ascii_art(definition, row.state)


def test_both_histories_are_decided_alike_by_a_replay() -> None:
    """Of a fork that went well, of one that turned back, and of the old saga."""
    shop = Ledger(LINE)
    old = shop.start("test")
    shop.refuses = {"c"}
    first = shop.fork(old, "c")
    shop.refuses = set()
    second = shop.fork(shop.start("test"), "b")
    for saga_id in (old, first, second):
        definition, row, history = shop.client.story(saga_id)
        replayed = replay(definition, history, row.state)
        assert replayed.same, replayed.differences


def test_a_dry_run_says_what_would_become_of_each_step() -> None:
    """And changes nothing."""
    shop = Ledger(LINE)
    old = shop.start("test")
    forked = shop.client.fork(old, "b", dry_run=True)
    assert forked.dry_run
    assert forked.plan is not None
    assert (forked.plan.names, forked.plan.anew, forked.plan.left) == (
        ("a",),
        ("b", "c"),
        ("b", "c"),
    )
    assert len(shop.client.list()) == 1
    assert shop.view(old).forks == ()


def test_a_business_key_makes_a_fork_once() -> None:
    """The same fork again gives the first one; another fork, or another saga, has no right to it."""
    shop = Ledger(LINE)
    old = shop.start("test", key="old")
    fork = shop.fork(old, "c", key="k")
    again = shop.client.fork(old, "c", key="k")
    assert (again.row.saga_id, again.created) == (fork, False)
    with pytest.raises(KeyConflict, match="not the same fork"):
        shop.client.fork(old, "a", key="k")
    with pytest.raises(KeyConflict, match="not the same fork"):
        shop.client.fork(fork, "c", key="old")


def test_of_two_forks_at_once_one_gets_the_effects(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one was decided before, and is decided anew: nothing of it is left."""
    shop = Ledger(LINE)
    old = shop.start("test")
    forks = shop.engine._forks
    plan = forks._plan
    faster: list[str] = []

    def overtaken(*arguments: Any) -> Any:
        found = plan(*arguments)
        if not faster:
            faster.append("")
            faster[0] = shop.client.fork(old, "c").row.saga_id
        return found

    monkeypatch.setattr(forks, "_plan", overtaken)
    with pytest.raises(NotAllowed, match="belongs to an earlier fork"):
        shop.client.fork(old, "b")
    assert {one.saga_id for one in shop.client.list()} == {old, *faster}
    assert shop.view(old).forks == (*faster,)


def test_another_input_is_checked_and_counts_for_what_is_done_anew() -> None:
    """What had been done is undone with what it was done with."""
    shop = Ledger(LINE)
    old = shop.start("test")
    with pytest.raises(InputError, match="colour"):
        shop.client.fork(old, "c", input={"colour": "red"})
    shop.refuses = {"c"}
    shop.fork(old, "c", input={"order_id": "o-2"})
    sent = [(one.step, one.direction, one.payload["order_id"]) for one in shop.commands[-3:]]
    assert sent == [
        ("c", "action", "o-2"),
        ("b", "compensation", "o-1"),
        ("a", "compensation", "o-1"),
    ]


def test_what_cannot_be_forked_says_so() -> None:
    """With what to do next."""
    shop = Ledger(LINE)
    with pytest.raises(UnknownSaga, match="There is no saga 'x'"):
        shop.client.fork("x", "a")
    old = shop.start("test")
    with pytest.raises(NotAllowed, match=f"Saga {old} cannot be forked from step 'x'. .* but 'a'"):
        shop.client.fork(old, "x")


def test_an_undo_of_a_fork_that_fails_leaves_it_stuck() -> None:
    """What stands is seen, and is tried again by hand."""
    shop = Ledger(LINE)
    old = shop.start("test")
    shop.refuses, shop.breaks = {"c"}, {"a"}
    fork = shop.fork(old, "c")
    assert shop.status(fork) == "stuck"
    assert shop.stands == {(old, "a"), (old, "c")}
    shop.breaks = set()
    shop.client.retry(fork, "a", reason="mended")
    shop.settle()
    assert shop.status(fork) == "compensated"
    assert shop.stands == {(old, "c")}


# Sub-sagas ------------------------------------------------------------------------------------


class Stay(msgspec.Struct):
    """Input of the saga below."""

    order_id: str


HOTEL = Saga(
    name="hotel",
    version=1,
    input=Stay,
    steps=(Step("room", "hotel.room", "hotel.free", retry=Retry(attempts=1)),),
)
TRIP = saga(
    Step("stay", SubSaga("hotel"), payload={"order_id": Input("order_id")}),
    step("look", compensation=NOTHING_TO_UNDO),
    step("c"),
)


def test_a_copied_sub_saga_is_undone_by_the_fork_and_answers_it() -> None:
    """Which is not the saga that it was started for."""
    shop = Ledger(TRIP, HOTEL)
    old = shop.start("test")
    (below,) = (one.sub_saga for one in shop.view(old).steps if one.sub_saga)
    shop.refuses = {"c"}
    fork = shop.fork(old, "c")
    assert [shop.status(one) for one in (old, below, fork)] == [
        "completed",
        "compensated",
        "compensated",
    ]
    assert shop.stands == {(old, "look"), (old, "c")}
    assert shop.step(fork, "stay").sub_saga == below
    assert shop.view(below).parent == shop.client.row(below).state.parent
    definition, row, history = shop.client.story(below)
    assert replay(definition, history, row.state).same
    with pytest.raises(NotAllowed, match="It is the sub-saga of"):
        shop.client.fork(below, "room")


# Trace ----------------------------------------------------------------------------------------


def spans(shop: Shop, saga_id: str) -> dict[str, SpanRecord]:
    """The spans of a saga, by name."""
    definition, row, history = shop.client.story(saga_id)
    made = project(definition, row.state, history, system="memory", sent={}, whole=True)
    return {one.name: one for one in made}


def test_a_fork_is_a_trace_of_its_own_that_is_linked_to_the_old_one() -> None:
    """It has spans for what it does itself; an undo of a copied step is linked to what it undoes."""
    shop = Ledger(LINE)
    old = shop.start("test")
    before = spans(shop, old)
    shop.wait(timedelta(hours=1))
    shop.refuses = {"c"}
    # Whether or not it is known that the spans of the old one have arrived.
    due_at = shop.client.row(old).trace_due_at
    fork = shop.fork(old, "c")
    assert shop.client.row(old).trace_due_at == due_at
    found = spans(shop, fork)
    assert before == spans(shop, old)
    assert {"saga test", "step c", "compensate a", "compensate b"} < found.keys()
    assert not {"step a", "step b"} & found.keys()
    root, was = found["saga test"], before["saga test"]
    assert root.trace_id != was.trace_id
    assert [(one.trace_id, one.span_id) for one in root.links] == [(was.trace_id, was.span_id)]
    assert {old} == {one.attributes["saga.forked_from.id"] for one in found.values()}
    undo = found["compensate a"]
    assert [(one.trace_id, one.span_id) for one in undo.links] == [
        (was.trace_id, before["step a"].span_id)
    ]
    assert undo.attributes["saga.origin.id"] == old


def test_a_newer_version_in_the_code_is_what_a_fork_runs_on() -> None:
    """A mistake in a definition is mended, and what had been done before it is kept."""
    shop = Ledger(LINE)
    old = shop.start("test")
    mended = msgspec.structs.replace(LINE, version=2)
    shop.engine.catalog = shop.engine._forks._catalog = shop.engine._starts._catalog = Catalog(
        [LINE, mended]
    )
    fork = shop.fork(old, "c")
    assert [(one.version, one.status) for one in map(shop.view, (old, fork))] == [
        (1, "completed"),
        (2, "completed"),
    ]
