"""All shapes that a saga of a few steps can have: orders of steps, and places for the pivot."""

from collections.abc import Iterator
from itertools import combinations, permutations, product
from typing import NamedTuple

Edges = frozenset[tuple[int, int]]


class Shape(NamedTuple):
    """What comes after what, by number, and which step is the pivot.

    Attributes:
        edges: Pairs of a step and one that names it in its `after`.
        pivot: None where there is none.
    """

    size: int
    edges: Edges
    pivot: int | None

    def after(self, step: int) -> list[int]:
        """What a step names in its `after`."""
        return sorted(one for one, other in self.edges if other == step)

    def beyond(self, step: int) -> bool:
        """Whether a step comes after the pivot."""
        return self.pivot is not None and (self.pivot, step) in closure(self.edges)


def closure(edges: Edges) -> Edges:
    """What comes after what at any distance."""
    found = set(edges)
    while more := {(a, d) for a, b in found for c, d in found if b == c} - found:
        found |= more
    return frozenset(found)


def graphs(size: int, *, redundant: bool) -> Iterator[Edges]:
    """Every acyclic graph of so many steps; of those that differ in names alone the first.

    Args:
        size: Number of steps.
        redundant: Also those with an edge that follows from others, as a ─► c beside a ─► b ─► c.
    """
    pairs = [*combinations(range(size), 2)]
    seen = set()
    for chosen in product((False, True), repeat=len(pairs)):
        edges = frozenset(pair for pair, there in zip(pairs, chosen, strict=True) if there)
        all_edges = closure(edges)
        follows = any(
            (a, b) in all_edges and (b, c) in all_edges for a, c in edges for b in range(size)
        )
        if follows and not redundant:
            continue
        name = _name(size, edges, None)
        if name not in seen:
            seen.add(name)
            yield edges


def shapes(size: int, *, redundant: bool = False) -> Iterator[Shape]:
    """Every graph with the pivot at every place, and without one.

    A step has to be before or after the pivot: where one is neither, there is no such saga.
    """
    for edges in graphs(size, redundant=redundant):
        seen = set()
        ordered = closure(edges)
        for pivot in (None, *range(size)):
            beside = [
                step
                for step in range(size)
                if step != pivot and not {(step, pivot), (pivot, step)} & ordered
            ]
            name = _name(size, edges, pivot)
            if name not in seen and (pivot is None or not beside):
                seen.add(name)
                yield Shape(size, edges, pivot)


def _name(size: int, edges: Edges, pivot: int | None) -> tuple[object, ...]:
    """The same for two that differ in the names of their steps alone."""
    return min(
        (
            tuple(sorted((names[a], names[b]) for a, b in edges)),
            -1 if pivot is None else names[pivot],
        )
        for names in permutations(range(size))
    )
