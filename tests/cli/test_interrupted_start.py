"""Ctrl-C while a saga is being stored: whoever pressed it is told which saga there is now."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from orchestrator.catalog import Catalog
from orchestrator.cli import session
from orchestrator.cli.entry import run
from orchestrator.client import Client
from orchestrator.engine import Engine
from orchestrator.sagas import PLACE_ORDER
from orchestrator.store.memory import MemoryStore
from orchestrator.tracing import SagaTracing
from orchestrator.transport.memory import MemoryTransport
from shared.clock import utc_now

ORDER = ("start", "place-order", "--key", "k", "--input", '{"order_id": "o-1"}')


@pytest.fixture
def times() -> list[int]:
    """How often Ctrl-C comes while the first step is published: after the commit."""
    return [1]


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch, times: list[int]) -> Client:
    """What the command talks to."""
    transport = MemoryTransport()
    publish: Callable[..., Any] = transport.publish

    def interrupted(*arguments: Any, **named: Any) -> Any:
        for _ in range(*times):
            signal.raise_signal(signal.SIGINT)
        return publish(*arguments, **named)

    monkeypatch.setattr(transport, "publish", interrupted)
    engine = Engine(
        store=MemoryStore(),
        transport=transport,
        catalog=Catalog([PLACE_ORDER]),
        tracing=SagaTracing(system="memory", clock=utc_now),
        clock=utc_now,
        narrate=lambda _changes, _letters: None,  # to standard output, in a process without logs
    )
    made = Client(engine)

    @contextmanager
    def acting() -> Iterator[Client]:
        yield made

    monkeypatch.setattr(session, "acting", acting)
    return made


@pytest.mark.parametrize("wait", [[], ["--wait"]])
def test_the_saga_is_named_before_the_command_ends(
    client: Client, wait: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As shells expect it, with 130."""
    assert 130 == run([*ORDER, *wait, "--json"])
    out, err = capsys.readouterr()
    saga_id = json.loads(out)["saga_id"]
    assert "running" == client.view(saga_id).status
    assert bool(wait) == (f"saga show {saga_id}" in err)


def test_whoever_presses_it_twice_waits_for_nothing(
    times: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The broker may not answer for a while."""
    times[:] = [2]
    before = signal.getsignal(signal.SIGINT)
    assert 130 == run([*ORDER, "--wait"])
    assert "" == capsys.readouterr().out
    assert before == signal.getsignal(signal.SIGINT)
