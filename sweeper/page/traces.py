"""What a run says of its training, step by step: losses, learning rate, times, recurrence."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sweeper import pace
from sweeper.adapters import Interval
from sweeper.contract import Event
from sweeper.curves import read_curve
from sweeper.layout import AttemptDir, SweepDir
from sweeper.logreader import Lines, RunReader, find_logs, read_log
from sweeper.phases import number
from sweeper.rows import AttemptRow

POINTS = 240  # of a line: more cannot be seen in a picture of this size
FEWEST = 5  # intervals of which there is a median worth the name
# As the recipe and the field's scripts say that layers run again from now on.
ONSET = re.compile(
    r"^(?:recurrence:activated at step (\d{1,12})\b|layer_loop:enabled step:(\d{1,12})\b)"
)
MOST_ONSETS = 8

Points = tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One run: training loss in nats per token, validations in bits per byte, both by step.

    `rates` are the multipliers of the learning rate, `onsets` the steps from which layers run again
    (more than one where recurrence comes in stages), `intervals` the steps between two reports.
    """

    trial: str
    seed: int
    losses: Points = ()
    validations: Points = ()
    rates: Points = ()
    onsets: tuple[int, ...] = ()
    intervals: tuple[Interval, ...] = ()

    @property
    def told(self) -> bool:
        """Whether there is something to draw."""
        return bool(self.losses or self.validations or self.intervals)

    @property
    def usual_ms(self) -> float | None:
        """The median of the intervals' times a step; None where there are too few."""
        times = [each.step_ms for each in self.intervals]
        return statistics.median(times) if len(times) >= FEWEST else None

    @property
    def stalls(self) -> tuple[Interval, ...]:
        """The intervals in which time was lost, the longest first."""
        if self.usual_ms is None:
            return ()
        return tuple(sorted(pace.stalls(self.intervals), key=lambda each: -each.ms))

    @property
    def lost_ms(self) -> float:
        """What the stalls took beyond what their steps usually take."""
        usual = self.usual_ms or 0.0
        return math.fsum(each.ms - usual * (each.end - each.begin) for each in self.stalls)

    @property
    def lost_share(self) -> float:
        """The same as a share of the time of all intervals."""
        whole = math.fsum(each.ms for each in self.intervals)
        return self.lost_ms / whole if whole else 0.0


def read_traces(
    sweep: SweepDir,
    seeds: Mapping[str, Sequence[int]],
    last: Mapping[tuple[str, int], AttemptRow],
    *,
    most: int,
) -> tuple[tuple[Trace, ...], dict[tuple[str, int], str]]:
    """The traces of the first trials that have any, so many at most; why others cannot be read."""
    unread: dict[tuple[str, int], str] = {}

    def read(trial: str) -> Iterator[Trace]:
        for seed in seeds[trial]:
            try:
                yield read_trace(AttemptDir(sweep.path / last[trial, seed].path), trial, seed)
            except OSError as error:
                what = "its files" if error.filename is None else Path(error.filename).name
                unread[trial, seed] = f"{what} cannot be read: {error.strerror}"

    found = ([trace for trace in read(trial) if trace.told] for trial in seeds)
    some = islice(filter(None, found), most)
    return tuple(trace for traces in some for trace in traces), unread


def read_trace(attempt: AttemptDir, trial: str, seed: int) -> Trace:
    """The trace of an attempt, as far as it has come."""
    curve = read_curve(attempt, "")
    events = RunReader(attempt).read()
    return Trace(
        trial=trial,
        seed=seed,
        losses=thinned(dict(curve.losses)),
        validations=thinned(dict(curve.validations)),
        rates=thinned(_rates(events)),
        onsets=_onsets(attempt, events),
        intervals=_intervals(attempt, events),
    )


def thinned(values: Mapping[int, float]) -> Points:
    """Means of neighbours, as many as make POINTS of all."""
    points = sorted(values.items())
    size = math.ceil(len(points) / POINTS) or 1
    groups = [points[begin : begin + size] for begin in range(0, len(points), size)]
    return tuple((group[-1][0], math.fsum(v for _, v in group) / len(group)) for group in groups)


def _rates(events: Iterable[Event]) -> dict[int, float]:
    """Multipliers by step; of a step that was done again the last one."""
    return {
        event["step"]: rate
        for event in events
        if event["kind"] == "step"
        and isinstance(event.get("step"), int)
        and (rate := number(event.get("lr_mul"))) is not None
    }


def _intervals(attempt: AttemptDir, events: Sequence[Event]) -> tuple[Interval, ...]:
    """By the run's own clock; what a resumed run did again counts once, as it was done last."""
    if not _writes_events(attempt):
        # The reports of a script may be rounded: what its log can tell, its reader knows.
        return next((read_log(path).intervals for path in find_logs(attempt)), ())
    times: dict[int, float] = {}
    last = 0
    for event in events:
        step, spent = event.get("step"), number(event.get("train_time_ms"))
        if event["kind"] != "step" or not isinstance(step, int) or spent is None:
            continue
        if step <= last:
            times = {done: ms for done, ms in times.items() if done < step}
        times[step], last = spent, step
    ends = sorted(times.items())
    return tuple(
        Interval(begin=begin, end=end, ms=until - since)
        for (begin, since), (end, until) in zip([(0, 0.0), *ends], ends, strict=False)
        if end > begin and until >= since
    )


def _writes_events(attempt: AttemptDir) -> bool:
    try:
        return attempt.events.stat().st_size > 0
    except OSError:
        return False


def _onsets(attempt: AttemptDir, events: Iterable[Event]) -> tuple[int, ...]:
    """As the log says them; else the step that the settings name, once it was reached."""
    said = {step for path in find_logs(attempt)[:1] for step in _said(path)}
    if said:
        return tuple(sorted(said))
    configs = [event["config"] for event in events if isinstance(event.get("config"), dict)]
    if not configs or configs[-1].get("recurrence_onset") != "step":
        return ()
    start = configs[-1].get("recur_start_step")
    last = max((e["step"] for e in events if isinstance(e.get("step"), int)), default=0)
    return (start,) if isinstance(start, int) and start < last else ()


def _said(path: Path) -> list[int]:
    found = [match for line in Lines(path).read() if (match := ONSET.match(line)) is not None]
    return [int(match[1] or match[2]) for match in found[:MOST_ONSETS]]
