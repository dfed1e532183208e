"""Points at which a test can make a process kill itself; inert unless ``SAGA_FAULT`` is set.

``SAGA_FAULT`` holds one or more ``<point>[@<detail>]``, separated by commas, for example
``in-action@inventory.reserve``. The process that reaches a point sends itself SIGKILL, which is
what a crash, the kernel's OOM killer and a lost machine have in common: nothing is cleaned up.

``SAGA_FAULT_DIR`` is a folder that remembers which faults have fired, so that each fires once over
all processes and restarts. Without it a fault fires every time, as a poison task does.

| point                                    | detail    | who                                     |
|------------------------------------------|-----------|-----------------------------------------|
| ``in-action``                            | task name | participant: work done, not committed   |
| ``after-commit-before-reply``            | task name | participant                             |
| ``after-reply-before-ack``               | task name | participant                             |
| ``orchestrator:after-commit-before-publish`` | –     | engine                                  |
| ``orchestrator:after-publish-before-ack``    | –     | coordinator                             |
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

FAULT_VARIABLE: Final = "SAGA_FAULT"
FAULT_DIR_VARIABLE: Final = "SAGA_FAULT_DIR"

IN_ACTION: Final = "in-action"
AFTER_COMMIT: Final = "after-commit-before-reply"
AFTER_REPLY: Final = "after-reply-before-ack"

_wanted: Final = frozenset(
    filter(None, map(str.strip, os.environ.get(FAULT_VARIABLE, "").split(",")))
)


def fired(folder: Path) -> frozenset[str]:
    """The faults that have fired, as they stand in ``SAGA_FAULT``."""
    return frozenset(marker.name.removesuffix(".fired") for marker in folder.glob("*.fired"))


def _inert(point: str, detail: str = "") -> None:
    """Do nothing: no fault was asked for when this process started."""


def _armed(point: str, detail: str = "") -> None:
    for fault in (point, f"{point}@{detail}"):
        if fault in _wanted and _first_time(fault):
            os.kill(os.getpid(), signal.SIGKILL)


def _first_time(fault: str) -> bool:
    folder = os.environ.get(FAULT_DIR_VARIABLE)
    if not folder:
        return True
    Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        # Created before the kill and exclusively: of two processes at the same point one dies.
        (Path(folder) / f"{fault}.fired").open("x").close()
    except FileExistsError:
        return False
    return True


reach: Final[Callable[..., None]] = _armed if _wanted else _inert
"""``reach(point, detail="")``: die here if that was asked for."""
