"""Our filesystem channel: nothing is lost, whoever dies when."""

import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from shared.embedded import bound_to_parent
from tests.waiting import wait_until

OURS = "shared.kombu_filesystem:Transport"
QUEUE = "saga.replies"

Open = Callable[..., Any]


def options(folder: Path) -> dict[str, Any]:
    """Transport options for a folder."""
    (folder / "messages").mkdir(exist_ok=True)
    return {
        "data_folder_in": str(folder / "messages"),
        "data_folder_out": str(folder / "messages"),
        "control_folder": str(folder / "control"),
        "polling_interval": 0.01,
    }


def connect(folder: Path, transport: str | None = OURS) -> Connection:
    """A connection to the broker in a folder."""
    return Connection("filesystem://", transport=transport, transport_options=options(folder))


@pytest.fixture
def open_channel(tmp_path: Path) -> Iterator[Open]:
    """Opens channels on one folder."""
    connections: list[Connection] = []

    def open_one(transport: str | None = OURS) -> Any:
        connections.append(connect(tmp_path, transport))
        return connections[-1].default_channel

    yield open_one
    for connection in connections:
        connection.release()


def put(channel: Any, *bodies: str) -> None:
    """Publish messages."""
    for body in bodies:
        message = channel.prepare_message(body, 0, "text/plain", "utf-8")
        channel.basic_publish(message, exchange="", routing_key=QUEUE)


def files(folder: Path) -> list[str]:
    """Files of messages, wherever they lie."""
    return sorted(path.name for path in folder.rglob("*.msg"))


def test_a_message_lies_on_disk_until_it_is_settled(open_channel: Open, tmp_path: Path) -> None:
    """Read is not gone; settled is."""
    channel = open_channel()
    put(channel, "a", "b")
    first, second = channel.basic_get(QUEUE), channel.basic_get(QUEUE)
    assert (first.body, second.body) == (b"a", b"b")
    assert channel.basic_get(QUEUE) is None
    assert len(files(tmp_path)) == 2
    first.ack()
    assert len(files(tmp_path)) == 1
    second.reject(requeue=True)
    assert channel.basic_get(QUEUE).body == b"b"


def test_a_message_read_without_acknowledgement_is_deleted(
    open_channel: Open, tmp_path: Path
) -> None:
    """As kombu does for its own control messages."""
    channel = open_channel()
    put(channel, "a")
    assert channel.basic_get(QUEUE, no_ack=True).body == b"a"
    assert channel.basic_get(QUEUE) is None
    assert files(tmp_path) == []


def test_rejected_for_good_is_deleted(open_channel: Open, tmp_path: Path) -> None:
    """Rejecting without requeueing settles."""
    channel = open_channel()
    put(channel, "a")
    channel.basic_get(QUEUE).reject()
    assert files(tmp_path) == []


def test_closing_gives_back_and_tidies_up(open_channel: Open, tmp_path: Path) -> None:
    """The next consumer finds the oldest first, and no folder of the last one is left."""
    channel = open_channel()
    put(channel, "a", "b")
    channel.basic_get(QUEUE)
    channel.close()
    assert list((tmp_path / "control" / "held").iterdir()) == []
    other = open_channel()
    assert [other.basic_get(QUEUE).body, other.basic_get(QUEUE).body] == [b"a", b"b"]


def test_consumers_of_one_process_leave_each_other_alone(open_channel: Open) -> None:
    """A process cannot be refused its own lock, so the lock alone would not tell them apart."""
    holder, other = open_channel(), open_channel()
    put(holder, "a")
    assert holder.basic_get(QUEUE)
    # Twice: an empty queue makes it look for abandoned messages, which it would take then.
    assert (other.basic_get(QUEUE), other.basic_get(QUEUE)) == (None, None)


def test_a_killed_consumer_leaves_its_messages_to_the_living(
    open_channel: Open, tmp_path: Path
) -> None:
    """And a living one keeps them, also while a child of its own lives on."""
    channel = open_channel()
    put(channel, "a")
    holding = f"""
import os, sys
from pathlib import Path
from tests.integration.test_kombu_filesystem import QUEUE, connect
channel = connect(Path({str(tmp_path)!r})).default_channel
assert channel.basic_get(QUEUE)
child = os.fork()
if child == 0:
    sys.stdin.read()
    os._exit(0)
print("holding", flush=True)
os.waitpid(child, 0)
"""
    consumer = subprocess.Popen(
        bound_to_parent([sys.executable, "-c", holding]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    with consumer:
        assert consumer.stdout is not None
        assert consumer.stdout.readline() == b"holding\n"
        assert (channel.basic_get(QUEUE), channel.basic_get(QUEUE)) == (None, None)
        consumer.kill()
        consumer.wait()
        message = wait_until(lambda: channel.basic_get(QUEUE), what="the message")
        assert message.body == b"a"


def test_what_is_no_message_is_put_aside(open_channel: Open, tmp_path: Path) -> None:
    """It blocks nothing, and it is not lost."""
    channel = open_channel()
    (tmp_path / "messages" / f"0_x.{QUEUE}.msg").write_text("{")
    (tmp_path / "messages" / f"1_x.{QUEUE}.msg").write_text("[]")
    put(channel, "a")
    assert channel.basic_get(QUEUE).body == b"a"
    assert channel.basic_get(QUEUE) is None
    assert len(list((tmp_path / "control").glob("*.broken"))) == 2


def test_an_empty_file_is_a_message_that_is_being_written(
    open_channel: Open, tmp_path: Path
) -> None:
    """Kombu's own transport creates the file first; it is left where it is."""
    channel = open_channel()
    name = f"0_x.{QUEUE}.msg"
    (tmp_path / "messages" / name).write_text("")
    assert channel.basic_get(QUEUE) is None
    assert [path.name for path in (tmp_path / "messages").iterdir()] == [name]


def test_kombus_own_transport_reads_and_writes_the_same_files(open_channel: Open) -> None:
    """A participant need not be configured for ours."""
    ours, kombus = open_channel(), open_channel(None)
    put(ours, "from us")
    assert kombus.basic_get(QUEUE).body == b"from us"
    put(kombus, "from kombu")
    assert ours.basic_get(QUEUE).body == b"from kombu"


def _publish_many(folder: str, count: int) -> None:
    with connect(Path(folder)) as connection:
        put(connection.default_channel, *map(_large, range(count)))


def _large(number: int) -> str:
    """A message that no single write holds."""
    return f"{number} ".ljust(100_000, "x")


def test_busy_writers_and_a_busy_reader_lose_nothing(tmp_path: Path) -> None:
    """With kombu's own transport about one message in twenty is taken half written."""
    count, writers = 150, 2
    context = multiprocessing.get_context("spawn")
    running = [
        context.Process(target=_publish_many, args=(str(tmp_path), count)) for _ in range(writers)
    ]
    options(tmp_path)
    for writer in running:
        writer.start()
    found: list[bytes] = []
    with connect(tmp_path) as connection:
        channel: Any = connection.default_channel

        def all_found() -> bool:
            while message := channel.basic_get(QUEUE):
                found.append(message.body)
                message.ack()
            return len(found) == count * writers

        wait_until(all_found, timeout=30)
    for writer in running:
        writer.join()
    assert sorted(found) == sorted(2 * [_large(n).encode() for n in range(count)])
