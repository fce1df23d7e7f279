"""Mean, sample std and t-interval: against published seeds and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from sweeper.stats import Summary, summarise, t_quantile

# The three seeds of a public record, and what its authors say of them.
RECORD = (1.09269834, 1.09269085, 1.09194120)


def test_a_records_three_seeds_give_the_published_numbers() -> None:
    summary = summarise(RECORD)
    assert summary.n == 3
    assert summary.mean == pytest.approx(1.09244346, abs=5e-9)
    assert summary.std == pytest.approx(0.000435, abs=5e-7)
    assert summary.std is not None
    assert summary.low is not None
    assert summary.high is not None
    # t of two degrees of freedom is 4.3027: three seeds bound a mean far less than 1.96 would.
    half = 4.30265 * summary.std / math.sqrt(3)
    assert summary.high - summary.low == pytest.approx(2 * half, rel=1e-4)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12))
def test_summary_agrees_with_numpy_and_scipy(values: list[float]) -> None:
    summary = summarise(values)
    assert summary.mean == pytest.approx(np.mean(values), rel=1e-9, abs=1e-9)
    assert summary.std == pytest.approx(np.std(values, ddof=1), rel=1e-6, abs=1e-6)
    error = scipy.stats.sem(values)
    if error > 1e-6:
        low, high = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), error)
        assert summary.low == pytest.approx(low, rel=1e-6, abs=1e-6)
        assert summary.high == pytest.approx(high, rel=1e-6, abs=1e-6)


def test_one_value_has_a_mean_and_no_spread() -> None:
    assert summarise([1.5]) == Summary(n=1, mean=1.5, std=None, low=None, high=None)


def test_no_value_has_nothing() -> None:
    assert summarise([]) == Summary(n=0, mean=None, std=None, low=None, high=None)


def test_equal_values_have_no_spread_at_all() -> None:
    assert summarise([1.1, 1.1, 1.1]) == Summary(n=3, mean=1.1, std=0.0, low=1.1, high=1.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("others", [[], [1.0], [1.0, 2.0]])
def test_a_value_that_is_not_finite_is_refused(bad: float, others: list[float]) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        summarise([*others, bad])


@pytest.mark.parametrize(("df", "quantile"), [(1, 12.7062), (2, 4.3027), (9, 2.2622)])
def test_quantiles_are_the_textbooks(df: int, quantile: float) -> None:
    assert t_quantile(0.975, df) == pytest.approx(quantile, abs=1e-4)
