"""A history through the core of today: what would differ is said, decision by decision."""

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pytest

from orchestrator import replay as module
from orchestrator.core.definition import Input, Item, Retry, Saga, Step
from orchestrator.core.events import Recorded, StepDispatched, StepTimedOut, tag_of
from orchestrator.core.limits import IN_FLIGHT_MAX_DEFAULT, Limits
from orchestrator.core.machine import Decision, decide
from orchestrator.core.messages import Heartbeat, Message, RetryNow, Tick
from orchestrator.core.state import SagaState
from orchestrator.engine import Engine
from orchestrator.replay import replay
from orchestrator.sagas import BOOK_TRAVEL, COLLECT_PAYMENT, PLACE_ORDER
from orchestrator.testing import Bench, fails, given, late, rejects, times_out, twice
from orchestrator.testing.failures import _drive, _signals, trials
from shared import codec
from shared.errors import DecodeError
from shared.messages import Accepted, Outcome, Reply, Succeeded
from tests.core import builders
from tests.golden.history import FOLDER, GoldenHistory
from tests.simulation.run import Run, silence

every_golden_history = pytest.mark.parametrize(
    "path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem
)


def golden(path: Path) -> tuple[GoldenHistory, list[Recorded]]:
    """A golden history, as it stands in a store."""
    read = codec.decode(path.read_bytes(), GoldenHistory)
    events = [(one.at, event) for one in read.arrivals for event in one.events]
    return read, [
        Recorded(sequence=number, at=at, event=event)
        for number, (at, event) in enumerate(events, 1)
    ]


@every_golden_history
def test_a_golden_history_is_decided_alike(path: Path) -> None:
    """By facts alone: the messages are made anew from them."""
    read, recorded = golden(path)
    result = replay(read.definition, recorded, read.state)
    assert result.same, result.differences
    assert [one.recorded for one in result.decisions] == [
        arrival.events for arrival in read.arrivals if arrival.events
    ]


JOURNEY = {
    "book-travel": {
        "booking_id": "b-1",
        "amount_cents": 250_000,
        "activities": ["city-tour", "surf-lesson"],
    }
}
"""Input of what has more than one example could make up: it asks for an approval, too."""


@pytest.mark.parametrize("saga", [PLACE_ORDER, BOOK_TRAVEL], ids=lambda saga: saga.name)
def test_whatever_goes_wrong_is_decided_alike(saga: Saga) -> None:
    """Every failure of every example."""
    for trial in [*trials(saga.definition)][::7]:
        signals = _signals(saga.definition, None, trial)
        bench = Bench(saga, JOURNEY.get(saga.name), signals=signals, also=[COLLECT_PAYMENT])
        _drive(bench, trial)
        definition, row, history = bench.client.story(bench.saga_id)
        result = replay(definition, history, row.state)
        assert result.same, (trial.about, result.differences)


def test_whole_simulations_are_decided_alike() -> None:
    """Batches in which several messages have one time, and clocks that jump."""
    decisions = beaten = 0
    for seed in range(12):
        run = Run(seed)
        with silence():
            run.go()
        definitions = {(one.name, one.version): one for one in run.sagas}
        for row, history in run.world.store.everything().values():
            beaten += row.saga_id in run.world.store.beaten
            definition = definitions[row.state.name, row.state.version].definition
            result = replay(definition, history, row.state)
            assert result.same, result.differences
            decisions += len(result.decisions)
    assert decisions > 200
    assert beaten > 0  # what signs of life have put off is not in a history


def test_a_core_that_decides_otherwise_is_told() -> None:
    """Where, and what; what follows is compared from the recorded facts."""
    bench = given(PLACE_ORDER, order_id="o-1").step("charge-payment", fails()).run()
    definition, row, history = bench.client.story(bench.saga_id)

    def hasty(*arguments: object, **options: object) -> Decision:
        decision = decide(*arguments, **options)  # type: ignore[arg-type]  # passed on
        events = tuple(
            msgspec.structs.replace(one, due_at=one.due_at - timedelta(seconds=1))
            if isinstance(one, StepDispatched) and one.step == "charge-payment"
            else one
            for one in decision.events
        )
        return msgspec.structs.replace(decision, events=events)

    with patch.object(module, "decide", hasty):
        result = replay(definition, history, row.state)
    assert not result.same
    assert result.folds
    assert [one.message for one in result.differences] == [
        "reply of reserve-inventory (action 1): succeeded",
        "timer",
    ]
    assert len(result.decisions) == len(replay(definition, history).decisions)


def test_a_definition_that_was_changed_by_hand_differs() -> None:
    """Another order of its steps: it would have gone otherwise."""
    bench = given(PLACE_ORDER, order_id="o-1").run()
    definition, _, history = bench.client.story(bench.saga_id)
    steps = [msgspec.structs.replace(one, after=()) for one in definition.steps]
    first = replay(msgspec.structs.replace(definition, steps=tuple(steps)), history)
    told = [module.event_in_words(event) for event in first.differences[0].decided]
    assert "step_dispatched confirm-order (action 1)" in told


def test_a_history_of_another_definition_is_refused() -> None:
    """And so is one that has lost its beginning."""
    bench = given(PLACE_ORDER, order_id="o-1").run()
    definition, _, history = bench.client.story(bench.saga_id)
    shorter = msgspec.structs.replace(definition, steps=definition.steps[:-1])
    with pytest.raises(DecodeError, match="'notify-customer', which"):
        replay(shorter, history)
    with pytest.raises(DecodeError, match="does not begin"):
        replay(definition, history[1:])


def test_a_message_that_would_be_refused_today_is_told() -> None:
    """With the reason."""
    bench = given(PLACE_ORDER, order_id="o-1").cancel_during("reserve-inventory").run()
    definition, _, history = bench.client.story(bench.saga_id)
    with patch.object(module, "decide", lambda *_, **__: Decision(state=None, refused="no")):
        assert {"no"} == {one.refused for one in replay(definition, history).differences}


def test_a_row_that_is_not_the_fold_of_its_history_is_told() -> None:
    """Even if every decision is the same."""
    bench = given(PLACE_ORDER, order_id="o-1").run()
    definition, row, history = bench.client.story(bench.saga_id)
    result = replay(definition, history, msgspec.structs.replace(row.state, key="other"))
    assert (result.folds, result.differences, result.same) == (False, (), False)


class Parcel(msgspec.Struct):
    """What is picked."""

    items: list[str]


@pytest.mark.parametrize("allowed", [2, IN_FLIGHT_MAX_DEFAULT])
def test_the_setting_for_attempts_in_flight_decides_here_too(allowed: int) -> None:
    """It is not in the history; with another one the saga would have gone otherwise."""
    each: Any = {"each": Input("items"), "payload": {"item": Item()}}
    step = Step("pick", "depot.pick", "depot.put-back", **each)
    saga = Saga(name="parcel", version=1, input=Parcel, steps=(step,))
    limits = Limits(in_flight_max=allowed)
    with patch("orchestrator.testing.bench.Engine", partial(Engine, limits=limits)):
        bench = given(saga, items=["a", "b", "c"]).begin()
        bench.run()
    definition, row, history = bench.client.story(bench.saga_id)
    found = {
        one: replay(definition, history, row.state, in_flight_max=one).same
        for one in (2, IN_FLIGHT_MAX_DEFAULT)
    }
    assert {2: allowed == 2, IN_FLIGHT_MAX_DEFAULT: allowed != 2} == found


def test_operators_and_late_replies_are_decided_alike() -> None:
    """Pause, retry, skip, resolve: each is made anew from its fact."""
    run = given(PLACE_ORDER, order_id="o-1").step("reserve-inventory", times_out(), late())
    bench = (
        run.step("charge-payment", twice()).step("notify-customer", rejects(), rejects()).begin()
    )
    saga_id = bench.saga_id
    bench.tell(lambda client: client.pause(saga_id, reason="r"))
    bench.tell(lambda client: client.resume(saga_id, reason="r"))
    bench.run()
    bench.tell(lambda client: client.retry(saga_id, reason="r"))
    bench.run()
    bench.tell(lambda client: client.skip(saga_id, "notify-customer", reason="r"))
    definition, row, history = bench.client.story(saga_id)
    result = replay(definition, history, row.state)
    assert result.same, result.differences
    arrived = {one.message for one in result.decisions}
    assert {"pause", "resume", "retry notify-customer", "skip notify-customer"} <= arrived


class Receipt(msgspec.Struct):
    """What a step returns."""

    number: int


def told(saga: Saga, *messages: Message) -> tuple[SagaState, list[Recorded]]:
    """A history as it stands in a store: each message came a second after the one before."""
    run = builders.Run(saga.definition)
    times = [run.now] * len(run.events)
    for message in messages:
        run.wait(timedelta(seconds=1))
        run.tell(message)
        times += [run.now] * len(run.last.events)
    return run.known, [
        Recorded(sequence=number, at=at, event=event)
        for number, (at, event) in enumerate(zip(times, run.events, strict=True), 1)
    ]


def test_unknown_tasks_and_outputs_of_another_type_are_decided_alike() -> None:
    """What was answered is made anew from what was kept of it."""
    saga = builders.saga(builders.step("a"), builders.step("b", output=Receipt))
    state, history = told(
        saga,
        builders.succeeded("a"),
        builders.unheard("b"),
        RetryNow(step="b"),
        builders.succeeded("b", 2, output={"number": "one"}),
        builders.succeeded("b", 1, "compensation"),
        builders.succeeded("a", 1, "compensation"),
    )
    assert state.status.value == "compensated"
    result = replay(saga.definition, history, state)
    assert result.same, result.differences


@pytest.mark.parametrize("beats", [1, 3])
@pytest.mark.parametrize("ending", [Accepted(), Succeeded(output=1)])
def test_a_time_out_that_signs_of_life_have_put_off_is_no_difference(
    beats: int, ending: Outcome
) -> None:
    """They are not in the history: beside another branch, accepted afterwards, and in the end over."""
    soon = timedelta(seconds=30)
    saga = builders.saga(
        builders.step("a", timeout=soon, retry=Retry(attempts=1)),
        builders.step("b", after=(), timeout=timedelta(hours=1)),
    )
    run = builders.Run(saga.definition)
    times = [run.now] * len(run.events)

    def tell(message: Message, after: timedelta = soon * 0.9) -> None:
        run.wait(after)
        run.tell(message)
        times.extend([run.now] * len(run.last.events))

    alive = Heartbeat(step="a", direction="action", attempt=1)
    for _ in range(beats):
        tell(alive)
    reply = Reply(
        saga_id=run.known.saga_id, step="b", direction="action", attempt=1, outcome=ending
    )
    tell(reply)
    tell(Tick(), timedelta(seconds=1))
    tell(msgspec.structs.replace(reply, step="a", outcome=Accepted()), timedelta(0))
    tell(Tick(), soon)
    assert run.known.step("a").phase.value in {"failed", "undoing"}
    history = [
        Recorded(sequence=number, at=at, event=event)
        for number, (at, event) in enumerate(zip(times, run.events, strict=True), 1)
    ]
    result = replay(saga.definition, history, run.known)
    assert result.same, result.differences
    early = [
        msgspec.structs.replace(one, at=one.at - soon)
        if isinstance(one.event, StepTimedOut)
        else one
        for one in history
    ]
    assert not replay(saga.definition, early).same  # nobody put that off


def test_a_saga_that_was_undone_for_an_unknown_task_would_be_stuck_today() -> None:
    """Older versions took it for a refusal: the history folds as it did, and the decision differs."""
    saga = builders.saga(builders.step("a"), builders.step("b"))
    state, history = told(
        saga,
        builders.succeeded("a"),
        builders.rejected("b"),
        builders.succeeded("a", 1, "compensation"),
    )
    text = codec.encode(history).replace(b"sold_out", b"TaskUnknown")
    old = codec.decode(text, list[Recorded])
    result = replay(saga.definition, old)
    assert result.state is not None
    assert (result.state.status, result.folds) == (state.status, None)
    (different, *_) = result.differences
    assert tag_of(different.recorded[0]) == "step_rejected"
    assert [tag_of(one) for one in different.decided] == ["task_unknown", "saga_stuck"]
