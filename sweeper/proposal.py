"""Which configuration a search tries next: where the best is expected to improve most.

Expected improvement on the lowest believed score among what has been tried, times the probability
to be feasible; both from the surrogate, so that a lucky seed draws nobody. Runs in flight count as
if they brought what is expected of them, so that parallel slots spread out. The same evidence and
the same seed give the same proposal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sweeper.racing import Candidate
from sweeper.surrogate import (
    Array,
    Axis,
    Observation,
    Params,
    Surrogate,
    encode,
    encode_places,
    fit,
)

# So many configurations an axis fill the space evenly before the surrogate is asked. With fewer it
# is often sure of the wrong valley: in the bench's searches of 51 runs (jobs/bench/search.py, 100
# surfaces of four axes) the optimum was among them in .94 of those that began with 10, in .97 to
# .99 with 12 to 18.
START = 3
# Candidates for the next configuration: anywhere, and near the best few.
ANYWHERE, NEAR, BEST = 1000, 500, 5


def propose(
    axes: Sequence[Axis],
    candidates: Sequence[Candidate],
    sigma: float,
    *,
    seed: int,
    start: int | None = None,
) -> dict[str, object]:
    """The next configuration; the first `start` of all fill the space evenly, knowing nothing.

    `candidates` are all that were proposed before, whatever became of them.
    """
    start = START * len(axes) if start is None else start
    scored = [each for each in candidates if each.scores]
    if len(candidates) < start or not scored:
        return _spread(axes, len(candidates), seed)
    draw = np.random.default_rng([seed, len(candidates)])
    belief = believe(axes, candidates, sigma)
    allowed = [each for each in scored if each.feasible] or scored
    tried = [each.params for each in allowed]
    means = belief.moments(encode(axes, tried))[0]
    best = np.argsort(means, kind="stable")[:BEST]
    places = np.concatenate(
        [draw.random((ANYWHERE, len(axes))), _near(axes, [tried[i] for i in best], draw)]
    )
    points = encode_places(axes, places)
    gain = log_improvement(*belief.moments(points), float(np.min(means)))
    gain += log_feasible(axes, candidates, points)
    return settings(axes, places[int(np.argmax(gain))].tolist())


def believe(axes: Sequence[Axis], candidates: Sequence[Candidate], sigma: float) -> Surrogate:
    """Beliefs from all runs that have ended, those in flight as if they had."""
    seen = fit(
        axes,
        [
            Observation(params=each.params, seed=seed, score=score)
            for each in candidates
            for seed, score in each.scores.items()
        ],
        sigma,
    )
    flying = [(each.params, seed) for each in candidates for seed in sorted(each.running)]
    return seen.given([params for params, _ in flying], [seed for _, seed in flying])


def log_improvement(means: Array, sds: Array, best: float) -> Array:
    """Logarithm of the expected improvement on `best`, exact also where that is tiny.

    Ament et al., Unexpected Improvements to Expected Improvement (2023), section 4.1.
    """
    from scipy.special import erfcx, log_ndtr

    z = (best - means) / sds
    density = -z * z / 2 - math.log(2 * math.pi) / 2
    far = np.minimum(z, -1.0)
    tail = np.log1p(math.sqrt(math.pi / 2) * far * erfcx(-far / math.sqrt(2)))
    near = np.maximum(z, -1.0)
    body = np.log(np.exp(-near * near / 2) / math.sqrt(2 * math.pi) + near * np.exp(log_ndtr(near)))
    return np.log(sds) + np.where(z < -1.0, density + tail, body)


def log_feasible(axes: Sequence[Axis], candidates: Sequence[Candidate], points: Array) -> Array:
    """Logarithm of the probability to be feasible; 0 as long as nothing tried was not."""
    from scipy.special import log_ndtr

    known = [each for each in candidates if each.constraint is not None]
    if all(each.constraint <= 0 for each in known if each.constraint is not None):
        return np.zeros(len(points))
    seen = [
        Observation(params=each.params, seed=0, score=each.constraint)
        for each in known
        if each.constraint is not None
    ]
    surrogate = fit(axes, seen, None, cliff=None)
    means, sds = surrogate.moments(points)
    noise = surrogate.scales.noise * surrogate.spread
    return np.asarray(log_ndtr(-means / np.hypot(sds, noise)))


def _spread(axes: Sequence[Axis], number: int, seed: int) -> dict[str, object]:
    """The number-th point of a scrambled Sobol sequence."""
    from scipy.stats import qmc

    size = 2 ** math.ceil(math.log2(number + 1))
    places = qmc.Sobol(len(axes), rng=np.random.default_rng(seed)).random(size)[number]
    return settings(axes, places.tolist())


def settings(axes: Sequence[Axis], places: Sequence[float]) -> dict[str, object]:
    """The configuration at a point of the unit cube, without the axes that are not in force."""
    params: dict[str, object] = {}
    for axis, place in zip(axes, places, strict=True):
        if axis.is_active(params):
            params[axis.name] = axis.value(place)
    return params


def _near(axes: Sequence[Axis], centres: Sequence[Params], draw: np.random.Generator) -> Array:
    """Neighbours in the unit cube: most axes moved, by a distance that is itself drawn; rarely
    another choice."""
    chosen = draw.integers(len(centres), size=NEAR)
    shape = (NEAR, len(axes))
    here = np.array([[_place(axis, each) for axis in axes] for each in centres])[chosen]
    elsewhere = draw.random(shape)
    steps = 10 ** draw.uniform(-2.2, -0.5, (NEAR, 1)) * draw.standard_normal(shape)
    moved = draw.random(shape)
    choices = np.array([bool(axis.choices) for axis in axes])
    jumps = np.where(choices, moved < 0.15, np.isnan(here))
    walks = ~choices & (moved < 0.6)
    return np.where(jumps, elsewhere, np.clip(np.where(walks, here + steps, here), 0.0, 1.0))


def _place(axis: Axis, params: Params) -> float:
    """Where a setting lies in the unit cube; not a number where it is not in force."""
    if axis.name not in params:
        return math.nan
    if axis.choices:
        return (axis.choices.index(params[axis.name]) + 0.5) / len(axis.choices)
    return axis.coordinates(params)[0]
