"""When runs will have ended, by how long those took that have."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Sequence
from typing import Protocol

from sweeper.rows import RunState

# Less of a run says nothing about its length: compiling takes a share of its own.
LEAST_FRACTION = 0.15


class Timed(Protocol):
    """What is known of one run's time."""

    @property
    def trial(self) -> str: ...
    @property
    def state(self) -> RunState: ...
    @property
    def seconds(self) -> float | None: ...
    @property
    def seconds_left(self) -> float | None: ...


class Lengths:
    """How long finished runs took: those of the same trial where there are any, else all."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}
        self._medians: dict[str | None, float] = {}  # None: of all

    def add(self, trial: str, seconds: float) -> None:
        """Take in a run that has finished."""
        self._seconds.setdefault(trial, []).append(seconds)
        self._medians.clear()

    def usual(self, trial: str) -> float | None:
        """How long a run of a trial takes; None before any run has finished."""
        if not self._seconds:
            return None
        key = trial if trial in self._seconds else None
        if key not in self._medians:
            every = [number for numbers in self._seconds.values() for number in numbers]
            self._medians[key] = statistics.median(every if key is None else self._seconds[key])
        return self._medians[key]

    def seconds_left(self, trial: str, seconds: float, fraction: float) -> float | None:
        """What a run at work will still take, a share of it being done; None without a clue."""
        usual = self.usual(trial)
        if usual is not None and seconds < usual:
            return usual - seconds
        if fraction > LEAST_FRACTION:
            return seconds / fraction - seconds
        return None if usual is None else 0.0


def sweep_seconds_left(runs: Sequence[Timed], lengths: Lengths, slots: int) -> float | None:
    """Time until the last run ends, `slots` being at work at once; None without a clue."""
    running = [run for run in runs if run.state is RunState.RUNNING]
    waiting = [run for run in runs if run.state is RunState.PENDING]
    left = [run.seconds_left for run in running if run.seconds_left is not None]
    whole = [
        run.seconds + run.seconds_left
        for run in running
        if run.seconds is not None and run.seconds_left is not None
    ]
    otherwise = statistics.median(whole) if whole else None
    if otherwise is None and lengths.usual("") is None:
        return 0.0 if runs and not running and not waiting else None
    # The slots take the waiting runs one after the other, whichever is free first.
    free = sorted((left + [0.0] * slots)[: max(slots, len(left))])
    for run in waiting:
        usual = lengths.usual(run.trial)
        heapq.heapreplace(free, free[0] + (otherwise or 0.0 if usual is None else usual))
    return max(free)
