"""From a free slot to the first training step of a torchrun, and back: where the time goes.

`jobs.bench.scheduling --torchrun` shows it. Runs of `jobs.bench.first_step` follow one another in
one slot, by way of the real `sweeper run`; the first, which no run was before, is left out. Each
works on for a while after its step: in that time the next one's torchrun is made ahead. In half of
the sweeps it is of no use to the next run, since they take turns at two levels of torchrun's log.
"""

from __future__ import annotations

import json
import statistics
from contextlib import closing
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from jobs.bench.common import CPU, describe_device, make_table, show
from jobs.bench.driving import drive_sweep
from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import Ledger
from sweeper.rows import RunState

MIN_STARTS = 5
WORK_SECONDS = 10.0  # after the step; a run that is at work is when the next can be prepared
RANKS = (1, 2)
LEVELS = {"plain": ("ERROR", "WARNING"), "made ahead": ("WARNING",)}
SPEC = """
name = "{name}"
seeds = {seeds}

[workload]
module = "jobs.bench.first_step"

[resources]
gpus_per_run = 8
processes_per_run = {ranks}

[env]
SLEEP_SECONDS = {seconds}
"""
TRIAL = """
[[trial]]
name = "{level}"
[trial.env]
LOGLEVEL = "{level}"
"""
# What is between two stamps, in the order in which it happens.
PARTS = {
    "driver": ("free", "launched"),  # the last run's end told, judged, written; a launch written
    "guard": ("launched", "guarded"),  # by way of the slot, to a guard about to start torchrun
    "torchrun": ("guarded", "made"),  # its imports and its rendezvous
    "python": ("made", "began"),  # of a rank, behind its guard
    "import torch": ("began", "imported"),
    "ranks meet": ("imported", "met"),
    "step": ("met", "stepped"),
    "free to step": ("free", "stepped"),
    "end": ("done", "ended"),  # until nothing of the run is left
}


def bench_starts(directory: Path, repeats: int) -> dict[str, Any]:
    """All numbers: for each count of ranks, and each kind, every start's parts, in seconds."""
    starts = max(MIN_STARTS, repeats)
    rows = []
    for number, (ranks, kind) in enumerate(product(RANKS, LEVELS)):
        spec = directory / f"start{number}.toml"
        trials = "".join(TRIAL.format(level=level) for level in LEVELS[kind])
        seeds = list(range(-(-(starts + 1) // len(LEVELS[kind]))))
        text = SPEC.format(name=spec.stem, ranks=ranks, seeds=seeds, seconds=WORK_SECONDS)
        spec.write_text(text + trials)
        drive_sweep(spec, slots=1, gpus=8)
        rows.append({"ranks": ranks, "kind": kind} | read_starts(SweepDir(spec.with_suffix(""))))
    return {"machine": describe_device(CPU), "starts": starts, "rows": rows}


def read_starts(sweep: SweepDir) -> dict[str, Any]:
    """The `parts` of every start but the first, and of how many torchrun was made `ahead`.

    SystemExit when not all runs have finished.
    """
    all_stamps: list[dict[str, float]] = []
    ahead: list[bool] = []
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
        if any(run.state is not RunState.FINISHED for run in ledger.runs()):
            raise SystemExit(f"not every run has finished: {ledger.attempts()}")
        for attempt in ledger.attempts():
            end = json.loads(AttemptDir(sweep.path / attempt.path).exit.read_bytes())
            assert attempt.result is not None
            ahead.append(end.get("standby", False))
            own = {"launched": attempt.launched, "guarded": end["started"], "ended": end["ended"]}
            all_stamps.append(own | attempt.result["stamps"])
    for before, after in pairwise(all_stamps):
        after["free"] = before["ended"]
    parts = {
        part: [stamps[end] - stamps[start] for stamps in all_stamps[1:]]
        for part, (start, end) in PARTS.items()
    }
    return {"parts": parts, "ahead": sum(ahead[1:])}


def print_starts(facts: dict[str, Any]) -> None:
    """A line for each count of ranks and kind: the median of each part, in milliseconds."""
    table = make_table(["ranks", "torchrun"], [*PARTS, "at least", "ahead"])
    for row in facts["rows"]:
        parts = row["parts"]
        table.add_row(
            str(row["ranks"]),
            row["kind"],
            *(f"{1000 * statistics.median(seconds):,.0f}" for seconds in parts.values()),
            f"{1000 * min(parts['free to step']):,.0f}",
            f"{row['ahead']}/{len(parts['end'])}",
        )
    show(
        f"From a free slot to the first training step of a torchrun, in ms: medians of "
        f"{facts['starts']} starts or one more, and the quickest. {facts['machine']}",
        table,
    )
