"""kombu's filesystem transport, without its two ways to lose a message; nothing of kombu is patched.

* kombu writes a message in place, so a reader can take it half written: with two busy writers
  about one message in twenty was broken. Here it is written aside and renamed.
* kombu deletes a message when it is read, so a consumer that dies takes it along. Here it lies in
  a folder of the consumer until it is acknowledged. The consumer holds a lock while it lives; the
  others give back what lies under a lock that nobody holds.

To use it for a Celery app::

    app.conf.broker_transport = transport_for(app.conf.broker_write_url)  # shared.broker_transport

Linux and other POSIX systems only, on one machine.
"""

import fcntl
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from queue import Empty
from typing import IO, Any, Final

from kombu import uuid
from kombu.log import get_logger
from kombu.transport import filesystem, virtual
from kombu.utils.json import dumps, loads
from typing_extensions import override

from shared.clock import monotonic, utc_now

RESTORE_EVERY: Final = timedelta(seconds=2)
"""How often an idle consumer looks for what a dead one left."""

logger = get_logger(__name__)

_ours: Final[set[str]] = set()
"""Consumers of this process: a process is never refused a lock that it holds itself."""


class QoS(virtual.QoS):
    """Unacknowledged messages, each a file."""

    channel: Any

    @override
    def append(self, message: Any, delivery_tag: str) -> None:
        self.channel.hold(delivery_tag)
        super().append(message, delivery_tag)

    @override
    def ack(self, delivery_tag: str) -> None:
        self.channel.settle(delivery_tag)
        super().ack(delivery_tag)

    @override
    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        super().reject(delivery_tag, requeue=requeue)
        if not requeue:
            self.channel.settle(delivery_tag)


class Channel(filesystem.Channel):
    """A channel that writes aside and holds what it has read."""

    QoS = QoS

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._owner = f"{os.getpid()}-{uuid()}"
        held = Path(self.control_folder) / "held"
        self._folder = held / self._owner
        self._lock_file = held / f"{self._owner}.lock"
        self._lock: IO[bytes] | None = None
        self._taken: dict[str, Path] = {}
        self._held: dict[str, Path] = {}
        self._known: dict[str, deque[str]] = {}
        self._restored_at = float("-inf")

    @override
    def _put(self, queue: str, payload: Any, **options: Any) -> None:  # type: ignore[override]  # the stubs disagree
        name = f"{round(utc_now().timestamp() * 1e6):020d}_{uuid()}.{queue}.msg"
        folder = Path(self.data_folder_out)
        aside = folder / f".{name}"
        aside.write_text(dumps(payload), encoding="utf-8")
        aside.rename(folder / name)

    @override
    def _get(self, queue: str, timeout: float | None = None) -> Any:
        # Whoever read the last one without `hold` does not acknowledge.
        while self._taken:
            self._taken.popitem()[1].unlink(missing_ok=True)
        for name in self._names(queue):
            payload = self._take(name)
            if payload is not None:
                return payload
        self._restore_abandoned()
        raise Empty

    def hold(self, tag: str) -> None:
        """Keep a message until it is settled."""
        self._held[tag] = self._taken.pop(tag)

    def settle(self, tag: str) -> None:
        """Forget a message for good."""
        path = self._held.pop(tag, None)
        if path is not None:
            path.unlink(missing_ok=True)

    @override
    def _restore(self, message: Any) -> None:
        path = self._held.pop(message.delivery_tag, None)
        if path is not None:
            self._give_back(path)

    @override
    def close(self) -> None:
        closed = self.closed
        super().close()
        if not closed and self._lock is not None:
            _ours.discard(self._owner)
            with suppress(OSError):
                self._folder.rmdir()
                self._lock_file.unlink()
            self._lock.close()
            self._lock = None

    def _names(self, queue: str) -> Iterator[str]:
        """Files of a queue, oldest first; the folder is listed once for many of them."""
        known = self._known.setdefault(queue, deque())
        if not known:
            tail = f"{queue}.msg"
            names = os.listdir(self.data_folder_in)  # noqa: PTH208 - names alone, thousands of them
            known.extend(sorted(name for name in names if name.partition(".")[2] == tail))
        while known:
            yield known.popleft()

    def _take(self, name: str) -> Any:
        """Move a message into our folder and read it; None when another consumer was faster."""
        self._begin()
        path = self._folder / name
        try:
            (Path(self.data_folder_in) / name).rename(path)
        except FileNotFoundError:
            return None
        text = _read(path)
        if not text:
            # kombu's own transport is about to write it.
            self._give_back(path)
            return None
        try:
            payload = loads(text)
            tag = payload["properties"]["delivery_tag"]
        except (ValueError, TypeError, KeyError):
            broken = Path(self.control_folder) / f"{name}.broken"
            path.rename(broken)
            logger.warning("Not a message of kombu, put aside: %s", broken)
            return None
        self._taken[tag] = path
        return payload

    def _begin(self) -> None:
        """Make our folder, once; its lock is held before anyone can see it."""
        if self._lock is None:
            self._folder.mkdir(parents=True)
            _ours.add(self._owner)
            unseen = self._lock_file.with_suffix(".new")
            self._lock = unseen.open("wb")
            # Of the process, not of the open file: children that are forked do not keep it.
            fcntl.lockf(self._lock, fcntl.LOCK_EX)
            unseen.rename(self._lock_file)

    def _give_back(self, path: Path) -> None:
        # Under its old name it is the oldest again.
        path.rename(Path(self.data_folder_in) / path.name)

    def _restore_abandoned(self) -> None:
        now = monotonic()
        if now - self._restored_at < RESTORE_EVERY.total_seconds():
            return
        self._restored_at = now
        for lock_file in self._folder.parent.glob("*.lock"):
            if lock_file.stem not in _ours:
                with suppress(FileNotFoundError), _abandoned(lock_file) as abandoned:
                    if abandoned:
                        folder = lock_file.with_suffix("")
                        for path in folder.iterdir() if folder.exists() else ():
                            self._give_back(path)
                        with suppress(FileNotFoundError):
                            folder.rmdir()
                        lock_file.unlink()


class Transport(filesystem.Transport):
    """kombu's filesystem transport with our `Channel`."""

    Channel = Channel


@contextmanager
def _abandoned(lock_file: Path) -> Iterator[bool]:
    """Whether nobody holds this lock; if so we hold it."""
    with lock_file.open("r+b") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def _read(path: Path) -> str:
    """The whole file; waits for kombu's own transport to finish writing it."""
    with path.open(encoding="utf-8") as message:
        fcntl.flock(message, fcntl.LOCK_SH)
        return message.read()
