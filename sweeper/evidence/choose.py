"""Which of a folder's runs count, and by which of their metrics; pure decisions.

A folder's logs may hold more runs than it claims: ablations, starts that broke off, copies. Which
of them count is decided in this order, and said of each that does not:

1. A run without a final score does not count, nor does a copy of another one, nor one that was
   begun anew with the same seed in the same log.
2. Where submission.json lists scores by run, the runs that have them count (and for one whose
   score is another, the run of its seed).
3. Otherwise all count that are left, if each has a seed of its own and the same settings; else
   those whose logs are named alike (train_seed42.log, train_seed314.log). Of several such families
   it is the one whose mean is claimed, or one of whose runs is, or whose mean is nearest to the
   claim; without a claim the one with most seeds.

The score is the metric of the highest priority (sweeper/scores.py), unless the record claims
another of its final metrics to the digit, or the caller asks for one.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sweeper.evidence.claims import seed_of
from sweeper.evidence.record import Claim, Claimed, LoggedRun
from sweeper.evidence.settings import configuration
from sweeper.scores import HEADLINES, Kind, last_of

SEED_IN_NAME = re.compile(
    r"seed[_-]?(\d{1,10})(?!\d)|(?:^|[_-])s(\d{1,10})(?![^\W_])", re.IGNORECASE
)
# A number that ends a name may be a seed as well: train_1337.log; but no date, and not 8xh100.
PERHAPS_SEED = re.compile(r"(?:train|log|run)_(?!20\d{6})(\d{1,10})$", re.IGNORECASE)
ENDS_IN_NUMBER = re.compile(r"(?:_?run)?[_-]?\d+$")
CANONICAL = re.compile(r"^train_seed\d+\.log$")
EXACT = 5  # digits after the point that tell a score from all others


def seed_in_name(stem: str) -> int | None:
    """The seed that a log's name says; the last where there are several."""
    found = SEED_IN_NAME.findall(stem)
    return int("".join(found[-1])) if found else None


# ---- a run's score


def scored(run: LoggedRun, name: str | None) -> LoggedRun:
    """The run with the score of this name as its own; with none where there is no such score."""
    score = next((each for each in run.facts.scores if each.name == name), None)
    if score is None:
        return replace(
            run, val_bpb=None, val_loss=None, val_bpb_text=None, metric=None, headline=None
        )
    return replace(
        run,
        val_bpb=score.val_bpb,
        val_loss=score.val_loss,
        val_bpb_text=score.val_bpb_text,
        metric=score.kind.value,
        headline=score.name,
    )


def with_metric(run: LoggedRun, kind: Kind) -> LoggedRun:
    """The run with its last score of a kind as its own."""
    score = last_of(run.facts.scores, kind)
    return scored(run, None if score is None else score.name)


# ---- which runs count


def choose(runs: Sequence[LoggedRun], claim: Claim) -> tuple[list[LoggedRun], str]:
    """The runs, each with the reason why it does not count where it does not; and by what."""
    out: dict[int, str] = {}
    for place, run in enumerate(runs):
        if run.excluded is not None:
            out[place] = run.excluded
        elif run.val_bpb is None:
            out[place] = "no final score in the log"
        elif not math.isfinite(run.val_bpb):
            out[place] = f"its score is no finite number: {run.val_bpb_text}"
    _drop_copies(runs, out)
    _drop_superseded(runs, out)
    left = [place for place in range(len(runs)) if place not in out]
    listed = _listed(runs, left, claim)
    if listed is not None:
        why, by = "not among the runs that submission.json lists", "the runs that it lists"
        kept = listed
    else:
        kept, by = _one_family(runs, left, claim)
        why = f"not one of {by}"
    out |= {place: why for place in left if place not in kept}
    judged = [replace(run, excluded=out.get(place)) for place, run in enumerate(runs)]
    return judged, by


def _drop_copies(runs: Sequence[LoggedRun], out: dict[int, str]) -> None:
    """Of the same run in several places one counts: whose name has the seed, else the first."""
    groups: dict[object, list[int]] = {}
    for place, run in enumerate(runs):
        if place not in out:
            groups.setdefault(_identity(run), []).append(place)
    for places in groups.values():
        last = len({runs[place].path for place in places}) == 1
        kept = min(places, key=lambda place: (_plainness(runs[place].path), -place if last else 0))
        for place in places:
            if place != kept:
                out[place] = f"a copy of {runs[kept].label}"


def _plainness(path: Path) -> int:
    """0 for a log by the challenge's own name, 1 for one that names its seed, 2 for others."""
    if CANONICAL.match(path.name):
        return 0
    return 1 if seed_in_name(path.stem) is not None else 2


def _identity(run: LoggedRun) -> object:
    """What two different runs never have in common: all scores, and the time that they took."""
    scores = tuple((score.name, score.val_bpb) for score in run.facts.scores)
    return scores, run.facts.train_time_ms, run.facts.bytes_model, run.facts.steps


def _drop_superseded(runs: Sequence[LoggedRun], out: dict[int, str]) -> None:
    """Of several runs of one known seed in one log the last counts."""
    last: dict[object, int] = {}
    for place, run in enumerate(runs):
        if place in out or run.of == 1:
            continue
        if run.seed is None:  # then nothing says that it is the same one
            continue
        key = (run.path, run.seed)
        if key in last:
            out[last[key]] = "begun anew later in the same log"
        last[key] = place


def _listed(runs: Sequence[LoggedRun], left: Sequence[int], claim: Claim) -> list[int] | None:
    """The runs that a claim lists by their scores; None where most of them are not there."""
    claimed = {k: c["val_bpb"] for k, c in claim.per_seed.items() if "val_bpb" in c}
    found: dict[str, int] = {}
    for key, score in claimed.items():
        fits = [
            place
            for place in left
            if place not in found.values() and _fits(runs[place], key, score)
        ]
        if fits:
            found[key] = min(fits, key=lambda place: abs(_bpb(runs[place]) - score.value))
    if len(found) * 2 <= len(claimed) or not found:
        return None
    for key in claimed.keys() - found.keys():
        mine = [p for p in left if runs[p].seed == seed_of(key) and p not in found.values()]
        if mine:
            found[key] = min(mine, key=lambda place: abs(_bpb(runs[place]) - claimed[key].value))
    return sorted(found.values())


def _fits(run: LoggedRun, key: str, score: Claimed) -> bool:
    seed = seed_of(key)
    if seed is not None and run.seed is not None and seed != run.seed:
        return False
    return any(score.agrees(each) for each in (_bpb(run), *_finals(run)))


def _finals(run: LoggedRun) -> Iterator[float]:
    return (score.val_bpb for score in run.facts.scores if score.kind in HEADLINES)


def _bpb(run: LoggedRun) -> float:
    assert run.val_bpb is not None
    return run.val_bpb


def _one_family(
    runs: Sequence[LoggedRun], left: Sequence[int], claim: Claim
) -> tuple[list[int], str]:
    """The runs whose logs are named alike; of several such families one.

    Not by their settings: that seeds of one claim ran with different ones is for a reader to see.
    """
    families = _grouped(left, lambda place: _stem(runs[place].path))
    if len(families) <= 1:
        return list(left), "all logs are named alike"
    settings = _grouped(left, lambda place: _setting(runs[place]))
    alike = len(settings) == 1 and bool(runs[left[0]].facts.hyperparameters)
    if alike and len({runs[place].seed for place in left}) == len(left):
        return list(left), "all have the same settings"
    # Of equals the one whose logs have the challenge's own names.
    families.sort(key=lambda family: min(_plainness(runs[place].path) for place in family))
    target = _target(runs, left, claim)
    if target is None:
        most = max(families, key=lambda family: len({runs[place].seed for place in family}))
        return most, "the logs named alike that have most seeds"
    return _nearest(runs, families, target), "the logs named alike that the claimed score is of"


def _nearest(
    runs: Sequence[LoggedRun], families: Sequence[list[int]], target: Claimed
) -> list[int]:
    """The family whose mean is claimed; else one with a run that is; else the nearest by mean."""

    def mean(family: Sequence[int]) -> float:
        return statistics.fmean(_bpb(runs[place]) for place in family)

    for family in families:
        if target.agrees(mean(family)):
            return family
    for family in families:
        if any(target.agrees(_bpb(runs[place])) for place in family):
            return family
    return min(families, key=lambda family: abs(mean(family) - target.value))


def _target(runs: Sequence[LoggedRun], left: Sequence[int], claim: Claim) -> Claimed | None:
    """The claimed score; a val_loss where it alone is given and is a score that a log has."""
    loss = claim.val_loss
    if claim.val_bpb is not None or loss is None:
        return claim.val_bpb
    return loss if any(loss.agrees(_bpb(runs[place])) for place in left) else None


def _grouped(places: Iterable[int], key: Callable[[int], object]) -> list[list[int]]:
    groups: dict[object, list[int]] = {}
    for place in places:
        groups.setdefault(key(place), []).append(place)
    return list(groups.values())


def _setting(run: LoggedRun) -> object:
    """What runs of one configuration have in common."""
    ratio = run.nats_per_bpb
    tokenizer = None if ratio is None else round(ratio, 2)
    return configuration(run.facts), run.facts.world_size, tokenizer, run.headline


def _stem(path: Path) -> str:
    """A log's name without its seed, or what numbers it."""
    return ENDS_IN_NUMBER.sub("", SEED_IN_NAME.sub("", path.stem)).strip("_-.").lower()


# ---- which metric


def claimed_metric(runs: Sequence[LoggedRun], claim: Claim) -> tuple[list[LoggedRun], list[str]]:
    """The runs with the final metric that the claim is of, where that is another to the digit."""
    counted = [run for run in runs if run.counts]
    if claim.val_bpb is None or not counted or claim.val_bpb.digits < EXACT:
        return list(runs), []
    if any(claim.val_bpb.agrees(each) for each in _means(counted)):
        return list(runs), []
    for kind in HEADLINES:
        others = [with_metric(run, kind) for run in counted]
        if any(run.val_bpb is None for run in others) or others[0].metric == counted[0].metric:
            continue
        if claim.val_bpb.agrees(next(iter(_means(others)))):
            note = (
                f"{claim.val_bpb.where} is {others[0].headline}, not {counted[0].headline}, which "
                "goes before it"
            )
            return [with_metric(run, kind) for run in runs], [note]
    return list(runs), []


def _means(runs: Sequence[LoggedRun]) -> Iterator[float]:
    """The mean of the scores, and each of them: a claim may be of a single run."""
    scores = [_bpb(run) for run in runs]
    yield statistics.fmean(scores)
    yield from scores
