"""Seconds: of training, of calibration within it, and of evaluation, all passes together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sweeper.evidence.checks_common import claims_by_run
from sweeper.evidence.record import Claimed, LoggedRun
from sweeper.evidence.rules import (
    LIMIT_S,
    TOLERANCE_S,
    Context,
    Said,
    failed,
    not_said,
    passed,
    rule,
    unknown,
    warned,
)
from sweeper.scores import Kind, Score, seconds_of, timed_passes

CLAIM_TOLERANCE = 0.01  # by which a claimed time may differ from the log's
NOT_OF_THE_SCORE = (Kind.PREQUANT, Kind.VARIANT)  # passes that are only shown
EVAL_TIMES = {
    "eval_time_s": 1.0,
    "eval_time_seconds": 1.0,
    "eval_seconds": 1.0,
    "eval_time_ms_max": 1e-3,
    "eval_time_ms": 1e-3,
    "eval_time_max_s": 1.0,
}
TRAIN_TIMES = {
    "train_time_s": 1.0,
    "train_time_seconds": 1.0,
    "train_seconds": 1.0,
    "training_time_seconds": 1.0,
    "training_time_s": 1.0,
    "train_wallclock_s": 1.0,
    "train_time_ms": 1e-3,
    "training_time_ms": 1e-3,
}
# Objects in submission.json that are of something else than the record.
NOT_ITS_OWN = re.compile(r"baseline|comparison|ablation|reference|delta")


@rule(
    "train-time",
    "Training takes 600 s at most",
    source="Rules: training; Failures: training over 600 s",
    advice="Stop training so early that its last step ends before 600 s.",
)
def train_time(context: Context) -> Iterator[Said]:
    for run in context.record.counted:
        spent = run.facts.train_time_ms
        if spent is None:
            yield not_said(run, "train_time_ms", "the training time")
        else:
            yield _limit(spent / 1000, "of training", run, "train_time_ms")
    for _, claims, _ in claims_by_run(context.record):
        if (claim := claims.get("train_time_s")) is not None:
            yield _limit(claim.value, "of training claimed", claim, "")
    for claim in _claimed_in(context.record.claim.fields, TRAIN_TIMES):
        yield _limit(claim.value, "of training claimed", claim, "")


def _claimed_in(fields: Mapping[str, Any], names: Mapping[str, float]) -> Iterator[Claimed]:
    """The times that submission.json claims of the whole record, or of a part of it, in seconds."""
    below = [
        (f"{key}.", value)
        for key, value in fields.items()
        if isinstance(value, Mapping) and NOT_ITS_OWN.search(key) is None
    ]
    for prefix, part in [("", fields), *below]:
        for name, unit in names.items():
            value = part.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                seconds = float(value) * unit
                where = f"submission.json: {prefix}{name}"
                yield Claimed(value=seconds, text=f"{seconds:g}", where=where)


@rule(
    "calibration-time",
    "Training and calibration together take 600 s at most",
    source="Rules: training, GPTQ calibration inside; Failures: train + Hessian time",
    advice="Reserve the seconds of calibration: training and Hessians share the 600 s.",
)
def calibration_time(context: Context) -> Iterator[Said]:
    for run in context.record.counted:
        spent, more = run.facts.train_time_ms, run.facts.hessian_time_s
        if more is None:
            yield not_said(run, "hessian_time_s", "the time of calibration")
        elif spent is None:
            yield not_said(run, "train_time_ms", "the training time")
        elif spent / 1000 > LIMIT_S + TOLERANCE_S:
            yield warned("training alone takes too long: see train-time", run, "train_time_ms")
        else:
            what = f"of training ({spent / 1000:.3f}) and calibration ({more:g})"
            yield _limit(spent / 1000 + more, what, run, "hessian_time_s")


def _limit(seconds: float, what: str, run: LoggedRun | Claimed, fact: str) -> Said:
    text = f"{seconds:.3f} s {what}"
    if seconds <= LIMIT_S:
        return passed(text, run, fact)
    over = f"{text}: {seconds - LIMIT_S:.3f} s over"
    status = warned if seconds <= LIMIT_S + TOLERANCE_S else failed
    return status(over, run, fact)


@rule(
    "eval-time",
    "Evaluation takes 600 s at most, all passes together",
    source="Rules: evaluation; Failures: evaluation over 600 s",
    advice="Leave out passes that the score does not need, or make them faster.",
)
def eval_time(context: Context) -> Iterator[Said]:
    for run in context.record.counted:
        yield _evaluation(run)


def _evaluation(run: LoggedRun) -> Said:
    seconds = eval_seconds(run)
    if seconds is None:
        return not_said(run, "eval_time_s", "the time of evaluation")
    text = f"{seconds:.1f} s of evaluation ({_passes(run)})"
    if seconds > LIMIT_S:
        return failed(f"{text}: {seconds - LIMIT_S:.1f} s over", run, "eval_time_s")
    if _of_the_score(run) is None and not _is_summed(run):
        return unknown(f"{text}, and the pass of the score, {run.headline}, is not timed", run)
    return passed(text, run, "eval_time_s")


def eval_seconds(run: LoggedRun) -> float | None:
    """The time of the passes after quantisation, without those that are only shown beside.

    As the log sums it up, where that is more than what it times one by one.
    """
    known = [score.eval_time_s or 0.0 for score in _timed(run)]
    total = run.facts.eval_time_s if _is_summed(run) else None
    times = [*([sum(known)] if known else []), *([total] if total is not None else [])]
    return max(times, default=None)


def _timed(run: LoggedRun) -> list[Score]:
    """The passes after quantisation that are timed, without variants of the score."""
    return [each for each in timed_passes(run.facts.scores) if each.kind not in NOT_OF_THE_SCORE]


def _is_summed(run: LoggedRun) -> bool:
    """Whether the log gives the time of evaluation itself: then it is no sum of timed passes."""
    added = sum(score.eval_time_s or 0.0 for score in timed_passes(run.facts.scores))
    total = run.facts.eval_time_s
    return total is not None and abs(total - added) > 1e-6


def _of_the_score(run: LoggedRun) -> float | None:
    """The time of the pass that the run's score is of."""
    score = next((score for score in run.facts.scores if score.name == run.headline), None)
    return None if score is None else seconds_of(score, run.facts.scores)


def _passes(run: LoggedRun) -> str:
    timed = [f"{score.name} {score.eval_time_s:.1f}" for score in _timed(run)]
    return " + ".join(timed) or "as the log sums it up"


@rule(
    "eval-time-claimed",
    "The evaluation times claimed are those of the logs",
    source="Failures: process wall time differs from the script's timer",
    advice="Say which clock a time is of; the limit is on the whole evaluation, loading included.",
)
def eval_time_claimed(context: Context) -> Iterator[Said]:
    claimed = False
    for _, claims, runs in claims_by_run(context.record):
        claim = claims.get("eval_time_s")
        times = [seconds for run in runs for seconds in _times(run)]
        if claim is not None:
            claimed = True
            yield _claimed_time(claim, times)
    longest = [max(_times(run), default=0.0) for run in context.record.counted]
    every = [each for run in context.record.counted for each in _times(run)]
    for claim in _claimed_in(context.record.claim.fields, EVAL_TIMES):
        claimed = True
        yield _claimed_time(claim, [*every, *longest])
    if not claimed:
        yield passed("no time of evaluation is claimed")


def _times(run: LoggedRun) -> list[float]:
    """The times in a log that a claim may be of: the score's own pass, and all together."""
    known = [_of_the_score(run), run.facts.eval_time_s, eval_seconds(run)]
    return [seconds for seconds in known if seconds is not None]


def _claimed_time(claim: Claimed, times: list[float]) -> Said:
    text = f"{claim.value:.1f} s of evaluation claimed"
    if claim.value > LIMIT_S:
        return failed(f"{text}, over the {LIMIT_S:.0f} s that are allowed", claim)
    if not times:
        return unknown(f"{text}, and no log says how long it took", claim)
    near = min(times, key=lambda seconds: abs(seconds - claim.value))
    if abs(near - claim.value) <= max(0.5, CLAIM_TOLERANCE * near):
        return passed(f"{text}, as logged", claim)
    return warned(f"{text}; the log times {near:.1f} s: another clock, or another run", claim)
