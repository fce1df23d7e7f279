"""The logs themselves: whole, of one launch each, and such as a run can have written."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from sweeper.evidence.record import LoggedRun
from sweeper.evidence.rules import (
    LIMIT_S,
    Context,
    Said,
    failed,
    not_said,
    passed,
    rule,
    warned,
)
from sweeper.logreader import Lines

STAMP = re.compile(r"^\[?(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)")
RESUMED = re.compile(
    r"^(?:\[[^\]]{0,40}\] *)?(?:resum(?:ed|ing)\b|load(?:ed|ing) checkpoint\b|restor(?:ed|ing) )",
    re.IGNORECASE,
)
TRAIN_LOSS = re.compile(r"\b(\d+)/\d+\b.{0,20}?\btrain_loss[:=]\s*(\d+\.\d+)")
MOST_STAMPS = 5_000
LEAST_STAMPS = 12  # of which equal gaps between all lines of two logs are no chance
LEAST_INTERVALS = 5
ENDED = re.compile(r"wall|cap|iterations|max_steps|time|limit")
SHORT = 0.8  # of the time limit: who stops earlier left something unused
# A model trained in ten minutes is about as good on what it has not seen: in public logs the last
# training loss is within a fifth of the loss on the validation set.
LOSS_RATIO = 0.6
LATE = 0.5  # of the steps: an earlier training loss says nothing of the end


@rule(
    "log-complete",
    "Each log holds a whole run that ended as planned, with a finite score",
    source="What hurt: preemption before the last log line, logs lost",
    advice="Add the whole log; a run that ended early is to be run again.",
)
def log_complete(context: Context) -> Iterator[Said]:
    if not context.record.counted:
        yield failed("no run that counts: no log has a final score")
    for run in context.record.counted:
        reason, steps = run.facts.stop_reason, run.facts.steps
        if run.val_bpb is None or not 0 < run.val_bpb < float("inf"):
            yield failed(f"no finite final score: {run.val_bpb}", run, "val_bpb")
        elif reason is None:
            yield not_said(run, "stop_reason", "why training ended")
        elif not ENDED.search(reason):
            yield warned(f"training ended by {reason}", run, "stop_reason")
        elif _left_unused(run):
            spent = (run.facts.train_time_ms or 0) / 1000
            yield warned(f"{reason} at step {steps} after {spent:.0f} s", run, "stop_reason")
        else:
            yield passed(f"{reason} at step {steps}", run, "stop_reason")


def _left_unused(run: LoggedRun) -> bool:
    """Whether the clock ended training long before the limit."""
    spent = run.facts.train_time_ms
    by_clock = run.facts.stop_reason not in ("iterations", "max_steps")
    return by_clock and spent is not None and spent / 1000 < SHORT * LIMIT_S


@rule(
    "one-launch",
    "Each log is of one launch, from its start to its end",
    source="Failures: selected seeds; What hurt: preemption",
    advice="Give every run a log of its own, and say which were resumed.",
)
def one_launch(context: Context) -> Iterator[Said]:
    for run in context.record.counted:
        if run.of > 1:
            yield warned(f"run {run.number} of {run.of} in the file", run)
    for path in dict.fromkeys(run.path for run in context.record.counted):
        line = next((n for n, text in _numbered(path) if RESUMED.match(text)), None)
        if line is None:
            yield passed("no run in it was resumed", path)
        else:
            yield warned("a run was resumed from a checkpoint", path, line)


@rule(
    "plausible",
    "The logs are such as runs write them",
    source="Failures: implausible logs",
    advice="Show the original logs: what a reader cannot believe is run again.",
)
def plausible(context: Context) -> Iterator[Said]:
    runs = context.record.counted
    stamps = {run.path: _stamps(run.path) for run in runs}
    for run in runs:
        yield from _contradictions(run, stamps[run.path])
    yield from _equal_timing(runs, stamps)
    if runs:
        yield passed("times and losses hold together")


def _contradictions(run: LoggedRun, stamps: Sequence[float]) -> Iterator[Said]:
    """Where a log's own lines exclude each other."""
    train, evaluation = run.facts.train_time_ms, run.facts.eval_time_s
    claimed = (train or 0) / 1000 + (evaluation or 0)
    if len(stamps) >= LEAST_STAMPS and run.of == 1:
        took = max(stamps) - min(stamps)
        if claimed > took + 60:
            text = f"{claimed:.0f} s of training and evaluation, but its lines span {took:.0f} s"
            yield failed(text, run, "eval_time_s")
    steps, spent = run.facts.steps, run.facts.train_time_ms
    per_step = run.facts.step_avg_ms
    if steps and spent and per_step and not 0.9 < spent / steps / per_step < 1.1:
        text = f"{steps:,} steps of {per_step:.1f} ms are not {spent / 1000:.0f} s"
        yield warned(text, run, "train_time_ms")
    yield from _losses(run)


def _losses(run: LoggedRun) -> Iterator[Said]:
    """Where training and validation losses are too far apart to be of one model and one text."""
    last = _last_train_loss(run) if run.of == 1 else None
    before, after = run.facts.prequant_val_loss, run.val_loss
    if last is None:
        return
    # What adapts at evaluation may score far better than it was trained, but never worse.
    least = min(last / loss for loss in (before, after) if loss) if before or after else 1.0
    most = last / before if before else 1.0
    if least < LOSS_RATIO or most > 1 / LOSS_RATIO:
        text = f"train_loss ends at {last:.4f}, val_loss is {before or after:.4f}"
        yield warned(f"{text}: too far apart for one text", run, "val_loss")


def _equal_timing(runs: Sequence[LoggedRun], stamps: dict[Path, list[float]]) -> Iterator[Said]:
    """Logs that tick alike to the second, or to the millisecond, are of one run or of none."""
    for place, run in enumerate(runs):
        for other in runs[:place]:
            mine, theirs = _ticks(stamps[run.path]), _ticks(stamps[other.path])
            intervals = run.facts.intervals, other.facts.intervals
            if len(mine) >= LEAST_STAMPS and mine == theirs and run.path != other.path:
                text = f"the same seconds between all {len(mine)} lines as in {other.label}"
                yield failed(text, run)
            elif len(intervals[0]) >= LEAST_INTERVALS and intervals[0] == intervals[1]:
                text = f"the same milliseconds in all {len(intervals[0])} intervals as in"
                yield failed(f"{text} {other.label}", run)


def _ticks(stamps: Sequence[float]) -> list[float]:
    return [b - a for a, b in itertools.pairwise(stamps)]


def _stamps(path: Path) -> list[float]:
    """The times that a log's lines begin with, in seconds; empty where they begin with none."""
    found: list[float] = []
    for _, text in _numbered(path):
        stamp = STAMP.match(text)
        if stamp is not None and len(found) < MOST_STAMPS:
            try:
                found.append(datetime.fromisoformat(f"{stamp[1]} {stamp[2]}").timestamp())
            except ValueError:
                continue
    return found


def _last_train_loss(run: LoggedRun) -> float | None:
    """The last training loss that the log has, where it is of the later half."""
    last, step = None, 0
    for _, text in _numbered(run.path):
        if "train_loss" in text and (found := TRAIN_LOSS.search(text)) is not None:
            step, last = int(found[1]), float(found[2])
    return last if run.facts.steps and step >= LATE * run.facts.steps else None


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    return enumerate(Lines(path).read(whole=True), start=1)
