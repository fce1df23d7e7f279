"""How the steps of a run went by: the time between the steps that its log has, and where it lost.

Times are of training alone, as the script's own clock counts them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MOST_INTERVALS = 512
# A stall is this much slower than what is around it, and has cost more than a second.
SLOW = 1.5
LOST_MS = 1000.0
AROUND = 10


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The steps between two lines of a log: after `begin` up to `end`, in ms of training time."""

    begin: int
    end: int
    ms: float

    @property
    def step_ms(self) -> float:
        return self.ms / (self.end - self.begin)


class Pace:
    """Takes the clock at each logged step; keeps some hundred intervals, however long the run."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None
        self._intervals: list[Interval] = []

    def __copy__(self) -> Pace:
        other = Pace()
        other._last, other._intervals = self._last, self._intervals.copy()
        return other

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """In the order of the log. Between two of them there is a gap where the clock went back."""
        return tuple(self._intervals)

    def at(self, step: int, ms: float) -> None:
        """A step that the log has, and the training time up to its end.

        A step that does not come later, or a clock that went back, as after a restart, begins
        anew: what lies between is no interval.
        """
        last, self._last = self._last, (step, ms)
        if last is None or step <= last[0] or not ms >= last[1]:
            return
        self._intervals.append(Interval(begin=last[0], end=step, ms=ms - last[1]))
        if len(self._intervals) > MOST_INTERVALS:
            self._intervals = list(_halved(self._intervals))


def _halved(intervals: list[Interval]) -> Iterator[Interval]:
    """Half as many: neighbours as one; of two that are none, the one of more steps."""
    for first, second in zip(intervals[::2], intervals[1::2], strict=False):
        if first.end == second.begin:
            yield Interval(begin=first.begin, end=second.end, ms=first.ms + second.ms)
        else:
            yield max(first, second, key=lambda each: each.end - each.begin)
    if len(intervals) % 2:
        yield intervals[-1]


def stalls(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """The intervals in which time was lost.

    Such a one takes more than 1.5 times the ms per step of the median around it (ten intervals on
    either side), and more than a second longer in all than its steps should. The median is of the
    neighbours, not of the run: a run that gets slower for good, as where recurrence begins, has
    not stalled.
    """
    known = list(intervals)
    found = []
    for place, interval in enumerate(known):
        around = known[max(0, place - AROUND) : place + AROUND + 1]
        usual = statistics.median(each.step_ms for each in around)
        lost = interval.ms - usual * (interval.end - interval.begin)
        if interval.step_ms > SLOW * usual and lost > LOST_MS:
            found.append(interval)
    return tuple(found)
