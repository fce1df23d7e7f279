"""What is believed of true scores, held against the textbook's formulas and against the truth."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest

from sweeper.surrogate import (
    CONSTANT,
    JITTER,
    MAX_RUNS,
    Axis,
    Observation,
    Params,
    encode,
    encode_places,
    fit,
)

FRAC = Axis(name="frac", low=0.3, high=0.9)
STEP = Axis(name="step", low=1000, high=3000, step=500, whole=True)
RATE = Axis(name="rate", low=1e-4, high=1e-2, log=True)
SHAPE = Axis(name="shape", choices=("linear", "cosine", 3))
FLOOR = Axis(name="floor", low=0.0, high=0.1, when=("shape", ("cosine", 3)))
AXES = [FRAC, STEP, RATE, SHAPE, FLOOR]
SIGMA = 0.0007


def point(place: float, seed: int, score: float) -> Observation:
    return Observation(params={"frac": place}, seed=seed, score=score)


# ---- axes


@pytest.mark.parametrize(
    ("axis", "place", "value"),
    [
        (FRAC, 0.0, 0.3),
        (FRAC, 0.5, 0.6),
        (FRAC, 1.0, 0.9),
        (STEP, 0.5, 2000),
        (STEP, 0.3, 1500),
        (RATE, 0.5, 1e-3),
        (SHAPE, 0.1, "linear"),
        (SHAPE, 0.5, "cosine"),
        (SHAPE, 1.0, 3),
        (Axis(name="odd", low=1.0, high=2.0, step=0.4), 1.0, 1.8),  # the last within the range
        (Axis(name="whole", low=1, high=9, whole=True), 0.49, 5),
        (Axis(name="both", low=1, high=64, log=True, whole=True), 0.5, 8),
    ],
)
def test_the_value_at_a_place(axis: Axis, place: float, value: object) -> None:
    found = axis.value(place)
    assert found == (pytest.approx(value) if isinstance(value, float) else value)
    assert type(found) is type(value)


@pytest.mark.parametrize("axis", [FRAC, RATE])
@pytest.mark.parametrize("place", [0.0, 0.123, 0.9, 1.0])
def test_a_range_s_place_is_where_its_value_came_from(axis: Axis, place: float) -> None:
    assert axis.coordinates({axis.name: axis.value(place)}) == pytest.approx([place])


def test_any_two_choices_are_one_apart() -> None:
    points = encode([SHAPE], [{"shape": choice} for choice in SHAPE.choices])
    for one in range(3):
        for other in range(one):
            assert math.dist(points[one], points[other]) == pytest.approx(1)


def test_what_does_not_apply_is_in_the_middle() -> None:
    (row,) = encode([SHAPE, FLOOR], [{"shape": "linear"}])
    assert row[-1] == 0.5
    assert not FLOOR.is_active({"shape": "linear"})
    assert not FLOOR.is_active({})
    assert FLOOR.is_active({"shape": 3})


def test_a_text_where_a_number_belongs_is_refused() -> None:
    with pytest.raises(TypeError, match="frac='much' is not a number"):
        encode([FRAC], [{"frac": "much"}])


def test_places_are_encoded_as_the_settings_at_them() -> None:
    smooth = [FRAC, RATE, SHAPE, FLOOR]  # no grid: places keep to it only as settings
    places = np.random.default_rng(0).random((50, len(smooth)))
    params: list[Params] = []
    for row in places:
        chosen: dict[str, object] = {}
        for axis, place in zip(smooth, row.tolist(), strict=True):
            if axis.is_active(chosen):
                chosen[axis.name] = axis.value(place)
        params.append(chosen)
    assert encode_places(smooth, places) == pytest.approx(encode(smooth, params))


# ---- beliefs


def test_the_beliefs_are_the_textbooks() -> None:
    """Rasmussen and Williams (2.23) and (2.24), written out with the scales that were found."""
    runs = [point(0.3, 1, 1.0), point(0.4, 2, 0.5), point(0.4, 1, 0.6), point(0.8, 2, 2.0)]
    surrogate = fit([FRAC], runs, 0.1, cliff=None)
    scales = surrogate.scales

    def kernel(one: float, other: float) -> float:
        r = math.sqrt(5) * abs(one - other) / 0.6 / scales.lengths[0]
        return scales.amplitude**2 * (1 + r + r * r / 3) * math.exp(-r) + CONSTANT

    places, seeds = [0.3, 0.4, 0.4, 0.8], [1, 2, 1, 2]
    covariance = np.array([[kernel(a, b) for b in places] for a in places])
    covariance += scales.seed_effect**2 * np.equal.outer(seeds, seeds)
    covariance += (scales.noise**2 + JITTER) * np.eye(4)
    scores = np.array([1.0, 0.5, 0.6, 2.0])
    spread = scores.std()
    cross = np.array([kernel(0.5, b) for b in places])
    mean = cross @ np.linalg.solve(covariance, (scores - scores.mean()) / spread)
    variance = kernel(0.5, 0.5) - cross @ np.linalg.solve(covariance, cross)
    (found,) = surrogate.believe([{"frac": 0.5}])
    assert found.mean == pytest.approx(scores.mean() + spread * mean, rel=1e-6)
    assert found.sd == pytest.approx(spread * math.sqrt(variance), rel=1e-6)
    assert scales.noise == pytest.approx(0.1 / spread)


def valley(frac: float) -> float:
    return 1.09 + 0.05 * (frac - 0.6) ** 2


def runs_of(draw: random.Random, count: int, seeds: Sequence[int] = (1,)) -> list[Observation]:
    """Runs spread over the valley, each with noise of its own."""
    places = [0.3 + 0.6 * number / (count - 1) for number in range(count)]
    return [point(p, seed, valley(p) + draw.gauss(0, SIGMA)) for p in places for seed in seeds]


def test_beliefs_are_nearer_the_truth_than_scores_and_know_how_near() -> None:
    draw, errors, own, within = random.Random(1), [], [], 0
    for _ in range(20):
        runs = runs_of(draw, 20)
        surrogate = fit([FRAC], runs, SIGMA)
        beliefs = surrogate.believe([run.params for run in runs])
        for run, belief in zip(runs, beliefs, strict=True):
            true = valley(float(run.params["frac"]))  # type: ignore[arg-type]
            errors.append((belief.mean - true) ** 2)
            own.append((run.score - true) ** 2)
            within += abs(belief.mean - true) < 2 * belief.sd
    assert np.mean(errors) < np.mean(own) / 2
    assert within / len(errors) > 0.85


def test_what_a_seed_does_to_all_alike_is_told_apart() -> None:
    draw = random.Random(2)
    effects = {1: 0.0, 2: 0.004, 3: -0.004}
    # Each place has had one seed only: taken as they are, these scores are no valley.
    runs = [
        point(p, seed, valley(p) + effects[seed] + draw.gauss(0, 1e-4))
        for number, p in enumerate(np.linspace(0.3, 0.9, 30).tolist())
        for seed in [1 + number % 3]
    ]
    surrogate = fit([FRAC], runs, 1e-4)
    beliefs = surrogate.believe([run.params for run in runs])
    truth = np.array([valley(float(run.params["frac"])) for run in runs])  # type: ignore[arg-type]
    shape = np.array([belief.mean for belief in beliefs]) - truth
    assert np.std(shape) < 0.0005
    assert surrogate.scales.seed_effect * surrogate.spread > 0.001


def test_a_noise_that_is_not_known_is_found() -> None:
    draw = random.Random(3)
    runs = [point(p, 1, valley(p) + draw.gauss(0, 0.002)) for p in np.linspace(0.3, 0.9, 60)]
    surrogate = fit([FRAC], runs, None)
    assert surrogate.scales.noise * surrogate.spread == pytest.approx(0.002, rel=0.35)


def test_a_setting_of_no_effect_has_a_longer_length() -> None:
    draw = random.Random(4)
    runs = [
        Observation(params=params, seed=1, score=valley(float(params["frac"])))
        for params in (
            {"frac": draw.uniform(0.3, 0.9), "rate": 10 ** draw.uniform(-4, -2)} for _ in range(30)
        )
    ]
    matters, none = fit([FRAC, RATE], runs, 1e-5).scales.lengths
    assert none > 2 * matters


def test_runs_in_flight_move_no_mean_and_make_it_surer() -> None:
    surrogate = fit([FRAC], runs_of(random.Random(5), 8), SIGMA)
    place = {"frac": 0.55}
    given = surrogate.given([place, place], [1, 2])
    before, after = surrogate.believe([place])[0], given.believe([place])[0]
    assert after.mean == pytest.approx(before.mean, abs=SIGMA / 10)
    assert after.sd < before.sd
    assert surrogate.given([], []) is surrogate


def test_a_cliff_does_not_hide_the_valley() -> None:
    runs = runs_of(random.Random(6), 16)
    cliff = [point(0.3 + 0.001 * number, 1, 5.0) for number in range(3)]
    beliefs = fit([FRAC], [*runs, *cliff], SIGMA).believe([{"frac": f} for f in (0.5, 0.6, 0.8)])
    assert min(beliefs, key=lambda each: each.mean) is beliefs[1]
    assert beliefs[1].sd < SIGMA


@pytest.mark.parametrize("sigma", [SIGMA, None])
@pytest.mark.parametrize(
    "scores",
    [
        [1.0],
        [1.0, 1.0, 1.0, 1.0],
        [1e9, -1e9, 0.0],
        [1.0, 1.0 + 1e-15],
        [1.09, 1.09, 1e300, 1.09],
        [5e-324, 0.0],
    ],
)
def test_any_finite_scores_can_be_believed(scores: list[float], sigma: float | None) -> None:
    runs = [point(0.3 + 0.1 * (number % 2), number, s) for number, s in enumerate(scores)]
    for cliff in (3.0, None):
        with np.errstate(over="ignore"):
            if max(scores) > 1e100 and cliff is None:
                continue  # its square is no number
            beliefs = fit([FRAC], runs, sigma, cliff=cliff).believe([{"frac": 0.5}])
        assert math.isfinite(beliefs[0].mean)
        assert math.isfinite(beliefs[0].sd)
        assert beliefs[0].sd > 0


@pytest.mark.parametrize("scores", [[], [math.nan], [1.0, math.inf]])
def test_scores_that_are_none_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="a fit needs finite scores"):
        fit([FRAC], [point(0.5, 1, score) for score in scores], SIGMA)


def test_a_long_search_is_fitted_to_its_best_runs() -> None:
    runs = runs_of(random.Random(7), MAX_RUNS + 50)
    surrogate = fit([FRAC], runs, SIGMA)
    assert len(surrogate.points) == MAX_RUNS
    kept = sorted(run.score for run in runs)[:MAX_RUNS]
    assert surrogate.centre <= np.mean(kept) + 1e-12


def test_the_same_scores_give_the_same_beliefs() -> None:
    runs = runs_of(random.Random(8), 30, seeds=(1, 2))
    one, other = fit([FRAC], runs, SIGMA), fit([FRAC], runs, SIGMA)
    assert one.scales == other.scales
    assert one.believe([{"frac": 0.5}]) == other.believe([{"frac": 0.5}])
