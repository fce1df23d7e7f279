"""The claimed scores against the logs: the headline, each seed's, and their spread."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sweeper.evidence.checks_common import claims_by_run, off_by_one_digit, runs_of
from sweeper.evidence.choose import seed_in_name
from sweeper.evidence.claims import (
    STD,
    STD_POPULATION,
    VAL_BPB,
    of_another,
    read_text,
    unread,
)
from sweeper.evidence.readme import read_readme
from sweeper.evidence.record import Claimed, LoggedRun, Record
from sweeper.evidence.rules import (
    Context,
    Said,
    Status,
    failed,
    not_said,
    passed,
    rule,
    unknown,
    warned,
)
from sweeper.logreader import Lines
from sweeper.scores import Kind

FEWEST_DIGITS = 4  # of a claimed score: with fewer it says less than the spread of seeds
ROUNDED = 1e-4  # by which a score may differ from itself with four digits
STEP = re.compile(r"^(?:step:)?\d+(?:/\d+)? +val_loss")  # a validation during training


@rule(
    "headline",
    "The claimed score is the mean of the runs that count",
    source="Failures: headline ≠ logs, stale log of another model",
    advice="Claim the mean over all counted runs of the score of the quantised model, as logged.",
)
def headline(context: Context) -> Iterator[Said]:
    record, claim = context.record, context.record.claim
    if not record.scores or not all(map(math.isfinite, record.scores)):
        yield unknown("no mean: a run that counts has no finite score, or none counts")
        return
    mean = statistics.fmean(record.scores)
    if claim.val_bpb is None:
        names = unread(claim.fields, r"bp[bp]|score", VAL_BPB)
        not_read = f" (not read: {', '.join(names)})" if names else ""
        yield unknown(f"no val_bpb is claimed{not_read}; the runs' mean is {mean:.8f}")
    else:
        yield _mean(claim.val_bpb, mean, record)
    table = results_of(record)
    in_table = {f"README.md:{line}" for line in table.lines}
    opening = [each for each in claim.readme if each.where not in in_table]
    readme = [_mean(each, mean, record) for each in opening]
    agree = any(status is Status.PASS for status, _ in readme)
    lines = read_text(record.readme).splitlines()
    for each, (status, evidence) in zip(opening, readme, strict=True):
        # Further numbers may be of something else; one of them must be the mean.
        spare = agree or of_another(_before(each, lines))
        yield warned(evidence.text, each) if spare and status is Status.FAIL else (status, evidence)
    for each in table.means:
        yield _mean(each, mean, record)


def _before(claim: Claimed, lines: Sequence[str]) -> str:
    """The words before a number in its line of README.md."""
    line = int(claim.where.rpartition(":")[2])
    return lines[line - 1].partition(claim.text)[0] if line <= len(lines) else ""


@dataclass(frozen=True, kw_only=True)
class Results:
    """What README.md claims in its table of results; `stds` are those of its opening as well."""

    seeds: Mapping[int, Claimed]
    means: tuple[Claimed, ...]
    stds: tuple[Claimed, ...]
    lines: range


def results_of(record: Record) -> Results:
    """README.md's table of results, by the column that is the record's score."""
    scores: dict[int, list[float]] = {seed: [] for seed in record.claim.seeds}
    for run in record.runs:
        seed = run.seed if run.seed is not None else seed_in_name(run.path.stem)
        if seed is not None and run.val_bpb is not None:
            scores.setdefault(seed, []).append(run.val_bpb)
    readme = read_readme(record.readme, scores)
    column = readme.column(scores)
    if column is None:
        return Results(seeds={}, means=(), stds=readme.stds, lines=readme.lines)
    stds = (*readme.stds, *column.stds)
    return Results(seeds=column.seeds, means=column.means, stds=stds, lines=readme.lines)


def _mean(claim: Claimed, mean: float, record: Record) -> Said:
    scores = record.scores
    n = len(scores)
    text = f"{claim.text} claimed, the mean of {n} runs is {mean:.8f}"
    if claim.agrees(mean):
        coarse = claim.digits < FEWEST_DIGITS
        return warned(f"{text}: too coarse to check", claim) if coarse else passed(text, claim)
    if claim.digits >= FEWEST_DIGITS and off_by_one_digit(claim, mean):
        return warned(f"{text}: as if the runs' scores had been rounded before", claim)
    text += f" ({claim.value - mean:+.8f})"
    if n > 1 and claim.agrees(min(scores)):
        return failed(f"{text}: it is the best of {n} runs", claim)
    if n > 1 and any(claim.agrees(score) for score in scores):
        return failed(f"{text}: it is one of {n} runs", claim)
    for name, values in _others(record):
        if any(claim.agrees(value) for value in (statistics.fmean(values), *values)):
            return failed(f"{text}: it is {name}", claim)
    best = [run for run in record.excluded if run.val_bpb and claim.agrees(run.val_bpb)]
    if best:
        return failed(f"{text}: it is that of {best[0].label}, which does not count", claim)
    return failed(text + _during_training(claim, record), claim)


def _during_training(claim: Claimed, record: Record) -> str:
    """Where a log has the claimed score while the model trains, before it is quantised."""
    for path in dict.fromkeys(run.path for run in record.counted):
        for number, line in enumerate(Lines(path).read(whole=True), start=1):
            if STEP.match(line) and claim.text in re.split(r"[^\d.]+", line):
                return f": it is the score before quantisation, {path.name}:{number}"
    return ""


def _others(record: Record) -> Iterator[tuple[str, list[float]]]:
    """What else a claim may be of: scores in the logs that are not the artifact's."""
    for name, fact in (
        ("the score before quantisation", "prequant_val_bpb"),
        ("the score of plain windows", "quant_val_bpb"),
    ):
        values: list[float | None] = [getattr(run.facts, fact) for run in record.counted]
        known = [value for value in values if value is not None]
        if known and len(known) == len(values):
            yield name, known


@rule(
    "headline-loss",
    "The claimed val_loss is the mean of the runs that count",
    source="Failures: headline ≠ logs",
    advice="Claim the mean val_loss of the same runs and the same metric as val_bpb.",
)
def headline_loss(context: Context) -> Iterator[Said]:
    record, claim = context.record, context.record.claim.val_loss
    if claim is None:
        yield passed("no val_loss is claimed")
        return
    losses = [run.val_loss for run in record.counted if run.val_loss is not None]
    if len(losses) < len(record.counted) or not losses:
        yield unknown("the logs do not give every run's val_loss", claim)
        return
    mean = statistics.fmean(losses)
    text = f"val_loss {claim.text} claimed, the runs' mean is {mean:.8f}"
    if claim.agrees(mean):
        yield passed(text, claim)
    elif off_by_one_digit(claim, mean):
        yield warned(f"{text}: as if it had been rounded before", claim)
    elif record.scores and claim.agrees(statistics.fmean(record.scores)):
        yield failed(f"{text}: it is the val_bpb", claim)
    elif len(losses) > 1 and any(claim.agrees(loss) for loss in losses):
        yield failed(f"{text}: it is that of one run", claim)
    else:
        yield failed(text, claim)


@rule(
    "seed-scores",
    "Each seed's claimed score is that of its log",
    source="Failures: headline ≠ logs, swapped logs",
    advice="Correct the score, or add the log that it is from.",
)
def seed_scores(context: Context) -> Iterator[Said]:
    held = False
    for key, claims, runs in claims_by_run(context.record):
        of: tuple[tuple[str, Callable[[LoggedRun], float | None]], ...] = (
            ("val_bpb", lambda run: run.val_bpb),
            ("val_loss", lambda run: run.val_loss),
        )
        for name, value in of:
            if (claim := claims.get(name)) is None:
                continue
            held = True
            mine = [each for run in runs if (each := value(run)) is not None]
            others = [run for run in context.record.counted if run not in runs]
            yield _seed_score(claim, key, name, mine, [(run, value(run)) for run in others])
    for seed, of_readme in results_of(context.record).seeds.items():
        held = True
        runs = runs_of(context.record, seed)
        mine = [run.val_bpb for run in runs if run.val_bpb is not None]
        rest = [(run, run.val_bpb) for run in context.record.counted if run not in runs]
        yield _seed_score(of_readme, f"seed {seed}", "val_bpb", mine, rest)
    if not held:
        yield passed("no scores are claimed seed by seed")


def _seed_score(
    claim: Claimed,
    key: str,
    name: str,
    mine: list[float],
    others: list[tuple[LoggedRun, float | None]],
) -> Said:
    text = f"{name} {claim.text} claimed for {key}"
    swapped = [run for run, score in others if score is not None and claim.agrees(score)]
    if not mine:
        return unknown(f"{text}, which no log that counts has", claim)
    near = min(mine, key=lambda score: abs(score - claim.value))
    if claim.agrees(near):
        return passed(f"{text}, as logged", claim)
    text = f"{text}, its log says {near:.8f} ({claim.value - near:+.8f})"
    if off_by_one_digit(claim, near):
        return warned(f"{text}: rounded otherwise", claim)
    if swapped:
        return failed(f"{text}: it is the score of {swapped[0].label}", claim)
    return failed(text, claim)


@rule(
    "spread",
    "The claimed standard deviation is that of the sample",
    source="Failures: std",
    advice="Claim the sample standard deviation: n − 1 below the line, over all counted runs.",
)
def spread(context: Context) -> Iterator[Said]:
    record, claim = context.record, context.record.claim
    readme = results_of(record).stds
    if claim.val_bpb_std is None and claim.val_bpb_std_population is None and not readme:
        names = unread(claim.fields, r"(?:^|_)std|deviation|sigma", (*STD, *STD_POPULATION))
        if names:
            yield unknown(f"no standard deviation is claimed; not read: {', '.join(names)}")
        else:
            yield passed("no standard deviation is claimed")
        return
    if not all(map(math.isfinite, record.scores)):
        yield unknown("a run that counts has no finite score")
        return
    sample, population = record.summary.std, record.std_population
    if sample is None or population is None:
        yield unknown(f"{len(record.scores)} scored runs have no standard deviation")
        return
    if claim.val_bpb_std is not None:
        yield _spread(claim.val_bpb_std, sample, population, record)
    for each in readme:
        yield _spread(each, sample, population, record)
    if (named := claim.val_bpb_std_population) is not None:
        text = f"{named.text} claimed as the population's, it is {population:.8f}"
        yield (passed if named.agrees(population) else failed)(text, named)


def _spread(claim: Claimed, sample: float, population: float, record: Record) -> Said:
    text = f"{claim.text} claimed, that of the sample is {sample:.8f}"
    if claim.agrees(sample):
        coarse = claim.agrees(population) and not claim.where.startswith("README.md")
        text += ": too coarse to tell it from the population's" if coarse else ""
        return (warned if coarse else passed)(text, claim)
    digits = {4, *(c["val_bpb"].digits for c in record.claim.per_seed.values() if "val_bpb" in c)}
    if any(claim.agrees(each) for each in _of_rounded(record.scores, digits)):
        return warned(f"{text}: it is that of the rounded scores", claim)
    if claim.agrees(population):
        return failed(f"{text}: it is the population's, {population:.8f}", claim)
    return failed(f"{text}, that of the population {population:.8f}: it is neither", claim)


def _of_rounded(scores: tuple[float, ...], digits: set[int]) -> Iterator[float]:
    for places in digits:
        rounded = [round(score, places) for score in scores]
        yield statistics.stdev(rounded)


@rule(
    "metric",
    "All runs are scored by the same metric, and by the one that is claimed",
    source="Rules: evaluation conditions; Failures: headline ≠ logs",
    advice="Score every run the same way, and say which of a log's final metrics the claim is.",
)
def metric(context: Context) -> Iterator[Said]:
    record = context.record
    if len(record.metrics) > 1:
        yield failed(f"scored by {' and '.join(record.metrics)}, which have no common mean")
    for run in record.counted:
        if run.headline is None:
            yield not_said(run, "val_bpb", "the final score")
        elif run.headline != run.facts.headline and run.facts.headline is not None:
            text = f"the claim is {run.headline}; the log also has {run.facts.headline}"
            yield warned(text, run, "val_bpb")
        elif _is_before_quantisation(run):
            text = f"{run.headline} {run.val_bpb_text} is the score before quantisation; after it"
            yield failed(f"{text} the log has {run.facts.quant_val_bpb:g}", run, "val_bpb")
        else:
            yield passed(f"{run.headline} {run.val_bpb_text}", run, "val_bpb")


def _is_before_quantisation(run: LoggedRun) -> bool:
    """Whether a log sums up the score of the model that it then quantised, and that lost by it."""
    before, after = run.facts.prequant_val_bpb, run.facts.quant_val_bpb
    if run.metric != Kind.SUMMARY.value or before is None or after is None or run.val_bpb is None:
        return False
    return abs(run.val_bpb - before) < ROUNDED <= after - run.val_bpb
