"""The faults of the broker in memory, for the simulation."""

from collections.abc import Sequence
from datetime import timedelta
from random import Random
from typing import Any

import pytest

from orchestrator.ports import Delivery
from orchestrator.transport.memory import Faults, MemoryBroker, MemoryTransport
from shared.errors import UnavailableError
from shared.messages import Reply, Succeeded
from tests.contracts.transport_contract import attempts, command


def reply(attempt: int) -> Reply:
    """A reply."""
    return Reply(saga_id="s", step="a", direction="action", attempt=attempt, outcome=Succeeded())


def pair(seed: int = 1, **faults: Any) -> tuple[MemoryBroker, MemoryTransport]:
    """A broker with faults, and a transport on it."""
    broker = MemoryBroker(Random(seed), Faults(**faults))
    return broker, MemoryTransport(broker)


def commands_taken(broker: MemoryBroker) -> list[int]:
    """Attempts of the commands that have arrived, settled."""
    taken = broker.take_commands()
    for held in taken:
        broker.settle_command(held)
    return [held.item.attempt for held in taken]


def in_order(deliveries: Sequence[Delivery]) -> list[int]:
    """Attempts of replies, as they came."""
    return [d.message.attempt for d in deliveries if isinstance(d.message, Reply)]


def test_without_faults_everything_arrives_in_order() -> None:
    """Both directions, at once."""
    broker, transport = pair()
    transport.publish([command(n) for n in range(20)])
    for number in range(20):
        broker.send(reply(number))
    assert commands_taken(broker) == list(range(20))
    deliveries = transport.receive(100, 60)
    assert in_order(deliveries) == list(range(20))
    transport.acknowledge(deliveries)
    assert broker.pending == 0
    assert not broker.faults_fired


def test_every_message_can_be_lost() -> None:
    """Its sender does not notice."""
    broker, transport = pair(lose=1.0)
    transport.publish([command(1)])
    broker.send(reply(1))
    assert (commands_taken(broker), transport.receive(10, 0)) == ([], [])
    assert broker.pending == 0
    assert broker.faults_fired == {"lose": 2}


def test_a_duplicate_is_a_message_of_its_own() -> None:
    """Settling one copy leaves the other."""
    broker, transport = pair(duplicate=1.0)
    broker.send(reply(1))
    first = transport.receive(1, 0)
    transport.acknowledge(first)
    assert attempts(transport.receive(10, 0)) == [1]
    assert broker.faults_fired == {"duplicate": 1}


def test_a_delayed_message_comes_when_time_has_passed() -> None:
    """And not before."""
    broker, transport = pair(delay=1.0, delay_max=timedelta(seconds=10))
    broker.send(reply(1))
    assert transport.receive(10, 0) == []
    wait = broker.next_arrival()
    assert wait is not None
    assert timedelta(0) < wait <= timedelta(seconds=10)
    broker.advance(wait - timedelta(microseconds=10))
    assert transport.receive(10, 0) == []
    broker.advance(timedelta(microseconds=20))
    assert attempts(transport.receive(10, 0)) == [1]
    assert broker.next_arrival() is None


def test_a_reordered_message_overtakes() -> None:
    """All arrive, in another order."""
    broker, transport = pair(reorder=1.0)
    for number in range(10):
        broker.send(reply(number))
    got = in_order(transport.receive(10, 0))
    assert sorted(got) == list(range(10))
    assert got != list(range(10))
    assert broker.faults_fired["reorder"] == 9


def test_of_a_refused_publish_any_part_may_have_arrived() -> None:
    """From none to all."""
    seen = set()
    for seed in range(50):
        broker, transport = pair(seed, refuse=1.0)
        with pytest.raises(UnavailableError):
            transport.publish([command(n) for n in range(3)])
        assert broker.faults_fired == {"refuse": 1}
        seen.add(tuple(commands_taken(broker)))
    assert seen == {(), (0,), (0, 1), (0, 1, 2)}


def test_calm_ends_all_faults() -> None:
    """So that a simulation can end."""
    broker, transport = pair(lose=1.0, duplicate=1.0, refuse=1.0)
    broker.calm()
    transport.publish([command(1)])
    assert commands_taken(broker) == [1]


def test_what_a_dead_participant_held_comes_back_first() -> None:
    """In its old order, before what came later."""
    broker, transport = pair()
    transport.publish([command(1), command(2), command(3)])
    done, *_ = broker.take_commands(2)
    broker.settle_command(done)
    broker.participants_died()
    assert commands_taken(broker) == [2, 3]


def test_a_closing_orchestrator_gives_back_its_own_only() -> None:
    """Another one goes on with what it holds."""
    broker, transport = pair()
    other = MemoryTransport(broker)
    for number in range(3):
        broker.send(reply(number))
    settled, held = transport.receive(1, 0), transport.receive(1, 0)
    others = other.receive(1, 0)
    transport.acknowledge(settled)
    transport.close()
    assert attempts(other.receive(10, 0)) == attempts(held)
    other.acknowledge(others)
    other.close()
    assert broker.pending == 1


def _story(seed: int) -> list[object]:
    """Everything that happens to a hundred messages."""
    broker, transport = pair(
        seed,
        lose=0.1,
        duplicate=0.2,
        delay=0.3,
        reorder=0.3,
        refuse=0.1,
        delay_max=timedelta(seconds=5),
    )
    story: list[object] = []
    for number in range(100):
        broker.send(reply(number))
        broker.advance(timedelta(seconds=0.1))
        try:
            transport.publish([command(number)])
            story.append(in_order(transport.receive(2, 0)))
        except UnavailableError:
            story.append("away")
        story.append(commands_taken(broker))
    return [*story, dict(broker.faults_fired)]


def test_the_same_seed_tells_the_same_story() -> None:
    """So a failing simulation can be run again; and every fault fires."""
    fired = _story(7)[-1]
    assert isinstance(fired, dict)
    assert fired.keys() == {"lose", "duplicate", "delay", "reorder", "refuse"}
    assert _story(7) == _story(7)
    assert _story(7) != _story(8)
