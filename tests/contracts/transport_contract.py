"""What every `orchestrator.ports.Transport` does, whatever it is made of.

A subclass gives the fixture `world`: the broker, and both ends that are not the transport.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from orchestrator.ports import Delivery, Transport
from shared import names
from shared.errors import UnavailableError
from shared.ids import command_id
from shared.messages import (
    CancelRequest,
    Command,
    Failed,
    Failure,
    Reply,
    StartRequest,
    Succeeded,
    Undecodable,
)
from tests.waiting import wait_until

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNICODE = 'Zürich 東京 \U0001f69a \\u0041 " \n'
NOW = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)


class Arrived(msgspec.Struct, frozen=True):
    """A command as a participant sees it."""

    headers: dict[str, Any]
    args: Sequence[Any]
    kwargs: dict[str, Any]
    correlation_id: str | None
    content_type: str


class World(ABC):
    """A broker, with the participants' side of it."""

    keeps_messages = True
    """Whether the broker's messages survive its restart."""

    @abstractmethod
    def transport(self) -> Transport:
        """A transport; it is closed after the test."""

    @abstractmethod
    def arrived(self, queue: str) -> list[Arrived]:
        """Take and settle what lies in a participant's queue."""

    @abstractmethod
    def send(self, task: str, kwargs: dict[str, Any], **options: Any) -> None:
        """Call a task on the replies' queue as a plain Celery client does."""

    @abstractmethod
    def send_body(self, body: bytes, headers: dict[str, Any], content_type: str) -> None:
        """Put any message into the replies' queue."""

    @abstractmethod
    def stop(self) -> None:
        """Make the broker go away."""

    @abstractmethod
    def start(self) -> None:
        """Make it come back."""


def command(number: int = 1, *, queue: str = "inventory", **changes: Any) -> Command:
    """A command of its own for each number."""
    made = Command(
        id=command_id("saga-1", "reserve", "action", number),
        saga_id="saga-1",
        saga_name="place-order",
        saga_version=3,
        step="reserve",
        direction="action",
        attempt=number,
        task="inventory.reserve",
        queue=queue,
        payload={"order_id": f"o-{number}"},
        deadline_at=NOW + timedelta(seconds=30),
        traceparent=TRACEPARENT,
    )
    return msgspec.structs.replace(made, **changes)


def reply(attempt: int = 1, output: Any = None) -> dict[str, Any]:
    """Arguments of `saga.reply`, as a client without our SDK writes them."""
    return {
        "saga_id": "saga-1",
        "step": "reserve",
        "direction": "action",
        "attempt": attempt,
        "outcome": {"type": "succeeded", "output": output},
    }


def receive_all(transport: Transport, count: int, *, acknowledge: bool = True) -> list[Delivery]:
    """Receive until so many have come."""
    got: list[Delivery] = []

    def enough() -> bool:
        batch = transport.receive(100, 0.2)
        got.extend(batch)
        if acknowledge:
            transport.acknowledge(batch)
        return len(got) >= count

    wait_until(enough, timeout=30, what=f"{count} messages")
    return got


def attempts(deliveries: Sequence[Delivery]) -> list[int]:
    """Attempts of replies, sorted."""
    return sorted(d.message.attempt for d in deliveries if isinstance(d.message, Reply))


class TransportContract:
    """The contract."""

    @pytest.fixture
    def transport(self, world: World) -> Transport:
        return world.transport()

    # Commands --------------------------------------------------------------------------------

    def test_a_command_carries_what_a_celery_worker_and_a_participant_need(
        self, world: World, transport: Transport
    ) -> None:
        """Task, id and arguments for the worker; the saga's headers for the participant."""
        transport.publish([command(2, tracestate="vendor=1")])
        (arrived,) = world.arrived("inventory")
        expected = {
            "task": "inventory.reserve",
            "id": "saga-1:reserve:action:2",
            "root_id": "saga-1:reserve:action:2",
            "lang": "py",
            "retries": 0,
            "eta": None,
            "expires": None,
            "timelimit": [None, None],
            "saga_id": "saga-1",
            "saga_name": "place-order",
            "saga_version": 3,
            "saga_step": "reserve",
            "saga_direction": "action",
            "saga_attempt": 2,
            "saga_reply_to": "saga.replies",
            "saga_deadline": "2026-03-01T12:00:30.250000+00:00",
            "traceparent": TRACEPARENT,
            "tracestate": "vendor=1",
        }
        assert {key: arrived.headers.get(key) for key in expected} == expected
        assert list(arrived.args) == []
        assert arrived.kwargs == {"order_id": "o-2"}
        assert arrived.correlation_id == "saga-1:reserve:action:2"
        assert arrived.content_type == "application/json"

    def test_arguments_stay_out_of_the_headers(self, world: World, transport: Transport) -> None:
        """Celery would write argument representations into logs and events."""
        transport.publish([command(payload={"card": "4111111111111111"})])
        (arrived,) = world.arrived("inventory")
        assert arrived.kwargs == {"card": "4111111111111111"}
        assert "4111" not in repr(arrived.headers)

    def test_every_command_of_a_batch_arrives_in_its_own_queue(
        self, world: World, transport: Transport
    ) -> None:
        """A batch over several queues is complete."""
        numbers = range(1, 151)
        transport.publish([command(n, queue=("inventory", "payment")[n % 2]) for n in numbers])
        seen = {queue: world.arrived(queue) for queue in ("inventory", "payment")}
        assert [a.headers["saga_attempt"] for a in seen["inventory"]] == list(range(2, 151, 2))
        assert [a.headers["saga_attempt"] for a in seen["payment"]] == list(range(1, 151, 2))

    def test_nothing_to_publish_is_fine(self, world: World, transport: Transport) -> None:
        """An empty batch sends nothing."""
        transport.publish([])
        assert world.arrived("inventory") == []

    def test_large_and_unicode_payloads_arrive_unchanged(
        self, world: World, transport: Transport
    ) -> None:
        """Both directions, at the size limit."""
        large = "x" * 256 * 1024
        transport.publish([command(payload={"text": UNICODE, "large": large})])
        (arrived,) = world.arrived("inventory")
        assert arrived.kwargs == {"text": UNICODE, "large": large}
        world.send(names.REPLY_TASK, reply(output={UNICODE: large}))
        (delivery,) = receive_all(transport, 1)
        assert isinstance(delivery.message, Reply)
        assert delivery.message.outcome == Succeeded(output={UNICODE: large})

    def test_publishing_to_a_broker_that_is_away_fails_until_it_is_back(
        self, world: World, transport: Transport
    ) -> None:
        """The failure is `UnavailableError`, soon, and the next call connects again."""
        transport.publish([command(1)])
        world.arrived("inventory")
        world.stop()
        with pytest.raises(UnavailableError):
            transport.publish([command(2)])
        with pytest.raises(UnavailableError):
            transport.receive(10, 0.1)
        world.start()
        transport.publish([command(3)])
        assert [a.headers["saga_attempt"] for a in world.arrived("inventory")] == [3]
        world.send(names.REPLY_TASK, reply(4))
        assert attempts(receive_all(transport, 1)) == [4]

    def test_a_restart_between_two_calls_goes_unnoticed(
        self, world: World, transport: Transport
    ) -> None:
        """A connection that broke while nobody used it is replaced, and queues are declared again."""
        transport.publish([command(1, queue="inventory")])
        assert transport.receive(10, 0.01) == []
        world.stop()
        world.start()
        transport.publish([command(2, queue="shipping")])
        assert [a.headers["saga_attempt"] for a in world.arrived("shipping")] == [2]
        world.send(names.REPLY_TASK, reply(3))
        assert attempts(receive_all(transport, 1)) == [3]

    # Messages to the orchestrator ------------------------------------------------------------

    def test_what_a_plain_celery_client_sends_is_read(
        self, world: World, transport: Transport
    ) -> None:
        """Replies, starts and cancels need no SDK."""
        failed = {"type": "failed", "failure": {"kind": "Timeout", "message": "slow"}}
        world.send(names.REPLY_TASK, reply(2) | {"outcome": failed})
        world.send(
            names.START_TASK,
            {"name": "place-order", "input": {"a": 1}, "key": "k"},
            headers={"traceparent": TRACEPARENT},
        )
        world.send(names.CANCEL_TASK, {"saga_id": "saga-1", "reason": "changed my mind"})
        messages = {type(d.message): d.message for d in receive_all(transport, 3)}
        assert messages[Reply] == Reply(
            saga_id="saga-1",
            step="reserve",
            direction="action",
            attempt=2,
            outcome=Failed(failure=Failure(kind="Timeout", message="slow")),
        )
        start = messages[StartRequest]
        assert isinstance(start, StartRequest)
        assert (start.name, start.input, start.key) == ("place-order", {"a": 1}, "k")
        assert start.traceparent == TRACEPARENT
        assert start.saga_id is not None
        assert messages[CancelRequest] == CancelRequest(saga_id="saga-1", reason="changed my mind")

    def test_a_batch_is_bounded_and_nothing_is_lost_between_batches(
        self, world: World, transport: Transport
    ) -> None:
        """No more than asked for at once, and all of it in the end."""
        for number in range(10):
            world.send(names.REPLY_TASK, reply(number))
        sizes: list[int] = []
        got: list[Delivery] = []

        def enough() -> bool:
            batch = transport.receive(4, 0.2)
            transport.acknowledge(batch)
            sizes.append(len(batch))
            got.extend(batch)
            return len(got) == 10

        wait_until(enough)
        assert max(sizes) <= 4
        assert attempts(got) == list(range(10))

    def test_what_lies_there_already_comes_in_one_batch(
        self, world: World, transport: Transport
    ) -> None:
        """After the first message nothing is waited for, but what is there is taken."""
        assert transport.receive(100, 0.01) == []  # the queue exists, and its consumer
        for number in range(50):
            world.send(names.REPLY_TASK, reply(number))
        first = receive_all(transport, 50)
        assert attempts(first) == list(range(50))

    def test_the_next_batch_comes_while_the_last_one_is_unsettled(
        self, world: World, transport: Transport
    ) -> None:
        """Work on one batch does not stop the next."""
        for number in range(4):
            world.send(names.REPLY_TASK, reply(number))
        held: list[Delivery] = []

        def both_batches() -> bool:
            held.extend(transport.receive(2, 0.2))
            return len(held) == 4

        wait_until(both_batches)
        transport.acknowledge(held)
        assert attempts(held) == [0, 1, 2, 3]

    def test_acknowledged_messages_never_come_back(
        self, world: World, transport: Transport
    ) -> None:
        """An acknowledgement outlives the transport, whatever its order."""
        for number in range(5):
            world.send(names.REPLY_TASK, reply(number))
        held = receive_all(transport, 5, acknowledge=False)
        kept = [d for d in held if isinstance(d.message, Reply) and d.message.attempt == 2]
        transport.acknowledge([d for d in reversed(held) if d not in kept])
        transport.close()
        successor = world.transport()
        assert attempts(receive_all(successor, 1)) == [2]
        assert successor.receive(10, 0.1) == []

    def test_unacknowledged_messages_come_back_when_the_transport_closes(
        self, world: World, transport: Transport
    ) -> None:
        """An orchestrator that stops hands its messages to the next one at once."""
        for number in range(3):
            world.send(names.REPLY_TASK, reply(number))
        receive_all(transport, 3, acknowledge=False)
        transport.close()
        assert attempts(receive_all(world.transport(), 3)) == [0, 1, 2]

    def test_two_orchestrators_share_the_messages(
        self, world: World, transport: Transport
    ) -> None:
        """Each message goes to one of them."""
        other = world.transport()
        for number in range(20):
            world.send(names.REPLY_TASK, reply(number))
        got: list[Delivery] = []

        def enough() -> bool:
            for each in (transport, other):
                batch = each.receive(3, 0.1)
                each.acknowledge(batch)
                got.extend(batch)
            return len(got) >= 20

        wait_until(enough)
        assert attempts(got) == list(range(20))

    def test_receive_gives_up_after_its_time(self, transport: Transport) -> None:
        """An empty queue is no error."""
        assert transport.receive(10, 0.05) == []

    def test_acknowledging_nothing_or_twice_is_fine(
        self, world: World, transport: Transport
    ) -> None:
        """The coordinator may not know that it has done so already."""
        world.send(names.REPLY_TASK, reply(1))
        batch = receive_all(transport, 1)
        transport.acknowledge(batch)
        transport.acknowledge([])
        assert transport.receive(10, 0.05) == []

    # What cannot be read ---------------------------------------------------------------------

    @pytest.mark.parametrize(
        "body, headers, content_type, reason",
        [
            (b'[[], {"saga_id"', {"task": "saga.reply"}, "application/json", "truncated"),
            (b'[[], {"saga_id": 1}, {}]', {"task": "saga.reply"}, "application/json", "saga_id"),
            (b"[[], {}, {}]", {"task": "other.task"}, "application/json", "other.task"),
            (b"[[], {}, {}]", {}, "application/json", "no task ''"),
            (b'{"task": "saga.reply"}', {"task": 7}, "application/json", "no task ''"),
            (b"\xff\xfe\x00", {"task": "saga.reply"}, "application/json", "JSON"),
            (b"cos\nsystem\n(S'false'\ntR.", {"task": "saga.reply"}, "application/x-python-serialize", "refused"),
            (b"a: 1", {"task": "saga.reply"}, "application/x-yaml", "refused"),
            (b"", {"task": "saga.reply"}, "application/json", "truncated"),
            (b"\x78", {"task": "saga.reply", "compression": "application/x-gzip"}, "application/json", ""),
        ],
        ids=["cut", "field", "task", "no-task", "odd-task", "bytes", "pickle", "yaml", "empty", "zip"],
    )  # fmt: skip
    def test_what_cannot_be_read_is_handed_over_and_blocks_nothing(
        self,
        world: World,
        transport: Transport,
        body: bytes,
        headers: dict[str, Any],
        content_type: str,
        reason: str,
    ) -> None:
        """It comes as `Undecodable` with a reason, can be settled, and the next one follows."""
        world.send_body(body, headers, content_type)
        world.send(names.REPLY_TASK, reply(7))
        deliveries = receive_all(transport, 2)
        (undecodable,) = (d for d in deliveries if isinstance(d.message, Undecodable))
        assert isinstance(undecodable.message, Undecodable)
        assert reason in undecodable.message.reason
        assert undecodable.message.reason
        assert "\0" not in undecodable.body + undecodable.message.body
        assert attempts(deliveries) == [7]
        transport.close()
        assert world.transport().receive(10, 0.1) == []


class BlockingContract:
    """Of transports that really wait."""

    def test_receive_waits_for_the_first_message(self, world: World) -> None:
        """It returns as soon as one is there, long before its time is up."""
        transport = world.transport()
        transport.receive(1, 0.01)
        got: list[Delivery] = []
        with _running(lambda: got.extend(transport.receive(10, 60))):
            world.send(names.REPLY_TASK, reply(5))
        assert attempts(got) == [5]
        transport.acknowledge(got)

    def test_interrupt_ends_a_wait(self, world: World) -> None:
        """A blocked `receive` of another thread returns with nothing."""
        transport = world.transport()
        transport.receive(1, 0.01)
        got: list[list[Delivery]] = []
        with _running(lambda: got.append(transport.receive(10, 60))):
            transport.interrupt()
        assert got == [[]]

    def test_an_interrupt_that_comes_too_early_ends_the_next_wait_and_no_more(
        self, world: World
    ) -> None:
        """So stopping cannot slip between a check and the wait; messages are taken all the same."""
        transport = world.transport()
        transport.interrupt()
        assert transport.receive(10, 60) == []
        began = time.monotonic()
        assert transport.receive(10, 0.3) == []
        assert time.monotonic() - began >= 0.3
        world.send(names.REPLY_TASK, reply(5))
        assert attempts(receive_all(transport, 1)) == [5]


class NetworkContract:
    """Of transports to a server."""

    def test_an_unreachable_broker_is_named_without_its_password(self, dead: Transport) -> None:
        """The message of the error goes into logs."""
        for call in (
            lambda: dead.publish([command()]),
            lambda: dead.receive(1, 0.1),
        ):
            with pytest.raises(UnavailableError) as caught:
                call()
            assert "127.0.0.1" in str(caught.value)
            assert "s3cret" not in str(caught.value)


class _running:  # noqa: N801 - reads as a statement
    """Run a call in a thread; at the end it has returned."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._thread = threading.Thread(target=call, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join(timeout=20)
        assert not self._thread.is_alive(), "it still waits"
