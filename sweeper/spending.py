"""What a search may still spend: runs, GPU-hours and dollars, with the later stages' share kept."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence

from sweeper.ledger import Ledger
from sweeper.rows import RunRow
from sweeper.spec import SweepSpec
from sweeper.standings import Standings

RunKey = tuple[int, int]  # a trial's number and a seed


def runs_left(
    spec: SweepSpec,
    runs: Mapping[RunKey, RunRow],
    stages: Sequence[Standings],
    at_work: int,
) -> int | None:
    """How many more runs the stage at work may make; None where only time or trials end it."""
    assert spec.search is not None
    rung, most = spec.rungs[at_work], spec.search.budget.runs
    left = []
    if rung.runs is not None:
        left.append(rung.runs - _made(stages[: at_work + 1], runs))
    if most is not None:
        left.append(most - len(runs) - _kept(spec, at_work))
    return max(0, min(left)) if left else None


def may_run(
    spec: SweepSpec,
    ledger: Ledger,
    runs: Mapping[RunKey, RunRow],
    stages: Sequence[Standings],
    at_work: int,
) -> bool:
    """Whether one more run of a stage is within its share and within the search's budget."""
    assert spec.search is not None
    if runs_left(spec, runs, stages, at_work) == 0:
        return False
    budget, kept = spec.search.budget, _kept(spec, at_work)
    hours = math.inf if budget.gpu_hours is None else budget.gpu_hours
    if budget.usd is not None and spec.cost is not None:
        hours = min(hours, budget.usd / spec.cost.usd_per_gpu_hour)
    if hours == math.inf:
        return True
    over, under_way = _hours_spent(ledger)
    count = sum(run.state.over for run in runs.values())
    each = over / count if count else 0.0
    ahead = (1 + kept + len(runs) - count) * each
    return over + max(ahead, under_way) <= hours


def _hours_spent(ledger: Ledger) -> tuple[float, float]:
    """GPU-hours of what has ended, and of what is under way."""
    now, stages = time.time(), ledger.stages()
    over = sum(row.gpu_seconds for row in stages)
    return over / 3600, sum(row.gpu_seconds_until(now) for row in stages) / 3600 - over / 3600


def _made(stages: Sequence[Standings], runs: Collection[RunKey]) -> int:
    """How many runs the last of these stages has made that none before it had."""
    seen: set[RunKey] = set()
    before: set[RunKey] = set()
    for stage in stages:
        before = set(seen)
        seen |= {(row.entry.trial, seed) for row in stage.rows for seed in row.runs}
    return len(seen - before)


def _kept(spec: SweepSpec, at_work: int) -> int:
    """How many runs the stages after this one are to find the means for."""
    kept = 0
    for number in range(at_work + 1, len(spec.rungs)):
        rung = spec.rungs[number]
        shared = max(
            (
                len(earlier.seeds_of(spec.seeds)) if number == at_work + 1 else 1
                for earlier in spec.rungs[:number]
                if earlier.env == rung.env and not earlier.fresh and not rung.fresh
            ),
            default=0,
        )
        new = (rung.top or 0) * max(0, len(rung.seeds_of(spec.seeds)) - shared)
        kept += new if rung.runs is None else min(new, rung.runs)
    return kept
