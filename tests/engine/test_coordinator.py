"""The loop around the engine."""

from collections.abc import Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.coordinator import BACKLOG_MAX, BUSY_FROM, Coordinator
from orchestrator.ports import Delivery
from shared.errors import UnavailableError
from shared.messages import CancelRequest


class Stopping:
    """Ends the coordinator when nothing is left, and keeps what it waited for."""

    def __init__(self, batches: list[list[Delivery]], happened: list[str]) -> None:
        self._batches = batches
        self._happened = happened

    def is_set(self) -> bool:
        return not self._batches

    def set(self) -> None:
        self._batches.clear()

    def wait(self, timeout: float) -> object:
        self._happened.append(f"rest {timeout:g}")
        return None


@pytest.mark.parametrize("size", [1, BUSY_FROM - 1, BUSY_FROM])
def test_a_large_batch_is_followed_by_a_rest_before_it_is_acknowledged(size: int) -> None:
    """The next one grows meanwhile; a saga alone, or two of them, never wait."""
    delivery = Delivery(message=CancelRequest(saga_id="s"), task="saga.cancel", body="")
    batches = [[delivery] * size]
    happened: list[str] = []

    def handle(deliveries: Sequence[Delivery]) -> None:
        happened.append(f"handle {len(deliveries)}")

    def acknowledge(deliveries: Sequence[Delivery]) -> None:
        happened.append(f"acknowledge {len(deliveries)}")

    transport = SimpleNamespace(receive=lambda *_: batches.pop(), acknowledge=acknowledge)
    engine: Any = SimpleNamespace(
        transport=transport,
        handle=handle,
        settle=lambda: None,
        close=lambda: None,
        tick=lambda _: 0,
        republish=lambda *_: 0,
        retrace=lambda _: 0,
        admit=lambda: None,
        audit=lambda _: False,
    )
    stopping = Stopping(batches, happened)
    Coordinator(engine, rest=timedelta(seconds=7), stopping=stopping).run()
    rest = ["rest 7"] if size >= BUSY_FROM else []
    assert happened == [f"handle {size}", *rest, f"acknowledge {size}"]


def test_after_a_failure_of_the_store_replies_come_before_timers() -> None:
    """What was answered while the store was away has not timed out."""
    delivery = Delivery(message=CancelRequest(saga_id="s"), task="saga.cancel", body="")
    batches: list[list[Delivery]] = [[delivery], []]
    happened: list[str] = []

    def tick(_: int) -> int:
        happened.append("tick")
        if "handle" not in happened:
            raise UnavailableError("away")
        return 0

    def chore(*_: object) -> int:
        happened.append("chore")
        return 0

    engine: Any = SimpleNamespace(
        transport=SimpleNamespace(receive=lambda *_: batches.pop(), acknowledge=lambda _: None),
        handle=lambda _: happened.append("handle"),
        settle=lambda: None,
        close=lambda: None,
        tick=tick,
        republish=chore,
        retrace=chore,
        admit=chore,
        audit=chore,
    )
    Coordinator(engine, stopping=Stopping(batches, happened)).run()
    told = [one for one in happened if not one.startswith("rest")]
    assert told[:2] == ["tick", "handle"]


def test_timers_wait_for_a_backlog_of_replies_but_not_for_ever() -> None:
    """What is answered in the queue has not timed out; full batches without end hold up nothing."""
    delivery = Delivery(message=CancelRequest(saga_id="s"), task="saga.cancel", body="")
    batches = [[delivery]] + [[delivery] * 2] * 9
    happened: list[str] = []
    now = 0.0

    def handle(_: Sequence[Delivery]) -> None:
        nonlocal now
        now += BACKLOG_MAX.total_seconds() / 5
        happened.append("handle")

    engine: Any = SimpleNamespace(
        transport=SimpleNamespace(receive=lambda *_: batches.pop(), acknowledge=lambda _: None),
        handle=handle,
        settle=lambda: None,
        close=lambda: None,
        tick=lambda _: happened.append("tick"),
        republish=lambda *_: 0,
        retrace=lambda _: 0,
        admit=lambda: None,
        audit=lambda _: False,
    )
    batches.insert(0, [])  # the stopping event sees the end only after the last chores
    Coordinator(
        engine,
        batch_messages_max=2,
        rest=timedelta(0),
        stopping=Stopping(batches, happened),
        monotonic=lambda: now,
    ).run()
    assert happened == [*["handle"] * 5, "tick", *["handle"] * 4, "handle", "tick"]
