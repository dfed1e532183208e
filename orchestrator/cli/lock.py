"""One `saga dev` in a folder at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from shared.errors import ConfigurationError

LOCK_FILE: Final = "dev.lock"


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold the folder's lock; it goes with this process, however that ends.

    Raises:
        ConfigurationError: Another process holds it; names its process id.
    """
    home.mkdir(parents=True, exist_ok=True)
    lock = os.open(home / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            raise ConfigurationError(
                f"`saga dev` runs in {home} already, as process {holder or 'unknown'}.",
                hint="Use that one, stop it with Ctrl-C, or set SAGA_HOME to another folder.",
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(lock)
