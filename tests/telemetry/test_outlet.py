import threading
from collections.abc import Iterator
from datetime import timedelta
from time import monotonic

import pytest

from shared.telemetry.outlet import Outlet, OutletStats
from tests.telemetry.conftest import outlet_threads
from tests.waiting import wait_until

LONG = timedelta(hours=1)
SOON = timedelta(seconds=10)
AT_ONCE = timedelta(milliseconds=50)


class Receiver:
    """Keeps what it gets; can hang and can refuse."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.closed = False
        self.works = True
        self.answers = threading.Event()
        self.answers.set()

    def export(self, batch: list[int]) -> bool:
        self.batches.append(batch)
        self.answers.wait(30)
        return self.works

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that answers at the end of the test at the latest."""
    receiver = Receiver()
    yield receiver
    receiver.answers.set()
    wait_until(lambda: not outlet_threads(), what="the outlet's thread to end")


def outlet_to(
    receiver: Receiver,
    *,
    queue_max: int = 100,
    batch_max: int = 10,
    interval: timedelta = LONG,
) -> Outlet[int]:
    """An outlet that hands over to the receiver."""
    return Outlet(
        export=receiver.export,
        close=receiver.close,
        queue_max=queue_max,
        batch_max=batch_max,
        interval=interval,
    )


def test_a_full_batch_goes_at_once(receiver: Receiver) -> None:
    """The interval is for batches that do not fill."""
    outlet = outlet_to(receiver, batch_max=3)
    for number in range(3):
        outlet.put(number)
    wait_until(lambda: receiver.batches == [[0, 1, 2]])
    assert outlet.close(SOON)


def test_an_item_alone_goes_after_the_interval(receiver: Receiver) -> None:
    """A batch that never fills is not kept for ever."""
    outlet = outlet_to(receiver, interval=timedelta(milliseconds=20))
    outlet.put(1)
    wait_until(lambda: receiver.batches == [[1]])
    outlet.put(2)
    wait_until(lambda: receiver.batches == [[1], [2]])
    assert outlet.close(SOON)


def test_no_thread_before_the_first_item(receiver: Receiver) -> None:
    """What a worker makes before it forks must not hold a thread."""
    outlet = outlet_to(receiver)
    assert outlet.flush(AT_ONCE)
    assert [] == outlet_threads()
    outlet.put(1)
    assert 1 == len(outlet_threads())
    assert outlet.close(AT_ONCE)


def test_an_unused_outlet_closes_its_receiver(receiver: Receiver) -> None:
    """A receiver holds things from the beginning, with or without items."""
    assert outlet_to(receiver).close(AT_ONCE)
    assert receiver.closed


def test_flush_hands_over_what_is_there(receiver: Receiver) -> None:
    """After a flush nothing waits, in batches of the size that was asked for."""
    outlet = outlet_to(receiver, batch_max=4)
    for number in range(9):
        outlet.put(number)
    assert outlet.flush(SOON)
    assert list(range(9)) == [number for batch in receiver.batches for number in batch]
    assert all(len(batch) <= 4 for batch in receiver.batches)
    assert OutletStats(exported=9) == outlet.stats()
    assert outlet.close(SOON)


def test_a_full_queue_drops_and_counts(receiver: Receiver) -> None:
    """A receiver that hangs costs items, never time or memory."""
    receiver.answers.clear()
    outlet = outlet_to(receiver, queue_max=5, batch_max=1)
    outlet.put(0)
    wait_until(lambda: receiver.batches == [[0]])  # taken from the queue, and hanging
    for number in range(1, 9):
        outlet.put(number)
    assert OutletStats(dropped=3, queued=6) == outlet.stats()
    receiver.answers.set()
    assert outlet.close(SOON)
    assert OutletStats(dropped=3, exported=6) == outlet.stats()


def test_what_the_receiver_refuses_is_counted(receiver: Receiver) -> None:
    """Exported is only what the receiver has."""
    receiver.works = False
    outlet = outlet_to(receiver)
    outlet.put(1)
    assert outlet.flush(SOON)
    assert OutletStats(failed=1) == outlet.stats()
    assert outlet.close(SOON)


@pytest.mark.parametrize("ending", ["flush", "close"])
def test_waiting_ends_when_the_receiver_hangs(receiver: Receiver, ending: str) -> None:
    """Neither a flush nor the end of a process waits longer than it was told to."""
    receiver.answers.clear()
    outlet = outlet_to(receiver, batch_max=1)
    outlet.put(1)
    outlet.put(2)
    wait_until(lambda: receiver.batches)
    begin = monotonic()
    assert not getattr(outlet, ending)(AT_ONCE)
    assert monotonic() - begin < 10
    receiver.answers.set()
    outlet.close(SOON)


def test_close_hands_over_the_rest_and_stops(receiver: Receiver) -> None:
    """What was queued is out, the receiver is closed, and later items count as dropped."""
    outlet = outlet_to(receiver)
    outlet.put(1)
    assert outlet.close(SOON)
    assert ([[1]], True) == (receiver.batches, receiver.closed)
    outlet.put(2)
    assert OutletStats(exported=1, dropped=1) == outlet.stats()


def test_what_close_gives_up_counts_as_dropped(receiver: Receiver) -> None:
    """Every item ends as exported, failed or dropped."""
    receiver.answers.clear()
    outlet = outlet_to(receiver, batch_max=2)
    for number in range(5):
        outlet.put(number)
    wait_until(lambda: receiver.batches)
    outlet.close(AT_ONCE)
    assert OutletStats(dropped=3, queued=2) == outlet.stats()
    receiver.answers.set()
    wait_until(lambda: outlet.stats().queued == 0)
    assert OutletStats(dropped=3, exported=2) == outlet.stats()
    assert [[0, 1]] == receiver.batches


def test_many_threads_lose_nothing(receiver: Receiver) -> None:
    """Items of every thread arrive once."""
    outlet = outlet_to(receiver, queue_max=10_000, batch_max=64)

    def put_from(start: int) -> None:
        for number in range(start, start + 500):
            outlet.put(number)

    threads = [threading.Thread(target=put_from, args=(start,)) for start in range(0, 4000, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outlet.close(SOON)
    received = [number for batch in receiver.batches for number in batch]
    assert list(range(4000)) == sorted(received)
