"""What a number of seeds can show: the power of the one-sided tests in stats.py.

Scores are normal about their configuration's mean, with the same sigma in both. All differences
are in one unit, that of sigma (BPB on the command line), and gains are positive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

FEWEST, MOST = 2, 200
# A candidate with more seeds than so many times the baseline's learns nothing from them: the
# baseline's own error is then nine tenths of the variance, or more.
MOST_TIMES_BASELINE = 10
SHOWN_ONE_BY_ONE = 10
NODES = 128


@dataclass(frozen=True, kw_only=True)
class Design:
    """A comparison that is planned, or that has been made.

    sigma: sample std over seeds; with `paired` (the same seeds, pair by pair), the std of the
    differences. baseline_n: the baseline's seeds where they are fixed; None: as many as the
    candidate's. ValueError when a field is out of its range.
    """

    sigma: float
    alpha: float = 0.01
    margin: float = 0.0
    baseline_n: int | None = None
    paired: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma must be above 0, found {self.sigma}")
        # Below, the quadrature of `power` is not good enough.
        if not 1e-4 <= self.alpha <= 0.5:
            raise ValueError(f"alpha must be from 0.0001 to 0.5, found {self.alpha}")
        if not math.isfinite(self.margin):
            raise ValueError(f"the margin must be finite, found {self.margin}")
        if self.baseline_n is not None and self.paired:
            raise ValueError("paired seeds are as many on both sides: the baseline has none else")
        if self.baseline_n is not None and not FEWEST <= self.baseline_n <= MOST:
            raise ValueError(
                f"the baseline has from {FEWEST} to {MOST} seeds, not {self.baseline_n}"
            )

    @property
    def most(self) -> int:
        """The most seeds of the candidate that are thought about."""
        return min(MOST, MOST_TIMES_BASELINE * (self.baseline_n or MOST))


@dataclass(frozen=True, kw_only=True)
class Row:
    """What n seeds of the candidate can show.

    power: probability that the test passes if the gain is delta. false_claims: that it passes if
    the gain is exactly the margin; alpha, were Welch's test exact. detectable: the smallest gain
    that is seen with the power asked for.
    """

    n: int
    power: float
    false_claims: float
    detectable: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Seeds against power. needed: fewest seeds with the power asked for; None: not by `most`."""

    design: Design
    delta: float
    asked: float
    needed: int | None
    rows: tuple[Row, ...]


def power(design: Design, n: int, gain: float) -> float:
    """Probability that n seeds show a true gain to be above the margin.

    Paired: a noncentral t, exact. Welch: the test's degrees of freedom depend on the samples
    through nothing but the ratio of their variances, which is independent of all else and has a
    known (beta) distribution; given it, the test is a noncentral t with n + m − 2 degrees. That
    is integrated over the ratio. The error is below 1e-12 for n = m; where one is ten times the
    other, below 1e-10 at alpha = 0.01 and 1e-3 at 0.0001.

    The usual short cut, one noncentral t with n + m − 2 degrees as for the pooled test, is no
    good for few seeds: alpha 0.01 and a gain of 4.28 sigma give it 0.32, 0.85, 0.999 at
    n = 2, 3, 5, where Welch's test has 0.13, 0.69, 0.998.
    """
    from scipy.stats import nct, t

    distance = (gain - design.margin) / design.sigma
    if design.paired:
        quantile = t.isf(design.alpha, n - 1)
        return float(nct.sf(quantile, n - 1, distance * math.sqrt(n)))
    m = design.baseline_n or n
    df, spread = n + m - 2, 1 / n + 1 / m
    shares, weights = _shares(n - 1, m - 1)
    # The squared errors of the two means, where the pooled sum of squares is `df`.
    errors = df * np.array([shares / ((n - 1) * n), (1 - shares) / ((m - 1) * m)])
    total = errors.sum(axis=0)
    welch_df = total**2 / (errors[0] ** 2 / (n - 1) + errors[1] ** 2 / (m - 1))
    bounds = t.isf(design.alpha, welch_df) * np.sqrt(total / spread)
    passed = weights @ nct.sf(bounds, df, distance / math.sqrt(spread))
    return float(min(passed, 1.0))  # the weights add up to 1 but for rounding


def _shares(a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
    """The first sample's share of the pooled sum of squares: nodes and their probabilities.

    It is Beta(a/2, b/2) for a and b degrees of freedom. In the angle whose squared sine it is, the
    density is smooth also at a = 1, where it has a pole itself; and about its mode it falls at
    least as fast as a normal one whose precision is the least curvature of its logarithm.
    """
    from scipy.special import betaln

    mode = math.atan2(math.sqrt(a - 1), math.sqrt(b - 1))
    precision = max((math.sqrt(a - 1) + math.sqrt(b - 1)) ** 2, 1.0)  # 1: all angles are within
    low = max(mode - 8 / math.sqrt(precision), 0.0)
    high = min(mode + 8 / math.sqrt(precision), math.pi / 2)
    nodes, weights = _legendre(NODES)
    angles = low + (high - low) * (nodes + 1) / 2
    sine, cosine = np.sin(angles), np.cos(angles)
    density = 2 * np.exp((a - 1) * np.log(sine) + (b - 1) * np.log(cosine) - betaln(a / 2, b / 2))
    return sine**2, weights * density * (high - low) / 2


_legendre = cache(np.polynomial.legendre.leggauss)


def detectable(design: Design, n: int, asked: float = 0.8) -> float:
    """The smallest true gain that n seeds show with the power asked for.

    To a millionth of sigma.
    """
    from scipy.optimize import brentq

    def lacking(distance: float) -> float:
        return power(design, n, design.margin + distance * design.sigma) - asked

    low, high = 0.0, 1.0
    while lacking(high) < 0:
        low, high = high, 2 * high
    # Under a large alpha, chance alone can have the power.
    distance = brentq(lacking, low, high, xtol=1e-6) if lacking(low) < 0 else 0.0
    return design.margin + design.sigma * float(distance)


def seeds_needed(design: Design, gain: float, asked: float = 0.8) -> int | None:
    """The fewest seeds of the candidate that show a true gain with the power asked for.

    None where not even `design.most` do. One by one: beside a small fixed baseline more seeds can
    lower Welch's degrees of freedom, and the power with them.
    """
    if gain <= design.margin:
        return None
    counts = range(FEWEST, design.most + 1)
    return next((n for n in counts if power(design, n, gain) >= asked), None)


def plan(design: Design, delta: float, asked: float = 0.8) -> Plan:
    """What 2 to 10 seeds can show, and ever more until the power asked for is there.

    ValueError when delta is not finite or the power asked for is not between alpha and 1.
    """
    if not math.isfinite(delta):
        raise ValueError(f"delta must be finite, found {delta}")
    if not design.alpha < asked < 1:
        raise ValueError(f"power must be between alpha ({design.alpha:g}) and 1, found {asked}")
    needed = seeds_needed(design, delta, asked)
    counts = _counts(min(SHOWN_ONE_BY_ONE, design.most), needed or 0)
    rows = tuple(
        Row(
            n=n,
            power=power(design, n, delta),
            false_claims=power(design, n, design.margin),
            detectable=detectable(design, n, asked),
        )
        for n in counts
    )
    return Plan(design=design, delta=delta, asked=asked, needed=needed, rows=rows)


def _counts(last: int, needed: int) -> Iterator[int]:
    """2, 3, … last, then by steps of a half more, to what is needed."""
    yield from range(FEWEST, last + 1)
    n = last * 3 // 2
    while n < needed:
        yield n
        n = n * 3 // 2
    if needed > last:
        yield needed
