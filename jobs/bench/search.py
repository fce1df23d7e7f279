"""How often a search finds a setting near the optimum, and how true the score is that it reports.

    python -m jobs.bench.search [--searches 200] [--budgets 15 30 60 120] [--jobs 2] [--json FILE]

Searches on made-up surfaces (jobs/bench/surface.py), each on one of its own, with every policy:

- `1 seed`: each configuration of the sampler gets one run, the best observed score wins;
- `3 seeds`: each gets three, the best mean wins;
- `race`: screen, race and confirm by the functions that the planner calls; the runs that confirm
  are within the budget.

The winner counts as found if it fits and its true score is within 0.0005 BPB of the optimum. The
bias is the mean of the score reported less the true one: what was observed, or in `race` the mean
over the fresh seeds that confirm. The estimate is what was believed of the winner before that.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from jobs.bench.common import make_table, show, write_json
from jobs.bench.plain_search import Asker
from jobs.bench.surface import GPUS, MAX_BYTES, SIGMA, SPACE, Outcome, Surface
from sweeper import racing
from sweeper.proposal import propose
from sweeper.racing import Candidate, Noise
from sweeper.search import Racing, Search
from sweeper.standings import axes_of
from sweeper.surrogate import Axis

NEAR = 0.0005  # BPB from the optimum that count as found
SEEDS = (42, 314, 999)
FRESH = (7, 8, 9)


class Sampler(Protocol):
    """What chooses the configurations."""

    def ask(self) -> dict[str, Any]:
        """The next one."""

    def tell(self, score: float, excess: float) -> None:
        """What it has scored, and by how many bytes it is too large."""


@dataclass(eq=False, kw_only=True)
class Tried:
    """One configuration and its runs, by seed."""

    params: Mapping[str, Any]
    runs: dict[int, Outcome] = field(default_factory=dict)

    def run(self, surface: Surface, seed: int) -> None:
        self.runs[seed] = surface.run(self.params, seed)

    def mean(self, seeds: Sequence[int]) -> float:
        return statistics.fmean(self.runs[seed].score for seed in seeds)

    @property
    def excess(self) -> int:
        return max(run.bytes_total for run in self.runs.values()) - MAX_BYTES

    def candidate(self, number: int, seeds: Sequence[int] = SEEDS) -> Candidate:
        """As the race sees it."""
        return Candidate(
            number=number,
            params=self.params,
            scores={seed: run.score for seed, run in self.runs.items() if seed in seeds},
            constraint=self.excess,
        )


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How one search ended; errors in BPB, None where it had no winner."""

    runs: int
    gpu_hours: float
    found: bool
    bias: float | None = None
    estimate_bias: float | None = None


# ---- the policies


def by_best_mean(surface: Surface, tried: Sequence[Tried], seeds: Sequence[int]) -> Ended:
    """The best observed mean of what was seen to fit wins, and is reported."""
    fitting = [each for each in tried if each.excess <= 0]
    if not fitting:
        return _ended(surface, tried, None)
    winner = min(fitting, key=lambda each: each.mean(seeds))
    mean = winner.mean(seeds)
    return _ended(surface, tried, winner, reported=mean, estimate=mean)


def by_race(surface: Surface, screened: Sequence[Tried], axes: Sequence[Axis], runs: int) -> Ended:
    """The best of a screen race, and fresh seeds say what the winner scores."""
    shares = racing.divide(runs)
    tried = [Tried(params=each.params, runs=dict(each.runs)) for each in screened]
    rules = Racing()
    prior = Noise(sigma=rules.sigma, df=rules.sigma_df)
    screen = [each.candidate(number) for number, each in enumerate(tried)]
    ranked = racing.rank(screen, axes, racing.pooled_noise(screen, prior))
    chosen = [tried[each.number] for each in ranked[: shares.race_top]]
    for left in range(shares.race_runs, 0, -1):
        race = [each.candidate(number) for number, each in enumerate(chosen)]
        noise = racing.pooled_noise(race, prior)
        following = racing.next_run(
            race,
            SEEDS,
            axes,
            noise,
            margin=rules.margin,
            confidence=rules.confidence,
            left=left,
            beside=screen,
        )
        if following is None:
            break
        chosen[following.number].run(surface, following.seed)
    race = [each.candidate(number) for number, each in enumerate(chosen)]
    whole = {each.number for each in race if len(each.scores) == len(SEEDS)}
    ranked = racing.rank(race, axes, racing.pooled_noise(race, prior), beside=screen)
    first = next((each for each in ranked if each.number in whole), None)
    if first is None:
        return _ended(surface, tried, None)
    winner, fresh = chosen[first.number], FRESH[: shares.confirm_seeds]
    for seed in fresh:
        winner.run(surface, seed)
    return _ended(surface, tried, winner, reported=winner.mean(fresh), estimate=first.mean)


def _ended(
    surface: Surface,
    tried: Sequence[Tried],
    winner: Tried | None,
    reported: float = math.nan,
    estimate: float = math.nan,
) -> Ended:
    runs = [run for each in tried for run in each.runs.values()]
    hours = GPUS * sum(run.seconds for run in runs) / 3600
    if winner is None:
        return Ended(runs=len(runs), gpu_hours=hours, found=False)
    truth = surface.score(winner.params)
    return Ended(
        runs=len(runs),
        gpu_hours=hours,
        found=surface.fits(winner.params) and truth <= surface.optimum + NEAR,
        bias=reported - truth,
        estimate_bias=estimate - truth,
    )


# ---- one search by each


class Proposer:
    """Our own way to choose: expected improvement on the surrogate (sweeper/proposal.py)."""

    def __init__(self, axes: Sequence[Axis], seed: int) -> None:
        self._axes, self._seed = axes, seed
        self._candidates: list[Candidate] = []

    def ask(self) -> dict[str, Any]:
        self._params = propose(self._axes, self._candidates, SIGMA, seed=self._seed)
        return self._params

    def tell(self, score: float, excess: float) -> None:
        self._candidates.append(
            Candidate(
                number=len(self._candidates),
                params=self._params,
                scores={SEEDS[0]: score},
                constraint=excess,
            )
        )


def searches(number: int, budgets: Sequence[int]) -> dict[str, dict[int, Ended]]:
    """The searches on one surface, by policy and budget.

    A smaller budget's begin as a larger one's do, so that all are of one stream of configurations.
    """
    surface, search = Surface(number), _search(number)
    axes = axes_of(search)
    longest = max(budgets)
    single = sample(surface, Asker(search), SEEDS[:1], longest)
    triple = sample(surface, Asker(search), SEEDS, longest // 3)
    screens = max(racing.divide(runs).screen_runs for runs in budgets)
    ours = sample(surface, Proposer(axes, number), SEEDS[:1], screens)
    found: dict[str, dict[int, Ended]] = {}
    for runs in budgets:
        share = racing.divide(runs).screen_runs
        for policy, ended in (
            ("1 seed", by_best_mean(surface, single[:runs], SEEDS[:1])),
            ("3 seeds", by_best_mean(surface, triple[: runs // 3], SEEDS)),
            ("race", by_race(surface, single[:share], axes, runs)),
            ("race, own sampler", by_race(surface, ours[:share], axes, runs)),
        ):
            found.setdefault(policy, {})[runs] = ended
    return found


def _search(number: int) -> Search:
    return Search.model_validate({"space": SPACE, "sampler": "tpe", "seed": number})


def sample(surface: Surface, sampler: Sampler, seeds: Sequence[int], count: int) -> list[Tried]:
    """So many configurations of a sampler, which is told the mean over these seeds."""
    tried = []
    for _ in range(count):
        each = Tried(params=sampler.ask())
        for seed in seeds:
            each.run(surface, seed)
        sampler.tell(each.mean(seeds), each.excess)
        tried.append(each)
    return tried


# ---- all of them


@dataclass(frozen=True, kw_only=True)
class Row:
    """One policy at one budget over all searches; errors in BPB, `_se` are standard errors.

    Biases and standard deviations are of those that had a winner.
    """

    policy: str
    budget: int
    searches: int
    without_winner: int
    runs: float
    gpu_hours: float
    p: float
    p_se: float
    bias: float | None
    bias_se: float | None
    estimate_bias: float | None


def row_of(policy: str, budget: int, ended: Sequence[Ended]) -> Row:
    """What the searches of one policy and budget come to."""
    p = statistics.fmean(each.found for each in ended)
    biases = [each.bias for each in ended if each.bias is not None]
    estimates = [each.estimate_bias for each in ended if each.estimate_bias is not None]
    return Row(
        policy=policy,
        budget=budget,
        searches=len(ended),
        without_winner=len(ended) - len(biases),
        runs=statistics.fmean(each.runs for each in ended),
        gpu_hours=statistics.fmean(each.gpu_hours for each in ended),
        p=p,
        p_se=math.sqrt(p * (1 - p) / len(ended)),
        bias=statistics.fmean(biases) if biases else None,
        bias_se=statistics.stdev(biases) / math.sqrt(len(biases)) if len(biases) > 1 else None,
        estimate_bias=statistics.fmean(estimates) if estimates else None,
    )


def rows_of(found: Sequence[Mapping[str, Mapping[int, Ended]]]) -> list[Row]:
    """A row for each policy and budget, by what each surface's searches found."""
    return [
        row_of(policy, budget, [each[policy][budget] for each in found])
        for policy, budgets in found[0].items()
        for budget in budgets
    ]


def all_searches(
    first: int, count: int, budgets: Sequence[int], jobs: int
) -> list[dict[str, dict[int, Ended]]]:
    """The searches on so many surfaces, by so many processes."""
    work = partial(searches, budgets=budgets)
    numbers = range(first, first + count)
    # Matrices this small are slower with more threads; a process that begins anew reads this.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        return list(pool.map(work, numbers, chunksize=max(1, min(4, count // jobs))))


def _comparisons(rows: Sequence[Row]) -> Iterator[str]:
    """The race with half the runs, beside three seeds with all."""
    known = {(row.policy, row.budget): row for row in rows}
    for (policy, budget), row in known.items():
        other = known.get(("3 seeds", 2 * budget))
        if policy.startswith("race") and other is not None:
            yield (
                f"{policy}, {budget} runs: found {row.p:.3f}; 3 seeds, {2 * budget} runs: "
                f"{other.p:.3f} (difference {row.p - other.p:+.3f} ± "
                f"{math.hypot(row.p_se, other.p_se):.3f})"
            )


def main() -> int:
    arguments = _parse()
    begun = time.perf_counter()
    budgets = sorted(set(arguments.budgets))
    found = all_searches(arguments.first, arguments.searches, budgets, arguments.jobs)
    rows = rows_of(found)
    table = make_table(
        ["policy"],
        ["budget", "runs", "GPU-hours", "found", "± s.e.", "bias", "± s.e.", "estimate's bias"],
    )
    for row in rows:
        table.add_row(
            row.policy,
            f"{row.budget}",
            f"{row.runs:.1f}",
            f"{row.gpu_hours:.0f}",
            f"{row.p:.3f}",
            f"{row.p_se:.3f}",
            *(_bpb(value) for value in (row.bias, row.bias_se, row.estimate_bias)),
        )
    took = time.perf_counter() - begun
    show(table, *_comparisons(rows), f"{arguments.searches} searches each, {took:.0f} s")
    facts = {"near_bpb": NEAR, "sigma_bpb": SIGMA, "first": arguments.first, "seconds": took}
    write_json(facts | {"rows": [asdict(row) for row in rows]}, arguments.json)
    return 0


def _bpb(value: float | None) -> str:
    return "–" if value is None else f"{value:+.5f}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.search")
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--budgets", type=int, nargs="+", default=[15, 30, 60, 120])
    parser.add_argument("--first", type=int, default=0, help="number of the first surface")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
