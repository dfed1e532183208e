"""Whether something goes wrong now: drawn from the seed, written down, and repeatable without some.

Every place that a fault can strike asks `Chaos.draw`. A run that failed can be made again with a
part of its faults only; that is how the shortest trace is found (`shrink`).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import count
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
    "unknown task": 0.01,
    "slow": 0.04,
    "accept": 0.04,
    # The rest.
    "clock jump": 0.004,
    "lost export": 0.10,
    "cancel": 0.08,
    "operate": 0.12,
    "start twice": 0.10,
    "fork": 0.06,
    "small history": 0.05,
}
"""How often each kind strikes when it is asked about, in a run of the usual mood."""

TOGETHER: Final[Mapping[str, tuple[str, ...]]] = {
    "call": ("crash", "pause", "stall"),
    "message": ("lose", "duplicate", "delay", "reorder"),
    "commit": ("fail before commit", "fail after commit"),
    "outcome": ("reject", "fail", "fail for good"),
}
"""Kinds of which at most one strikes at a time: one draw for all of them, since so many are made."""

MOODS: Final = (0.0, 0.3, 1.0, 1.0, 3.0)


class Fault(NamedTuple):
    """A fault that fired.

    Attributes:
        kind: One of `CHANCES`.
        subject: What it struck: a saga, or a process.
        number: The how-manieth time that this was asked of this subject.
        force: How hard, from 0 to 1: how long a delay is, for example.
    """

    kind: str
    subject: str
    number: int
    force: float


class Chaos:
    """The faults of one run.

    A fault is known by its subject and not by its place in the run, so that most of them still
    strike at the same place when others are left out.

    Args:
        seed: Of the run.
        only: Just these fire, and no others; by default the seed decides.

    Attributes:
        subject: What is at stake just now.
        calm: Nothing fires any more.
        fired: What has fired.
    """

    def __init__(self, seed: int, only: frozenset[Fault] | None = None) -> None:
        random = Random(f"{seed}:faults")
        # Some kinds never, others thrice as often: a run that has all of it gets nowhere.
        chances = {kind: p * random.choice(MOODS) for kind, p in CHANCES.items()}
        alone: dict[str, tuple[str, ...]] = {kind: (kind,) for kind in CHANCES}
        self._kinds = {
            question: [(kind, chances[kind]) for kind in kinds]
            for question, kinds in {**alone, **TOGETHER}.items()
        }
        self._chances = {
            question: sum(chance for _, chance in kinds) for question, kinds in self._kinds.items()
        }
        self._random = random.random
        self._asked: defaultdict[tuple[str, str], Iterator[int]] = defaultdict(lambda: count(1))
        self._only: dict[tuple[str, str, int], Fault] | None = None
        if only is not None:
            self._only = {(_question(one.kind), one.subject, one.number): one for one in only}
        self.subject = ""
        self.calm = False
        self.fired: list[Fault] = []

    def draw(self, question: str, *impossible: str) -> Fault | None:
        """The fault that strikes now, or none.

        Args:
            question: A kind, or a group of `TOGETHER`.
            impossible: Kinds of the group that make no difference here.
        """
        if self.calm:
            return None
        asked = (question, self.subject)
        number = next(self._asked[asked])
        if self._only is not None:
            fault = self._only.get((*asked, number))
        else:
            drawn = self._random()
            if drawn >= self._chances[question]:
                return None
            fault = self._drawn(question, number, drawn)
        if fault is None or fault.kind in impossible:
            return None
        self.fired.append(fault)
        return fault

    def strikes(self, kind: str) -> bool:
        """Whether a fault of this kind strikes now."""
        return self.draw(kind) is not None

    def _drawn(self, question: str, number: int, drawn: float) -> Fault | None:
        for kind, chance in self._kinds[question]:
            if drawn < chance:
                return Fault(kind, self.subject, number, drawn / chance)
            drawn -= chance
        return None


def _question(kind: str) -> str:
    return next((group for group, kinds in TOGETHER.items() if kind in kinds), kind)
