"""Whether something goes wrong now: drawn from the seed, written down, and repeatable without some.

Every place that a fault can strike asks `Chaos.draw`. A run that failed can be made again with a
part of its faults only; that is how the shortest trace is found (`shrink`).
"""

from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Final, NamedTuple

CHANCES: Final[Mapping[str, float]] = {
    # One draw at each I/O call of an orchestrator, a client or a participant.
    "crash": 0.004,
    "pause": 0.10,
    "stall": 0.004,
    # The network, for each message.
    "lose": 0.02,
    "duplicate": 0.06,
    "delay": 0.04,
    "reorder": 0.10,
    "refuse": 0.02,
    # The store, for each transaction.
    "fail before commit": 0.02,
    "fail after commit": 0.02,
    "fail to read": 0.01,
    # Participants, for each execution.
    "reject": 0.04,
    "fail": 0.08,
    "fail for good": 0.015,
    "slow": 0.04,
    # The rest.
    "clock jump": 0.004,
    "lost export": 0.10,
    "cancel": 0.08,
    "start twice": 0.10,
}
"""How often each kind strikes when it is asked about, in a run of the usual mood."""

AT_CALLS: Final = ("crash", "pause", "stall")
MOODS: Final = (0.0, 0.3, 1.0, 1.0, 3.0)


class Fault(NamedTuple):
    """A fault that fired: its kind, the how-manieth question of that kind, and how hard (0 to 1)."""

    kind: str
    number: int
    force: float


class Chaos:
    """The faults of one run.

    Args:
        seed: Of the run.
        only: Just these fire, and no others; by default the seed decides.

    Attributes:
        fired: What has fired.
    """

    def __init__(self, seed: int, only: frozenset[Fault] | None = None) -> None:
        random = Random(f"{seed}:faults")
        # Some kinds never, others thrice as often: a run that has all of it gets nowhere.
        self._chances = {kind: p * random.choice(MOODS) for kind, p in CHANCES.items()}
        self._random = random.random
        self._asked: Counter[str] = Counter()
        self._only = None if only is None else {(f.kind, f.number): f.force for f in only}
        self._calls = 0
        self._at_calls = (
            None if only is None else {f.number: f for f in only if f.kind in AT_CALLS}
        )
        self._call_chance = sum(self._chances[kind] for kind in AT_CALLS)
        self.calm = False
        self.fired: list[Fault] = []

    def at_call(self) -> Fault | None:
        """What happens before a call: a crash, a pause or a stall, or nothing.

        One draw for all three, since it is made so often.
        """
        if self.calm:
            return None
        self._calls += 1
        if self._at_calls is not None:
            fault = self._at_calls.get(self._calls)
        else:
            drawn, fault = self._random(), None
            if drawn < self._call_chance:
                fault = self._chosen(drawn)
        if fault is not None:
            self.fired.append(fault)
        return fault

    def _chosen(self, drawn: float) -> Fault | None:
        for kind in AT_CALLS:
            chance = self._chances[kind]
            if drawn < chance:
                return Fault(kind, self._calls, drawn / chance)
            drawn -= chance
        return None

    def draw(self, kind: str) -> float | None:
        """How hard a fault of this kind strikes now, from 0 to 1; None when it does not."""
        if self.calm:
            return None
        number = self._asked[kind] = self._asked[kind] + 1
        if self._only is not None:
            force = self._only.get((kind, number))
        else:
            drawn, chance = self._random(), self._chances[kind]
            force = drawn / chance if drawn < chance else None
        if force is not None:
            self.fired.append(Fault(kind, number, force))
        return force

    def strikes(self, kind: str) -> bool:
        """Whether a fault of this kind strikes now."""
        return self.draw(kind) is not None
