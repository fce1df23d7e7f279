"""What a search has found: on fresh seeds, beside the others, and what it could not have seen."""

from __future__ import annotations

import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweeper.entries import EntryState
from sweeper.findings import Findings, as_json, find
from sweeper.rivals import ALPHA, POWER, Table, sight_of, table_of
from sweeper.search import Search
from sweeper.stats import t_quantile
from tests.sweeper.searches import Env, Outcome, bowl, playing, search_spec
from tests.sweeper.standing_rows import make_row, make_stage

SEEDS = (42, 314, 999)


def found(root: Path, runs: int | None = None, outcome: Outcome = bowl, **changes: Any) -> Findings:
    with playing(search_spec(**changes), root, outcome) as play:
        play.go_on(runs)
        return find(play.ledger)


def a_search(**racing: Any) -> Search:
    search = search_spec(search={"racing": racing}).search
    assert search is not None
    return search


def bowl_at(params: Any, seed: int) -> float:
    return bowl({name: str(value) for name, value in params.items()}, seed)[0]


# ---- the winner


def test_the_result_is_what_fresh_seeds_say_of_the_first_that_went_on(tmp_path: Path) -> None:
    with playing(search_spec(), tmp_path) as play:
        play.go_on()
        first = play.entries("confirm")[0]
        result = find(play.ledger)
    winner = result.winner
    assert winner is not None
    assert winner.params == first.params
    assert (winner.chosen_in, winner.confirmed_in) == ("race", "confirm")
    assert winner.planned == (7, 8, 9)
    assert winner.fresh is not None
    fresh = [bowl_at(winner.params, seed) for seed in (7, 8, 9)]
    chosen = [bowl_at(winner.params, seed) for seed in SEEDS]
    assert winner.fresh.mean == pytest.approx(statistics.fmean(fresh))
    assert winner.fresh.std == pytest.approx(statistics.stdev(fresh))
    assert winner.chosen.mean == pytest.approx(statistics.fmean(chosen))
    # Above 0 where the seeds that chose it promised too much.
    assert winner.optimism(winner.chosen.mean) == pytest.approx(
        statistics.fmean(fresh) - statistics.fmean(chosen)
    )
    assert (winner.bytes_max, winner.feasible, winner.failure) == (15_900_000, True, None)


def test_what_is_larger_is_too_good_where_larger_is_better(tmp_path: Path) -> None:
    result = found(tmp_path, search={"directions": ["maximize"]})
    winner = result.winner
    assert winner is not None
    assert winner.fresh is not None
    assert winner.fresh.mean is not None
    assert winner.optimism(winner.fresh.mean + 0.5) == pytest.approx(0.5)
    assert winner.optimism(winner.fresh.mean - 0.5) == pytest.approx(-0.5)


def test_before_fresh_seeds_there_is_a_leader_and_no_result(tmp_path: Path) -> None:
    winner = found(tmp_path, 12).winner
    assert winner is not None
    assert winner.fresh is None
    assert winner.optimism(winner.chosen.mean) is None


def test_a_search_that_has_not_begun_has_found_nothing(tmp_path: Path) -> None:
    result = found(tmp_path, 0)
    assert result.winner is None
    assert (result.choosing, result.confirming, result.sights) == (None, None, ())
    assert (result.runs, result.importances, result.front) == ({}, {}, ())


def test_a_winner_whose_fresh_seed_failed_says_so(tmp_path: Path) -> None:
    def fails(env: Env, seed: int) -> tuple[float, int] | None:
        return None if seed == 8 else bowl(env, seed)

    result = found(tmp_path, outcome=fails)
    assert result.winner is not None
    assert result.winner.failure == "seed 8: loss is nan"
    assert result.winner.fresh is not None
    assert result.winner.fresh.n == 1
    # It is not replaced by whoever has all seeds.
    assert result.confirming is None


def test_a_stage_with_more_fresh_seeds_has_the_last_word(tmp_path: Path) -> None:
    stages = [
        {"name": "race", "seeds": 2, "trials": 4},
        {"name": "confirm", "seeds": [7, 8], "top": 2},
        {"name": "record", "seeds": [1, 2, 3], "top": 1},
    ]
    winner = found(tmp_path, stage=stages).winner
    assert winner is not None
    assert (winner.confirmed_in, winner.planned) == ("record", (1, 2, 3))


def test_without_fresh_seeds_the_leader_stays_a_leader(tmp_path: Path) -> None:
    winner = found(tmp_path, stage=[{"name": "race", "seeds": 2, "trials": 4}]).winner
    assert winner is not None
    assert (winner.confirmed_in, winner.fresh) == (None, None)


# ---- beside the best


def table(scores: list[list[float]], **options: Any) -> Table:
    """Of configurations by their scores over SEEDS."""
    rows = [make_row(n, dict(zip(SEEDS, some, strict=True))) for n, some in enumerate(scores)]
    result = table_of(make_stage(rows, **options), a_search())
    assert result is not None
    return result


def test_the_best_is_first_and_the_others_are_behind_it_by_their_pairs() -> None:
    result = table([[1.002, 1.0021, 1.0019], [1.0, 1.0001, 1.0002], [1.05, 1.051, 1.052]])
    assert [each.name for each in result.rivals] == ["t1", "t0", "t2"]
    best, near, far = result.rivals
    assert (best.behind, best.behind_low, best.apart) == (None, None, None)
    assert near.behind == pytest.approx(0.0019)
    assert far.behind == pytest.approx(0.0509)
    assert far.apart is True
    assert far.shared == 3
    for each in (near, far):
        assert each.behind is not None
        assert each.behind_low is not None
        half = t_quantile(1 - ALPHA / 2, result.noise.df) * result.noise.sigma * math.sqrt(2 / 3)
        assert each.behind - each.behind_low == pytest.approx(half)


def test_the_more_are_compared_the_more_it_takes() -> None:
    few, many = table([[1.0] * 3, [1.1] * 3]), table([[1.0 + n / 10] * 3 for n in range(11)])
    assert few.alpha == pytest.approx(ALPHA)
    assert many.alpha == pytest.approx(ALPHA / 10)


def test_equal_ones_cannot_be_told_apart() -> None:
    result = table([[1.0, 1.1, 1.2], [1.0, 1.1, 1.2]])
    assert result.rivals[1].behind == 0
    assert result.rivals[1].apart is False


def test_where_larger_is_better_the_largest_is_best() -> None:
    result = table([[1.0] * 3, [2.0] * 3], sense="maximize")
    assert [each.name for each in result.rivals] == ["t1", "t0"]
    assert result.rivals[1].behind == pytest.approx(1.0)


def test_on_fresh_seeds_the_order_is_that_of_the_choice() -> None:
    rows = [make_row(0, {7: 1.02, 8: 1.02}), make_row(1, {7: 1.0, 8: 1.0})]
    result = table_of(make_stage(rows, (7, 8), fresh=True), a_search())
    assert result is not None
    assert [each.name for each in result.rivals] == ["t0", "t1"]
    assert result.rivals[1].behind == pytest.approx(-0.02)
    assert result.rivals[1].ahead
    assert result.rivals[1].apart is False


def test_what_may_not_win_is_counted_and_not_ranked() -> None:
    rows = [
        make_row(0, {42: 1.01, 314: 1.01}),
        make_row(1, {42: 1.0, 314: 1.0}, size=16_000_001),
        make_row(2, {42: 0.9}, state=EntryState.PRUNED),
        make_row(3, {42: 0.9}, state=EntryState.FAILED),
        make_row(4, {}, state=EntryState.OPEN),
    ]
    result = table_of(make_stage(rows, (42, 314)), a_search())
    assert result is not None
    assert [each.name for each in result.rivals] == ["t0"]
    assert result.counts == {"complete": 2, "pruned": 1, "failed": 1, "open": 1}
    assert result.infeasible == 1
    # All scores are evidence of the noise, those of the losers too.
    assert result.noise.df == a_search().racing.sigma_df + 1


def test_a_table_ranks_as_the_search_does(tmp_path: Path) -> None:
    with playing(search_spec(search={"sampler": "tpe"}), tmp_path) as play:
        play.go_on()
        for stage in play.planner._stages[:2]:
            result = table_of(stage, play.planner.search, top=100)
            assert result is not None
            ranked = [row.name for row in play.planner.best(stage)]
            assert [each.name for each in result.rivals] == ranked


def test_the_truly_best_is_among_those_not_apart() -> None:
    """With 95 % confidence, whichever came out first: 500 stages of the size of real ones."""
    kept, draws, sigma = 0, random.Random(7), 0.0007
    for _ in range(500):
        truth = [draws.gauss(1.09, sigma) for _ in range(6)]
        shared = {seed: draws.gauss(0, sigma) for seed in SEEDS}
        scores = [[mean + shared[seed] + draws.gauss(0, sigma) for seed in SEEDS] for mean in truth]
        result = table(scores)
        best = f"t{truth.index(min(truth))}"
        kept += not next(each for each in result.rivals if each.name == best).apart
    assert kept >= 0.95 * 500


# ---- what could be seen


def test_it_is_said_which_differences_were_seen_and_which_were_not() -> None:
    result = table([[1.0, 1.0, 1.0], [1.0001, 1.0, 1.0002], [1.2, 1.2, 1.2]])
    stage = make_stage([])
    sight = sight_of(result, stage)
    assert (sight.n, sight.alpha) == (3, result.alpha)
    assert (sight.visible, sight.hidden) == (("t2",), ("t1",))
    assert sight.by_pairs is not None
    assert sight.by_pairs > sight.by_sigma > 0


def test_what_is_told_apart_is_never_said_to_be_chance() -> None:
    result = table([[1.0 + step * 0.0004] * 3 for step in range(10)])
    sight = sight_of(result, make_stage([]))
    assert sight.visible == tuple(each.name for each in result.rivals if each.apart)
    assert {*sight.visible, *sight.hidden} == {each.name for each in result.rivals[1:]}
    behind = [each.behind or 0.0 for each in result.rivals if each.name in sight.hidden]
    assert behind
    assert max(behind) < sight.by_sigma


def test_one_seed_alone_shows_nothing_by_its_pairs() -> None:
    rows = [make_row(0, {42: 1.0}), make_row(1, {42: 1.1})]
    stage = make_stage(rows, (42,))
    result = table_of(stage, a_search())
    assert result is not None
    sight = sight_of(result, stage)
    assert sight.by_pairs is None
    assert sight.by_sigma > 0


def test_a_difference_that_can_be_seen_is_seen_as_often_as_is_said() -> None:
    """Simulated: the sigma is as uncertain as its degrees of freedom say."""
    result = table([[1.0, 1.1, 1.2], [1.0, 1.1, 1.2]])
    sight = sight_of(result, make_stage([]))
    draws, noise = np.random.default_rng(3), result.noise
    count, n = 200_000, len(SEEDS)
    estimated = noise.sigma * np.sqrt(draws.chisquare(noise.df, count) / noise.df)
    means = draws.normal(sight.by_sigma, noise.sigma * math.sqrt(2 / n), count)
    bounds = means - t_quantile(1 - sight.alpha, noise.df) * estimated * math.sqrt(2 / n)
    assert np.mean(bounds > 0) == pytest.approx(POWER, abs=0.01)


# ---- several objectives, and what matters


def test_a_front_is_what_nothing_beats_in_everything(tmp_path: Path) -> None:
    def trade(env: Env, seed: int) -> tuple[float, int]:
        share = float(env["WARMDOWN_FRAC"])
        worse = 0.5 * (env["WARMDOWN_SHAPE"] == "cosine")
        return 1.0 + share + worse, int(1e6 * (2 - share + worse))

    result = found(
        tmp_path,
        outcome=trade,
        search={"objective": ["val_bpb", "bytes_total"]},
        stage=[
            {"name": "race", "seeds": 2, "trials": 8},
            {"name": "confirm", "seeds": [7], "top": 8},
        ],
    )
    assert result.winner is None
    assert result.choosing is None
    assert result.front_is_fresh
    assert result.front
    assert {each.params["WARMDOWN_SHAPE"] for each in result.front} == {"linear"}
    assert [each.means[0] for each in result.front] == sorted(e.means[0] for e in result.front)
    assert all(each.n == 1 and each.stage == "confirm" for each in result.front)


def test_what_matters_is_found_in_the_stage_that_says_most(tmp_path: Path) -> None:
    def by_shape(env: Env, seed: int) -> tuple[float, int]:
        score = 1.0 + 0.01 * (env["WARMDOWN_SHAPE"] == "cosine") + seed * 1e-6
        return score + 0.0005 * float(env["WARMDOWN_FRAC"]), 100

    stages = [{"name": "screen", "seeds": 1, "trials": 24}, {"name": "race", "seeds": 2, "top": 2}]
    result = found(tmp_path, outcome=by_shape, stage=stages)
    assert result.importance_of == "screen"
    assert next(iter(result.importances)) == "WARMDOWN_SHAPE"
    assert result.importances["WARMDOWN_SHAPE"].variance > 0.9
    assert sum(each.best for each in result.importances.values()) == pytest.approx(1)


def test_of_too_few_nothing_is_said(tmp_path: Path) -> None:
    stages = [{"name": "race", "seeds": 1, "trials": 3}]
    assert found(tmp_path, stage=stages).importances == {}


def test_findings_are_plain_data_for_programs(tmp_path: Path) -> None:
    data = json.loads(json.dumps(as_json(found(tmp_path)), allow_nan=False))
    assert data["winner"]["fresh"]["n"] == 3
    assert data["winner"]["optimism"] is not None
    assert [stage["stage"] for stage in data["stages"]] == ["screen", "race", "confirm"]
    assert data["stages"][2]["fresh"] is True
    assert data["choosing"]["rivals"][0]["apart"] is None
    assert set(data["sigma"]) == {"screen", "race", "confirm"}
