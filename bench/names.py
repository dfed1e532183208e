"""What the measuring process tells the processes that it starts."""

import os
from pathlib import Path
from typing import Final

BROKER: Final = "BENCH_BROKER"
HOME: Final = "BENCH_HOME"
TRACED: Final = "BENCH_TRACED"

QUEUE: Final = "bench"
STEPS: Final = 5
DONE: Final = "bench:done"
"""Redis list: the last step of a run puts its number there."""


def broker() -> str:
    """The private Redis of this measurement."""
    return os.environ[BROKER]


def home() -> Path:
    """Folder of this measurement."""
    return Path(os.environ[HOME])


def traced() -> bool:
    """Whether plain Celery is instrumented."""
    return os.environ.get(TRACED) == "1"
