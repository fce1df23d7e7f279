"""Which of several compromises no other beats in everything."""

from __future__ import annotations

from collections.abc import Sequence


def front_of(points: Sequence[Sequence[float]]) -> list[int]:
    """The front of each point, lower being better in every coordinate.

    0 is the Pareto front; 1 is the front once those are taken away, and so on.
    """
    fronts = [-1] * len(points)
    left = set(range(len(points)))
    front = 0
    while left:
        best = {a for a in left if not any(dominates(points[b], points[a]) for b in left)}
        for index in best:
            fronts[index] = front
        left -= best
        front += 1
    return fronts


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether `a` is as good as `b` in everything and better in something."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(
        x < y for x, y in zip(a, b, strict=True)
    )
