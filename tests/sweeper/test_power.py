"""Power: against simulated tests, against another integral, and on the command line."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from sweeper.cli import main
from sweeper.power import Design, detectable, plan, power, seeds_needed

SIGMA = 0.0007
DRAWS = 100_000
PLAN = ["power", "--sigma", "0.0007", "--delta", "0.003", "--alpha", "0.01"]


def within(simulated: float, exact: float) -> bool:
    """Whether a share of DRAWS is what chance makes of its expectation, by five sigma."""
    return abs(simulated - exact) < 5 * math.sqrt(exact * (1 - exact) / DRAWS) + 1e-9


# ---- the probability


@pytest.mark.parametrize(("n", "m"), [(2, None), (3, None), (6, None), (3, 8), (10, 2)])
@pytest.mark.parametrize("gain", [0.001, 0.003])
def test_welchs_test_passes_as_often_as_is_said(n: int, m: int | None, gain: float) -> None:
    random = np.random.default_rng(n)
    candidate = random.normal(-gain, SIGMA, (DRAWS, n))
    baseline = random.normal(0.0, SIGMA, (DRAWS, m or n))
    done = scipy.stats.ttest_ind(
        baseline, candidate + 0.001, axis=1, equal_var=False, alternative="greater"
    )
    design = Design(sigma=SIGMA, margin=0.001, baseline_n=m)
    assert within(float(np.mean(done.pvalue < 0.01)), power(design, n, gain))


@pytest.mark.parametrize("n", [2, 5])
def test_the_paired_test_passes_as_often_as_is_said(n: int) -> None:
    gains = np.random.default_rng(n).normal(0.002, SIGMA, (DRAWS, n))
    done = scipy.stats.ttest_1samp(gains, 0.0005, axis=1, alternative="greater")
    design = Design(sigma=SIGMA, margin=0.0005, alpha=0.05, paired=True)
    assert within(float(np.mean(done.pvalue < 0.05)), power(design, n, 0.002))


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 3), (4, 12), (20, 3)])
def test_an_integral_over_the_ratio_of_variances_says_the_same(n: int, m: int) -> None:
    """The ratio is F-distributed; adaptive quadrature in it shares no nodes with ours."""
    gain, df = 4.0, n + m - 2

    def passed(ratio: float) -> float:
        a, b = ratio / n, 1 / m
        welch_df = (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (m - 1))
        pooled = (ratio * (n - 1) + (m - 1)) / df
        bound = scipy.stats.t.isf(0.01, welch_df) * math.sqrt((a + b) / pooled / (1 / n + 1 / m))
        chance = scipy.stats.nct.sf(bound, df, gain / math.sqrt(1 / n + 1 / m))
        return float(chance * scipy.stats.f.pdf(ratio, n - 1, m - 1))

    pieces = [scipy.integrate.quad(passed, *ends)[0] for ends in ((0, 1), (1, np.inf))]
    design = Design(sigma=1.0, baseline_n=m)
    assert power(design, n, gain) == pytest.approx(sum(pieces), abs=1e-7)


def test_welchs_test_is_strict_with_few_seeds_and_lax_with_unequal_ones() -> None:
    """At the margin itself it should pass once in a hundred."""
    equal = [power(Design(sigma=SIGMA), n, 0.0) for n in (2, 3, 10)]
    assert equal == pytest.approx([0.0038, 0.0060, 0.0095], abs=5e-5)
    assert power(Design(sigma=SIGMA, baseline_n=10), 2, 0.0) == pytest.approx(0.0313, abs=5e-5)


def test_units_and_a_margin_shift_nothing_else() -> None:
    one = power(Design(sigma=1.0), 4, 3.0)
    assert power(Design(sigma=1e-3, margin=0.005), 4, 0.008) == pytest.approx(one, rel=1e-9)


def test_a_gain_beyond_doubt_is_certain_and_no_more() -> None:
    assert 1 - 1e-9 < power(Design(sigma=SIGMA), 5, 1.0) <= 1.0


# ---- the ways back


@pytest.mark.parametrize(
    "design",
    [
        Design(sigma=SIGMA),
        Design(sigma=SIGMA, margin=0.00217, baseline_n=3),
        Design(sigma=SIGMA, margin=-0.001, paired=True, alpha=0.0001),
        Design(sigma=1.0, alpha=0.5),
    ],
)
@pytest.mark.parametrize("n", [2, 3, 9])
def test_the_smallest_gain_has_just_the_power_asked_for(design: Design, n: int) -> None:
    gain = detectable(design, n, 0.9)
    assert gain > design.margin
    assert power(design, n, gain) == pytest.approx(0.9, abs=1e-5)


def test_what_chance_alone_does_needs_no_gain() -> None:
    design = Design(sigma=SIGMA, margin=0.001, baseline_n=10)
    assert detectable(design, 2, 0.02) == 0.001  # false claims: 0.031


@pytest.mark.parametrize(
    ("design", "gain", "needed"),
    [
        (Design(sigma=SIGMA), 0.003, 4),
        (Design(sigma=SIGMA, margin=0.00217), 0.003, 16),
        (Design(sigma=SIGMA, baseline_n=3), 0.003, 4),
        (Design(sigma=SIGMA, paired=True), 0.0005, 23),
        (Design(sigma=SIGMA, margin=0.003), 0.003, None),
        (Design(sigma=SIGMA, baseline_n=2), 0.003, None),
    ],
)
def test_the_seeds_needed_are_the_fewest(design: Design, gain: float, needed: int | None) -> None:
    assert seeds_needed(design, gain) == needed
    enough = [power(design, n, gain) >= 0.8 for n in range(2, (needed or 20) + 1)]
    assert enough == [False] * (len(enough) - 1) + [needed is not None]


def test_more_seeds_beside_few_of_the_baseline_can_show_less() -> None:
    design = Design(sigma=SIGMA, baseline_n=3)
    assert power(design, 5, 0.003) > power(design, 10, 0.003) + 0.02


def test_a_plan_goes_on_until_the_power_is_there() -> None:
    planned = plan(Design(sigma=SIGMA, paired=True), 0.0005)
    assert [row.n for row in planned.rows] == [*range(2, 11), 15, 22, 23]
    assert planned.rows[-1].power >= 0.8 > planned.rows[-2].power


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sigma": 0.0}, "sigma must be above 0"),
        ({"sigma": math.nan}, "sigma must be above 0"),
        ({"sigma": 1.0, "alpha": 0.6}, "alpha must be from"),
        ({"sigma": 1.0, "alpha": 1e-5}, "alpha must be from"),
        ({"sigma": 1.0, "margin": math.inf}, "the margin must be finite"),
        ({"sigma": 1.0, "baseline_n": 1}, "the baseline has from 2 to 200 seeds, not 1"),
        ({"sigma": 1.0, "baseline_n": 3, "paired": True}, "paired seeds are as many"),
    ],
)
def test_a_design_out_of_range_is_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Design(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(("delta", "asked"), [(math.nan, 0.8), (0.003, 1.0), (0.003, 0.01)])
def test_a_plan_out_of_range_is_refused(delta: float, asked: float) -> None:
    with pytest.raises(ValueError, match=r"delta must be finite|power must be between"):
        plan(Design(sigma=SIGMA), delta, asked)


# ---- the command


def test_the_table_ends_with_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(PLAN) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Welch's test of 'the gain is at most 0 BPB', alpha 0.01" in lines[0]
    assert lines[4].split() == ["2", "0.129", "0.0038", "0.01621", "BPB"]
    assert lines[-1] == "4 seeds of each are needed for power 0.8"


@pytest.mark.parametrize(
    ("arguments", "ends"),
    [
        (["--seeds-baseline", "2"], "20 seeds beside the baseline's 2 are too few for power 0.8"),
        (
            ["--paired", "--margin", "0.003"],
            "no number of seeds shows a gain that is within the margin",
        ),
    ],
)
def test_what_cannot_be_shown_is_said(
    capsys: pytest.CaptureFixture[str], arguments: list[str], ends: str
) -> None:
    assert main([*PLAN, *arguments]) == 0
    assert ends in capsys.readouterr().out


def test_false_claims_beyond_alpha_are_pointed_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PLAN, "--seeds-baseline", "3"]) == 0
    assert "false claims exceed alpha" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("basis", "margin"),
    [(["token", "--nats-per-bpb", "2.301"], 0.002173), (["byte"], 0.0072135)],
)
def test_a_margin_in_nats_is_said_in_both_units(
    capsys: pytest.CaptureFixture[str], basis: list[str], margin: float
) -> None:
    arguments = ["--paired", "--margin-nats", "0.005", "--basis", *basis]
    assert main([*PLAN, *arguments]) == 0
    assert f"{margin:.5f} BPB (0.005 nats per {basis[0]})" in capsys.readouterr().out
    assert main([*PLAN, *arguments, "--format", "json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["margin_bpb"] == pytest.approx(margin, rel=1e-4)
    assert (planned["margin_nats"], planned["basis"]) == (0.005, basis[0])


def test_programs_get_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PLAN, "--paired", "--power", "0.9", "--format", "json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    rows = planned.pop("by_seeds")
    assert planned == {
        "test": "paired",
        "sigma_bpb": 0.0007,
        "delta_bpb": 0.003,
        "margin_bpb": 0.0,
        "margin_nats": None,
        "basis": None,
        "alpha": 0.01,
        "power": 0.9,
        "seeds_baseline": None,
        "seeds_needed": 4,
    }
    assert [row["seeds"] for row in rows] == list(range(2, 11))
    assert rows[2]["power"] >= 0.9 > rows[1]["power"]
    assert rows[0].keys() == {"seeds", "power", "false_claims", "detectable_bpb"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--margin-nats", "0.005"], "add --basis token or --basis byte"),
        (["--margin-nats", "0.005", "--basis", "token"], "needs the tokenizer's --nats-per-bpb"),
        (["--margin-nats", "1", "--basis", "byte", "--nats-per-bpb", "2"], "byte needs none"),
        (["--basis", "byte"], "are for --margin-nats"),
        (["--nats-per-bpb", "2"], "are for --margin-nats"),
        (["--seeds-baseline", "1"], "from 2 to 200 seeds"),
        (["--alpha", "0.9"], "alpha must be from"),
        (["--power", "1"], "power must be between"),
    ],
)
def test_wrong_use_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([*PLAN, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("bad", ["nan", "inf", "much"])
def test_what_is_no_number_is_named(capsys: pytest.CaptureFixture[str], bad: str) -> None:
    with pytest.raises(SystemExit):
        main(["power", "--sigma", bad, "--delta", "1"])
    assert f"--sigma: invalid number value: '{bad}'" in capsys.readouterr().err
