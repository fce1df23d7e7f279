"""A README.md's own numbers against the logs, and a record's words against what counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeper.evidence.readme import read_readme
from sweeper.evidence.rules import Status
from tests.sweeper.evidence.doctored import (
    README,
    claimed,
    doctor,
    found_in,
    good_folder,
    judge,
    names,
    rewrite,
    rules,
    text_of,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good record to doctor."""
    return good_folder(tmp_path)


HEAD = "**val_bpb: 1.0924** (3-seed mean, std 0.0004)"
CHANGES: dict[str, tuple[str, str, str, str]] = {
    "a seed": ("| 42 | 1.09269834", "| 42 | 1.08269834", "seed-scores", "README.md:7"),
    "the mean": ("**1.09244346**", "**1.08244346**", "headline", "README.md:10"),
    "two numbers": (
        "| **1.09244346** |",
        "| **1.0874** | **1.08244346** |",
        "headline",
        "README.md:10",
    ),
    "the headline": (HEAD, "**1.0824 BPB** (3-seed mean)", "headline", "README.md:3"),
    "in other words": (HEAD, "**Val BPB: 1.0824**", "headline", "README.md:3"),
    "two digits": (HEAD, "**val_bpb = 1.08**", "headline", "README.md:3"),
    "its spread": ("std 0.0004", "std 0.0002", "spread", "README.md:3"),
    "around it": (
        HEAD,
        "**val_bpb 1.0924 ± 0.0021** (sample standard deviation)",
        "spread",
        "README.md:3",
    ),
    "a row of spread": (
        "| **Mean** |",
        "| Std | 0.00021 |\n| **Mean** |",
        "spread",
        "README.md:10",
    ),
    "of more seeds": ("(3-seed mean", "(7-seed mean", "selection", "README.md:3"),
    "the best of them": (
        "Reproduce",
        "We launched 7 seeds and report the best 3.\n\nReproduce",
        "selection",
        "README.md:12",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_readme_that_says_otherwise(folder: Path, case: str) -> None:
    old, new, rule, place = CHANGES[case]
    doctor(folder, "README.md", old, new)
    found = judge(folder)
    assert rules(found) == {rule}
    assert place in str(found[rule].evidence[0])
    assert found[rule].evidence[0].status is Status.FAIL


OTHERS = """
## Comparison

| seed | val_bpb | before |
| :-- | --: | --: |
| 42 | 1.1147 | 1.2 |
| mean | 1.1148 | 1.2 |

The record before had a 5-seed mean of 1.1147.
"""
WIDE = """# A record

val_bpb: 1.0924 (before: 1.1147 BPB)

| model | BPB |
| :-- | --: |
| PR 1019 | 1.1147 |
| ours | 1.0924 |

| Seed | Steps | Pre-quant BPB | Sliding BPB | Δ BPB | Artifact |
|------|-------|---------------|-------------|-------|----------|
| 42 | 5410 | 1.0974 | **1.0927** | -0.0220 | 15,987,206 |
| 314 | 5409 | 1.0974 | 1.0927 | -0.0220 | 15,989,311 |
| 999 | 5410 | 1.0966 | 1.0919 | -0.0228 | 15,988,159 |
| **Mean ± std** | | 1.0971 | **1.0924 ± 0.0004** | -0.0223 | |

Run: `torchrun --nproc_per_node=8 train_gpt.py`
"""


@pytest.mark.parametrize("text", [README + OTHERS, WIDE])
def test_other_records_numbers_are_not_held_against_it(folder: Path, text: str) -> None:
    (folder / "README.md").write_text(text)
    assert rules(judge(folder)) == set()


@pytest.mark.parametrize(
    "line",
    [
        "The previous record's val_bpb: 1.1147 (5-seed mean).",
        "PR #1019 had **1.1147 BPB**, a 5-seed mean.",
        "The baseline's val_bpb is 1.2244, the mean of 8 seeds.",
    ],
)
def test_a_standing_record_in_the_opening_is_not_this_one(folder: Path, line: str) -> None:
    (folder / "README.md").write_text(README.replace(HEAD, f"{line}\n\n**Score: 1.0924**"))
    found = judge(folder)
    assert rules(found) == set()
    # Nor does it hide the record's own mean on the same line.
    own = f"**val_bpb: 1.0824** (7-seed mean). {line}"
    (folder / "README.md").write_text(README.replace(HEAD, own))
    assert rules(judge(folder)) == {"headline", "selection"}


def test_words_of_a_standing_record_do_not_hide_a_wrong_mean(folder: Path) -> None:
    """What may be of either is to be looked at."""
    line = "Beats the baseline: **val_bpb 1.0824**, a 7-seed mean."
    (folder / "README.md").write_text(README.replace(HEAD, line))
    found = judge(folder)
    assert rules(found) == set()
    assert rules(found, Status.WARN) == {"headline", "selection"}


def test_the_column_is_found_beside_others(folder: Path) -> None:
    for old, new, rule in (
        ("**1.0927**", "**1.0917**", "seed-scores"),
        ("**1.0924 ± 0.0004**", "**1.0924 ± 0.0002**", "spread"),
        ("**1.0924 ± 0.0004**", "**1.0914 ± 0.0004**", "headline"),
        ("15,987,206", "15,896,402", "bytes-claimed"),  # of the model alone
    ):
        assert old in WIDE
        (folder / "README.md").write_text(WIDE.replace(old, new))
        assert rules(judge(folder)) == {rule}


def test_a_table_by_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(WIDE)
    assert read_readme(path, {7}).columns == ()
    (column,) = read_readme(path, {42}).columns
    assert column.name == "Sliding BPB"
    assert {seed: claim.text for seed, claim in column.seeds.items()} == {
        42: "1.0927",
        314: "1.0927",
        999: "1.0919",
    }
    assert [claim.text for claim in (*column.means, *column.stds)] == ["1.0924", "0.0004"]
    assert read_readme(tmp_path / "none", {42}).columns == ()


def test_what_is_left_to_fill_in(folder: Path) -> None:
    (folder / "README.md").write_text(README + "\nFILL IN: whose work this builds on.\n")
    finding = judge(folder)["reproduce"]
    assert finding.status is Status.WARN
    assert (finding.evidence[0].line, "whose work" in finding.evidence[0].text) == (14, True)


@pytest.mark.parametrize(
    "line",
    [
        "Single pass only: no two-pass rescoring, no multi-epoch TTT, no min-NLL selection.",
        "Adapted without multi-epoch TTT.",
    ],
)
def test_a_denial_is_no_hint(folder: Path, line: str) -> None:
    (folder / "README.md").write_text(f"{README}\n{line}\n")
    assert judge(folder)["technique"].status is Status.PASS


@pytest.mark.parametrize("line", ["top-p < 0.9 sampling", "dropout p < 0.1"])
def test_a_probability_is_no_test(folder: Path, line: str) -> None:
    (folder / "README.md").write_text(f"{README}\n\n\n{line}\n")
    assert judge(folder)["test-wording"].status is Status.PASS


# ---- submission.json in other words

CLAIMS: dict[str, tuple[dict[str, Any], str, str]] = {
    "by seed, in a list": (
        {"val_bpb_per_seed": [1.09269834, 1.05, 1.0919412]},
        "seed-scores",
        "1.05 claimed for 314",
    ),
    "by seed": (
        {"per_seed_results": {"42": 1.05, "314": 1.09269085, "999": 1.0919412}},
        "seed-scores",
        "1.05 claimed for 42",
    ),
    "std_dev": ({"std_dev": 0.00035517}, "spread", "the population's"),
    "val_std": ({"val_std": 0.0001}, "spread", "it is neither"),
    "total_bytes": ({"total_bytes": 15_898_507}, "bytes-claimed", "of the model alone"),
    "artifact_size": ({"artifact_size": 15.89}, "bytes-claimed", "(-99,311)"),
    "seconds of training": ({"training_time_seconds": 1800}, "train-time", "1200.000 s over"),
    "seconds of evaluation": ({"eval_time_seconds": 733}, "eval-time-claimed", "over the 600 s"),
    "number of seeds": ({"num_seeds": 7}, "selection", "3 logs count"),
    "best of more": ({"blurb": "The best 3 of 7 seeds."}, "selection", "best 3 of 7"),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_claims_under_other_names(folder: Path, case: str) -> None:
    fields, rule, words = CLAIMS[case]

    def change(there: dict[str, Any]) -> None:
        there["seeds"] = [42, 314, 999]
        for name in ("seed_results", "val_bpb_std", "artifact_bytes_max", "artifact_bytes_mean"):
            there.pop(name)
        there.update(fields)

    rewrite(folder, change)
    found = judge(folder)
    assert rules(found) == {rule}
    assert words in text_of(found[rule])


def test_a_field_that_is_not_read_is_named(folder: Path) -> None:
    def change(there: dict[str, Any]) -> None:
        for name in ("val_bpb", "val_bpb_std", "artifact_bytes_max", "seed_results"):
            there.pop(name)
        there.update(score_bpb=1.05, my_std=0.1, whole_bytes=15_000_000)

    rewrite(folder, change)
    (folder / "README.md").write_text("torchrun\n\n| a |\n")
    found = judge(folder)
    for rule, name in (
        ("headline", "score_bpb"),
        ("spread", "my_std"),
        ("bytes-claimed", "whole_bytes"),
    ):
        assert found[rule].status is Status.UNKNOWN
        assert f"not read: {name}" in text_of(found[rule])


@pytest.mark.parametrize(
    ("text", "status"),
    [("3.6e-04", "fail"), ("9e-3", "fail"), ("4.35e-04", "pass"), ("0.0004", "warn")],
)
def test_a_spread_by_its_digits(folder: Path, text: str, status: str) -> None:
    rewrite(folder, claimed("val_bpb_std", "HERE"))
    doctor(folder, "submission.json", '"HERE"', text)
    assert judge(folder)["spread"].status == status


def test_a_size_in_megabytes_is_rounded(folder: Path) -> None:
    rewrite(folder, claimed("artifact_bytes_max", 15.99))
    finding = judge(folder)["bytes-claimed"]
    assert finding.status is Status.WARN
    assert "15,990,000 bytes claimed" in text_of(finding)


@pytest.mark.parametrize(
    ("machine", "right"),
    [
        *(("8xH100 SXM", True), ("H100 x 8", True), ("8 H100 GPUs", True), ("8 × H100", True)),
        *(("NVIDIA H100 80GB HBM3 (8 GPUs)", True), ("1xH100", False), ("16xH100", False)),
        *(("8xH200", False), ("H100 x 80", False), ("18 H100 GPUs", False)),
    ],
)
def test_the_machine_in_all_its_forms(folder: Path, machine: str, right: bool) -> None:
    rewrite(folder, claimed("hardware", machine))
    assert (judge(folder)["hardware"].status is Status.PASS) is right


def test_real_claims_of_another_score_and_of_missing_logs() -> None:
    if not names():
        pytest.skip("reference data logs is not here")
    vector, ngram = (next(n for n in names() if n.startswith(p)) for p in ("pr1335__", "pr702__"))
    assert found_in(vector)["metric"].status is Status.FAIL
    assert "1.197130 is the score before quantisation" in text_of(found_in(vector)["metric"])
    selection = text_of(found_in(ngram)["selection"])
    assert "3 seeds are claimed (1, 2, 3), 1 log counts" in selection
