"""The best of one stage of a search beside each other, and what its seeds could tell apart.

All numbers are in the objective's own unit and sense; what is `behind` the best is above 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeper import racing
from sweeper.entries import EntryState
from sweeper.power import Design, detectable
from sweeper.racing import Gap, Noise, Ranked
from sweeper.search import Search
from sweeper.standings import Standing, Standings, noise_of, ranking
from sweeper.stats import CONFIDENCE, Summary, t_quantile

TOP = 10
ALPHA = 1 - CONFIDENCE  # of all tests against the best of a stage together
POWER = 0.8
LEAST_ALPHA = 1e-4  # for which the power is computed


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A configuration beside the best one of its stage.

    `belief` and `belief_sd` are the surrogate's, from all runs of the stage; None where it was not
    asked. `behind` is the mean difference to the best over the `shared` seeds, from `behind_low` to
    `behind_high`, each bound at the table's `alpha`. None for the best itself, and where they share
    no seed.
    """

    name: str
    number: int
    params: Mapping[str, object]
    summary: Summary
    belief: float | None
    belief_sd: float | None
    bytes_max: int | None
    feasible: bool | None
    shared: int = 0
    behind: float | None = None
    behind_low: float | None = None
    behind_high: float | None = None

    @property
    def apart(self) -> bool | None:
        """Whether it is surely worse than the best; None for the best, and where nobody knows."""
        return None if self.behind_low is None else self.behind_low > 0

    @property
    def ahead(self) -> bool:
        """Whether it is surely better than the one called the best, which fresh seeds may say."""
        return self.behind_high is not None and self.behind_high < 0


@dataclass(frozen=True, kw_only=True)
class Table:
    """The best of a stage, the best first; the others by how they ended.

    `alpha` is of each one's one-sided test against the best: ALPHA shared out evenly over all that
    have all their seeds (Bonferroni). So the truly best one is among those not `apart` with
    CONFIDENCE, whichever came out first (multiple comparisons with the best: Hsu, 1984).
    """

    stage: str
    objective: str
    rivals: tuple[Rival, ...]
    noise: Noise
    alpha: float
    counts: Mapping[str, int]
    infeasible: int


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What a stage could see: the least true difference that its n seeds show with POWER.

    At the `alpha` of its table, by Student's test of the pairs alone (`by_pairs`) and by the sigma
    that is pooled over the stage (`by_sigma`). Of the observed differences to the best in its
    table the `visible` are larger than chance, the `hidden` are not.
    """

    stage: str
    n: int
    alpha: float
    by_pairs: float | None
    by_sigma: float
    visible: tuple[str, ...]
    hidden: tuple[str, ...]


def table_of(
    stage: Standings | None, search: Search, stages: Sequence[Standings] = (), top: int = TOP
) -> Table | None:
    """The best of a stage beside the best one; None where nothing was scored in it.

    In a stage of fresh seeds the order is that in which they were chosen, since these seeds choose
    nothing, and there is no table before the first has all of them. In the others it is what the
    surrogate believes, by all that the search's `stages` say.
    """
    if stage is None or not any(row.evidence for row in stage.rows):
        return None
    if stage.rung.fresh and not stage.eligible(stage.rows[0]):
        return None
    noise = noise_of(stage, search)
    candidates = {each.number: each for each in stage.candidates()}
    ranked = {each.number: each for each in ranking(stages, stage, search)}
    rows = [row for row in stage.rows if row.evidence and stage.eligible(row)]
    if not stage.rung.fresh:
        rows.sort(key=lambda row: _place(stage, row, ranked))
    best = candidates[rows[0].entry.number] if rows else None
    alpha = ALPHA / max(1, len(rows) - 1)
    rivals = []
    for row in rows[:top]:
        its, belief = candidates[row.entry.number], ranked.get(row.entry.number)
        gap = None
        if best is not None and best.number != its.number:
            gap = racing.gap(its, best, noise, 1 - alpha)
        rivals.append(_rival(stage, row, belief, gap))
    return Table(
        stage=stage.rung.name,
        objective=stage.objectives[0],
        rivals=tuple(rivals),
        noise=noise,
        alpha=alpha,
        counts={state.value: sum(row.state is state for row in stage.rows) for state in EntryState},
        infeasible=sum(stage.feasible(row) is False for row in stage.rows),
    )


def _place(stage: Standings, row: Standing, ranked: Mapping[int, Ranked]) -> float:
    """What the rows of a stage are sorted by; lower is better."""
    if (each := ranked.get(row.entry.number)) is not None:
        return each.mean
    return stage.signs[0] * (row.summary().mean or 0.0)


def _rival(stage: Standings, row: Standing, belief: Ranked | None, gap: Gap | None) -> Rival:
    sign = stage.signs[0]
    return Rival(
        name=row.name,
        number=row.entry.number,
        params=row.entry.params,
        summary=row.summary(),
        belief=None if belief is None else sign * belief.mean,
        belief_sd=None if belief is None else belief.sd,
        bytes_max=row.bytes_max,
        feasible=stage.feasible(row),
        shared=0 if gap is None else gap.seeds,
        behind=None if gap is None else gap.mean,
        behind_low=None if gap is None else gap.low,
        behind_high=None if gap is None else 2 * gap.mean - gap.low,
    )


def sight_of(table: Table, stage: Standings) -> Sight:
    """Both tests are paired and one-sided, so the difference of two runs has sigma·√2."""
    n, noise = len(stage.seeds), table.noise
    one = noise.sigma * math.sqrt(2)
    quantiles = t_quantile(1 - table.alpha, noise.df) + t_quantile(POWER, noise.df)
    by_sigma = quantiles * one / math.sqrt(n)
    by_pairs = None
    if n > 1 and table.alpha >= LEAST_ALPHA:
        by_pairs = detectable(Design(sigma=one, alpha=table.alpha, paired=True), n, POWER)
    others = [each for each in table.rivals if each.behind is not None]
    return Sight(
        stage=table.stage,
        n=n,
        alpha=table.alpha,
        by_pairs=by_pairs,
        by_sigma=by_sigma,
        visible=tuple(each.name for each in others if each.apart or each.ahead),
        hidden=tuple(each.name for each in others if not (each.apart or each.ahead)),
    )
