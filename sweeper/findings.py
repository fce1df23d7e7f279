"""What a search has found: the winner on seeds that did not choose it, and what it beat.

All numbers are in the objectives' own units and senses; what is `behind` the best is above 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweeper.ledger import Ledger
from sweeper.pareto import front_of
from sweeper.rivals import ALPHA, POWER, Sight, Table, sight_of, table_of
from sweeper.search import Search
from sweeper.spec import SweepSpec
from sweeper.standings import (
    Run,
    Standings,
    axes_of,
    noise_of,
    read_standings,
    stages_of_runs,
)
from sweeper.stats import CONFIDENCE, Summary
from sweeper.surrogate import Observation, fit

FEWEST = 4  # configurations of which some importance can be spoken of
# As many of the best as the method wants at least, but no more than half of all.
BEST, LEAST_SHARE, MOST_SHARE = 5, 0.1, 0.5


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The configuration that the search has chosen, and what its seeds say of it.

    `fresh` is on the `planned` seeds that chose nothing, of the stage `confirmed_in`; None while
    there is no such number, and `failure` says why where there never will be all of them. `chosen`
    and `belief` are what it was chosen by in `chosen_in`.
    """

    name: str
    params: Mapping[str, object]
    chosen_in: str
    chosen: Summary
    belief: float | None
    belief_sd: float | None
    confirmed_in: str | None
    planned: tuple[int, ...]
    fresh: Summary | None
    failure: str | None
    bytes_max: int | None
    feasible: bool | None
    sign: float

    def optimism(self, estimate: float | None) -> float | None:
        """By how much an estimate was better than what the fresh seeds say; below 0: worse."""
        if estimate is None or self.fresh is None or self.fresh.mean is None:
            return None
        return self.sign * (self.fresh.mean - estimate)


@dataclass(frozen=True, kw_only=True)
class Compromise:
    """A configuration on the Pareto front: the objectives' means over its n seeds."""

    name: str
    stage: str
    params: Mapping[str, object]
    n: int
    means: tuple[float, ...]
    stds: tuple[float | None, ...]
    bytes_max: int | None


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How much a setting matters, by two measures.

    `variance`: its share in the variance, over the whole space, of the scores that the surrogate
    believes (Sobol's total index). `best`: its share in what tells the best configurations from
    the others (PED-ANOVA, of means as noisy as they are, and in favour of ranges over choices).
    """

    variance: float
    best: float


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that a report says of a search."""

    name: str
    spec: SweepSpec
    stages: tuple[Standings, ...]
    runs: Mapping[Run, str]  # -> the stages that it is for
    winner: Winner | None
    choosing: Table | None
    confirming: Table | None
    front: tuple[Compromise, ...]
    front_is_fresh: bool
    sights: tuple[Sight, ...]
    sigmas: Mapping[str, float]  # between seeds, pooled in each stage with what was expected
    importance_of: str | None = None  # the stage that the importances are of
    importances: Mapping[str, Importance] = field(default_factory=dict)

    @property
    def search(self) -> Search:
        assert self.spec.search is not None
        return self.spec.search


def find(ledger: Ledger) -> Findings:
    """What a search has found so far."""
    spec = ledger.spec
    assert spec.search is not None
    stages = read_standings(ledger)
    choosing = _choosing([stage for stage in stages if not stage.rung.fresh])
    confirming = _confirming(stages)
    several = len(spec.search.objectives) > 1
    sigmas = {stage.rung.name: noise_of(stage, spec.search).sigma for stage in stages}
    tables = [
        None if several else table_of(stage, spec.search, stages)
        for stage in (choosing, confirming)
    ]
    fresh_front = confirming is not None and any(map(confirming.eligible, confirming.rows))
    most = max(stages, key=lambda stage: sum(map(stage.eligible, stage.rows)))
    weights = _importances(most, spec.search, sigmas[most.rung.name])
    return Findings(
        name=spec.name,
        spec=spec,
        stages=tuple(stages),
        runs=stages_of_runs(stages),
        winner=None if several else _winner(spec.search, stages, choosing, confirming),
        choosing=tables[0],
        confirming=tables[1],
        front=front(confirming if fresh_front else choosing) if several else (),
        front_is_fresh=fresh_front,
        sights=tuple(
            sight_of(table, stage)
            for table, stage in zip(tables, (choosing, confirming), strict=True)
            if table is not None and stage is not None
        ),
        sigmas=sigmas,
        importance_of=most.rung.name if weights else None,
        importances=weights,
    )


def _choosing(stages: Sequence[Standings]) -> Standings | None:
    """The last stage that has one which may be chosen; before that the last with any score."""
    scored = [stage for stage in stages if any(row.evidence for row in stage.rows)]
    ready = [stage for stage in scored if any(map(stage.eligible, stage.rows))]
    return ready[-1] if ready else scored[-1] if scored else None


def _confirming(stages: Sequence[Standings]) -> Standings | None:
    """The stage whose fresh seeds are the result: the last that has scored its first."""
    fresh = [stage for stage in stages if stage.rung.fresh and stage.rows]
    scored = [stage for stage in fresh if stage.rows[0].evidence]
    return scored[-1] if scored else fresh[0] if fresh else None


def best_share(count: int) -> float:
    """The part of so many configurations that counts as the best."""
    return min(MOST_SHARE, max(LEAST_SHARE, BEST / count))


def _importances(stage: Standings, search: Search, sigma: float) -> dict[str, Importance]:
    """Of the first objective by the surrogate, of all by Optuna; empty where too few are known."""
    from sweeper.sensitivity import total_indices
    from sweeper.study import importances  # optuna takes a second

    eligible = [stage.told(row) for row in stage.rows if stage.eligible(row)]
    if len(eligible) < FEWEST:
        return {}
    best = importances(search, stage.senses, eligible, best_share(len(eligible)))
    seen = [
        Observation(params=each.params, seed=seed, score=score)
        for each in stage.candidates()
        for seed, score in each.scores.items()
    ]
    if not best:
        return {}
    axes = axes_of(search)
    shares = total_indices(axes, fit(axes, seen, sigma))
    return {
        name: Importance(variance=share, best=best.get(name, 0.0))
        for name, share in sorted(shares.items(), key=lambda pair: -pair[1])
    }


# ---- the result


def _winner(
    search: Search,
    stages: Sequence[Standings],
    choosing: Standings | None,
    confirming: Standings | None,
) -> Winner | None:
    """The first that went on to fresh seeds; before that the best so far."""
    if choosing is None:
        return None
    chosen = table_of(choosing, search, stages, top=len(choosing.rows))
    if chosen is None:
        return None
    first = confirming.rows[0] if confirming is not None else None
    params = first.entry.params if first is not None else None
    its = next((each for each in chosen.rivals if params in (None, each.params)), None)
    if its is None:
        return None
    fresh = first.summary() if first is not None and first.evidence else None
    sizes = [its.bytes_max, None if first is None else first.bytes_max]
    known = [size for size in sizes if size is not None]
    largest = max(known) if known else None
    return Winner(
        name=its.name if first is None else first.name,
        params=its.params,
        chosen_in=chosen.stage,
        chosen=its.summary,
        belief=its.belief,
        belief_sd=its.belief_sd,
        confirmed_in=None if confirming is None else confirming.rung.name,
        planned=() if confirming is None else confirming.seeds,
        fresh=fresh,
        failure=None if first is None else first.entry.reason,
        bytes_max=largest,
        feasible=None if largest is None else largest <= choosing.max_bytes,
        sign=choosing.signs[0],
    )


def front(stage: Standings | None) -> tuple[Compromise, ...]:
    """The configurations of a stage that no other beats in everything, by the first objective."""
    if stage is None:
        return ()
    rows = [row for row in stage.rows if row.evidence and stage.eligible(row)]
    count = len(stage.objectives)
    summaries = [[row.summary(objective) for objective in range(count)] for row in rows]
    points = [
        [sign * (each.mean or 0.0) for sign, each in zip(stage.signs, summary, strict=True)]
        for summary in summaries
    ]
    found = [
        (
            point[0],
            Compromise(
                name=row.name,
                stage=stage.rung.name,
                params=row.entry.params,
                n=len(row.evidence),
                means=tuple(each.mean or 0.0 for each in summary),
                stds=tuple(each.std for each in summary),
                bytes_max=row.bytes_max,
            ),
        )
        for row, summary, point, place in zip(
            rows, summaries, points, front_of(points), strict=True
        )
        if place == 0
    ]
    return tuple(each for _, each in sorted(found, key=lambda pair: pair[0]))


# ---- for programs


def as_json(found: Findings) -> dict[str, Any]:
    """The same as plain data; every run's stages are in the report's `runs`."""
    winner = None
    if found.winner is not None:
        winner = dataclasses.asdict(found.winner) | {
            "optimism": found.winner.optimism(found.winner.chosen.mean),
            "optimism_of_belief": found.winner.optimism(found.winner.belief),
        }
        del winner["sign"]
    return {
        "objectives": list(found.search.objectives),
        "directions": list(found.search.senses),
        "confidence": CONFIDENCE,
        "alpha": ALPHA,
        "power": POWER,
        "sigma": dict(found.sigmas),
        "winner": winner,
        "choosing": _table_json(found.choosing),
        "confirming": _table_json(found.confirming),
        "front": [dataclasses.asdict(each) for each in found.front],
        "front_is_fresh": found.front_is_fresh if found.front else None,
        "importance_of": found.importance_of,
        "importances": {name: dataclasses.asdict(each) for name, each in found.importances.items()},
        "sights": [dataclasses.asdict(each) for each in found.sights],
        "stages": [_stage_json(stage) for stage in found.stages],
    }


def _stage_json(stage: Standings) -> dict[str, Any]:
    configurations = [
        {
            "trial": row.name,
            "number": row.entry.number,
            "params": dict(row.entry.params),
            "state": row.state.value,
            "reason": row.entry.reason,
            "scores": {seed: list(each.values) for seed, each in row.evidence.items()},
            "bytes_max": row.bytes_max,
            "feasible": stage.feasible(row),
        }
        for row in stage.rows
    ]
    return {
        "stage": stage.rung.name,
        "fresh": stage.rung.fresh,
        "seeds": list(stage.seeds),
        "configurations": configurations,
    }


def _table_json(table: Table | None) -> dict[str, Any] | None:
    if table is None:
        return None
    rivals = [dataclasses.asdict(each) | {"apart": each.apart} for each in table.rivals]
    return dataclasses.asdict(table) | {"rivals": rivals}
