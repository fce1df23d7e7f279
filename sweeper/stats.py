"""Mean, spread and interval of a few seeds' scores, and whether one sample beats another."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95

Basis = Literal["token", "byte"]


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


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A one-sided t-test of "the gain is no more than the margin"; the data's unit throughout.

    `gain` is the baseline's mean less the candidate's: scores are losses, and lower is better.
    `p` belongs to `t = (gain − margin) / standard_error`; `lower_bound` bounds the gain from
    below with confidence 1 − `alpha`, and is above the margin exactly when p < `alpha`.
    """

    gain: float
    margin: float
    standard_error: float
    t: float
    df: float
    p: float
    lower_bound: float
    alpha: float


def summarise(values: Sequence[float]) -> Summary:
    """Summary of a sample; ValueError when a value is not finite."""
    _check_finite(values)
    n = len(values)
    if n < 2:
        mean = values[0] if values else None
        return Summary(n=n, mean=mean, std=None, low=None, high=None)
    mean, std = statistics.fmean(values), statistics.stdev(values)
    half = t_quantile((1 + CONFIDENCE) / 2, n - 1) * std / math.sqrt(n)
    return Summary(n=n, mean=mean, std=std, low=mean - half, high=mean + half)


def population_std(values: Sequence[float]) -> float | None:
    """The standard deviation with n below the line, which is not that of a sample."""
    return statistics.pstdev(values) if values else None


def welch(
    candidate: Sequence[float],
    baseline: Sequence[float],
    *,
    margin: float = 0.0,
    alpha: float = 0.01,
) -> Comparison:
    """Welch's test: samples that share nothing, and whose spreads may differ.

    Degrees of freedom by Welch and Satterthwaite. ValueError for fewer than two values, one that
    is not finite, or no spread in either sample; no spread in one of them is taken as it is.
    """
    errors = [_squared_error(sample) for sample in (candidate, baseline)]
    sizes = [len(candidate), len(baseline)]
    total = sum(errors)
    if total == 0.0:
        raise ValueError("neither sample has any spread: no test can be made of them")
    # By shares, because the squares of tiny errors would be nothing at all.
    shares = [error / total for error in errors]
    df = 1 / sum(share**2 / (n - 1) for share, n in zip(shares, sizes, strict=True))
    gain = statistics.fmean(baseline) - statistics.fmean(candidate)
    return _compare(gain, math.sqrt(total), df, margin, alpha)


def paired(
    candidate: Sequence[float],
    baseline: Sequence[float],
    *,
    margin: float = 0.0,
    alpha: float = 0.01,
) -> Comparison:
    """Student's test of the differences, where the same seed is at the same place in both.

    ValueError as in `welch`, and when the samples are not of one length.
    """
    _check_finite([*candidate, *baseline])
    gains = [b - c for c, b in zip(candidate, baseline, strict=True)]
    error = _squared_error(gains)
    if error == 0.0:
        raise ValueError("the differences have no spread: no test can be made of them")
    return _compare(statistics.fmean(gains), math.sqrt(error), len(gains) - 1, margin, alpha)


def _compare(gain: float, error: float, df: float, margin: float, alpha: float) -> Comparison:
    from scipy.stats import t as student

    t = (gain - margin) / error
    return Comparison(
        gain=gain,
        margin=margin,
        standard_error=error,
        t=t,
        df=df,
        p=float(student.sf(t, df)),
        lower_bound=gain - t_quantile(1 - alpha, df) * error,
        alpha=alpha,
    )


def _squared_error(sample: Sequence[float]) -> float:
    """The squared standard error of a sample's mean."""
    _check_finite(sample)
    if len(sample) < 2:
        raise ValueError(f"a test needs at least two values a sample, found {len(sample)}")
    return statistics.variance(sample) / len(sample)


def _check_finite(values: Sequence[float]) -> None:
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"a sample must be finite, found {list(values)}")


def t_quantile(probability: float, df: float) -> float:
    """Quantile of Student's t."""
    # Importing scipy.stats takes a second; only reports need it.
    from scipy.stats import t

    return float(t.ppf(probability, df))


def bpb_of_nats(nats: float, basis: Basis, nats_per_bpb: float | None = None) -> float:
    """Nats as bits per byte (BPB).

    A byte's nats are ln 2 of a bit each, whatever the tokenizer. A token's are
    ln 2 × bytes per token, which is `nats_per_bpb`: a fact of tokenizer and validation set, equal
    to val_loss / val_bpb of any full score. ValueError where it is needed and not given.
    """
    if basis == "byte":
        return nats / math.log(2)
    if nats_per_bpb is None:
        raise ValueError("nats per token are no BPB without the tokenizer's nats_per_bpb")
    return nats / nats_per_bpb
