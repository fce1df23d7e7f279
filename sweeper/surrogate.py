"""What is believed of the true score of any setting, given all noisy scores; lower is better.

A Gaussian process over single runs: a constant, a smooth function of the settings (Matérn 5/2, one
length scale for each axis), an effect of each seed that all settings share, and the noise of a
run. Lengths, amplitude and the seeds' effect are the most probable ones given the scores and wide
priors; the noise is known from elsewhere, or found as they are. Rasmussen and Williams, Gaussian
Processes for Machine Learning (2006), sections 2.2, 4.2 and 5.4. The same scores in the same
order give the same beliefs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Choices = NDArray[np.int_]
Mask = NDArray[np.bool_]
Params = Mapping[str, object]

SQRT5 = math.sqrt(5)
# Most runs that a fit looks at, the best ones: its time grows with their cube.
MAX_RUNS = 250
# A score worse than the median by more than so many times what the best tenth is better counts as
# just so bad: only where the good settings lie is to be learnt, and a cliff elsewhere would make
# the function look rough everywhere.
CLIFF = 3.0
# Of the standardised scores: variance of the constant, and what keeps matrices invertible.
CONSTANT = 4.0
JITTER = 1e-8
# Log-normal priors, mean and standard deviation of the logarithm; lengths in parts of a range.
AMPLITUDE = (0.7, 0.7)
SEED_EFFECT = (-2.0, 1.0)
LENGTH = (-0.35, 0.7)
# Most of their standard deviations that a scale may be from the middle of its prior.
REACH = 4.0
# Of a noise that is not known, in standard deviations of the scores.
NOISE = (-3.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One searched setting: a range of numbers, whole or on a grid if asked for, or choices.

    `when` names an axis before this one, and the values of it with which this one is in force;
    where it is not, a configuration lacks it. That counts as the middle of the range: what it
    depends on tells the configurations apart.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    step: float | None = None
    whole: bool = False
    choices: tuple[object, ...] = ()
    when: tuple[str, tuple[object, ...]] | None = None

    @property
    def width(self) -> int:
        """How many coordinates it takes."""
        return len(self.choices) or 1

    def is_active(self, params: Params) -> bool:
        return self.when is None or params.get(self.when[0], _Absent) in self.when[1]

    def coordinates(self, params: Params) -> list[float]:
        """Its place in 0–1; of choices one corner each, any two of them 1 apart."""
        if self.name not in params:
            return [0.0] * self.width if self.choices else [0.5]
        value = params[self.name]
        if self.choices:
            return [math.sqrt(0.5) * (value == choice) for choice in self.choices]
        if not isinstance(value, (int, float)):
            raise TypeError(f"{self.name}={value!r} is not a number")
        if self.low == self.high:
            return [0.5]
        if self.log:
            return [math.log(value / self.low) / math.log(self.high / self.low)]
        return [(value - self.low) / (self.high - self.low)]

    def value(self, place: float) -> object:
        """What lies at a place in 0–1: the inverse of `coordinates`, up to the grid."""
        if self.choices:
            return self.choices[min(int(place * len(self.choices)), len(self.choices) - 1)]
        if self.log:
            value = self.low * (self.high / self.low) ** place
        else:
            value = self.low + (self.high - self.low) * place
        step = self.step or (1.0 if self.whole else None)
        if step:
            value = self.low + step * round((value - self.low) / step)
            value -= step if value > self.high + 1e-9 * step else 0.0
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value


_Absent = object()


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The score of one run of one configuration."""

    params: Params
    seed: int
    score: float


@dataclass(frozen=True, kw_only=True)
class Belief:
    """Mean and standard deviation of a true score: of the mean over all seeds there could be."""

    mean: float
    sd: float


@dataclass(frozen=True, kw_only=True)
class Scales:
    """What a fit has found, in units of the standardised scores and of the axes' ranges."""

    amplitude: float
    seed_effect: float
    noise: float
    lengths: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """The beliefs that follow from some runs. Made by `fit`."""

    axes: tuple[Axis, ...]
    scales: Scales
    centre: float
    spread: float
    points: Array  # [N, D], each coordinate divided by its length
    seeds: Array  # [N]
    residuals: Array  # [N], standardised
    half_inverse: Array  # [N, N], of the covariance's Cholesky factor
    weights: Array  # [N]

    def moments(self, points: Array) -> tuple[Array, Array]:
        """Means and standard deviations at points [M, D] as `encode` gives them."""
        cross = _matern(self.scales.amplitude, _distances(self._scaled(points), self.points))
        cross += CONSTANT
        means = cross @ self.weights
        known = np.sum((cross @ self.half_inverse.T) ** 2, axis=1)
        variances = np.maximum(self.scales.amplitude**2 + CONSTANT - known, JITTER)
        return self.centre + self.spread * means, self.spread * np.sqrt(variances)

    def believe(self, params: Sequence[Params]) -> list[Belief]:
        """What is believed of each configuration."""
        means, sds = self.moments(encode(self.axes, params))
        return [Belief(mean=float(m), sd=float(s)) for m, s in zip(means, sds, strict=True)]

    def given(self, params: Sequence[Params], seeds: Sequence[int]) -> Surrogate:
        """The beliefs once these runs have ended, if each brings what is expected of it."""
        if not params:
            return self
        points = encode(self.axes, params)
        expected = (self.moments(points)[0] - self.centre) / self.spread
        return _condition(
            dataclasses.replace(
                self,
                points=np.concatenate([self.points, self._scaled(points)]),
                seeds=np.concatenate([self.seeds, np.array(seeds, dtype=np.float64)]),
                residuals=np.concatenate([self.residuals, expected]),
            )
        )

    def _scaled(self, points: Array) -> Array:
        return points / _spread_out(self.axes, np.array(self.scales.lengths))


def encode(axes: Sequence[Axis], params: Sequence[Params]) -> Array:
    """Configurations as points [N, D] in which distance means difference."""
    rows = [[place for axis in axes for place in axis.coordinates(each)] for each in params]
    return np.array(rows, dtype=np.float64).reshape(len(params), sum(a.width for a in axes))


def encode_places(axes: Sequence[Axis], places: Array) -> Array:
    """As `encode`, for points [N, axes] of the unit cube as `Axis.value` reads them; no grid."""
    columns: list[Array] = []
    active: dict[str, tuple[Axis, Choices, Mask]] = {}
    for axis, place in zip(axes, places.T, strict=True):
        chosen = np.minimum((place * axis.width).astype(int), axis.width - 1)
        active[axis.name] = (axis, chosen, _in_force(axis, place, active))
        there = active[axis.name][2]
        if axis.choices:
            corners = (chosen[:, None] == np.arange(axis.width)) & there[:, None]
            columns += list(math.sqrt(0.5) * corners.T)
        else:
            columns.append(np.where(there & (axis.low < axis.high), place, 0.5))
    return np.array(columns).T


def _in_force(axis: Axis, place: Array, before: Mapping[str, tuple[Axis, Choices, Mask]]) -> Mask:
    if axis.when is None:
        return np.ones(len(place), dtype=bool)
    parent, chosen, there = before[axis.when[0]]
    wanted = [parent.choices.index(value) for value in axis.when[1]]
    return np.logical_and(there, np.isin(chosen, wanted))


def fit(
    axes: Sequence[Axis],
    observations: Sequence[Observation],
    sigma: float | None,
    *,
    cliff: float | None = CLIFF,
) -> Surrogate:
    """Beliefs from runs, at least one; `sigma` is the known noise of a run, None: to be found.

    Raises ValueError where there is no run, or a score that is not finite.
    """
    scores = np.array([each.score for each in observations], dtype=np.float64)
    if not len(scores) or not np.all(np.isfinite(scores)):
        raise ValueError(f"a fit needs finite scores, at least one; got {scores.tolist()}")
    kept = np.sort(np.argsort(scores, kind="stable")[:MAX_RUNS])
    points = encode(axes, [observations[index].params for index in kept])
    seeds = np.array([observations[index].seed for index in kept], dtype=np.float64)
    scores = _without_cliffs(scores[kept], sigma or 0.0, cliff)
    centre, spread = float(np.mean(scores)), max(float(np.std(scores)), sigma or 0.0) or 1.0
    residuals = (scores - centre) / spread
    noise = None if sigma is None else sigma / spread
    scales = _most_probable(axes, points, seeds, residuals, noise)
    empty = np.empty(0)
    return _condition(
        Surrogate(
            axes=tuple(axes),
            scales=scales,
            centre=centre,
            spread=spread,
            points=points / _spread_out(axes, np.array(scales.lengths)),
            seeds=seeds,
            residuals=residuals,
            half_inverse=empty,
            weights=empty,
        )
    )


def _without_cliffs(scores: Array, sigma: float, cliff: float | None) -> Array:
    if cliff is None:
        return scores
    median, good = np.quantile(scores, [0.5, 0.1])
    return np.asarray(np.minimum(scores, median + cliff * max(median - good, sigma)))


def _spread_out(axes: Sequence[Axis], lengths: Array) -> Array:
    """From one length for each axis to one for each coordinate."""
    return np.asarray(np.repeat(lengths, [axis.width for axis in axes]))


def _distances(left: Array, right: Array) -> Array:
    """Euclidean distances [N, M]."""
    squares = np.sum(left**2, axis=1)[:, None] + np.sum(right**2, axis=1) - 2 * left @ right.T
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)))


def _matern(amplitude: float, distances: Array) -> Array:
    r = SQRT5 * distances
    return np.asarray(amplitude**2 * (1 + r + r * r / 3) * np.exp(-r))


def _condition(bare: Surrogate) -> Surrogate:
    """With the parts that follow from points, residuals and scales."""
    scales = bare.scales
    covariance = _matern(scales.amplitude, _distances(bare.points, bare.points)) + CONSTANT
    covariance += scales.seed_effect**2 * (bare.seeds[:, None] == bare.seeds)
    covariance[np.diag_indices_from(covariance)] += scales.noise**2 + JITTER
    half = np.linalg.inv(np.linalg.cholesky(covariance))
    return dataclasses.replace(bare, half_inverse=half, weights=half.T @ (half @ bare.residuals))


def _most_probable(
    axes: Sequence[Axis], points: Array, seeds: Array, residuals: Array, noise: float | None
) -> Scales:
    """The scales of highest posterior density, from the priors' middle uphill."""
    from scipy.optimize import minimize

    ends = np.cumsum([axis.width for axis in axes])
    squares = np.array(
        [
            _distances(part, part) ** 2
            for part in np.split(points, ends[:-1].astype(int).tolist(), axis=1)
        ]
    )  # [axes, N, N]
    same = (seeds[:, None] == seeds).astype(np.float64)
    unit = np.eye(len(residuals))
    # With one seed its effect is part of the constant.
    fixed_seed = len(np.unique(seeds)) < 2
    priors = np.array([AMPLITUDE, SEED_EFFECT, NOISE, *(LENGTH for _ in axes)])
    if noise is not None:
        priors[2, 0] = math.log(noise)

    def loss(theta: Array) -> tuple[float, Array]:
        """Negative log posterior and its gradient; theta are logarithms in the priors' order."""
        amplitude, shared, own = np.exp(2 * theta[:3])
        scaled = squares * np.exp(-2 * theta[3:])[:, None, None]
        r = SQRT5 * np.sqrt(np.sum(scaled, axis=0))
        decay = amplitude * np.exp(-r)
        smooth = decay * (1 + r + r * r / 3)
        factor = np.linalg.cholesky(smooth + shared * same + CONSTANT + (own + JITTER) * unit)
        half = np.linalg.inv(factor)
        weights = half.T @ (half @ residuals)
        slope = half.T @ half - np.outer(weights, weights)
        off = (theta - priors[:, 0]) / priors[:, 1]
        value = residuals @ weights / 2 + np.sum(np.log(np.diag(factor))) + off @ off / 2
        gradient = off / priors[:, 1]
        gradient[0] += np.sum(slope * smooth)
        gradient[1] += 0.0 if fixed_seed else shared * np.sum(slope * same)
        gradient[2] += 0.0 if noise is not None else own * np.trace(slope)
        # The derivative of Matérn 5/2 by a logarithm of a length, halved as the slope is.
        gradient[3:] += np.einsum("ij,dij->d", slope * decay * (1 + r) * (5 / 6), scaled)
        return float(value), gradient

    # Far from the priors nothing is found, and the covariance can no longer be inverted.
    low, high = priors[:, 0] - REACH * priors[:, 1], priors[:, 0] + REACH * priors[:, 1]
    found = minimize(
        loss,
        priors[:, 0],
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(low.tolist(), high.tolist(), strict=True)),
        options={"maxiter": 40, "ftol": 1e-6},
    )
    amplitude, shared, own, *lengths = np.exp(found.x).tolist()
    shared = 0.0 if fixed_seed else shared
    return Scales(amplitude=amplitude, seed_effect=shared, noise=own, lengths=tuple(lengths))
