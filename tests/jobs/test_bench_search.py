"""The simulated searches: that the surface is what it says, and a small bench from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.bench.search import SEEDS, Ended, Proposer, row_of, sample
from jobs.bench.surface import (
    INFEASIBLE,
    MAX_BYTES,
    RANGES,
    SEED_SIGMA,
    SHAPES,
    SIGMA,
    Surface,
)
from sweeper.surrogate import Axis

ROOT = Path(__file__).parents[2]


def anywhere(draw: np.random.Generator) -> dict[str, Any]:
    places = {name: float(draw.uniform(low, high)) for name, (low, high) in RANGES.items()}
    return {"WARMDOWN_SHAPE": str(draw.choice(SHAPES)), **places}


@pytest.mark.parametrize("number", range(5))
def test_nothing_that_fits_is_better_than_the_optimum(number: int) -> None:
    surface, draw = Surface(number), np.random.default_rng(number)
    points = [anywhere(draw) for _ in range(2_000)]
    fitting = [surface.score(point) for point in points if surface.fits(point)]
    best = min(fitting)
    assert surface.optimum <= best < surface.optimum + 0.003
    share = 1 - len(fitting) / len(points)
    assert INFEASIBLE[0] - 0.04 < share < INFEASIBLE[1] + 0.04


def test_the_seeds_differ_as_they_should() -> None:
    surface, draw = Surface(0), np.random.default_rng(0)
    points, seeds = [anywhere(draw) for _ in range(60)], range(60)
    scores = np.array([[surface.run(point, seed).score for seed in seeds] for point in points])
    off = scores - np.array([[surface.score(point)] for point in points])
    assert np.std(off) == pytest.approx(SIGMA, rel=0.1)
    assert np.std(off.mean(axis=0)) == pytest.approx(SEED_SIGMA, rel=0.35)
    assert np.std(off.mean(axis=1)) < SIGMA / 5


def test_a_run_is_the_same_each_time_and_its_bytes_say_whether_it_fits() -> None:
    surface, draw = Surface(3), np.random.default_rng(3)
    agree = 0
    for _ in range(200):
        point = anywhere(draw)
        once, again = surface.run(point, 42), Surface(3).run(point, 42)
        assert once == again
        assert once.seconds > 600
        agree += (once.bytes_total <= MAX_BYTES) == surface.fits(point)
    assert agree > 180


def test_a_sampler_is_told_what_its_runs_were() -> None:
    axes = [Axis(name="WARMDOWN_SHAPE", choices=SHAPES)]
    axes += [Axis(name=name, low=low, high=high) for name, (low, high) in RANGES.items()]
    surface, proposer = Surface(1), Proposer(axes, 1)
    tried = sample(surface, proposer, SEEDS[:1], 15)
    assert [each.params for each in tried] == [each.params for each in proposer._candidates]
    assert all(list(each.runs) == [42] for each in tried)


def test_a_row_counts_what_has_no_winner_as_not_found() -> None:
    won = Ended(runs=30, gpu_hours=1.0, found=True, bias=0.001, estimate_bias=-0.001)
    lost = Ended(runs=20, gpu_hours=1.0, found=False)
    row = row_of("race", 30, [won, won, won, lost])
    assert (row.p, row.without_winner, row.runs) == (0.75, 1, 27.5)
    assert row.bias == pytest.approx(0.001)
    assert row.p_se == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
    assert row_of("race", 30, [lost]).bias is None


def test_a_small_bench(tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    command = [sys.executable, "-m", "jobs.bench.search", "--searches", "4", "--jobs", "1"]
    command += ["--budgets", "15", "30", "--json", str(path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = json.loads(path.read_text())["rows"]
    assert {(row["policy"], row["budget"]) for row in rows} == {
        (policy, budget)
        for policy in ("1 seed", "3 seeds", "race", "race, own sampler")
        for budget in (15, 30)
    }
    for row in rows:
        assert row["searches"] == 4
        assert 0 <= row["p"] <= 1
        assert row["runs"] <= row["budget"]
        if not row["policy"].startswith("race"):
            assert row["runs"] == row["budget"]
            assert row["bias"] == row["estimate_bias"]
    assert "race, 15 runs: found" in ended.stdout
