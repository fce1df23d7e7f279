"""Which seed runs next, who is out, who leads: pure decisions about noisy scores; lower is better.

Seeds run in one fixed order that all candidates share, so two of them are compared seed by seed:
what a seed does to every configuration alike cancels. Optuna's WilcoxonPruner does the same by
ranks, which with three seeds can never be significant (2⁻³ is its smallest p); here the noise
is pooled over the sweep and joined with what was known before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from sweeper.stats import t_quantile
from sweeper.surrogate import Axis, Observation, Surrogate, fit


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One configuration and its evidence.

    `scores` by seed; `running` are the seeds in flight. `constraint` is the largest so far, over
    seeds, of what must not be above zero (bytes − budget); None where none has ended.
    """

    number: int
    params: Mapping[str, object]
    scores: Mapping[int, float] = field(default_factory=dict)
    running: frozenset[int] = frozenset()
    constraint: float | None = None
    failed: bool = False

    @property
    def feasible(self) -> bool:
        """Whether it may win, as far as is known."""
        return not self.failed and (self.constraint is None or self.constraint <= 0)


# ---- noise


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Standard deviation of a run's score, and how many degrees of freedom speak for it."""

    sigma: float
    df: float


# What 23 public records say: the median of their seeds' standard deviations, in BPB.
PRIOR = Noise(sigma=0.0007, df=10)


def pooled_noise(candidates: Sequence[Candidate], prior: Noise = PRIOR) -> Noise:
    """The prior joined with what is left of all scores after each candidate's and seed's own mean.

    Candidates with one seed say nothing of it.
    """
    replicated = [each for each in candidates if len(each.scores) > 1]
    cells = [(row, seed) for row, each in enumerate(replicated) for seed in sorted(each.scores)]
    if not cells:
        return prior
    seeds = sorted({seed for _, seed in cells})
    design = np.zeros((len(cells), len(replicated) + len(seeds)))
    for line, (row, seed) in enumerate(cells):
        design[line, row] = design[line, len(replicated) + seeds.index(seed)] = 1.0
    scores = np.array([replicated[row].scores[seed] for row, seed in cells])
    scores -= scores.mean()
    effects, _, rank, _ = np.linalg.lstsq(design, scores)
    squares = float(np.sum((scores - design @ effects) ** 2))
    df = prior.df + len(cells) - int(rank)
    return Noise(sigma=math.sqrt((prior.df * prior.sigma**2 + squares) / df), df=df)


# ---- one candidate against the best


class Verdict(Enum):
    """What becomes of a candidate after a seed."""

    MORE = "more"  # another seed
    STOP = "stop"  # no more: it is not the best, or may not win
    DONE = "done"  # it has all its seeds


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How much worse than another a candidate is, over the seeds that both have."""

    seeds: int
    mean: float
    low: float  # the true gap is above it with the confidence asked for


def gap(
    candidate: Candidate, other: Candidate, noise: Noise, confidence: float = 0.95
) -> Gap | None:
    """The paired difference; None where they share no seed."""
    shared = candidate.scores.keys() & other.scores.keys()
    if not shared:
        return None
    mean = sum(candidate.scores[seed] - other.scores[seed] for seed in sorted(shared)) / len(shared)
    half = t_quantile(confidence, noise.df) * noise.sigma * math.sqrt(2 / len(shared))
    return Gap(seeds=len(shared), mean=mean, low=mean - half)


def after_seed(
    candidate: Candidate,
    best: Candidate | None,
    seeds: int,
    noise: Noise,
    *,
    margin: float = 0.0,
    confidence: float = 0.95,
) -> Verdict:
    """What becomes of a candidate that is to have so many seeds, when one of them has ended.

    It is stopped once it is worse than the best one by more than `margin`, with this confidence,
    and where it cannot win: it failed, or broke the constraint, which more seeds only push up.
    """
    if len(candidate.scores) >= seeds:
        return Verdict.DONE
    if not candidate.feasible:
        return Verdict.STOP
    if best is None or best.number == candidate.number:
        return Verdict.MORE
    behind = gap(candidate, best, noise, confidence)
    return Verdict.STOP if behind is not None and behind.low > margin else Verdict.MORE


def incumbent(candidates: Sequence[Candidate], seeds: int) -> Candidate | None:
    """The feasible candidate of lowest mean among those with all their seeds: only these rank."""
    full = [each for each in candidates if each.feasible and len(each.scores) >= seeds]
    return (
        min(full, key=lambda each: (sum(each.scores.values()) / len(each.scores), each.number))
        if full
        else None
    )


# ---- all candidates together


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """What is believed of a candidate's true score, the mean over all seeds there could be."""

    number: int
    mean: float
    sd: float


def rank(
    candidates: Sequence[Candidate],
    axes: Sequence[Axis],
    noise: Noise,
    *,
    beside: Sequence[Candidate] = (),
) -> list[Ranked]:
    """The feasible candidates that have a score, best first, by what all evidence says of them.

    A lucky seed is weighed against what the neighbours scored, so that the first is less often
    the luckiest than by its own mean, and what is believed of it is less optimistic. `beside` are
    candidates of another stage whose scores mean the same; they inform, and are not ranked.
    """
    ranking = [each for each in candidates if each.feasible and each.scores]
    if not ranking:
        return []
    surrogate = _believed([*candidates, *beside], axes, noise)
    return _ranked(ranking, surrogate)


def _ranked(candidates: Sequence[Candidate], surrogate: Surrogate) -> list[Ranked]:
    beliefs = surrogate.believe([each.params for each in candidates])
    ranked = [
        Ranked(number=each.number, mean=belief.mean, sd=belief.sd)
        for each, belief in zip(candidates, beliefs, strict=True)
    ]
    return sorted(ranked, key=lambda each: (each.mean, each.number))


def _believed(candidates: Iterable[Candidate], axes: Sequence[Axis], noise: Noise) -> Surrogate:
    """The surrogate of all their scores, one that several of them share counted once."""
    seen = {
        (*sorted(each.params.items(), key=lambda item: item[0]), seed): Observation(
            params=each.params, seed=seed, score=score
        )
        for each in candidates
        for seed, score in each.scores.items()
    }
    return fit(axes, list(seen.values()), noise.sigma)


# ---- the race among the chosen


@dataclass(frozen=True, kw_only=True)
class Next:
    """The run to make next."""

    number: int
    seed: int


# A run is worth making while the choice after it is expected to be better by so many sigma.
WORTH = 0.01


def next_run(
    candidates: Sequence[Candidate],
    seeds: Sequence[int],
    axes: Sequence[Axis],
    noise: Noise,
    *,
    margin: float = 0.0,
    confidence: float = 0.95,
    left: int | None = None,
    beside: Sequence[Candidate] = (),
) -> Next | None:
    """Which of the chosen gets its next seed; None: nothing more is worth a run, or only later.

    First each gets one seed. Then whoever leads by all evidence gets all its seeds, since only
    fully replicated candidates may win; when it has them, the run goes where it is expected to
    improve the choice the most (the knowledge gradient: Frazier, Powell and Dayanik, 2009). Runs in
    flight count as if they brought what is expected of them. Where only so many runs are `left`,
    they do not go to a leader that cannot have all its seeds, unless another already has.
    """
    best = incumbent(candidates, len(seeds))
    alive = [
        each
        for each in candidates
        if each.feasible
        and after_seed(each, best, len(seeds), noise, margin=margin, confidence=confidence)
        is not Verdict.STOP
    ]
    waiting = {each.number: each for each in alive if _missing(each, seeds)}
    for each in waiting.values():
        if not each.scores and not each.running:
            return _next(each, seeds)
    known = [each for each in alive if each.scores]
    if not waiting or not known:
        return None
    surrogate = _believed([*candidates, *beside], axes, noise)
    flying = [(each.params, seed) for each in candidates for seed in sorted(each.running)]
    surrogate = surrogate.given([params for params, _ in flying], [seed for _, seed in flying])
    ranked = _ranked(known, surrogate)
    if best is None and left is not None:
        full = {n for n, each in waiting.items() if len(_missing(each, seeds)) <= left}
        first = next((each.number for each in ranked if each.number in full), None)
        return None if first is None else _next(waiting[first], seeds)
    chosen = _worthiest(ranked, set(waiting), noise)
    return None if chosen is None else _next(waiting[chosen], seeds)


def _worthiest(ranked: Sequence[Ranked], waiting: set[int], noise: Noise) -> int | None:
    """The leader if it is waiting, else whoever promises the most; None if that is too little."""
    if ranked and ranked[0].number in waiting:
        return ranked[0].number
    promised = [(_gradient(each, ranked, noise), each.number) for each in ranked]
    worth = [each for each in promised if each[1] in waiting and each[0] > WORTH * noise.sigma]
    return max(worth, key=lambda each: each[0])[1] if worth else None


def _gradient(each: Ranked, ranked: Sequence[Ranked], noise: Noise) -> float:
    """By how much one more run of a candidate is expected to improve the choice."""
    other = min((rival.mean for rival in ranked if rival.number != each.number), default=math.inf)
    behind = abs(each.mean - other)
    # How far that run is expected to move its mean.
    moves = each.sd**2 / math.hypot(each.sd, noise.sigma)
    z = behind / moves
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return moves * density - behind * math.erfc(z / math.sqrt(2)) / 2


def _missing(candidate: Candidate, seeds: Sequence[int]) -> list[int]:
    """The seeds that it has not, and that are not under way."""
    there = candidate.scores.keys() | candidate.running
    return [each for each in seeds if each not in there]


def _next(candidate: Candidate, seeds: Sequence[int]) -> Next:
    return Next(number=candidate.number, seed=_missing(candidate, seeds)[0])


# ---- a budget's shares


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How many runs each stage of a search may make, and how many configurations go on."""

    screen_runs: int  # one seed each
    race_top: int
    race_runs: int
    confirm_top: int
    confirm_seeds: int


def divide(runs: int) -> Shares:
    """The shares of a budget of runs of which nothing else is known.

    Most of it looks for good settings: it takes few more runs to choose among those that were
    found, and whoever is chosen by then is rarely the wrong one. How many was found by the searches
    of jobs/bench/search.py, on other surfaces than those that it is published for. ValueError for a
    budget with which nothing can be chosen and confirmed.
    """
    if runs < 6:
        raise ValueError(f"{runs} runs are too few to screen, race and confirm; at least 6")
    confirm = 3 if runs >= 20 else 2
    race = 3 + runs // 12 if runs >= 12 else 2
    return Shares(
        screen_runs=runs - confirm - race,
        race_top=min(race, 10, runs - confirm - race),
        race_runs=race,
        confirm_top=1,
        confirm_seeds=confirm,
    )
