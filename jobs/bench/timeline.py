"""When each of many runs was at work, and what that says of whoever scheduled them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One run's times in Unix seconds: `began` and `slept` are the script's own.

    `launched` is when the scheduler turned to it in its slot, `ended` when it had its result.
    """

    slot: str
    launched: float
    began: float
    slept: float
    ended: float


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """All runs of one call; `up` is when its cluster was there."""

    up: float
    runs: tuple[Timed, ...]

    @property
    def wall(self) -> float:
        """From the first launch to the last end."""
        return self.end - min(run.launched for run in self.runs)

    @property
    def wall_from_up(self) -> float:
        """From the cluster being there to the last end."""
        return self.end - self.up

    @property
    def end(self) -> float:
        return max(run.ended for run in self.runs)

    def first_and_last_fifth(self) -> list[tuple[float, float, int]]:
        """When they began and ended, by the runs' ends, and how many runs that were."""
        ends = sorted(run.ended for run in self.runs)
        count = max(1, len(ends) // 5)
        first = min(run.launched for run in self.runs)
        before = ends[-count - 1] if len(ends) > count else first
        return [(first, ends[count - 1], count), (before, ends[-1], count)]

    def pairs(self) -> list[tuple[Timed, Timed]]:
        """Each run with the next in its slot, in the order in which the next ones began."""
        slots: dict[str, list[Timed]] = {}
        for run in sorted(self.runs, key=lambda run: run.began):
            slots.setdefault(run.slot, []).append(run)
        found = [pair for runs in slots.values() for pair in pairwise(runs)]
        return sorted(found, key=lambda pair: pair[1].began)

    def gaps(self) -> list[float]:
        """Seconds from the end of each sleep to the start of the next in its slot, in order."""
        return [after.began - before.slept for before, after in self.pairs()]

    def launch_gaps(self) -> list[float]:
        """The part of it between a run's recorded end and the launch of the next."""
        return [after.launched - before.ended for before, after in self.pairs()]


def ideal_seconds(runs: int, slots: int, seconds: float) -> float:
    """What the runs would take if nothing but they took time."""
    return math.ceil(runs / slots) * seconds


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of all does not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def growth(gaps: Sequence[float]) -> float:
    """The median of the last fifth of them over that of the first; NaN of fewer than ten."""
    fifth = len(gaps) // 5
    if fifth < 2:
        return math.nan
    return statistics.median(gaps[-fifth:]) / statistics.median(gaps[:fifth])
