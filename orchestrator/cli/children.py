"""Child processes that run for as long as this one does, and are started again when they die."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import Final

from shared.backoff import Backoff, delay
from shared.clock import monotonic, pause
from shared.embedded import bound_to_parent

RESTART: Final = Backoff(wait_first=timedelta(seconds=0.5), wait_max=timedelta(seconds=15))
HEALTHY_AFTER: Final = timedelta(seconds=30)
"""A child that ran this long starts again as if it had never died."""

_TAIL_LINES: Final = 12
_TAIL_BYTES: Final = 8192
_POLL_S: Final = 0.02


class Child:
    """A process under supervision.

    Args:
        name: For people.
        command: Program and arguments.
        env: Its whole environment.
        output: File that takes what it writes to its standard output and error.
    """

    def __init__(
        self, name: str, command: Sequence[str], env: Mapping[str, str], output: Path
    ) -> None:
        self.name = name
        self.output = output
        self._command = command
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._written_before = 0
        self._failures = 0
        self._again_at: float | None = None

    @property
    def pid(self) -> int | None:
        """Process id; None while it does not run."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start it. Must be called by the thread that lives longest: see `bound_to_parent`."""
        with self.output.open("ab") as output:
            self._written_before = output.tell()
            self._process = subprocess.Popen(
                # SIGKILL: when we were killed, the broker goes too, and nobody is left to wait
                # for an orderly end. What was in hand comes again at the next start.
                bound_to_parent(self._command, signal=SIGKILL),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(self._env),
                # Ctrl-C in the terminal is for us alone: we decide who ends when.
                start_new_session=True,
            )
        self._started_at = monotonic()
        self._again_at = None

    def look(self) -> str | None:
        """Notice its death, and start it again when it is time.

        Returns:
            What there is to say about it.
        """
        if self._process is None:
            if self._again_at is not None and monotonic() >= self._again_at:
                self.start()
                return f"{self.name} starts again, process {self.pid}"
            return None
        code = self._process.poll()
        if code is None:
            return None
        self._process = None
        if monotonic() - self._started_at > HEALTHY_AFTER.total_seconds():
            self._failures = 0
        self._failures += 1
        wait = delay(RESTART, self._failures, self.name).total_seconds()
        self._again_at = monotonic() + wait
        why = f"{self.name} ended {in_words(code)}; it starts again in {wait:.1f} s"
        # A signal explains itself; of an exit code the last words say more.
        return why if code < 0 else "\n  ".join([why, *self.last_words()])

    def signal(self, number: Signals) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None:
            self._process.send_signal(number)

    def has_ended(self) -> bool:
        """Whether it does not run; for use after its end was asked for."""
        return self._process is None or self._process.poll() is not None

    def last_words(self) -> list[str]:
        """The end of what it wrote since it was started last."""
        if not self.output.exists():
            return []
        with self.output.open("rb") as written:
            written.seek(0, os.SEEK_END)
            written.seek(max(self._written_before, written.tell() - _TAIL_BYTES))
            return written.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]


def end(children: Sequence[Child], grace: timedelta) -> list[str]:
    """End them all: in order, and with SIGKILL who has not ended within the grace.

    Returns:
        Names of those that had to be killed.
    """
    for child in children:
        child.signal(SIGTERM)
    killed: list[str] = []
    try:
        _wait(children, grace)
    finally:
        # Also when somebody is too impatient to wait.
        for child in children:
            if not child.has_ended():
                killed.append(child.name)
                child.signal(SIGKILL)
        _wait(children, timedelta(seconds=10))
    return killed


def in_words(code: int) -> str:
    """How a process ended: ``by SIGKILL``, ``with exit code 1``."""
    if code < 0:
        try:
            return f"by {Signals(-code).name}"
        except ValueError:
            return f"by signal {-code}"
    return f"with exit code {code}"


def _wait(children: Sequence[Child], longest: timedelta) -> None:
    deadline = monotonic() + longest.total_seconds()
    while monotonic() < deadline and not all(child.has_ended() for child in children):
        pause(_POLL_S)
