"""The definitions that this process knows: from code for new sagas, from the store for old ones."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import combinations
from typing import Final

from orchestrator.core.bounds import bounds_problems
from orchestrator.core.definition import Definition, NothingToUndo, Saga, SubSaga, reachable
from orchestrator.core.eventing import event_of
from orchestrator.core.limits import Bounds
from orchestrator.core.schema import required
from orchestrator.ports import Store
from shared.errors import DefinitionError, UnknownSaga
from shared.guessing import guess, listed

DEFAULT_BOUNDS: Final = Bounds()
"""Those of the settings where none is set."""


class Catalog:
    """Looks definitions up.

    Args:
        sagas: The definitions in code. Several versions of one name may stand side by side.
        bounds: How large they may be.

    Raises:
        DefinitionError: Two of them have the same name and version, a sub-saga is not there or
            could not be undone, or one is too large.
    """

    def __init__(self, sagas: Iterable[Saga], bounds: Bounds = DEFAULT_BOUNDS) -> None:
        self._sagas: dict[str, Saga] = {}
        self._pinned: dict[tuple[str, int], Definition] = {}
        self._kept: set[tuple[str, int]] = set()
        versions: dict[tuple[str, int], Saga] = {}
        for saga in sagas:
            other = versions.setdefault((saga.name, saga.version), saga)
            if other is not saga:
                raise DefinitionError(
                    f"Saga {saga.name!r} version {saga.version} is defined twice.",
                    hint="Give one of them another version or another name.",
                )
            newest = self._sagas.get(saga.name)
            if newest is None or newest.version < saga.version:
                self._sagas[saga.name] = saga
        self._versions = versions
        for saga in versions.values():
            self._check_sub_sagas(saga.definition)
            _check_bounds(saga.definition, bounds)
        self._check_circles()

    def _check_sub_sagas(self, definition: Definition) -> None:
        """Check that what a saga is made of exists, and can be undone where it has to be."""
        where = f"Saga {definition.name!r} version {definition.version}, step"
        for step in definition.steps:
            if not isinstance(step.action, SubSaga):
                continue
            name = step.action.name
            sub_saga = self._sagas.get(name)
            if sub_saga is None:
                raise DefinitionError(
                    f"{where} {step.name!r}: there is no saga named {name!r}.",
                    hint=guess(name, self._sagas) or "Define it, too.",
                )
            returned = {one.name for one in sub_saga.definition.steps}
            lacks = [one for one in required(step.output_schema or {}) if one not in returned]
            if lacks:
                raise DefinitionError(
                    f"{where} {step.name!r}: its output has to have {', '.join(map(repr, lacks))}, "
                    f"and the saga {name!r} has no such step.",
                    hint=guess(lacks[0], returned) or listed(returned),
                )
            pivot = sub_saga.definition.pivot
            stays = isinstance(step.compensation, NothingToUndo) or step.pivot
            last = step.name in definition.beyond_pivot or not definition.successors[step.name]
            if pivot is not None and not (stays or last):
                raise DefinitionError(
                    f"{where} {step.name!r}: the saga {name!r} has a pivot, {pivot.name!r}, and "
                    "cannot be undone once it has completed; but a later step may fail.",
                    hint="Make the step the last one or the pivot, or say "
                    "compensation=NOTHING_TO_UNDO.",
                )

    def _check_circles(self) -> None:
        """Check that no two sagas have each other below them and limit how many are in flight.

        All places of each could be held by sagas that wait for one of the other.
        """
        below = {
            name: tuple(
                step.action.name
                for step in saga.definition.steps
                if isinstance(step.action, SubSaga)
            )
            for name, saga in self._sagas.items()
        }
        reached = {name: reachable(below, name) for name in below}
        for name, other in combinations(sorted(below), 2):
            both = other in reached[name] and name in reached[other]
            if both and all(_has_places(self._sagas[one].definition) for one in (name, other)):
                raise DefinitionError(
                    f"Sagas {name!r} and {other!r} are sub-sagas of each other, and both limit "
                    "how many are in flight: they could wait for each other for ever.",
                    hint="Take the in_flight of one of them away, or say a rate instead.",
                )

    def __iter__(self) -> Iterator[Saga]:
        """Every definition in code, by name and version."""
        return iter(saga for _, saga in sorted(self._versions.items(), key=lambda item: item[0]))

    def newest(self, name: str) -> Saga:
        """The newest version of a saga.

        Raises:
            UnknownSaga: None has that name; names the nearest ones.
        """
        saga = self._sagas.get(name)
        if saga is None:
            hint = guess(name, self._sagas) or listed(self._sagas)
            raise UnknownSaga(
                f"There is no saga named {name!r}.",
                hint=f"{hint} `saga definitions` lists them; SAGA_DEFINITIONS names their modules.",
            )
        return saga

    def find(self, name: str) -> Saga | None:
        """The newest version of a saga in code, if there is one."""
        return self._sagas.get(name)

    def starting_on(self, event: str) -> list[Saga]:
        """The newest versions of the sagas that an event starts, by name."""
        found = [saga for saga in self._sagas.values() if event_of(saga) == event]
        return sorted(found, key=lambda saga: saga.name)

    def events(self) -> frozenset[str]:
        """Names of the events that start a saga."""
        return frozenset(filter(None, map(event_of, self._sagas.values())))

    def keep(self, store: Store, now: datetime, saga: Saga | None = None) -> None:
        """Write definitions to the store, so that their sagas can finish without this code.

        Args:
            store: Where to.
            now: When.
            saga: Just this one; by default all.

        Raises:
            DefinitionChanged: One differs from the stored copy of the same version.
        """
        for one in [saga] if saga else self._versions.values():
            identity = (one.name, one.version)
            if identity not in self._kept:
                store.put_definition(one.definition, now)
                self._kept.add(identity)
                self._pinned[identity] = one.definition

    def pinned(self, store: Store, name: str, version: int) -> Definition | None:
        """The definition that a saga started with, from the store."""
        identity = (name, version)
        if identity not in self._pinned:
            stored = store.definition(name, version)
            if stored is None:
                return None
            self._pinned[identity] = stored
        return self._pinned[identity]

    def known(self, store: Store) -> list[Definition]:
        """Definitions in the store and in code, by name and version; of both the stored one."""
        in_code = {identity: saga.definition for identity, saga in self._versions.items()}
        stored = {(one.name, one.version): one for one in store.definitions()}
        return [one for _, one in sorted({**in_code, **stored}.items())]


def _has_places(definition: Definition) -> bool:
    """Whether a limit of places stands in the way of a saga, or of a sub-saga of it."""
    limits = [definition.limit, *(step.limit for step in definition.sub_sagas)]
    return any(limit is not None and limit.in_flight is not None for limit in limits)


def _check_bounds(definition: Definition, bounds: Bounds) -> None:
    problems = bounds_problems(definition, bounds)
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise DefinitionError(
            f"Saga {definition.name!r} version {definition.version} is too large:{listed}",
            problems=tuple(problems),
            hint="Split it with sub-sagas, or raise the setting.",
        )
