"""A made-up response surface with a known optimum, for `jobs.bench.search`.

Sizes are those of public results: settings matter by 0.0005 to 0.004 BPB, the seeds of one
configuration are 0.0007 BPB apart (standard deviation). It is no Gaussian process and no quadratic:
valleys are skewed and of any sharpness, two settings lean on each other, the best fraction depends
on the shape, and what is best without a limit on bytes often does not fit.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SHAPES = ("linear", "cosine", "sqrt")
RANGES = {"WARMDOWN_FRAC": (0.3, 0.9), "LR_FLOOR": (0.0, 0.1), "RECUR_START_FRAC": (0.2, 0.7)}
SPACE: Mapping[str, Mapping[str, object]] = {
    "WARMDOWN_SHAPE": {"choices": list(SHAPES)},
    **{name: {"low": low, "high": high} for name, (low, high) in RANGES.items()},
}
FLOOR_BPB = 1.09  # the best there would be without a limit
EFFECTS = (
    0.0005,
    0.004,
)  # BPB: another shape than the best one, or half a range beside the best place
SIGMA = 0.0007  # BPB between the seeds of one configuration
SEED_SIGMA = 0.0003  # of it what a seed does to all configurations alike
MAX_BYTES = 16_000_000
BYTES_REACH = 60_000  # between the smallest and the largest configuration, about
BYTES_SIGMA = 1_500  # between seeds
INFEASIBLE = (0.1, 0.4)  # share of the space that does not fit
GPUS = 8


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one run brings."""

    score: float  # BPB
    bytes_total: int
    seconds: float  # from its launch to its score


class Surface:
    """One surface out of the many there could be; all that it says follows from its number."""

    def __init__(self, number: int) -> None:
        draw = np.random.default_rng([number, 0])
        self.number = number
        count = len(RANGES)
        self._shapes = draw.uniform(*EFFECTS, len(SHAPES))
        self._shapes[draw.integers(len(SHAPES))] = 0.0
        self._centres = draw.uniform(0.15, 0.85, count)
        self._shifts = draw.uniform(-0.15, 0.15, len(SHAPES))  # of the fraction's centre, by shape
        self._effects = draw.uniform(*EFFECTS, count)
        self._powers = draw.uniform(1.2, 2.4, (2, count))  # of either slope
        self._lean = draw.uniform(-0.5, 0.5)  # of the start's centre on the fraction
        self._heavy = draw.standard_normal(count)
        self._heavy /= np.abs(self._heavy).sum()
        self._heavy_shapes = draw.uniform(0.0, 0.2, len(SHAPES))
        self._fitting = 1.0 - draw.uniform(*INFEASIBLE)
        shapes, places = _anywhere(draw, 20_000)
        self._limit = float(np.quantile(self._weight(shapes, places), self._fitting))

    # ---- the truth

    def score(self, params: Mapping[str, object]) -> float:
        """The true score, in BPB."""
        return float(self._scores(*_placed(params))[0])

    def fits(self, params: Mapping[str, object]) -> bool:
        """Whether it is within the bytes, but for what seeds do to them."""
        return float(self._weight(*_placed(params))[0]) <= self._limit

    @cached_property
    def optimum(self) -> float:
        """The best true score of what fits, in BPB, to within a millionth or so."""
        draw = np.random.default_rng([self.number, 1])
        shapes, places = _anywhere(draw, 20_000)
        best = np.inf
        for width in 0.5 ** np.arange(1, 16):
            scores = self._scores(shapes, places)
            scores[self._weight(shapes, places) > self._limit] = np.inf
            first = np.argsort(scores)[:20]
            best = min(best, float(scores[first[0]]))
            chosen = first[draw.integers(len(first), size=4_000)]
            moved = places[chosen] + width * draw.standard_normal((len(chosen), len(RANGES))) / 4
            shapes = np.concatenate([shapes[first], shapes[chosen]])
            places = np.concatenate([places[first], np.clip(moved, 0.0, 1.0)])
        return best

    def _scores(self, shapes: NDArray[np.int_], places: Array) -> Array:
        """True scores [N] of shapes [N] by index, and places [N, 3] in 0–1."""
        away = places - self._centres
        away[:, 0] -= self._shifts[shapes]
        away[:, 2] -= self._lean * away[:, 0]
        powers = np.where(away < 0, *self._powers)
        cost = self._effects * np.abs(away / 0.5) ** powers
        return np.asarray(FLOOR_BPB + self._shapes[shapes] + cost.sum(axis=1))

    def _weight(self, shapes: NDArray[np.int_], places: Array) -> Array:
        """Sizes [N] of artifacts, in units of BYTES_REACH above some size."""
        bent = places + 0.3 * places * (1 - places)
        return np.asarray(bent @ self._heavy + self._heavy_shapes[shapes])

    # ---- runs

    def run(self, params: Mapping[str, object], seed: int) -> Outcome:
        """One run: the same each time that it is made."""
        key = zlib.crc32(repr(sorted(params.items())).encode())
        draw = np.random.default_rng([self.number, 2, key, seed])
        shared = SEED_SIGMA * np.random.default_rng([self.number, 3, seed]).standard_normal()
        own = float(np.sqrt(SIGMA**2 - SEED_SIGMA**2)) * draw.standard_normal()
        shapes, places = _placed(params)
        excess = BYTES_REACH * float(self._weight(shapes, places)[0] - self._limit)
        # Training ends by the clock; scoring takes longer the more of it is recurrent.
        seconds = 690.0 + 40.0 * (1.0 - float(places[0, 2])) + 5.0 * abs(draw.standard_normal())
        return Outcome(
            score=self.score(params) + float(shared + own),
            bytes_total=round(MAX_BYTES + excess + BYTES_SIGMA * draw.standard_normal()),
            seconds=seconds,
        )


def _placed(params: Mapping[str, object]) -> tuple[NDArray[np.int_], Array]:
    places = [(_number(params[name]) - low) / (high - low) for name, (low, high) in RANGES.items()]
    return np.array([SHAPES.index(str(params["WARMDOWN_SHAPE"]))]), np.array([places])


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)


def _anywhere(draw: np.random.Generator, count: int) -> tuple[NDArray[np.int_], Array]:
    return draw.integers(len(SHAPES), size=count), draw.random((count, len(RANGES)))
