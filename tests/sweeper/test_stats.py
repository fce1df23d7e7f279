"""Mean, std, t-interval and the tests of a gain: against published seeds and against scipy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from sweeper.stats import Summary, bpb_of_nats, paired, summarise, t_quantile, welch

# The three seeds of a public record, and what its authors say of them; those of one before it.
RECORD = (1.09269834, 1.09269085, 1.09194120)
EARLIER = (1.11508120, 1.11437394, 1.11475014)
SP4096 = 2.301  # nats per token in one BPB

samples = st.lists(st.floats(0.5, 2.0), min_size=2, max_size=8)


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


# ---- a gain against a margin


def test_the_records_gain_over_the_earlier_one_is_the_known_one() -> None:
    result = welch(RECORD, EARLIER)
    assert result.gain == pytest.approx(0.0222916, abs=5e-8)
    assert (round(result.t, 2), round(result.df, 2)) == (68.85, 3.84)
    assert result.p == pytest.approx(2e-7, rel=0.5)


@pytest.mark.parametrize(("ratio", "t"), [(SP4096, 62.1), (None, 46.6)])
def test_the_records_gain_is_known_against_both_readings_of_the_margin(
    ratio: float | None, t: float
) -> None:
    margin = bpb_of_nats(0.005, "token" if ratio else "byte", ratio)
    assert round(welch(RECORD, EARLIER, margin=margin).t, 1) == t


@given(samples, samples, st.floats(-0.1, 0.1), st.floats(0.001, 0.4))
def test_welch_agrees_with_scipy(
    candidate: list[float], baseline: list[float], margin: float, alpha: float
) -> None:
    assume(min(np.std(candidate), np.std(baseline)) > 1e-6)
    result = welch(candidate, baseline, margin=margin, alpha=alpha)
    shifted = [value + margin for value in candidate]
    expected = scipy.stats.ttest_ind(baseline, shifted, equal_var=False, alternative="greater")
    assert result.t == pytest.approx(expected.statistic, rel=1e-6, abs=1e-6)
    assert result.df == pytest.approx(expected.df, rel=1e-6)
    assert result.p == pytest.approx(expected.pvalue, rel=1e-5, abs=1e-12)
    low = expected.confidence_interval(1 - alpha).low + margin
    assert result.lower_bound == pytest.approx(low, rel=1e-6, abs=1e-6)
    if abs(result.p - alpha) > 1e-9:
        assert (result.lower_bound > margin) == (result.p < alpha)


@given(st.lists(st.tuples(st.floats(0.5, 2.0), st.floats(0.5, 2.0)), min_size=2, max_size=8))
def test_the_paired_test_agrees_with_scipy(pairs: list[tuple[float, float]]) -> None:
    candidate, baseline = map(list, zip(*pairs, strict=True))
    gains = np.array(baseline) - candidate
    assume(np.std(gains) > 1e-6)
    result = paired(candidate, baseline, margin=0.01)
    expected = scipy.stats.ttest_1samp(gains, 0.01, alternative="greater")
    assert result.t == pytest.approx(expected.statistic, rel=1e-6, abs=1e-6)
    assert (result.df, result.p) == pytest.approx((expected.df, expected.pvalue), rel=1e-5)
    low = expected.confidence_interval(0.99).low
    assert result.lower_bound == pytest.approx(low, rel=1e-6, abs=1e-6)


def test_seeds_in_common_take_their_share_of_the_noise_away() -> None:
    baseline = [1.10, 1.12, 1.14]
    candidate = [1.099, 1.1188, 1.1391]
    assert paired(candidate, baseline).p < 0.01 < welch(candidate, baseline).p


def test_a_gain_is_positive_where_the_candidate_is_lower() -> None:
    assert welch(EARLIER, RECORD).gain == -welch(RECORD, EARLIER).gain < 0
    assert paired(EARLIER, RECORD).gain < 0


def test_no_spread_in_one_sample_leaves_the_others_degrees_of_freedom() -> None:
    result = welch([1.0, 1.0, 1.0], [1.1, 1.2, 1.3, 1.4])
    assert result.df == 3
    assert result.standard_error == pytest.approx(scipy.stats.sem([1.1, 1.2, 1.3, 1.4]))


def test_spreads_whose_squares_vanish_are_taken_as_they_are() -> None:
    tiny = welch([0.0, 1e-100], [0.0, 1e-100, 2e-100])
    assert tiny.df == pytest.approx(welch([0.0, 1.0], [0.0, 1.0, 2.0]).df)


@pytest.mark.parametrize("test", [welch, paired])
@pytest.mark.parametrize(
    ("candidate", "baseline", "message"),
    [
        ([1.0], [1.1], "at least two values a sample, found 1"),
        ([], [], "at least two values a sample, found 0"),
        ([1.0, 1.0], [1.5, 1.5], "any spread|have no spread"),
        ([1.0, math.nan], [1.1, 1.2], "must be finite"),
        ([1.0, 1.1], [1.1, math.inf], "must be finite"),
    ],
)
def test_samples_that_show_nothing_are_refused(
    test: Callable[[list[float], list[float]], object],
    candidate: list[float],
    baseline: list[float],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        test(candidate, baseline)


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="longer"):
        paired([1.0, 1.1], [1.2, 1.3, 1.4])


# ---- units


@pytest.mark.parametrize(("ratio", "bpb"), [(1.6885, 0.00296), (2.301, 0.00217), (2.5831, 0.00194)])
def test_nats_per_token_depend_on_the_tokenizer(ratio: float, bpb: float) -> None:
    assert round(bpb_of_nats(0.005, "token", ratio), 5) == bpb


def test_nats_per_byte_do_not() -> None:
    assert round(bpb_of_nats(0.005, "byte"), 5) == 0.00721


def test_nats_per_token_of_no_tokenizer_are_refused() -> None:
    with pytest.raises(ValueError, match="nats_per_bpb"):
        bpb_of_nats(0.005, "token")
