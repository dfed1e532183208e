"""Every later version reads the golden histories, folds them alike and decides alike."""

import hashlib
from functools import reduce
from pathlib import Path

import msgspec
import pytest

from orchestrator.core.events import Event
from orchestrator.core.machine import decide
from orchestrator.core.state import SagaState, Status, evolve, fold
from shared import codec
from tests.golden.history import FOLDER, SUMS, GoldenHistory, timer_of
from tests.golden.record import every_history as made_today

FILES = sorted(FOLDER.glob("*.json"))

every_history = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def read(path: Path) -> GoldenHistory:
    """A golden history."""
    return codec.decode(path.read_bytes(), GoldenHistory)


@every_history
def test_a_golden_history_folds_to_its_state(path: Path) -> None:
    """A saga that an older version left behind is what it was."""
    history = read(path)
    events = [event for arrival in history.arrivals for event in arrival.events]
    assert fold(events) == history.state


@every_history
def test_the_same_arrivals_lead_to_the_same_decisions(path: Path) -> None:
    """Step by step: events, commands, timers and refusals."""
    history = read(path)
    state: SagaState | None = None
    count = 0
    for arrival in history.arrivals:
        limited = {"limits": history.limits, "history": count}
        decision = decide(history.definition, state, arrival.arrived, arrival.at, **limited)  # type: ignore[arg-type]  # by name
        count += len(arrival.events)
        assert arrival.events == decision.events
        assert arrival.sent == tuple(command.id for command in decision.commands)
        assert arrival.wake_at == timer_of(history.definition, decision)
        assert arrival.refused == decision.refused
        # From the recorded facts, not from our own: a later step must not hide an earlier one.
        # Signs of life and questions to sub-sagas are no events.
        state = reduce(evolve, arrival.events, state)
        if state and decision.state and (decision.events or decision.beat):
            beside = {"beats": decision.state.beats, "inquiries": decision.state.inquiries}
            state = msgspec.structs.replace(state, **beside)
    assert state == history.state


def test_a_history_comes_back_from_json_as_it_was() -> None:
    """State and events lose nothing in the store."""
    for path in FILES:
        history = read(path)
        assert codec.decode(codec.encode(history), GoldenHistory) == history


def test_every_event_and_every_ending_stands_in_a_golden_history() -> None:
    """A new event or status needs a golden history of its own."""
    histories = [read(path) for path in FILES]
    tags = {
        event.__struct_config__.tag
        for history in histories
        for arrival in history.arrivals
        for event in arrival.events
    }
    assert tags == {kind.__struct_config__.tag for kind in Event.__args__}
    endings = {*Status} - {Status.COMPENSATING}
    assert {history.state.status for history in histories} == endings


def test_golden_histories_are_never_edited() -> None:
    """Each file is what it was when it was recorded, and each scenario has one."""
    lines = [line.split() for line in SUMS.read_text().splitlines()]
    sums = {name: digest for digest, name in lines}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in FILES}
    assert found == sums
    assert {path.stem for path in FILES} == {*made_today()}


def test_a_scenario_is_recorded_as_its_file_says() -> None:
    """The script and the machine of today still write the files of version 1."""
    for name, history in made_today().items():
        assert in_full(history) == in_full(read(FOLDER / f"{name}.json"))


def in_full(history: GoldenHistory) -> GoldenHistory:
    """With the fields that its messages did not have yet when it was recorded."""
    arrivals = tuple(
        msgspec.structs.replace(one, message=msgspec.to_builtins(one.arrived))
        for one in history.arrivals
    )
    return msgspec.structs.replace(history, arrivals=arrivals)
