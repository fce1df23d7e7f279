"""Where a search looks next, by the surrogate."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from sweeper.proposal import START, log_improvement, propose, settings
from sweeper.racing import Candidate
from sweeper.surrogate import Axis

SIGMA = 0.0007
FRAC = Axis(name="frac", low=0.3, high=0.9)
STEP = Axis(name="step", low=1000, high=3000, step=500, whole=True)
SHAPE = Axis(name="shape", choices=("linear", "cosine"))
FLOOR = Axis(name="floor", low=0.0, high=0.1, when=("shape", ("cosine",)))
AXES = [FRAC, STEP, SHAPE, FLOOR]

# A configuration's true score, and how much too large it is.
Truth = Callable[[Mapping[str, Any]], tuple[float, float]]


def bowl(params: Mapping[str, Any]) -> tuple[float, float]:
    """Best at 0.7, 1500, cosine with a floor of 0.05; everything fits."""
    score = 1.09 + 0.05 * (params["frac"] - 0.7) ** 2 + 1e-9 * (params["step"] - 1500) ** 2
    score += 0.002 if params["shape"] == "linear" else abs(params["floor"] - 0.05) / 50
    return score, -1.0


def search(truth: Truth, runs: int, seed: int = 0) -> list[Candidate]:
    draw = random.Random(seed)
    tried: list[Candidate] = []
    for number in range(runs):
        params = propose(AXES, tried, SIGMA, seed=seed)
        score, excess = truth(params)
        scores = {42: score + draw.gauss(0, SIGMA)}
        tried.append(Candidate(number=number, params=params, scores=scores, constraint=excess))
    return tried


@pytest.mark.parametrize("z", [-30.0, -5.0, -1.001, -1.0, -0.999, 0.0, 2.0])
def test_the_expected_improvement_is_the_integral_of_it(z: float) -> None:
    sd, best = 0.5, 1.0
    mean = best - z * sd
    (found,) = log_improvement(np.array([mean]), np.array([sd]), best)
    if z < -10:  # the integral is too small to be found; by its asymptotic series instead
        expected = norm.logpdf(z) - 2 * math.log(-z) + math.log(sd)
        assert found == pytest.approx(expected, abs=0.01)
        return
    integral, _ = quad(lambda y: (best - y) * norm.pdf(y, mean, sd), mean - 12 * sd, best)
    assert found == pytest.approx(math.log(integral), abs=1e-5)


def test_the_first_fill_the_space_and_every_one_is_of_it() -> None:
    first = [settings(AXES, [0.5, 0.5, 0.1, 0.3])]
    assert first == [{"frac": pytest.approx(0.6), "step": 2000, "shape": "linear"}]
    tried = search(bowl, START * len(AXES))
    fracs = sorted(float(each.params["frac"]) for each in tried)  # type: ignore[arg-type]
    quarters = np.histogram(fracs, bins=4, range=(0.3, 0.9))[0]
    assert all(2 <= count <= 4 for count in quarters)
    for each in tried:
        assert ("floor" in each.params) == (each.params["shape"] == "cosine")
        assert each.params["step"] in (1000, 1500, 2000, 2500, 3000)


def test_a_search_comes_near_the_best() -> None:
    tried = search(bowl, 30)
    last = [bowl(each.params)[0] for each in tried[20:]]
    first = [bowl(each.params)[0] for each in tried[:12]]
    assert np.median(last) < np.median(first) - SIGMA
    assert min(last) < 1.09 + 0.0005


def test_a_search_keeps_to_what_fits() -> None:
    def heavy(params: Mapping[str, Any]) -> tuple[float, float]:
        return bowl(params)[0], 1e6 * (params["frac"] - 0.6)  # the best of it does not fit

    tried = search(heavy, 35)
    late = [float(each.params["frac"]) for each in tried[20:]]  # type: ignore[arg-type]
    assert sum(frac <= 0.6 for frac in late) > len(late) / 2
    # … but near the limit, where the best that fits is.
    assert max(frac for frac in late if frac <= 0.6) > 0.55


def test_the_same_evidence_gives_the_same_proposal() -> None:
    tried = search(bowl, 15)
    assert propose(AXES, tried, SIGMA, seed=3) == propose(AXES, tried, SIGMA, seed=3)
    assert propose(AXES, tried, SIGMA, seed=3) != propose(AXES, tried, SIGMA, seed=4)


def test_runs_in_flight_are_not_proposed_again() -> None:
    tried = search(bowl, 20)
    proposals = []
    for number in range(20, 24):
        params = propose(AXES, tried, SIGMA, seed=0)
        proposals.append(params)
        tried.append(Candidate(number=number, params=params, running=frozenset({42})))
    assert all(one != other for n, one in enumerate(proposals) for other in proposals[:n])


def test_where_all_has_failed_it_goes_on_evenly() -> None:
    failed = [
        Candidate(number=n, params=propose(AXES, [], SIGMA, seed=0), failed=True) for n in range(40)
    ]
    assert set(propose(AXES, failed, SIGMA, seed=0)) >= {"frac", "step", "shape"}


def test_where_nothing_fits_it_looks_for_what_may() -> None:
    def none(params: Mapping[str, Any]) -> tuple[float, float]:
        return bowl(params)[0], 1.0 + 1000 * float(params["frac"])

    late = [float(each.params["frac"]) for each in search(none, 25)[18:]]  # type: ignore[arg-type]
    assert np.median(late) < 0.5
