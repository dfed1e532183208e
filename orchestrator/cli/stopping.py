"""Signals that ask for an end, while something has to be brought to its own end first."""

import signal
from collections.abc import Sequence
from typing import Any, Final, Self

_ALL: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopping:
    """Whether somebody asked for an end; the second time they get it at once.

    Args:
        signals: How they ask.
    """

    def __init__(self, signals: Sequence[signal.Signals] = _ALL) -> None:
        self.asked = False
        self._signals = signals
        self._before: list[Any] = []

    def __enter__(self) -> Self:
        self._before = [signal.signal(number, self._ask) for number in self._signals]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(self._signals, self._before, strict=True):
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def told_first() -> Stopping:
    """Ctrl-C while a saga is being stored waits until it is told which one it is."""
    return Stopping((signal.SIGINT,))
