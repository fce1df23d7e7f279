"""A good record, doctored in each way that was seen: the rule that is meant finds it, alone."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeper.evidence.rules import Status
from tests.sweeper.evidence.doctored import (
    ALL,
    CODE_BYTES,
    ONE,
    claimed,
    doctor,
    good_folder,
    judge,
    rewrite,
    rules,
    seed_claim,
    text_of,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good record to doctor."""
    return good_folder(tmp_path)


# ---- one folder for each failure


JSON_CASES: dict[str, tuple[Callable[[dict[str, Any]], None], set[str], str]] = {
    "a digit of the mean": (claimed("val_bpb", 1.09244366), {"headline"}, "(+0.00000020)"),
    "a digit of a seed": (
        seed_claim("42", "val_bpb", 1.09269844),
        {"seed-scores"},
        "its log says 1.09269834",
    ),
    "another seed's score": (
        seed_claim("42", "val_bpb", 1.09194120),
        {"seed-scores"},
        "it is the score of train_seed999.log",
    ),
    "the best": (claimed("val_bpb", 1.09194120), {"headline"}, "it is the best of 3 runs"),
    "before quantisation": (
        claimed("val_bpb", 1.09735976),
        {"headline"},
        "the score before quantisation",
    ),
    "population std": (claimed("val_bpb_std", 0.00035517), {"spread"}, "the population's"),
    "neither std": (claimed("val_bpb_std", 0.00041), {"spread"}, "it is neither"),
    "weights only": (
        claimed("artifact_bytes_max", 15_898_507),
        {"bytes-claimed"},
        "those of the model alone",
    ),
    "weights only, of a seed": (
        seed_claim("42", "artifact_bytes", 15_896_402),
        {"bytes-claimed"},
        "its log's total is 15,987,206",
    ),
    "steps of another run": (seed_claim("42", "steps", 4000), {"claimed-runs"}, "says 5410"),
    "seeds without logs": (
        claimed("seeds", [42, 314, 999, 7, 8]),
        {"selection"},
        "claimed seeds 7, 8",
    ),
    "a mean of more": (
        claimed("blurb", "A 5-seed mean of 1.0924."),
        {"selection"},
        "a mean of 5 seeds",
    ),
}


@pytest.mark.parametrize("case", JSON_CASES)
def test_a_wrong_claim(folder: Path, case: str) -> None:
    change, expected, words = JSON_CASES[case]
    rewrite(folder, change)
    found = judge(folder)
    assert rules(found) == expected
    assert words in text_of(found[next(iter(expected))])


LOG_CASES: dict[str, tuple[str, list[tuple[str, str]], set[str], str]] = {
    "evaluation": (
        ONE,
        [("eval_time:75810ms", "eval_time:733000ms")],
        {"eval-time"},
        "141.0 s over",
    ),
    "training": (
        ONE,
        [("train_time: 590078ms", "train_time: 601500ms")],
        {"train-time"},
        "1.500 s over",
    ),
    "training by far": (
        ONE,
        [("train_time: 590078ms", "train_time: 2400000ms")],
        {"train-time", "claimed-runs"},  # the time of a step is not the claimed one, either
        "",
    ),
    "calibration": (
        ONE,
        [("Hessians in 9.8s", "Hessians in 14.0s")],
        {"calibration-time"},
        "4.078",
    ),
    "shards": (ALL, [("train_shards: 26", "train_shards: 1499")], {"train-shards"}, "1499"),
    "doubled path": (
        ALL,
        [("data/datasets/fineweb10B_sp4096/fineweb_train", "data/datasets/datasets/fineweb_train")],
        {"data-paths"},
        "datasets/datasets",
    ),
    "validation as training": (
        ALL,
        [("sp4096/fineweb_train_*.bin", "sp4096/fineweb_val_*.bin")],
        {"data-paths"},
        "trains on what it is scored on",
    ),
    "a part of validation": (
        ALL,
        [("val_tokens: 45516800", "val_tokens: 9662464")],
        {"val-tokens"},
        "not the whole of it",
    ),
    "one on another set": (
        ONE,
        [("val_tokens: 45516800", "val_tokens: 45508608")],
        {"val-tokens", "byte-count"},
        "",
    ),
    "configuration": (
        ONE,
        [("matrix_lr: 0.02\n", "matrix_lr: 0.03\n")],
        {"one-configuration"},
        "matrix_lr",
    ),
    "sum of bytes": (
        ONE,
        [("model int6+brotli: 15896402", "model int6+brotli: 15890000")],
        {"bytes-add-up"},
        "+6,402 bytes",
    ),
}


@pytest.mark.parametrize("case", LOG_CASES)
def test_a_log_that_breaks_a_rule(folder: Path, case: str) -> None:
    pattern, changes, expected, words = LOG_CASES[case]
    for old, new in changes:
        doctor(folder, pattern, old, new)
    found = judge(folder)
    assert rules(found) == expected
    assert words in text_of(found[next(iter(expected))])


def test_over_the_budget_by_a_seed_while_the_claim_is_of_weights(folder: Path) -> None:
    doctor(folder, ONE, "15896402 bytes", "15964159 bytes")
    doctor(folder, ONE, "15987206 bytes", "16054963 bytes")
    rewrite(folder, seed_claim("42", "artifact_bytes", 15_964_159))
    rewrite(folder, claimed("artifact_bytes_max", 15_964_159))
    found = judge(folder)
    assert rules(found) == {"artifact-bytes", "bytes-claimed"}
    assert "54,963 over what is allowed" in text_of(found["artifact-bytes"])
    assert "16,054,963" in text_of(found["bytes-claimed"])


def test_exactly_the_budget_is_over_it(folder: Path) -> None:
    doctor(folder, ONE, "15896402 bytes", f"{16_000_000 - CODE_BYTES} bytes")
    doctor(folder, ONE, "15987206 bytes", "16000000 bytes")
    rewrite(folder, seed_claim("42", "artifact_bytes", 16_000_000))
    rewrite(folder, claimed("artifact_bytes_max", 16_000_000))
    assert rules(judge(folder)) == {"artifact-bytes"}


@pytest.mark.parametrize("factor", [157.3 / 151.08, 155.8 / 151.08])
def test_a_wrong_byte_count(folder: Path, factor: float) -> None:
    """More bytes than there are make every score better by the same factor."""

    def scaled(match: re.Match[str]) -> str:
        return f"{match[1]}{float(match[2]) / factor:.{len(match[2].partition('.')[2])}f}"

    def change(fields: dict[str, Any]) -> None:
        scores = [fields["seed_results"][seed] for seed in ("42", "314", "999")]
        for each in scores:
            each["val_bpb"] = round(each["val_bpb"] / factor, 8)
        fields["val_bpb"] = round(sum(each["val_bpb"] for each in scores) / 3, 8)
        del fields["val_bpb_std"]

    for path in folder.glob(ALL):
        path.write_text(re.sub(r"(val_bpb: ?)(\d\.\d+)", scaled, path.read_text()))
    (folder / "README.md").write_text("torchrun\n\n| a |\n")
    rewrite(folder, change)
    found = judge(folder)
    assert rules(found) == {"byte-count"}
    assert f"{int(151.0775 * factor)}." in text_of(found["byte-count"])


def test_a_log_of_a_seed_that_is_not_claimed(folder: Path) -> None:
    doctor(folder, ONE, "  seed: 42\n", "  seed: 43\n")
    found = judge(folder)
    # It does not count, so the mean and the spread of what is left are others.
    assert rules(found) == {"seed-names", "seeds-enough", "selection", "headline", "spread"}
    assert "seed 42 by its name, 43 in the log" in text_of(found["seed-names"])


def test_swapped_logs(folder: Path) -> None:
    (folder / ONE).rename(folder / "kept")
    (folder / "train_seed314.log").rename(folder / ONE)
    (folder / "kept").rename(folder / "train_seed314.log")
    found = judge(folder)
    assert rules(found) == {"seed-names"}
    assert "seed 314 by its name, 42 in the log" in text_of(found["seed-names"])


def test_a_seed_that_counts_twice(folder: Path) -> None:
    doctor(folder, "train_seed314.log", "  seed: 314\n", "  seed: 42\n")
    (folder / "again").mkdir()
    (folder / "train_seed314.log").rename(folder / "again" / ONE)
    rewrite(folder, lambda fields: fields.pop("seed_results"))
    rewrite(folder, claimed("seeds", [42, 999]))
    found = judge(folder)
    assert rules(found) >= {"seeds-distinct", "seeds-enough"}
    assert "seed 42, which" in text_of(found["seeds-distinct"])
    assert rules(found) <= {"seeds-distinct", "seeds-enough", "headline", "spread"}


def test_a_seed_whose_log_is_missing(folder: Path) -> None:
    (folder / "train_seed999.log").unlink()
    found = judge(folder)
    # Without it the mean and the spread of what is left are others, too.
    assert rules(found) == {"selection", "seeds-enough", "headline", "spread"}
    assert "2 different seeds (42, 314): 3 are needed" in text_of(found["seeds-enough"])
    assert "claimed seeds 999" in text_of(found["selection"])


def test_a_run_that_is_left_out(folder: Path) -> None:
    text = (folder / ONE).read_text().replace("seed: 42", "seed: 7").replace("1.09269834", "1.0961")
    (folder / "train_seed7.log").write_text(text.replace("590078ms", "590011ms"))
    found = judge(folder)
    assert rules(found) == set()
    assert rules(found, Status.WARN) == {"selection"}
    assert "seed 7, 1.09610, does not count" in text_of(found["selection"])


def test_a_log_under_a_second_name(folder: Path) -> None:
    shutil.copy(folder / ONE, folder / "train_seed7.log")
    assert rules(judge(folder)) == {"copies"}


def test_logs_of_one_run_with_other_scores(folder: Path) -> None:
    text = (folder / ONE).read_text()
    for old, new in (
        ("  seed: 42\n", "  seed: 314\n"),
        ("1.09269834", "1.09269085"),
        ("2.51393353", "2.51391630"),
        ("15896402", "15898507"),
        ("15987206", "15989311"),
        ("590078ms", "590019ms"),
        ("5410", "5409"),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "train_seed314.log").write_text(text)
    found = judge(folder)
    assert rules(found) == {"plausible"}
    assert "the same milliseconds" in text_of(found["plausible"])


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_score_that_is_no_number(folder: Path, value: str) -> None:
    doctor(folder, ONE, "val_bpb:1.09269834", f"val_bpb:{value}")
    found = judge(folder)
    assert "log-complete" in rules(found) or "selection" in rules(found)
    assert "which is a bug" not in str(found)


def test_a_log_that_breaks_off(folder: Path) -> None:
    text = (folder / ONE).read_text()
    (folder / ONE).write_text(text[: text.index("stopping_early")])
    found = judge(folder)
    assert {"seeds-enough", "selection"} <= rules(found)
    assert "no final score" in text_of(found["selection"])
