"""Mean, spread and interval of a few seeds' scores."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A sample in four numbers.

    `std` has n − 1 below the line (the population's formula understates the spread of three
    seeds by 18 %); `low` and `high` bound the mean by Student's t at 95 %. None where n is too
    small to say.
    """

    n: int
    mean: float | None
    std: float | None
    low: float | None
    high: float | None


def summarise(values: Sequence[float]) -> Summary:
    """Summary of a sample; ValueError when a value is not finite."""
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"a sample must be finite, found {list(values)}")
    n = len(values)
    if n < 2:
        mean = values[0] if values else None
        return Summary(n=n, mean=mean, std=None, low=None, high=None)
    mean, std = statistics.fmean(values), statistics.stdev(values)
    half = t_quantile((1 + CONFIDENCE) / 2, n - 1) * std / math.sqrt(n)
    return Summary(n=n, mean=mean, std=std, low=mean - half, high=mean + half)


def t_quantile(probability: float, df: int) -> float:
    """Quantile of Student's t."""
    # Importing scipy.stats takes a second; only reports need it.
    from scipy.stats import t

    return float(t.ppf(probability, df))
