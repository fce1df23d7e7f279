"""Whether one record beats another: the known case, the refusals, and what is said beside."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from sweeper.errors import UserError
from sweeper.evidence.compare import (
    Outcome,
    Verdict,
    as_json,
    as_text,
    compare_records,
    ratio_of,
)
from sweeper.evidence.read import read_record
from sweeper.evidence.record import LoggedRun, Record
from sweeper.logfacts import LogFacts
from sweeper.scores import Kind
from tests.sweeper.evidence.folders import EARLIER, RECORD, SCORES, read_real, write_folder


def record_of(
    scores: Mapping[int, float], *, ratio: float = 2.3007, metric: str = "sliding", **facts: Any
) -> Record:
    """A record without any file."""
    runs = [
        LoggedRun(
            path=Path(f"train_seed{seed}.log"),
            seed=seed,
            val_bpb=score,
            val_loss=ratio * score,
            metric=metric,
            facts=LogFacts(**facts),
        )
        for seed, score in scores.items()
    ]
    return Record(path=Path("record"), name="record", runs=tuple(runs))


def spread(
    mean: float, std: float = 0.0005, seeds: tuple[int, ...] = (1, 2, 3)
) -> dict[int, float]:
    """Scores with about this mean and std."""
    draws = random.Random(str(mean))
    return {seed: draws.gauss(mean, std) for seed in seeds}


BETTER, WORSE = record_of(spread(1.08)), record_of(spread(1.10))


# ---- the known case


@pytest.fixture(scope="module")
def known() -> Verdict:
    return compare_records(read_real(RECORD), read_real(EARLIER))


def test_the_known_case_is_as_it_is_known(known: Verdict) -> None:
    assert known.zero.t == pytest.approx(68.85, abs=0.005)
    assert known.zero.df == pytest.approx(3.84, abs=0.005)
    assert known.zero.p == pytest.approx(2e-7, abs=0.5e-7)
    assert known.tests["token"].t == pytest.approx(62.1, abs=0.05)
    assert known.tests["byte"].t == pytest.approx(46.6, abs=0.05)
    assert known.tests["token"].margin == pytest.approx(0.00217, abs=5e-6)
    assert known.tests["byte"].margin == pytest.approx(0.00721, abs=5e-6)
    assert known.outcome is Outcome.BEYOND
    assert known.paired is None  # other tokenizers, so other data


def test_of_different_tokenizers_it_is_said(known: Verdict) -> None:
    assert [w for w in known.warnings if "different tokenizers (2.3007 and 1.6885" in w]


def test_the_known_case_for_programs(known: Verdict) -> None:
    table = json.loads(json.dumps(as_json(known)))
    assert {
        *("gain_bpb", "margin_bpb", "t", "df", "p", "lower_bound_bpb", "basis", "alpha"),
        *("verdict", "warnings"),
    } <= table.keys()
    assert table["gain_bpb"] == pytest.approx(1.11473509 - 1.09244346, abs=1e-8)
    assert table["verdict"] == "beyond_margin"
    assert table["basis"] == "token"
    assert table["bases"]["byte"]["t"] == pytest.approx(46.6, abs=0.05)
    assert table["candidate"]["val_bpb_std"] == pytest.approx(0.000435, abs=1e-6)


def test_the_known_case_for_people(known: Verdict) -> None:
    text = as_text(known)
    for part in ("68.85", "3.84", "62.14", "46.57", "<- decides", "+0.022292", "is shown"):
        assert part in text, part
    assert max(map(len, text.splitlines())) < 200


# ---- the test itself


def test_it_is_welchs_test_of_the_shifted_samples() -> None:
    verdict = compare_records(BETTER, WORSE, basis="byte")
    margin = 0.005 / math.log(2)
    theirs = stats.ttest_ind(
        [score - margin for score in WORSE.scores],
        BETTER.scores,
        equal_var=False,
        alternative="greater",
    )
    assert verdict.test.t == pytest.approx(theirs.statistic, rel=1e-9)
    assert verdict.test.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert verdict.test.df == pytest.approx(theirs.df, rel=1e-9)


def test_the_two_readings_of_the_margin_can_decide_differently() -> None:
    candidate = record_of(spread(1.0950, 0.0002))
    token, byte = (compare_records(candidate, WORSE, basis=b) for b in ("token", "byte"))
    assert (token.outcome, byte.outcome) == (Outcome.BEYOND, Outcome.NOT_SHOWN)
    assert token.tests == byte.tests
    assert "is not shown" in as_text(byte)


def test_a_gain_within_the_margin_is_not_shown_though_it_is_no_chance() -> None:
    verdict = compare_records(record_of(spread(1.0985, 0.0001)), record_of(spread(1.1, 0.0001)))
    assert verdict.zero.p < 0.01 < verdict.test.p
    assert verdict.outcome is Outcome.NOT_SHOWN


def test_the_lower_bound_is_beyond_the_margin_exactly_when_it_is_shown() -> None:
    for mean in (1.08, 1.096, 1.0975, 1.0977, 1.0979, 1.1):
        verdict = compare_records(record_of(spread(mean)), WORSE)
        assert (verdict.test.lower_bound > verdict.test.margin) == verdict.beyond


def test_without_a_margin_no_ratio_is_needed() -> None:
    candidate = record_of(spread(1.08), ratio=0.0)
    verdict = compare_records(candidate, WORSE, margin_nats=0.0)
    assert verdict.test == verdict.zero
    assert verdict.nats_per_bpb is None


def test_pairs_are_of_the_same_seeds_and_data() -> None:
    verdict = compare_records(BETTER, WORSE)
    gains = [b - c for c, b in zip(BETTER.scores, WORSE.scores, strict=True)]
    error = statistics.stdev(gains) / math.sqrt(3)
    assert verdict.paired is not None
    assert verdict.paired.t == pytest.approx(
        (statistics.fmean(gains) - verdict.test.margin) / error
    )
    assert verdict.paired.df == 2
    assert "paired by seed" in as_text(verdict)
    for other in (
        record_of(spread(1.1, seeds=(1, 2, 4))),
        record_of(spread(1.1, seeds=(1, 2, 3, 4))),
        record_of(spread(1.1), train_shards=10),
    ):
        assert compare_records(record_of(spread(1.08), train_shards=80), other).paired is None


# ---- refusals


def test_one_run_is_no_sample() -> None:
    one = record_of({1: 1.1})
    for pair in ((one, WORSE), (BETTER, one)):
        with pytest.raises(UserError, match="at least 2"):
            compare_records(*pair)


def test_runs_that_do_not_count_are_named_where_too_few_are_left(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "record")
    for seed in (42, 314):
        (folder / f"train_seed{seed}.log").write_text("Hyperparameters:\n  seed: 1\n")
    with pytest.raises(UserError, match=r"train_seed314.log: no final score"):
        compare_records(read_record(folder), WORSE)


def test_no_spread_in_either_is_refused_and_in_one_is_said() -> None:
    flat = record_of(dict.fromkeys((1, 2, 3), 1.08))
    with pytest.raises(UserError, match="spread"):
        compare_records(flat, record_of(dict.fromkeys((4, 5), 1.1)))
    assert [w for w in compare_records(flat, WORSE).warnings if "no spread" in w]


def test_scores_of_different_kinds_have_no_mean() -> None:
    runs = (*record_of({1: 1.1}).runs, *record_of({2: 1.0}, metric="ttt").runs)
    mixed = Record(path=Path("mixed"), name="mixed", runs=runs)
    with pytest.raises(UserError, match="sliding and ttt"):
        compare_records(mixed, WORSE)


def test_a_subset_is_not_compared_with_the_whole() -> None:
    part = record_of(spread(1.08), metric="sliding-subset")
    with pytest.raises(UserError, match="EVAL_SUBSET_TOKENS"):
        compare_records(part, WORSE)
    assert compare_records(part, record_of(spread(1.1), metric="sliding-subset")).beyond


def test_other_parts_of_one_set_are_not_compared() -> None:
    part = record_of(spread(1.08), val_tokens=1_000_000)
    whole = record_of(spread(1.1), val_tokens=45_508_608)
    with pytest.raises(UserError, match=r"1,000,000 validation tokens, .* 45,508,608"):
        compare_records(part, whole)
    cut = record_of(spread(1.08), val_tokens=45_516_800)
    assert compare_records(cut, whole).beyond


def test_a_loss_that_is_no_number_is_none() -> None:
    with pytest.raises(UserError, match="--basis byte"):
        compare_records(record_of(spread(1.08), ratio=float("nan")), WORSE)


def test_nats_per_token_need_a_loss() -> None:
    with pytest.raises(UserError, match="--basis byte"):
        compare_records(record_of(spread(1.08), ratio=0.0), WORSE)
    verdict = compare_records(record_of(spread(1.08), ratio=0.0), WORSE, basis="byte")
    assert verdict.tests.keys() == {"byte"}


# ---- warnings


def warnings(candidate: Record, baseline: Record = WORSE) -> str:
    return "\n".join(compare_records(candidate, baseline).warnings)


def test_nothing_is_said_of_two_right_records() -> None:
    assert warnings(BETTER) == ""


def test_what_is_odd_about_a_record_is_said(tmp_path: Path) -> None:
    twice = Record(path=Path("r"), name="r", runs=(*BETTER.runs, BETTER.runs[0]))
    assert "a seed counts more than once" in warnings(twice)
    assert "2 distinct seeds" in warnings(record_of(spread(1.08, seeds=(1, 2))))
    assert "different metrics: ttt against sliding" in warnings(
        record_of(spread(1.08), metric="ttt")
    )
    assert "different numbers of validation tokens" in warnings(
        record_of(spread(1.08), val_tokens=45_508_608),
        record_of(spread(1.1), val_tokens=45_516_800),
    )
    tokens = (*record_of(spread(1.08), val_tokens=100).runs[:2], *record_of({3: 1.08}).runs)
    mixed = Record(
        path=Path("r"), name="r", runs=(*tokens, *record_of({4: 1.1}, val_tokens=9).runs)
    )
    assert "differ in their val tokens: 9, 100" in warnings(mixed)
    other = (*BETTER.runs, *record_of({4: 1.08}, ratio=1.69).runs)
    assert "differ in their tokenizers" in warnings(Record(path=Path("r"), name="r", runs=other))
    folder = write_folder(tmp_path / "record")
    path = folder / "train_seed42.log"
    path.write_text(path.read_text().replace("num_layers: 11", "num_layers: 9"))
    (folder / "train_seed7.log").write_text("Hyperparameters:\n  seed: 7\n\n")
    (folder / "twin.log").write_text((folder / "train_seed999.log").read_text())
    twin = (folder / "train_seed314.log").read_text().replace("seed: 314", "seed: 5")
    (folder / "train_seed5.log").write_text(twin)
    said = warnings(read_record(folder))
    assert "twin.log" not in said  # the same run under the same seed
    assert "a copy of train_seed" in said  # under another one
    assert "differ in their settings: num_layers" in said
    assert "train_seed7.log (no final score in the log)" in said


def test_the_ratio_is_that_of_the_scores() -> None:
    assert ratio_of(BETTER) == pytest.approx(2.3007)
    assert ratio_of(record_of({})) is None


def test_a_metric_may_be_chosen_for_both(tmp_path: Path) -> None:
    record = read_record(write_folder(tmp_path / "record"), metric=Kind.QUANT)
    worse = record_of({seed: score + 0.02 for seed, score in SCORES.items()}, metric="quant")
    verdict = compare_records(record, worse, margin_nats=0)
    assert verdict.test.gain == pytest.approx(0.005)
